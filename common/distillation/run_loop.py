"""A Trainer that writes a run."""

import atexit
import datetime
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.distributed
from tqdm import tqdm
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import DivergedError, UserError
from common.runs.processes import Processes, leave_process_group
from common.runs.progress import progress
from common.runs.run import Run
from common.runs.stopping import stop_at_a_safe_point

ESTIMATE_SECONDS = 5.0
"""Time after which the rest of a run is estimated."""


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
    arguments.per_device_train_batch_size = processes.micro_batch_size(batch_size, accumulate)
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


def _diverged(run: Run, step: int) -> DivergedError:
    return DivergedError(f"{run.directory}: the loss is not finite at step {step:,}: give a lower --lr")
