"""Train any Hugging Face model from a teacher's successive checkpoints: a transformers.Trainer that knows a schedule.

    trainer = ProgressiveDistillationTrainer(
        model=student, args=arguments, train_dataset=..., eval_dataset=..., data_collator=...,
        teacher="runs/PCFG_mlm/laptop", schedule=progressive([100, 200, 300], every=50), temperature=0,
    )
    trainer.train()

At every position that has a label, the student learns from the teacher checkpoint that the schedule names for the
step; the losses are those of common/losses.py. The head is computed at labelled positions only, where the model is
known to allow that. The loss is the mean over all labelled positions of the global batch, however that is cut into
gradient accumulation steps and processes.

With `run`, a directory of common/runs.py is written instead of the Trainer's own files, and training goes on from what
is there: a record at each evaluation, then the checkpoint, then the resume state, so that a run that is killed at any
moment ends with the same bits on the CPU. A signal to stop is obeyed between two steps, once the state there is saved.

A run may go on with another number of processes. Its samples stay the same, and its numbers, without dropout, up to
rounding. A process that was there before keeps its random numbers; those of a new one follow from the seed, the step
and its number.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, TrainOutput

from common.distillation import losses
from common.distillation.batches import ReadyBatches, Source, _is_source, _SourceLoader, _tensors
from common.distillation.labelled_head import LabelledHead, _places, labelled_logits
from common.distillation.losses import IGNORED_LABEL
from common.distillation.run_loop import _diverged
from common.distillation.schedules import Segment, checkpoint_at
from common.distillation.state import (
    _array,
    _seed_random_numbers,
    configuration,
    random_state,
    set_random_state,
    set_weights,
    weights,
)
from common.errors import UserError
from common.runs.checkpoints import save_checkpoint
from common.runs.processes import Processes
from common.runs.resume import load_resume, save_resume
from common.runs.run import Run
from common.teachers.discovery import Checkpoint, find_checkpoints
from common.teachers.loading import Teachers

RESUME_SECONDS = 10.0
"""Least time between two writes of the resume state. It never changes a result, only how much a killed run repeats."""


RESUME_SHARE = 0.02
"""Largest share of the time that these writes may take."""


Schedule = Sequence[Segment] | Callable[[list[tuple[int, float]]], Sequence[Segment]]
"""Segments, or a function from the student's evaluations so far, (step, accuracy), to segments."""


class ProgressiveDistillationTrainer(Trainer):
    """A Trainer whose teacher changes during training.

    `train_dataset` is a `Source`, or anything that a Trainer takes; `eval_dataset` is `ReadyBatches`, or anything that
    a Trainer takes. Evaluation gives the cross entropy and the accuracy per labelled position, `eval_loss` and
    `eval_accuracy`. The training log has the objective (`loss`), the divergence from the teacher (`kl`), the accuracy
    on the training batches and the teacher's step. A model that is known to predict the next token is trained on
    shifted labels, as in transformers; any other model that maps inputs to logits at the labels' positions will do.

    Args:
        model: the student.
        args: as for a Trainer. One process uses one device; several are started with torchrun.
        teacher: a directory with checkpoint-<step> directories, a hub id, or checkpoints. None trains on labels alone.
        schedule: which checkpoint supervises which step.
        temperature: of the teacher's logits, one for all steps, or at the first step and at the last.
        annealing: how the temperature moves from the first to the last.
        alpha: weight of the labels' cross entropy; several values take over from one another at `alpha_steps`.
        alpha_steps: see `alpha`.
        divergence: from the teacher.
        top_k: keep the teacher's `top_k` most probable classes.
        beta: only for the Jensen-Shannon divergence.
        load_teacher: makes a teacher from a checkpoint's directory, in a background thread, so that it must not draw
            random numbers; by default `from_pretrained` of the student's class.
        run: where to record, save and resume; its files replace the Trainer's own. The training data must be a
            `Source`.
        trainer_arguments: anything else that a Trainer takes.

    Raises:
        UserError: a schedule without a teacher or the reverse, or out of order, a checkpoint that the teacher does not
            have, an argument of the loss that is out of its range, or a run without a `Source`.
    """

    loss_is_scaled_for_ga = True
    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler  # type: ignore[assignment]

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        teacher: str | Path | Sequence[Checkpoint] | None = None,
        schedule: Schedule = (),
        temperature: float | tuple[float, float] = 1.0,
        annealing: Literal["linear", "logarithmic"] = "linear",
        alpha: float | Sequence[float] = 0.0,
        alpha_steps: Sequence[int] = (),
        divergence: losses.Divergence = "forward-kl",
        top_k: int | None = None,
        beta: float = 0.5,
        load_teacher: Callable[[Path], nn.Module] | None = None,
        run: Run | None = None,
        **trainer_arguments: Any,
    ) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # several devices in one process would cut batches apart from their positions
        super().__init__(model, args, **trainer_arguments)
        if "labels" not in self.label_names:  # as of a model whose forward does not take them
            self.label_names = [*self.label_names, "labels"]
        args.ignore_data_skip |= _is_source(self.train_dataset)  # its loader begins at the current step by itself
        if run is not None and not _is_source(self.train_dataset):
            raise UserError("a run needs a Source as training data, so that it can go on from where it was left")
        self._shift = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self._head = LabelledHead.of(model)
        self.run = run
        self.records: list[dict[str, Any]] = []
        """One for each evaluation during training, from the run's beginning; what is logged to the run. Those from
        before a Trainer's own checkpoint that training goes on from have step, loss and accuracy only."""

        checkpoints = find_checkpoints(teacher) if isinstance(teacher, str | Path) else list(teacher or ())
        self._schedule = schedule if callable(schedule) else lambda evaluations: schedule
        self._temperature = temperature if isinstance(temperature, tuple) else (temperature, temperature)
        self._annealing = annealing
        self._alpha = (alpha,) if isinstance(alpha, float | int) else tuple(alpha)
        self._alpha_steps = tuple(alpha_steps)
        self._divergence, self._top_k, self._beta = divergence, top_k, beta
        self._teachers = Teachers(checkpoints, load_teacher or self._load_like_student)
        self._decide()
        self._check()

        self._since_log = torch.zeros(4, dtype=torch.float64, device=args.device)
        self._since_record = torch.zeros_like(self._since_log)
        if run is None:
            self.add_callback(_HistoryCallback(self))
        else:
            self.remove_callback(PrinterCallback)
            self.add_callback(_RunCallback(self))

    # Teacher

    def _check(self) -> None:
        losses.stepwise(self._alpha, self._alpha_steps, 0)
        if not 0 <= min(self._alpha) <= max(self._alpha) <= 1:
            raise UserError(f"alpha must be between 0 and 1, got {self._alpha}")
        losses.annealed_temperature(0, *self._temperature, total=1, kind=self._annealing)
        if self._divergence == "jensen-shannon" and not 0 < self._beta < 1:
            raise UserError(f"beta must be between 0 and 1, both excluded, got {self._beta}")

    def _decide(self) -> None:
        """Bring the schedule up to the evaluations.

        Raises:
            UserError: it is not one for this teacher.
        """
        evaluations = [(record["step"], record["accuracy"]) for record in self.records if record["step"]]
        self._segments = self._schedule(evaluations)
        if bool(self._teachers.steps) != bool(self._segments):
            raise UserError("distillation needs both a teacher with checkpoints and a schedule that uses them")
        starts = [segment.start for segment in self._segments]
        if starts[:1] not in ([], [0]) or any(start >= after for start, after in pairwise(starts)):
            raise UserError(f"the segments of a schedule begin at step 0 and go on in order, got steps {starts}")
        for segment in self._segments:
            if segment.checkpoint not in self._teachers.steps:
                raise UserError(f"the schedule names teacher step {segment.checkpoint}, where there is no checkpoint")

    @property
    def _teacher_step(self) -> int | None:
        """Teacher step of the checkpoint that the latest step learned from."""
        return checkpoint_at(self._segments, max(self.state.global_step - 1, 0))

    def _load_like_student(self, path: Path) -> nn.Module:
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(student, PreTrainedModel):
            raise UserError(f"{type(student).__name__} has no from_pretrained: give load_teacher")
        attention = student.config._attn_implementation
        # In float32, as from_pretrained sets torch's default dtype, also for the thread that trains.
        teacher: nn.Module = type(student).from_pretrained(path, dtype=torch.float32, attn_implementation=attention)
        return teacher.to(student.dtype)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in a Trainer; however it ends, no teacher is left, nor still being loaded."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._teachers.release()

    # Data

    def get_train_dataloader(self) -> Any:
        """The batches from the current step on, if the training data is a `Source`; else as in a Trainer."""
        if _is_source(self.train_dataset):
            return _SourceLoader(cast(Source, self.train_dataset), self)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """This process's share of `ReadyBatches`; else as in a Trainer."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, ReadyBatches):
            return [_tensors(batch) for batch in dataset.batches[self.args.process_index :: self.args.world_size]]
        return super().get_eval_dataloader(eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The next parts of a global batch, with the places of their labels, and how many labels the global batch has.

        The places are found on the host, if the labels are there, so that nothing waits for the device. The number is
        1 where there is no label, as it is to divide by.
        """
        parts = [
            {**batch, "positions": self._positions(batch["labels"])} for batch in islice(epoch_iterator, num_batches)
        ]
        labels = sum(len(part["positions"]) for part in parts)
        several = self.args.world_size > 1
        count = (
            self.accelerator.reduce(torch.full((), labels, device=device), "sum").clamp(1)
            if several
            else max(labels, 1)
        )
        return [
            {
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in part.items()
            }
            for part in parts
        ], count

    def _positions(self, labels: Tensor) -> Tensor:
        """Where a label is to be predicted, as places in the flattened (sentences, length), of shape (labelled,)."""
        predicted = labels[..., 1:] if self._shift else labels
        return _places(predicted != IGNORED_LABEL, labels.shape[-1])

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The student's objective on one part of a global batch; outside training, the labels' cross entropy.

        Args:
            model: the student, as it is wrapped for training.
            inputs: what the model takes, and `labels`, with `IGNORED_LABEL` where there is none.
            return_outputs: also return what the model does.
            num_items_in_batch: labels in the global batch; by default those of `inputs`.

        Returns:
            A scalar: the sum over this part's labels, divided by `num_items_in_batch`, times the number of processes
            that it will be averaged over.
        """
        arguments = dict(inputs)
        labels = arguments.pop("labels")
        positions = arguments.pop("positions", None)
        if positions is None:
            positions = self._positions(labels)
        labels = labels.flatten()[positions + self._shift]
        if return_outputs:
            outputs = model(**arguments)
            logits = outputs["logits"].flatten(0, -2)[positions].float()
        else:
            outputs = None
            logits = labelled_logits(model, arguments, positions, self._head)
        if not len(labels):
            loss = logits.sum() * 0
        elif not model.training:
            loss = losses.label_cross_entropy(logits, labels).mean()
        else:
            loss = self._objective(logits, labels, arguments, positions)
        if num_items_in_batch is not None:
            loss = loss * len(labels) / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _objective(self, logits: Tensor, labels: Tensor, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        """Mean over the labels of what the student minimises at this step."""
        step = self.state.global_step
        teacher = self._teachers.at(self._segments, step, self.args.device)
        if teacher is None:
            loss = losses.label_cross_entropy(logits, labels).mean()
            kl = torch.zeros_like(loss)
        else:
            with torch.no_grad(), self.accelerator.autocast():
                teacher_logits = labelled_logits(teacher.model, inputs, positions, teacher.head)
            last = max(self.state.max_steps - 1, 1)
            temperature = losses.annealed_temperature(step, *self._temperature, total=last, kind=self._annealing)
            targets = losses.teacher_probabilities(
                teacher_logits, torch.tensor(float(temperature), device=logits.device), self._top_k
            )
            alpha = float(losses.stepwise(self._alpha, self._alpha_steps, step))
            loss = losses.distillation_loss(
                logits, labels, targets, alpha=alpha, divergence=self._divergence, beta=self._beta
            )
            with torch.no_grad():
                kl = losses.forward_kl(logits, targets).mean()
        with torch.no_grad():
            correct = (logits.argmax(-1) == labels).float().mean()
            self._since_log += torch.stack([loss, kl, correct, torch.ones_like(loss)]).double() * len(labels)
        return loss

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in a Trainer; the logs of training steps get `kl`, `accuracy` and `teacher` as well."""
        if "learning_rate" in logs:
            logs["loss"], kl, logs["accuracy"] = self._means(self._since_log)
            if self._teacher_step is not None:
                logs |= {"kl": kl, "teacher": self._teacher_step}
            self._since_record += self._since_log
            self._since_log.zero_()
        super().log(logs, start_time)

    def _means(self, sums: Tensor) -> tuple[float, float, float]:
        """Objective, divergence and accuracy per label, over all processes."""
        loss, kl, correct, labels = self.accelerator.reduce(sums, "sum").tolist()
        return (loss / labels, kl / labels, correct / labels) if labels else (math.nan, math.nan, math.nan)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in a Trainer; the regular evaluation during training is logged to the run.

        Raises:
            DivergedError: the loss is not finite; nothing was logged.
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_in_train and eval_dataset is None and (self.run is not None or "eval_accuracy" in metrics):
            self._record(metrics["eval_loss"], metrics["eval_accuracy"])
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and accuracy per labelled position; with `compute_metrics`, as in a Trainer."""
        if not prediction_loss_only:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        shared_out = isinstance(dataloader, list)
        self.model.eval()
        totals = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in dataloader:
                sums = self._sums(batch)
                totals += (sums if shared_out else self.accelerator.gather_for_metrics(sums)).sum(0)
        if shared_out:
            totals = self.accelerator.reduce(totals, "sum")
        loss, correct, labels, samples = totals.tolist()
        metrics = {"loss": loss / max(labels, 1), "accuracy": correct / max(labels, 1)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=int(samples))  # type: ignore[arg-type]

    def _sums(self, batch: Mapping[str, Any]) -> Tensor:
        """Loss, right answers, labels and 1 for each sample of a batch, of shape (samples, 4), in float64."""
        positions = self._positions(batch["labels"])
        inputs = self._prepare_inputs({**batch, "positions": positions})
        labels, positions = inputs.pop("labels"), inputs.pop("positions")
        samples, length = len(labels), labels.numel() // len(labels)
        labels = labels.flatten()[positions + self._shift]
        with self.accelerator.autocast():
            logits = labelled_logits(self.model, inputs, positions, self._head)
        correct = logits.argmax(-1) == labels
        ones = torch.ones_like(positions)
        values = torch.stack([losses.label_cross_entropy(logits, labels), correct, ones], -1).double()
        sums = torch.zeros(samples, 3, dtype=torch.float64, device=values.device)
        sums.index_add_(0, positions // length, values)
        return torch.cat([sums, torch.ones_like(sums[:, :1])], -1)

    # Run

    def _record(self, loss: float, accuracy: float) -> None:
        step, teacher = self.state.global_step, self._teacher_step
        if self.run is not None and not math.isfinite(loss):
            raise _diverged(self.run, step)
        self._since_record += self._since_log
        train_loss, kl, _ = self._means(self._since_record)
        self._since_log.zero_()
        self._since_record.zero_()
        record = {
            "step": step,
            "samples": step * self.get_total_train_batch_size(self.args),
            "loss": loss,
            "accuracy": accuracy,
            "train_loss": train_loss if step else None,
            "kl": kl if step and teacher is not None else None,
            "teacher": teacher,
        }
        self.records.append(record)
        self._decide()
        if self.run is not None and self.is_world_process_zero():
            self.run.log(record)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The run's files where they are due; without a run, the Trainer's own."""
        if self.run is None:
            super()._save_checkpoint(model, trial)
            return
        step, every = self.state.global_step, self.state.save_steps
        at_end = step == self.state.max_steps
        if self.args.save_strategy == SaveStrategy.STEPS and (at_end or (every > 0 and step % every == 0)):
            tensors = weights(self.model)
            if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
                raise _diverged(self.run, step)
            if self.is_world_process_zero():
                save_checkpoint(self.run.directory, step, tensors, configuration(self.model))

    def save_resume_state(self, run: Run) -> None:
        """Write all that is needed to go on from the current step; every process must call this."""
        mine = {
            "random": random_state(self.args.device),
            "since_log": self._since_log.tolist(),
            "since_record": self._since_record.tolist(),
        }
        states = [mine] * self.args.world_size
        if self.args.world_size > 1:
            torch.distributed.all_gather_object(states, mine)
        state = {"scheduler": self.lr_scheduler.state_dict(), "processes": states}
        if self.is_world_process_zero():
            tensors = {f"model.{name}": tensor for name, tensor in weights(self.model).items()}
            for i, values in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{name}": _array(value) for name, value in values.items()}
            save_resume(run.directory, self.state.global_step, tensors, state)

    def load_resume_state(self, run: Run) -> None:
        """Set everything to where the run was left, and drop the records of what comes after.

        Raises:
            UserError: the state is damaged.
        """
        resume = load_resume(run.directory)
        step = resume.step if resume else 0
        with self.args.main_process_first(local=False):
            if self.is_world_process_zero():
                run.truncate_records(step if resume else -1)
        self.records = run.records()
        self._decide()
        if resume is None:
            _seed_random_numbers(self.args.seed, self.args.process_index)
            return
        model = {name.removeprefix("model."): t for name, t in resume.tensors.items() if name.startswith("model.")}
        set_weights(self.model, model)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in resume.tensors.items():
            if name.startswith("optimizer."):
                _, i, kind = name.split(".", 2)
                moments.setdefault(int(i), {})[kind] = torch.from_numpy(tensor)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.lr_scheduler.load_state_dict(resume.state["scheduler"])
        for group, lr in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
        self._load_processes(resume.state["processes"], step)
        self.state.global_step = self._globalstep_last_logged = self._initial_global_step = step

    def _load_processes(self, states: Sequence[Mapping[str, Any]], step: int) -> None:
        """Go on from what each process had; the sums of those that are no more are taken over by the others."""
        index = self.args.process_index
        if index < len(states):
            set_random_state(states[index]["random"], self.args.device)
        else:
            _seed_random_numbers(self.args.seed, step, index)
        for state in states[index :: self.args.world_size]:
            self._since_log += torch.tensor(state["since_log"], dtype=torch.float64, device=self.args.device)
            self._since_record += torch.tensor(state["since_record"], dtype=torch.float64, device=self.args.device)


class _HistoryCallback(TrainerCallback):
    """Gives a schedule the evaluations from before the Trainer's own checkpoint that training goes on from."""

    def __init__(self, trainer: ProgressiveDistillationTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        evaluations = [entry for entry in state.log_history if "eval_accuracy" in entry and "eval_loss" in entry]
        self._trainer.records = [
            {"step": entry["step"], "loss": entry["eval_loss"], "accuracy": entry["eval_accuracy"]}
            for entry in evaluations
        ]
        self._trainer._decide()


class _RunCallback(TrainerCallback):
    """Restores a run before its first step, and says when its files are due."""

    def __init__(self, trainer: ProgressiveDistillationTrainer) -> None:
        self._trainer = trainer
        self._saved, self._cost = time.monotonic(), 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        run = cast(Run, self._trainer.run)
        self._trainer.load_resume_state(run)
        if not self._trainer.records:
            self._trainer.evaluate()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All that was due at the step before is done."""
        processes = Processes(args.process_index, args.world_size)
        if number := processes.agree_to_stop():
            self._trainer.save_resume_state(cast(Run, self._trainer.run))
            processes.stop(number, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The resume state comes last, after the record and the checkpoint of its step."""
        recorded = self._trainer.records[-1]["step"] == state.global_step
        if not recorded or state.global_step == state.max_steps or not self._is_due():
            return
        start = time.monotonic()
        self._trainer.save_resume_state(cast(Run, self._trainer.run))
        self._saved = time.monotonic()
        self._cost = self._saved - start

    def _is_due(self) -> bool:
        """The first process's decision, for all."""
        due = time.monotonic() - self._saved >= max(RESUME_SECONDS, self._cost / RESUME_SHARE)
        mine = torch.tensor(float(due and self._trainer.is_world_process_zero()), device=self._trainer.args.device)
        return bool(self._trainer.accelerator.reduce(mine, "sum"))
