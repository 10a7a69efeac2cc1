"""Distil a teacher's successive checkpoints into any Hugging Face model: a transformers.Trainer with a schedule.

    trainer = ProgressiveDistillationTrainer(
        model=student, args=arguments, train_dataset=..., eval_dataset=..., data_collator=...,
        teacher="runs/PCFG_mlm/laptop", schedule=progressive([100, 200, 300], every=50), temperature=0,
    )
    trainer.train()

At every labelled position the student learns from the teacher checkpoint that the schedule names for the step, with
the losses of losses.py. Logits are computed at labelled positions only, a chunk of them at a time where there are many.
The loss is the mean over the labels of the global batch, however it is split. run_loop.py has the trainer for runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from common.distillation.adapters import adapter_tensors, is_adapted
from common.distillation.arguments import Annealing, Divergence
from common.distillation.batch_checks import require_labels, require_usable_batch
from common.distillation.batches import ReadyBatches, Share, Source, SourceLoader, is_source, moved
from common.distillation.chunks import evaluation_values, objective_sums
from common.distillation.dataset_source import EvaluationBatches, is_streaming
from common.distillation.labelled_head import LabelledHead, LabelledOutput, labelled_positions
from common.distillation.losses import loss_arguments
from common.distillation.metrics import RestoreRecords, TrainingSums, evaluation_sums
from common.distillation.run_arguments import adapt_to_chunks, require_honoured_arguments, require_masking
from common.distillation.schedules import Schedule, check_schedule, checkpoint_at, next_checkpoint, segments_at
from common.distillation.sharding import gradients_unreduced, is_sharded, release_whole_weights, sharded_as_asked
from common.distillation.state import load_weights, save_weights
from common.distillation.target_cache import TargetCache
from common.distillation.teacher import Teacher, TeacherOutput, attention_of
from common.errors import UserError
from common.teachers.discovery import Checkpoint, find_checkpoints
from common.teachers.objective import Objective, objective_of, unwrap


class ProgressiveDistillationTrainer(Trainer):
    """A Trainer whose teacher changes during training.

    `train_dataset` is a `Source` or what a Trainer takes; `eval_dataset` is `ReadyBatches` or what a Trainer takes.
    Evaluation gives the cross entropy and the accuracy per labelled position, `eval_loss` and `eval_accuracy`; with
    `compute_metrics`, and in `predict`, a Trainer's own metrics. The training log has the objective (`loss`), the
    divergence from the teacher (`kl`), the accuracy on the training batches and the teacher's step. Causal language
    models are trained on shifted labels, as in transformers. Student and teacher may have different architectures.

    Args:
        model: the student.
        args: as for a Trainer. One process uses one device; torchrun or `accelerate launch` start several: DDP or FSDP.
        teacher: a directory with checkpoint-<step> directories, a hub id, or checkpoints. None trains on labels alone.
        schedule: which checkpoint supervises which step; negative steps are models in `designs`.
        objective: what the student predicts; by default what its class was made for.
        classes: number of leading classes that student and teacher share; by default inferred from their tokenizers
            (the student's is `processing_class`) and sizes.
        temperature: of the teacher's logits: one for all steps, or that of the first step and that of the last.
        annealing: how the temperature changes from the first to the last.
        alpha: weight of the cross entropy with the labels; several values are used in turn, changing at `alpha_steps`.
        alpha_steps: steps at which alpha changes to its next value.
        divergence: from the teacher.
        top_k: keep the teacher's `top_k` most probable classes.
        beta: only for the Jensen-Shannon divergence.
        load_teacher: makes a teacher from a checkpoint's directory; by default it is built from its config.json. It is
            called in a background thread, so it must not draw random numbers.
        teacher_dtype: of the teacher's weights; by default that of the checkpoint.
        prefetch: read the next checkpoint while the current one is in use; False for teachers of which only one fits.
        downloads_kept: how many of the checkpoints downloaded by this process stay on the disk; by default all.
        check_teacher: before training, check the checkpoints as `python -m common.teachers check` does, and print the
            accuracy on the evaluation data of the last one that is used, unless the cache has all targets.
        trust_trajectory: warn about problems with the checkpoints instead of rejecting them.
        cache: of the teacher's targets on the disk, for several students; what it lacks is computed and added.
        trainer_arguments: anything else that a Trainer takes.

    Raises:
        UserError: a schedule without a teacher or vice versa, a schedule out of order, a checkpoint that the teacher
            does not have, a teacher with another vocabulary, a student whose objective is unknown, or an argument of
            the loss that is out of its range.
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
        objective: Objective | None = None,
        classes: int | None = None,
        temperature: float | tuple[float, float] = 1.0,
        annealing: Annealing = "linear",
        alpha: float | Sequence[float] = 0.0,
        alpha_steps: Sequence[int] = (),
        divergence: Divergence = "forward-kl",
        top_k: int | None = None,
        beta: float = 0.5,
        load_teacher: Callable[[Path], nn.Module] | None = None,
        teacher_dtype: torch.dtype | None = None,
        prefetch: bool = True,
        downloads_kept: int | None = None,
        check_teacher: bool = True,
        trust_trajectory: bool = False,
        cache: TargetCache | None = None,
        designs: Mapping[int, nn.Module] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        require_honoured_arguments(model, args, trainer_arguments, not callable(schedule))
        adapt_to_chunks(args)
        with sharded_as_asked(model, args, type(self)._save_checkpoint is Trainer._save_checkpoint):
            super().__init__(model, args, **trainer_arguments)
        self.is_distributed_loading_by_transformers = is_sharded(model)  # it is then not wrapped for DDP
        self.label_names = list(dict.fromkeys([*self.label_names, "labels"]))  # forward need not take them
        args.ignore_data_skip |= is_source(self.train_dataset)  # its loader starts at the current step
        self.objective: Objective = objective or objective_of(model)
        require_masking(trainer_arguments, self.objective)
        self._shift = self.objective == "causal"
        loss: dict[str, Any] = {"annealing": annealing, "divergence": divergence, "top_k": top_k, "beta": beta}
        self._loss_arguments = loss_arguments(temperature, alpha, alpha_steps, **loss)
        checkpoints = find_checkpoints(teacher) if isinstance(teacher, str | Path) else list(teacher or ())
        autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        loading: dict[str, Any] = {"load": load_teacher, "dtype": teacher_dtype, "downloads_kept": downloads_kept}
        loading |= {"prefetch": prefetch, "autocast": self.accelerator.autocast, "autocast_dtype": autocast_dtype}
        if cache is not None and checkpoints:
            cache.prepare(args, self._loss_arguments, teacher_dtype, attention_of(unwrap(model)))
        loading |= {"cache": cache, "designs": designs or {}}
        self._teacher = Teacher(checkpoints, unwrap(model), self.objective, **loading)
        self._schedule, self._schedule_is_fixed = schedule, not callable(schedule)
        self.records: list[dict[str, Any]] = []
        """One for each evaluation; those from before a Trainer's checkpoint have only step, loss and accuracy."""
        self.update_schedule()
        self._reports_teacher = check_teacher and bool(self.segments)
        if self.segments:
            named = {segment.checkpoint for segment in self.segments}
            used = named | {max(self._teacher.sources)} if self._schedule_is_fixed else self._teacher.steps
            if check_teacher and load_teacher is None:
                self._teacher.check_trajectory(used, trust_trajectory)
            self._teacher.share_classes(self.segments[0].checkpoint, self.processing_class, classes)
        self._head = LabelledHead(model, self._teacher.classes, autocast_dtype)
        self._head.permits_chunks &= not (args.world_size > 1 and bool(args.ddp_find_unused_parameters))
        self._head_is_checked, self._steps_without_labels, self._micro_batches = False, 0, 0
        self._sums = TrainingSums(args.device)
        self.add_callback(RestoreRecords(self))

    # Teacher

    def update_schedule(self) -> None:
        """Recompute the schedule from the evaluations so far.

        Raises:
            UserError: the schedule does not fit the teacher.
        """
        self.segments = segments_at(self._schedule, self.records)
        if bool(self._teacher.sources) != bool(self.segments):
            raise UserError("give a teacher and a schedule for it, or neither to learn from the labels alone")
        check_schedule(self.segments, self._teacher.sources)

    @property
    def _teacher_step(self) -> int | None:
        """Teacher step of the checkpoint that the latest step learned from."""
        return checkpoint_at(self.segments, max(self.state.global_step - 1, 0))

    def _targets(self, inputs: Mapping[str, Any], positions: Tensor, hashed: bytes) -> TeacherOutput | None:
        """What the student learns from the current teacher at labelled positions; None without them or a teacher."""
        step = checkpoint_at(self.segments, self.state.global_step)
        if step is None:
            return None
        following = next_checkpoint(self.segments, self.state.global_step)
        batch = self.state.global_step, self._micro_batches
        return self._teacher.targets(inputs, positions, step, following, self.args.device, batch, hashed)

    def _report_teacher(self) -> None:
        """Print the accuracy of the last checkpoint that the student learns from, on some of the evaluation data."""
        step = self.segments[-1].checkpoint if self._schedule_is_fixed else None
        first = next(iter(self.eval_dataset)) if isinstance(self.eval_dataset, dict) else None
        report = self._teacher.report(map(self._prepare_inputs, self.get_eval_dataloader(first)), step, self._shift)
        if self.is_world_process_zero():
            print(report)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in a Trainer; afterwards no teacher is in memory or being loaded, even if training failed."""
        try:
            loads = self._reports_teacher and self._teacher.must_load(self.segments, self._schedule_is_fixed, self.args)
            if loads and self.eval_dataset is not None:
                self._report_teacher()
            release_whole_weights(self.model)  # an optimiser gets shards
            result = super().train(*args, **kwargs)
            self._teacher.write_targets()
            return result
        finally:
            self._teacher.release()

    # Data

    def get_train_dataloader(self) -> Any:
        """The batches from the current step on, if the training data is a `Source`; else as in a Trainer."""
        if is_source(self.train_dataset):
            return SourceLoader(cast(Source, self.train_dataset), self)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """This process's share of `ReadyBatches` or of a map-style dataset; else as in a Trainer."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = cast(Any, self.eval_dataset)[dataset] if isinstance(dataset, str) else dataset
        if isinstance(dataset, ReadyBatches):
            batches: Any = dataset.batches
        elif self.compute_metrics is None and not is_streaming(dataset):
            batches = EvaluationBatches(dataset, self)
        else:
            return super().get_eval_dataloader(eval_dataset)
        return Share(batches, self.args.process_index, self.args.world_size, even=is_sharded(self.model))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of this process's next step, and the number of labels in the global batch.

        Labelled positions are computed before the batch is moved to the device, so that the host need not wait for it.

        Args:
            epoch_iterator: gives micro-batches: tensors of shape (samples, ...) by name, `labels` among them.
            num_batches: gradient accumulation steps; fewer are returned at the end of an epoch.
            device: of the tensors returned.

        Returns:
            The micro-batches, each with `positions` (labelled,) and, if there is a cache, its `batch_hash`; and the
            number of labels over all processes, at least 1, as the loss is divided by it; a tensor if they are several.
        """
        batches = [dict(batch) for batch in islice(epoch_iterator, num_batches)]
        self._micro_batches = 0
        for batch in batches:
            require_usable_batch(batch, unwrap(self.model), self._head.number_of_classes, self._shift)
            batch["positions"] = labelled_positions(batch["labels"], self._shift)
            batch |= self._teacher.hash_of(batch)
        labels = sum(len(batch["positions"]) for batch in batches)
        self._steps_without_labels = 0 if labels else self._steps_without_labels + 1
        require_labels(self._steps_without_labels, self.state.max_steps)
        count = max(labels, 1)
        if self.args.world_size > 1:
            count = self.accelerator.reduce(torch.full((), labels, device=device), "sum").clamp(1)
        return [moved(batch, device) for batch in batches], count

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """As in a Trainer, for what is sharded here."""
        return gradients_unreduced(self.model)

    # Checkpoints of a Trainer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in a Trainer, but with every tensor of the model, under its name in the model."""
        is_whole = state_dict is None and not is_adapted(self.model)
        if is_adapted(self.model):
            adapter_tensors(self.model)  # raises if something else is trained
        if self.args.should_save:
            super()._save(output_dir, {} if is_whole else state_dict)
        if is_whole:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            save_weights(model, Path(output_dir or str(self.args.output_dir)), self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As in a Trainer, but every tensor must be there."""
        model = self.accelerator.unwrap_model(model or self.model, keep_torch_compile=False)
        load_weights(model, Path(resume_from_checkpoint))

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The student's objective on a micro-batch; outside training, the cross entropy with the labels.

        Args:
            model: the student, as wrapped for training.
            inputs: the model's arguments and `labels`, with `IGNORED_LABEL` where there is none; optionally the
                `positions` of the labels and the `batch_hash`.
            return_outputs: also return the model's outputs.
            num_items_in_batch: labels in the global batch; by default those of `inputs`.

        Returns:
            A scalar: the sum over the micro-batch's labels, divided by `num_items_in_batch`, times the number of
            processes, over which gradients are averaged.
        """
        arguments = dict(inputs)
        labels = arguments.pop("labels")
        positions, hashed = arguments.pop("positions", None), arguments.pop("batch_hash", b"")
        if positions is None:
            positions = labelled_positions(labels, self._shift)
        labels = labels.flatten()[positions + self._shift]
        outputs = model(**arguments) if return_outputs else None
        if outputs is not None:
            student = LabelledOutput(outputs["logits"].flatten(0, -2)[positions], classes=self._teacher.classes)
        else:
            student = self._student_output(model, arguments, positions)
        teacher = self._targets(arguments, positions, hashed) if model.training else None
        self._micro_batches += int(model.training)
        if not len(labels):
            loss = student.values.sum() * 0
        else:
            at = self.state.global_step, self.state.max_steps - 1
            means = objective_sums(student, labels, teacher, self._loss_arguments, *at) / len(labels)
            loss = means[0]
            if model.training:
                self._sums.add(means.detach(), len(labels))
        if num_items_in_batch is not None:
            loss = loss * len(labels) / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _student_output(self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> LabelledOutput:
        """The student's output at labelled positions."""
        if not self._head_is_checked:
            with self.accelerator.autocast():
                self._head.check(inputs, "the student" if self._shift else None)
            self._head_is_checked = True
        return self._head(model, inputs, positions)

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in a Trainer; the logs of training steps also get `kl`, `accuracy` and `teacher`."""
        if "learning_rate" in logs:
            logs["loss"], kl, logs["accuracy"] = self._sums.log(self.accelerator)
            if self._teacher_step is not None:
                logs |= {"kl": kl, "teacher": self._teacher_step}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in a Trainer; the regular evaluations during training make records, which the schedule may depend on."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_in_train and eval_dataset is None and "eval_accuracy" in metrics:
            self.add_record(metrics["eval_loss"], metrics["eval_accuracy"])
        return metrics

    def add_record(self, loss: float, accuracy: float) -> None:
        """Record an evaluation, with the means of the training steps since the last one, and update the schedule.

        Args:
            loss: held-out cross entropy per label, in nats.
            accuracy: held-out accuracy per label, in [0, 1].
        """
        step, teacher = self.state.global_step, self._teacher_step
        train_loss, kl, _ = self._sums.record(self.accelerator)
        record: dict[str, Any] = {"step": step, "samples": step * self.get_total_train_batch_size(self.args)}
        record |= {"loss": loss, "accuracy": accuracy, "train_loss": train_loss if step else None}
        record |= {"kl": kl if step and teacher is not None else None, "teacher": teacher}
        self.records.append(record)
        self.update_schedule()

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
        is_share = isinstance(dataloader, Share)
        self.model.eval()
        totals = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in dataloader:
                sums = self._evaluation_sums(batch)
                totals += (sums if is_share else self.accelerator.gather_for_metrics(sums)).sum(0)
        if is_share:
            totals = self.accelerator.reduce(totals, "sum")
        loss, correct, labels, samples = totals.tolist()
        metrics = {"loss": loss / max(labels, 1), "accuracy": correct / max(labels, 1)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=int(samples))  # type: ignore[arg-type]

    def _evaluation_sums(self, batch: Mapping[str, Any]) -> Tensor:
        """The `evaluation_sums` of a batch's samples."""
        require_usable_batch(batch, unwrap(self.model), self._head.number_of_classes, self._shift)
        positions = labelled_positions(batch["labels"], self._shift)
        inputs = self._prepare_inputs({**batch, "positions": positions})
        labels, positions = inputs.pop("labels"), inputs.pop("positions")
        samples, length = len(labels), labels.numel() // len(labels)
        with self.accelerator.autocast():
            output = self._student_output(self.model, inputs, positions)
            values = evaluation_values(output, labels.flatten()[positions + self._shift])
        return evaluation_sums(values, positions, samples, length)
