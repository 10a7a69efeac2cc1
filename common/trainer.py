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

import atexit
import datetime
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    BertForMaskedLM,
    GPT2LMHeadModel,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, TrainOutput

from common import losses
from common.checkpoints import Checkpoint, find_checkpoints, load_resume, local_path, save_checkpoint, save_resume
from common.errors import DivergedError, UserError
from common.processes import Processes, leave_process_group
from common.runs import Run, progress
from common.schedules import Segment, checkpoint_at
from common.stopping import stop_at_a_safe_point

HEADS: dict[type, str] = {BertForMaskedLM: "cls", GPT2LMHeadModel: "lm_head"}
"""Models whose forward applies this module, and nothing else, to the last hidden states."""

IGNORED = -100
"""Label of the positions without a loss, as in torch and transformers."""

RESUME_SECONDS = 10.0
"""Least time between two writes of the resume state. It never changes a result, only how much a killed run repeats."""
RESUME_SHARE = 0.02
"""Largest share of the time that these writes may take."""
ESTIMATE_SECONDS = 5.0
"""Time after which the rest of a run is estimated."""

Schedule = Sequence[Segment] | Callable[[list[tuple[int, float]]], Sequence[Segment]]
"""Segments, or a function from the student's evaluations so far, (step, accuracy), to segments."""


class Source(Protocol):
    """Training data as a function of the step, so that a run can go on anywhere without reading what went before.

    It is told from a dataset by having neither samples (`__getitem__`) nor an order (`__iter__`).
    """

    def batch(self, step: int) -> Any:
        """The global batch of step `step` (from 0): tensors of shape (sentences, ...) by the names of the model's
        arguments, with `labels`, as a mapping or as the fields of a dataclass."""


@dataclass(frozen=True)
class ReadyBatches:
    """Evaluation data that is already in batches, each like a `Source`'s; processes take them in turn."""

    batches: Sequence[Any]


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
        return _places(predicted != IGNORED, labels.shape[-1])

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
            inputs: what the model takes, and `labels`, with `IGNORED` where there is none.
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
                run.rewind(step if resume else -1)
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


@dataclass(frozen=True)
class Teacher:
    """A frozen checkpoint in use."""

    step: int
    model: nn.Module
    head: "LabelledHead | None"


class Teachers:
    """Frozen checkpoints, one in use and the next on its way: it is loaded into the host's memory in a thread.

    Args:
        checkpoints: all that may be asked for.
        load: makes a model from a checkpoint's directory.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], load: Callable[[Path], nn.Module]) -> None:
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in checkpoints}
        self._load = load
        self._thread = ThreadPoolExecutor(1, "teacher")
        self._current: Teacher | None = None
        self._coming: tuple[int, Future[nn.Module]] | None = None

    @property
    def steps(self) -> set[int]:
        """Teacher steps that may be asked for."""
        return set(self._checkpoints)

    def at(self, schedule: Sequence[Segment], step: int, device: torch.device) -> Teacher | None:
        """The teacher of student step `step`; None without one. The one before is freed first.

        Raises:
            Exception: whatever went wrong when it was loaded.
        """
        wanted = checkpoint_at(schedule, step)
        if wanted is None:
            return None
        if self._current is None or self._current.step != wanted:
            self._current = None
            model = self._loaded(wanted).to(device).eval().requires_grad_(False)
            self._current = Teacher(wanted, model, LabelledHead.of(model))
            later = [segment.checkpoint for segment in schedule if segment.start > step]
            if later:
                self._coming = later[0], self._start(later[0])
        return self._current

    def release(self) -> None:
        """Free all models, once none is being loaded: `from_pretrained` keeps every model that is made meanwhile, in
        any thread, from being initialised."""
        if self._coming is not None:
            wait([self._coming[1]])
        self._current = self._coming = None

    def _loaded(self, step: int) -> nn.Module:
        coming, self._coming = self._coming, None
        return (coming[1] if coming is not None and coming[0] == step else self._start(step)).result()

    def _start(self, step: int) -> "Future[nn.Module]":
        return self._thread.submit(lambda: self._load(local_path(self._checkpoints[step])))


class LabelledHead:
    """Makes the head of a model compute at chosen positions only, by choosing among its inputs."""

    def __init__(self, head: nn.Module) -> None:
        self.positions: Tensor | None = None
        head.register_forward_pre_hook(self)

    @staticmethod
    def of(model: nn.Module) -> "LabelledHead | None":
        """None for a model of which it is not known where its head begins."""
        name = HEADS.get(type(model))
        return LabelledHead(getattr(model, name)) if name else None

    def __call__(self, head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """(samples, length, hidden) to (labelled, hidden)."""
        return inputs if self.positions is None else (inputs[0].flatten(0, 1)[self.positions],)


def labelled_logits(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, head: LabelledHead | None
) -> Tensor:
    """A model's logits at `positions` of its flattened samples, in float32, of shape (labelled, classes).

    Args:
        model: maps `inputs` to an output with logits of shape (samples, length, classes) or (samples, classes).
        inputs: the model's arguments.
        positions: (labelled,).
        head: of this model; None computes everywhere and chooses afterwards.
    """
    if head is None:
        return model(**inputs)["logits"].flatten(0, -2)[positions].float()
    head.positions = positions
    try:
        return model(**inputs)["logits"].float()
    finally:
        head.positions = None


class _SourceLoader:
    """Parts of a source's batches, from the trainer's step on; the next batch is made while the model computes.

    A global batch is cut into one part for each gradient accumulation step and process; all are of one size.
    """

    def __init__(self, source: Source, trainer: ProgressiveDistillationTrainer) -> None:
        self._source, self._trainer = source, trainer

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        args = self._trainer.args
        size = args.per_device_train_batch_size
        total = self._trainer.get_total_train_batch_size(args)
        with ThreadPoolExecutor(1, "batches") as thread:
            steps = range(self._trainer.state.global_step, self._trainer.state.max_steps)
            coming = thread.submit(self._batch, steps.start)
            for step in steps:
                batch = coming.result()
                if step + 1 < steps.stop:
                    coming = thread.submit(self._batch, step + 1)
                if any(len(tensor) != total for tensor in batch.values()):
                    raise UserError(f"the source gives batches of {len(batch['labels'])} samples, not of {total}")
                for i in range(args.gradient_accumulation_steps):
                    start = (i * args.world_size + args.process_index) * size
                    yield {name: tensor[start : start + size] for name, tensor in batch.items()}

    def _batch(self, step: int) -> dict[str, Tensor]:
        """In memory from which a GPU can copy by itself, if it is for one."""
        batch = _tensors(self._source.batch(step))
        if self._trainer.args.device.type == "cuda":
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch


def training_arguments(
    directory: Path,
    *,
    steps: int,
    batch_size: int,
    accumulate: int,
    lr: float,
    warmup: float,
    eval_every: int,
    checkpoint_every: int,
    seed: int,
    precision: Literal["float32", "bf16"],
    compiled: bool,
    device: str,
) -> TrainingArguments:
    """A Trainer's arguments for a run, with the optimiser of the published PCFG and text experiments: AdamW with betas
    0.9 and 0.95, no weight decay, no clipping, and a linear warm-up before a cosine that ends at zero.

    Args:
        directory: the run's.
        steps: optimiser steps.
        batch_size: samples per step, over all processes.
        accumulate: parts of a process's share of a batch that are computed one after another.
        lr: the largest learning rate.
        warmup: share of the steps.
        eval_every: steps.
        checkpoint_every: steps; 0 saves the final checkpoint only.
        seed: of dropout.
        precision: "bf16" computes under autocast; the weights stay in float32.
        compiled: compile the student with torch.compile.
        device: "cpu", "cuda", or "auto": a GPU if there is one.

    Raises:
        UserError: the batch cannot be cut into equal parts, or there is no such device.
    """
    use_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda cannot be used: torch finds no GPU")
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        gradient_accumulation_steps=accumulate,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(warmup * steps),
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=0.0,
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
        bf16=precision == "bf16",
        torch_compile=compiled,
        use_cpu=use_cpu,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=eval_every,
        save_strategy="steps",
        save_steps=checkpoint_every,
        report_to="none",
        disable_tqdm=True,
    )
    processes = Processes(arguments.process_index, arguments.world_size)
    arguments.per_device_train_batch_size = processes.part_of(batch_size, accumulate)
    if arguments.world_size > 1:
        atexit.register(leave_process_group)
    return arguments


@stop_at_a_safe_point()
def train_run(trainer: ProgressiveDistillationTrainer, description: str) -> None:
    """Train to the end of the trainer's run, show how far it is, and mark the run complete.

    Raises:
        DivergedError: the loss or the weights are not finite; nothing of that is saved.
        Stopped: by a signal; the state is saved.
    """
    run = cast(Run, trainer.run)
    with ExitStack() as stack:
        if trainer.is_world_process_zero():
            trainer.add_callback(_ProgressCallback(trainer, stack, description))
        trainer.train()
    if trainer.is_world_process_zero():
        run.finish({name: trainer.records[-1][name] for name in ("step", "loss", "accuracy")})


class _ProgressCallback(TrainerCallback):
    """Shows the step and the latest evaluation; once, after a few seconds, how long the rest will take."""

    def __init__(self, trainer: ProgressiveDistillationTrainer, stack: ExitStack, description: str) -> None:
        self._trainer, self._stack, self._description = trainer, stack, description
        self._begin: tuple[float, int] | None = None
        self._estimated = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batch_size = self._trainer.get_total_train_batch_size(args)
        shown = progress(state.max_steps, state.global_step, self._description, batch_size)
        self._show = self._stack.enter_context(shown)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One step late, so that what is shown includes the evaluation of the step."""
        step = state.global_step
        latest = self._trainer.records[-1]
        if self._begin is None:
            self._begin = time.monotonic(), step
        else:
            self._show_step(step, latest)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._show_step(state.global_step, self._trainer.records[-1])

    def _show_step(self, step: int, latest: Mapping[str, Any]) -> None:
        self._show(step, **{name: latest[name] for name in ("loss", "accuracy", "teacher") if latest[name] is not None})
        begin, first = cast(tuple[float, int], self._begin)
        elapsed, done = time.monotonic() - begin, step - first
        if elapsed > ESTIMATE_SECONDS and done > 0 and not self._estimated:
            self._estimated = True
            left = datetime.timedelta(seconds=round(elapsed / done * (self._trainer.state.max_steps - step)))
            tqdm.write(f"{self._description}: {1e3 * elapsed / done:.1f} ms a step, about {left} to go", sys.stderr)


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and persistent buffers by name, each once where several names share it; bfloat16 becomes float32."""
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names = {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    return {name: _array(tensor) for name, tensor in state.items() if name in names or name not in aliases}


def set_weights(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy what `weights` gave into a model of the same shape."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(torch.from_numpy(tensor))


def configuration(model: nn.Module) -> dict[str, Any]:
    """What `from_pretrained` needs to build the model, as JSON values.

    Raises:
        UserError: the model is not of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"{type(model).__name__} has no configuration to save: train without a run")
    return {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__]}


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the random number generators of Python, NumPy and torch, as JSON values."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {name: np.asarray(value).tolist() for name, value in numpy["state"].items()}},
        "torch": torch.get_rng_state().tolist(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).tolist()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_state` gave, also after it went through JSON."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8), device)


def _seed_random_numbers(*key: int) -> None:
    """Those of dropout, apart from what the weights were drawn with."""
    set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _places(chosen: Tensor, length: int) -> Tensor:
    """Flat places, in rows of `length`, of what is chosen in (samples, length or less) or (samples,)."""
    if chosen.ndim == 1:
        return chosen.nonzero()[:, 0]
    rows, columns = chosen.nonzero(as_tuple=True)
    return rows * length + columns


def _is_source(dataset: Any) -> bool:
    """Whether data comes by the step; a dataset's `batch`, where it has one, is something else."""
    return hasattr(dataset, "batch") and not hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


def _tensors(batch: Any) -> dict[str, Tensor]:
    """A batch's tensors by name."""
    return dict(batch) if isinstance(batch, Mapping) else dict(vars(batch))


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _diverged(run: Run, step: int) -> DivergedError:
    return DivergedError(f"{run.directory}: the loss is not finite at step {step:,}: give a lower --lr")
