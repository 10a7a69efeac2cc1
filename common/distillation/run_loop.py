"""Training that writes a run: an evaluation's record, then the checkpoint, then the resume state.

A run that is killed at any moment resumes when its command is rerun; on the CPU it is then bit-identical to an
uninterrupted run. A stop signal takes effect between two steps, after the state has been saved.

A run may resume with a different number of processes. Its samples stay the same, and without dropout so do its results,
up to rounding. Processes that existed before keep their random number generators; those of a new process are seeded
from the seed, the step and the process's index.
"""

import atexit
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import SaveStrategy

from common.arguments import device_of
from common.distillation.adapters import adapter_files, adapter_tensors, frozen_fingerprint, is_adapted
from common.distillation.batches import ReadyBatches, batch_tensors, source_of
from common.distillation.dataset_source import DatasetSource
from common.distillation.run_arguments import require_run_arguments, require_same_training, training_facts
from common.distillation.schedules import spans
from common.distillation.state import configuration, load_weights, restore_training_state, save_training_state, weights
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.distillation.vocabulary import tokenizer_files
from common.errors import DivergedError, UserError
from common.runs.checkpoints import save_checkpoint
from common.runs.files import write_directory
from common.runs.processes import Processes, leave_process_group
from common.runs.progress import RemainingTime, progress
from common.runs.resume import Resume, ResumeClock, load_resume
from common.runs.run import Run
from common.runs.stopping import catch_stop_signals, stop_at_a_safe_point


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
    device: Literal["auto", "cpu", "cuda"],
) -> TrainingArguments:
    """A Trainer's arguments for a run, with the optimiser of the published PCFG and text experiments: AdamW with betas
    0.9 and 0.95, no weight decay, no gradient clipping, and a linear warm-up followed by a cosine decay to zero.

    Args:
        directory: the run's.
        steps: optimiser steps.
        batch_size: samples per step, over all processes.
        accumulate: micro-batches per step and process.
        lr: the peak learning rate.
        warmup: fraction of the steps.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints; 0 saves the final one only.
        seed: for dropout.
        precision: "bf16" computes under autocast; the weights stay in float32.
        compiled: compile the student with torch.compile.
        device: "cpu", "cuda", or "auto": a GPU if there is one.

    Raises:
        UserError: the batch cannot be split into equal parts, or there is no such device.
    """
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
        use_cpu=device_of(device) == "cpu",
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
    arguments.per_device_train_batch_size = processes.micro_batch_size(batch_size, accumulate)
    if arguments.world_size > 1:
        atexit.register(leave_process_group)
    return arguments


class RunTrainer(ProgressiveDistillationTrainer):
    """A ProgressiveDistillationTrainer that records, saves and resumes a run, whose files replace the Trainer's own.

        args = training_arguments(directory, steps=1000, ...)  # or TrainingArguments(...)
        processes = Processes(args.process_index, args.world_size)
        with open_shared_run(directory, {"lr": 1e-3}, processes, setting="mine") as run:
            trainer = RunTrainer(student, args, run=run, train_dataset=..., data_collator=..., eval_dataset=...)
            train_run(trainer, "my student")

    Checkpoints of a student with an adapter, such as LoRA, contain only the adapter, for `PeftModel.from_pretrained`. A
    tokenizer given as `processing_class` is part of every checkpoint.

    Args:
        model: the student.
        args: a Trainer's arguments.
        run: open for writing in the first process.
        options: further arguments of ProgressiveDistillationTrainer. The training data may be a `Source` or any
            map-style or streaming dataset, with a `data_collator`; see dataset_source.py for the order of samples. The
            evaluation data is `ReadyBatches` or a map-style dataset.

    Raises:
        UserError: as for a ProgressiveDistillationTrainer; the data is not of this kind; or an argument is missing, or
            would keep a run from resuming bit-identically.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, *, run: Run, **options: Any) -> None:
        require_run_arguments(args, options)
        super().__init__(model, args, **options)
        if args.save_strategy == SaveStrategy.STEPS:
            (adapter_tensors if is_adapted(self.model) else configuration)(self.model)  # raises if there is none
        self._tokenizer_files = tokenizer_files(self.processing_class)
        self.train_dataset = source_of(self)
        self._fixed_facts: dict[str, Any] = {"objective": self.objective, **self._teacher.facts}
        self._fixed_facts["evaluation_samples"] = self._held_out_samples()
        if is_adapted(self.model):
            self._fixed_facts["frozen"] = frozen_fingerprint(self.model)
        self.run = run
        self.runs_together = 1
        """Number of runs that are trained in turn, of which this is one."""
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_RunCallback(self))

    def add_record(self, loss: float, accuracy: float) -> None:
        """Record an evaluation, and log it to the run.

        Raises:
            DivergedError: the loss is not finite; nothing was recorded.
        """
        if not math.isfinite(loss):
            raise self._diverged()
        super().add_record(loss, accuracy)
        if self.is_world_process_zero():
            self.run.log(self.records[-1])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint of the run if one is due."""
        step, every = self.state.global_step, self.state.save_steps
        at_end = step == self.state.max_steps
        if self.args.save_strategy == SaveStrategy.STEPS and (at_end or (every > 0 and step % every == 0)):
            adapted = is_adapted(self.model)
            tensors = weights(self.model, adapted, wanted=self.is_world_process_zero())
            diverged = not all(np.isfinite(tensor).all() for tensor in tensors.values())
            if Processes(self.args.process_index, self.args.world_size).largest(diverged):
                raise self._diverged()
            if self.is_world_process_zero() and adapted:
                files = {**adapter_files(self.model), **self._tokenizer_files}
                write_directory(self.run.directory / f"checkpoint-{step}", files)
            elif self.is_world_process_zero():
                save_checkpoint(self.run.directory, step, tensors, configuration(self.model), self._tokenizer_files)

    def save_resume_state(self) -> None:
        """Save what the run needs to resume from the current step; every process must call this."""
        more: dict[str, Any] = {"training": self.training_facts(), "teacher": self._teacher.weights_read}
        if isinstance(self.train_dataset, DatasetSource):
            more["data"] = self.train_dataset.position(self.state.global_step)
        save_training_state(self, self.run.directory, vars(self._sums), more)
        self._teacher.write_targets()

    def require_resumable(self) -> None:
        """Check the run's last saved state, if there is one.

        Raises:
            UserError: the state is damaged, or it began with other arguments.
        """
        if resume := load_resume(self.run.directory):
            require_same_training(self.run.directory, resume.state.get("training", {}), self.training_facts())

    def load_resume_state(self) -> None:
        """Restore the run's last saved state, and drop what was written after it.

        Raises:
            UserError: the state is damaged, or the model, the teacher, the data or an argument is not that of the run.
        """
        named: set[int | None] = {checkpoint for _, _, checkpoint in spans(self.segments, 0, self.args.max_steps)}
        known = self.run.config.get("teacher_checkpoints", {})
        named |= {int(step) for step, digest in known.items() if digest is not None}
        used = {step for step in self._teacher.steps if step in named or not self._schedule_is_fixed}
        digests = {**dict.fromkeys(map(str, self._teacher.steps)), **self._teacher.digests(used)}
        with self.args.main_process_first(local=False):  # what one of them refuses, all of them do
            resume = load_resume(self.run.directory)
            self.run.keep_teacher(digests)
            if resume:
                require_same_training(self.run.directory, resume.state.get("training", {}), self.training_facts())
                self._teacher.expect_weights(resume.state.get("teacher", {}))
            if self.is_world_process_zero():
                self.run.rewind(resume)
        self.records = self.run.records()
        self.update_schedule()
        restore_training_state(self, resume, vars(self._sums))
        if isinstance(self.train_dataset, DatasetSource):
            self._restore_data(self.train_dataset, resume)

    def load_final_weights(self) -> None:
        """Give the student the weights and the records of the complete run.

        Raises:
            UserError: the run began with other arguments, or saved no checkpoint of its last step.
        """
        summary = self.run.summary
        require_same_training(self.run.directory, summary.get("training", {}), self.training_facts())
        checkpoint = self.run.directory / f"checkpoint-{summary['step']}"
        if not checkpoint.is_dir():
            raise UserError(f"{self.run.directory} is complete without {checkpoint.name}: start over with force=True")
        load_weights(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), checkpoint)
        self.records = self.run.records()
        self.state.global_step = summary["step"]
        if self.is_world_process_zero():
            print(f"{self.run.directory} is complete: the student has its final weights")

    def _held_out_samples(self) -> int:
        if isinstance(self.eval_dataset, ReadyBatches):
            return sum(len(batch_tensors(batch)["labels"]) for batch in self.eval_dataset.batches)
        return len(cast(Any, self.eval_dataset))

    def training_facts(self) -> dict[str, Any]:
        """What the run's numbers depend on, by name, as far as it can be compared."""
        segments = [(segment.start, segment.checkpoint) for segment in self.segments]
        batch_size = self.get_total_train_batch_size(self.args)
        schedule = segments if self._schedule_is_fixed else None
        facts = training_facts(self.args, batch_size, schedule, self._loss_arguments, self._teacher.classes)
        return {**facts, **self._fixed_facts}

    def _restore_data(self, source: DatasetSource, resume: Resume | None) -> None:
        """Continue at the restored step, and check that all processes read the same data."""
        if resume:
            source.restore(resume.step, resume.state.get("data", {}))
        mine = source.position(self.state.global_step)["checksum"]
        sums = [mine] * self.args.world_size
        if self.args.world_size > 1:
            torch.distributed.all_gather_object(sums, mine)
        if len(set(sums)) > 1:
            raise UserError(
                "the processes read different training data: give each the same full dataset (with a seed, if it is "
                "shuffled); each takes its part of every batch"
            )

    def share_teacher(self, other: "RunTrainer") -> bool:
        """Share the outputs of the teacher with another trainer, if that has the same teacher and batches.

        Returns:
            Whether it has.
        """
        has_same = (
            bool(self._teacher.sources)
            and self.train_dataset is other.train_dataset
            and self.args.gradient_accumulation_steps == other.args.gradient_accumulation_steps
            and self._teacher.is_same_as(other._teacher)
        )
        if has_same:
            self._teacher.share(other._teacher)
        return has_same

    def _diverged(self) -> DivergedError:
        step = self.state.global_step
        return DivergedError(f"{self.run.directory}: the loss is not finite at step {step:,}: give a lower --lr")


@catch_stop_signals()
@stop_at_a_safe_point()
def train_run(trainer: RunTrainer, description: str) -> None:
    """Train to the end of the trainer's run, show its progress, and mark it complete.

    A complete run is not repeated: the student gets its final weights.

    Args:
        trainer: not trained before.
        description: of the run, shown next to the progress.

    Raises:
        UserError: the run began with other arguments, or its state is damaged.
        DivergedError: the loss or the weights are not finite; they are not saved.
        Stopped: by SIGTERM or SIGUSR1; the state is saved.
    """
    if trainer.run.complete:
        trainer.load_final_weights()
        return
    with ExitStack() as stack:
        if trainer.is_world_process_zero():
            trainer.add_callback(_ProgressCallback(trainer, stack, description))
        finish_run(trainer)


def finish_run(trainer: RunTrainer) -> None:
    """Train to the end of a run that is not complete, and mark it complete; for a caller that handles stop signals."""
    trainer.train()
    if trainer.is_world_process_zero():
        results = {name: trainer.records[-1][name] for name in ("step", "loss", "accuracy")}
        trainer.run.finish({**results, "training": trainer.training_facts()})


class _RunCallback(TrainerCallback):
    """Restores a run before its first step, and saves its resume state when it is due."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = trainer
        self._clock = ResumeClock()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.load_resume_state()
        if not self._trainer.records:
            self._trainer.evaluate()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The safe point: everything that was due at the previous step is done."""
        processes = Processes(args.process_index, args.world_size)
        if number := processes.agree_to_stop():
            self._trainer.save_resume_state()
            processes.stop(number, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The resume state comes last, after the record and the checkpoint of its step."""
        recorded = self._trainer.records[-1]["step"] == state.global_step
        if not recorded or state.global_step == state.max_steps or not self._is_due():
            return
        start = time.monotonic()
        self._trainer.save_resume_state()
        self._clock.saved((time.monotonic() - start) * self._trainer.runs_together)

    def _is_due(self) -> bool:
        """The first process decides for all."""
        args = self._trainer.args
        due = self._clock.is_due and self._trainer.is_world_process_zero()
        return bool(Processes(args.process_index, args.world_size).largest(due))


class _ProgressCallback(TrainerCallback):
    """Shows the step, the latest evaluation and, once, the estimated remaining time."""

    def __init__(self, trainer: RunTrainer, stack: ExitStack, description: str) -> None:
        self._trainer, self._stack, self._description = trainer, stack, description

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batch_size = self._trainer.get_total_train_batch_size(args)
        shown = progress(state.max_steps, state.global_step, self._description, batch_size)
        self._show = self._stack.enter_context(shown)
        self._remaining = RemainingTime(self._description, state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shown at the beginning of the next step, to include the step's evaluation."""
        self._show_step(state.global_step)
        self._remaining.update(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._show_step(state.global_step)

    def _show_step(self, step: int) -> None:
        latest = self._trainer.records[-1]
        self._show(step, **{name: latest[name] for name in ("loss", "accuracy", "teacher") if latest[name] is not None})
