"""What a student learns from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.distillation import losses, schedules
from common.distillation.arguments import DistillationArguments
from common.distillation.phases import choose_checkpoints, find_phases
from common.errors import UserError
from common.runs.files import read_json
from common.runs.run import Run
from common.teachers.discovery import Checkpoint


@dataclass(frozen=True)
class Supervision:
    """What a student learns from."""

    schedule: Callable[[list[tuple[int, float]]], list[schedules.Segment]]
    """From the student's evaluations so far, (step, accuracy), to its schedule; an empty one means the labels alone."""
    teacher: Sequence[Checkpoint] = ()
    temperature: tuple[float, float] = (1.0, 1.0)
    """Teacher's temperature at the first step and at the last."""
    annealing: Literal["linear", "logarithmic"] = "linear"
    top_k: int | None = None
    alpha: tuple[float, ...] = (0.0,)
    """Weight of the label's cross entropy, piecewise constant."""
    alpha_steps: tuple[int, ...] = ()
    """Steps at which alpha moves to its next value."""
    divergence: losses.Divergence = "forward-kl"
    beta: float = 0.5


FROM_LABELS = Supervision(schedule=lambda evaluations: schedules.ce_only())


def own_teacher(directory: Path, settings: Sequence[str]) -> Mapping[str, Any] | None:
    """The config of a teacher that is one of our runs; None for any other teacher.

    Args:
        directory: the teacher's.
        settings: whose runs can be teachers.

    Raises:
        UserError: the run is not complete or of another setting, or its config.json is damaged.
    """
    path = directory / "config.json"
    if not path.exists() or "arguments" not in read_json(path, "give another --teacher"):
        return None
    run = Run(directory)
    if run.setting not in settings:
        raise UserError(f"the teacher in {directory} is a run of {run.setting}: give a run of {' or '.join(settings)}")
    if not run.complete:
        raise UserError(f"the teacher's run in {directory} is not complete: rerun its train.py command to finish it")
    return run.config


def supervision(
    single: DistillationArguments,
    total: int,
    teacher: Sequence[Checkpoint],
    directory: Path,
    classes: int,
    error: Callable[[Mapping[str, Any]], float],
) -> Supervision:
    """What the student of a single run learns from.

    Args:
        single: its arguments.
        total: its steps.
        teacher: all checkpoints.
        directory: the teacher's, whose metrics.jsonl has its training curve if it is a run of ours.
        classes: of the teacher's output.
        error: what falls in the teacher's transition, from a record: its loss, or 1 - accuracy.

    Raises:
        UserError: an argument of the schedule or of the loss is out of its range.
    """
    method = single.methods[0]
    if method == "ce":
        return FROM_LABELS
    steps = [checkpoint.step for checkpoint in teacher]
    end_temperature = single.temperature if single.end_temperature is None else single.end_temperature
    if not single.alpha or not 0 <= min(single.alpha) <= max(single.alpha) <= 1:
        raise UserError(f"--alpha must be between 0 and 1, got {single.alpha}")
    losses.stepwise(single.alpha, single.alpha_steps, 0)
    losses.annealed_temperature(0, single.temperature, end_temperature, total, single.annealing)
    if single.top_k is not None and not 1 <= single.top_k <= classes:
        raise UserError(f"--top-k must be between 1 and the number of labels, {classes}; got {single.top_k}")
    if single.divergence == "jensen-shannon" and not 0 < single.beta < 1:
        raise UserError(f"--beta must be between 0 and 1, both excluded; got {single.beta}")

    def until_saturation(evaluations: list[tuple[int, float]]) -> list[schedules.Segment]:
        return schedules.until_saturation(
            steps,
            evaluations,
            max_steps=single.saturation_steps,
            window=single.saturation_window,
            threshold=single.saturation_threshold,
        )

    if method == "until-saturation":
        schedule = until_saturation
        schedule([])
    else:
        fixed = fixed_schedule(single, total, steps, directory, error)
        schedule = lambda evaluations: fixed  # noqa: E731
    return Supervision(
        schedule=schedule,
        teacher=teacher,
        temperature=(single.temperature, end_temperature),
        annealing=single.annealing,
        top_k=single.top_k,
        alpha=single.alpha,
        alpha_steps=single.alpha_steps,
        divergence=single.divergence,
        beta=single.beta,
    )


def fixed_schedule(
    single: DistillationArguments,
    total: int,
    steps: Sequence[int],
    directory: Path,
    error: Callable[[Mapping[str, Any]], float],
) -> list[schedules.Segment]:
    """The schedule of a method that needs no evaluations of the student; arguments as for `supervision`.

    Args:
        steps: the teacher's, at which checkpoints exist, increasing.

    Raises:
        UserError: as `supervision`.
    """
    method = single.methods[0]
    if method == "progressive" and single.teacher_range is not None:
        if single.teacher_checkpoints is not None:
            raise UserError(
                "--teacher-checkpoints takes equal shares of all of the teacher's steps: give it or --teacher-range"
            )
        steps = _within(steps, *single.teacher_range)
    number = len(steps) if single.teacher_checkpoints is None else single.teacher_checkpoints
    every = max(1, total // max(1, number)) if single.teacher_every is None else single.teacher_every
    match method:
        case "one-shot":
            return schedules.one_shot(steps)
        case "progressive":
            return schedules.progressive(steps, every, single.teacher_checkpoints)
        case "two-shot":
            first = first_checkpoint(single.checkpoint[0], steps, directory, error)
            return schedules.two_shot(steps, first, single.first_steps)
        case "accelerated":
            return schedules.accelerated(steps, single.speed)
        case "refreshed":
            return schedules.refreshed(steps, every, single.speed)
        case "explicit":
            return planned(single.plan, steps)
        case _:
            raise AssertionError(method)


def _within(steps: Sequence[int], first: int, last: int) -> list[int]:
    """The checkpoints from `first` to `last`, and the final one."""
    within = [step for step in steps if first <= step <= last]
    if not within:
        raise UserError(f"--teacher-range {first} {last} has no checkpoint: they are at {steps[0]:,} to {steps[-1]:,}")
    return sorted({*within, steps[-1]})


def first_checkpoint(
    named: str, steps: Sequence[int], directory: Path, error: Callable[[Mapping[str, Any]], float]
) -> int:
    """The teacher step that --checkpoint names; arguments as for `fixed_schedule`.

    Raises:
        UserError: it names none, or the teacher's curve has no transition.
    """
    if named.isdecimal():
        return int(named)
    places = ("before", "inside", "after")
    if named not in places:
        raise UserError(f"--checkpoint is a teacher step, before, inside or after; got {named!r}")
    if not (directory / "metrics.jsonl").exists():
        raise UserError(f"{directory} has no metrics.jsonl to find a transition in: give --checkpoint a teacher step")
    records = Run(directory).records()
    phases = find_phases([record["step"] for record in records], [error(record) for record in records])
    return choose_checkpoints(phases, steps)[places.index(named)]


def planned(plan: Sequence[str], steps: Sequence[int]) -> list[schedules.Segment]:
    """The schedule that --plan describes.

    Raises:
        UserError: an item is not checkpoint:steps, or no checkpoint is as early.
    """
    pairs: list[tuple[int, int | None]] = []
    for i, item in enumerate(plan):
        checkpoint, _, count = item.partition(":")
        if not checkpoint.isdecimal() or not (count.isdecimal() or (not count and i == len(plan) - 1)):
            raise UserError(f"--plan is a list of checkpoint:steps, the last may lack its steps; got {item!r}")
        earlier = [step for step in steps if step <= int(checkpoint)]
        if not earlier:
            raise UserError(f"--plan names checkpoint {checkpoint}, but the first is {steps[0]}")
        pairs.append((earlier[-1], int(count) if count else None))
    return schedules.explicit(pairs)
