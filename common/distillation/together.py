"""Runs that are trained together, one step of each in turn, so that students of one teacher compute its outputs once.

Each trainer trains exactly as it would alone, in a greenlet that pauses at the beginning of every step; the run that is
furthest behind continues next. Its random numbers are its own, so its results are bit-identical to those of training
it alone. Of students with the same teacher and data, those that learn from one checkpoint at a step share its outputs.

Forward and backward passes are not stacked. With one thread of an AMD EPYC, matrix products of nine students of 3 heads
and 4,160 tokens, or of 8 heads and 5,344 tokens, reach 60% to 80% of the processor's peak one by one and take 0.9 to
1.25 times as long in one batch; what a step takes with a single sample, 2.4 of 16 ms, is all that a stack could save.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import fmean
from threading import Lock
from typing import Any

import numpy as np
import torch
from greenlet import GreenletExit, getcurrent, greenlet
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from common.distillation.batches import Source
from common.distillation.dataset_source import DatasetSource
from common.distillation.run_loop import RunTrainer, finish_run
from common.errors import DivergedError, UserError
from common.runs.progress import RemainingTime, progress
from common.runs.stopping import Stopped, catch_stop_signals, stop_at_a_safe_point

STEPS_KEPT = 4
"""Steps whose batches are kept: each run has read that of its next step, and makes another one in the background."""


class _SharedSource:
    """A source whose latest batches are kept for the other runs."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._batches: dict[int, Any] = {}
        self._lock = Lock()

    def batch(self, step: int) -> Any:
        """The global batch of step `step`."""
        with self._lock:  # each run makes its batches in a thread of its own
            if step not in self._batches:
                self._batches[step] = self._source.batch(step)
                for old in sorted(self._batches)[:-STEPS_KEPT]:
                    if old != step:
                        del self._batches[old]
            return self._batches[step]


@catch_stop_signals()
@stop_at_a_safe_point()
def train_together(trainers: Sequence[RunTrainer], description: str) -> None:
    """Train all trainers to the end of their runs, each from its last state, and mark the runs complete.

    A complete run is not repeated: the student gets its final weights. Before any step, the states of all runs are
    checked.

    Args:
        trainers: not trained before. Those with the same `Source` and teacher share the outputs of its checkpoints.
        description: of the runs, shown next to the progress.

    Raises:
        UserError: a run began with other arguments, its state is damaged, or two have one stream as their data.
        DivergedError: of the first run that diverged; the others are trained to their end first.
        Stopped: by SIGTERM or SIGUSR1; the states of all runs are saved.
    """
    for complete in [trainer for trainer in trainers if trainer.run.complete]:
        complete.load_final_weights()
    trainers = [trainer for trainer in trainers if not trainer.run.complete]
    for trainer in trainers:
        trainer.require_resumable()
    _share_data(trainers)
    _share_teachers(trainers)
    runs = [_PausingRun(trainer, len(trainers)) for trainer in trainers]
    failures: list[DivergedError | Stopped] = []

    def advance(run: _PausingRun) -> None:
        try:
            run.advance()
        except (DivergedError, Stopped) as failure:
            failures.append(failure)

    try:
        for run in runs:
            advance(run)  # to the beginning of the first step that is left
        with _progress(trainers, description) as show:
            while running := [run for run in runs if not run.ended]:
                advance(min(running, key=lambda run: run.trainer.state.global_step))
                show()
    finally:
        for run in runs:
            run.end()
    if failures:
        raise next((failure for failure in failures if isinstance(failure, Stopped)), failures[0])


class _PausingRun:
    """A trainer in a greenlet that pauses at the beginning of each of its steps."""

    def __init__(self, trainer: RunTrainer, number_of_runs: int) -> None:
        self.trainer = trainer
        trainer.runs_together = number_of_runs
        trainer.callback_handler.callbacks.insert(0, _Pause(trainer))  # before stop signals are looked for
        self._greenlet = greenlet(partial(finish_run, trainer))
        self._random: tuple[Any, ...] | None = None

    @property
    def ended(self) -> bool:
        """Whether the run is over, after its last step or by an error."""
        return self._greenlet.dead

    def advance(self) -> None:
        """Train to the beginning of the next step, or to the end, with random numbers that no other run draws."""
        device = self.trainer.args.device
        if self._random is not None:
            _set_random_states(self._random, device)
        self._greenlet.switch()
        self._random = _random_states(device)

    def end(self) -> None:
        """Free what the run holds, if it is not over."""
        if not self.ended:
            self._greenlet.throw(GreenletExit)


class _Pause(TrainerCallback):
    """Lets other runs continue before a step."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shared = self._trainer.accelerator.gradient_state  # one for all of accelerate
        sync = shared.sync_gradients
        getcurrent().parent.switch()
        shared._set_sync_gradients(sync)


def _share_data(trainers: Sequence[RunTrainer]) -> None:
    """Make the batches of a source that several trainers have once for all of them.

    Raises:
        UserError: two trainers have one stream, which keeps its position in itself.
    """
    streams: list[Any] = []
    shared: dict[int, _SharedSource] = {}
    for trainer in trainers:
        source: Any = trainer.train_dataset
        if not isinstance(source, DatasetSource):
            trainer.train_dataset = shared.setdefault(id(source), _SharedSource(source))
        elif source.stream is not None:
            if any(source.stream is stream for stream in streams):
                raise UserError("runs that are trained together cannot read one stream: give each a stream of its own")
            streams.append(source.stream)


def _share_teachers(trainers: Sequence[RunTrainer]) -> None:
    """Let trainers with the same teacher and batches share the teacher's outputs."""
    for i, trainer in enumerate(trainers):
        any(trainer.share_teacher(other) for other in trainers[:i])


@contextmanager
def _progress(trainers: Sequence[RunTrainer], description: str) -> Iterator[Callable[[], None]]:
    """Show the steps of all runs together, and the means of their latest evaluations."""
    first = trainers[0]
    total = sum(trainer.state.max_steps for trainer in trainers)

    def done() -> int:
        return sum(trainer.state.global_step for trainer in trainers)

    remaining = RemainingTime(description, total)
    shown = progress(total, done(), description, first.get_total_train_batch_size(first.args))
    with shown if first.is_world_process_zero() else nullcontext(lambda step, **values: None) as show:

        def show_all() -> None:
            records = [trainer.records[-1] for trainer in trainers if trainer.records]
            show(done(), **{f"mean {name}": fmean(record[name] for record in records) for name in ("loss", "accuracy")})
            if first.is_world_process_zero():
                remaining.update(done())

        yield show_all


def _random_states(device: torch.device) -> tuple[Any, ...]:
    """The states of the random number generators of Python, NumPy and torch."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_device  # noqa: NPY002


def _set_random_states(states: tuple[Any, ...], device: torch.device) -> None:
    of_python, of_numpy, of_torch, on_device = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)  # noqa: NPY002
    torch.set_rng_state(of_torch)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device, device)
