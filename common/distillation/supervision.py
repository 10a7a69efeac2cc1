"""What a student learns from, by the arguments of distill.py: a teacher's checkpoints, their schedule, and the loss."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.arguments import option_of
from common.distillation import schedules
from common.distillation.arguments import DistillationArguments
from common.distillation.automatic import LACKING, LEARNED, LEAST_LACKING, LONGEST, MOST_LACKING, Anchor
from common.distillation.choosing import find_transition
from common.distillation.losses import LossArguments, check_loss_arguments
from common.distillation.phases import choose_checkpoints
from common.errors import UserError, listed
from common.runs.run import Run
from common.teachers.curves import Curve, find_log, read_curve
from common.teachers.discovery import Checkpoint
from common.teachers.trajectory import are_small, require_trajectory


@dataclass(frozen=True, kw_only=True)
class Supervision(LossArguments):
    """What a student learns from."""

    schedule: schedules.Schedule
    """An empty schedule means the labels alone."""
    teacher: Sequence[Checkpoint] = ()
    designs: Mapping[int, Any] = field(default_factory=dict)
    """Designed targets, of a kind that the setting knows, by the negative steps that stand for them in the schedule."""


FROM_LABELS = Supervision(schedule=schedules.ce_only())


def supervision(
    student: DistillationArguments,
    total: int,
    teacher: Sequence[Checkpoint],
    directory: Path,
    classes: int | None,
    loss_of_record: Callable[[Mapping[str, Any]], float],
    designs: Sequence[Any] = (),
    then: str | None = "teacher",
    anchors: Sequence[Anchor] = (),
) -> Supervision:
    """What one student learns from.

    Args:
        student: its arguments.
        total: its steps.
        teacher: all checkpoints, in the order of their steps.
        directory: the teacher's; its metrics.jsonl has the training curve if it is a run of this project.
        classes: of the teacher's output, if known.
        loss_of_record: from a record of the teacher to the value whose drop is its transition: the loss, or the error
            rate 1 - accuracy.
        designs: targets that it learns from in turn, before anything else, if its method is designed.
        then: teacher or labels: whether it learns from the final checkpoint or from the labels after them.
        anchors: checkpoints that it learns from in turn, if its method is auto; before they are known, none stands
            for the final one.

    Raises:
        UserError: an argument of the schedule or of the loss is out of its range.
    """
    if student.methods[0] == "ce":
        return FROM_LABELS
    steps = [checkpoint.step for checkpoint in teacher]
    end_temperature = student.temperature if student.end_temperature is None else student.end_temperature
    numbered = {i - len(designs): design for i, design in enumerate(designs)}
    if student.methods[0] == "designed":
        teacher = () if then == "labels" else teacher
        final = schedules.one_shot(steps)[0].checkpoint if teacher else None
        schedule: schedules.Schedule = schedules.designed(list(numbered), student.first_steps, final)
    elif student.methods[0] == "auto":
        teacher = [checkpoint for checkpoint in teacher if checkpoint.step in {anchor.step for anchor in anchors}]
        schedule = _automatic(anchors or [Anchor(steps[-1], 0.0, 0.0)], total)
        _require_plain_targets(student)
    else:
        schedule = _schedule(student, total, steps, directory, loss_of_record)
    found = Supervision(
        schedule=schedule,
        teacher=teacher,
        designs=numbered,
        temperature=(student.temperature, end_temperature),
        annealing=student.annealing,
        top_k=student.top_k,
        alpha=student.alpha,
        alpha_steps=student.alpha_steps,
        divergence=student.divergence,
        beta=student.beta,
    )
    check_loss_arguments(found, classes, option_of)
    return found


def used_checkpoints(students: Iterable[tuple[DistillationArguments, Supervision, int]]) -> list[Checkpoint]:
    """The checkpoints that supervise one of these students, or may do so, in the order of their steps.

    Args:
        students: for each, its arguments, what it learns from, and its number of steps.
    """
    used: dict[int, Checkpoint] = {}
    for _, supervised, total in students:
        segments = schedules.segments_at(supervised.schedule, [])
        steps = {checkpoint for _, _, checkpoint in schedules.spans(segments, 0, total)}
        any_of_them = callable(supervised.schedule)
        used |= {found.step: found for found in supervised.teacher if any_of_them or found.step in steps}
    return [used[step] for step in sorted(used)]


def trajectory_warnings(checkpoints: Sequence[Checkpoint], trust: bool) -> list[str]:
    """A line for each problem of a teacher's checkpoints, if they are trusted.

    Raises:
        UserError: there are problems, and they are not trusted.
    """
    found = require_trajectory(checkpoints, trust, full=are_small(checkpoints))
    return [f"warning: {finding.line}" for finding in found]


def schedule_warnings(students: Iterable[tuple[DistillationArguments, Supervision, int]]) -> list[str]:
    """A line for each schedule that is longer than a student's training; `students` are as of `used_checkpoints`."""
    lines = [
        schedules.unused_segments(schedules.segments_at(supervised.schedule, []), total)
        for _, supervised, total in students
        if not callable(supervised.schedule)
    ]
    return [f"warning: {line}" for line in dict.fromkeys(lines) if line]


def print_notes(lines: Sequence[str]) -> None:
    """Print notes on the training that is about to start, on stderr like the progress."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _schedule(
    student: DistillationArguments,
    total: int,
    steps: Sequence[int],
    directory: Path,
    loss_of_record: Callable[[Mapping[str, Any]], float],
) -> schedules.Schedule:
    if student.methods[0] != "until-saturation":
        return fixed_schedule(student, total, steps, directory, loss_of_record)

    def until_saturation(evaluations: list[schedules.Evaluation]) -> list[schedules.Segment]:
        return schedules.until_saturation(
            steps,
            evaluations,
            max_steps=student.saturation_steps,
            window=student.saturation_window,
            threshold=student.saturation_threshold,
        )

    until_saturation([])  # raises if an argument is out of its range
    return until_saturation


def _require_plain_targets(student: DistillationArguments) -> None:
    """Refuse what changes the divergence that is compared with a checkpoint's information.

    Raises:
        UserError: names the option.
    """
    usual = {"temperature": (1,), "end_temperature": (None, 1), "top_k": (None,), "divergence": ("forward-kl",)}
    for name, allowed in usual.items():
        if getattr(student, name) not in allowed:
            raise UserError(
                f"--methods auto compares forward KL divergences of all classes at temperature 1: {option_of(name)} "
                f"{getattr(student, name)} does not fit"
            )


def require_early_evaluation(every: int, total: int) -> None:
    """Refuse evaluations so far apart that an automatic schedule, which moves on at evaluations, would do so late.

    Args:
        every: steps between evaluations.
        total: steps of the student.

    Raises:
        UserError: there is none in the first half.
    """
    if every > max(1, total // 2):
        raise UserError(
            f"--methods auto moves on at evaluations, and --eval-every {every:,} leaves none in the first half of "
            f"{total:,} steps: give a smaller one"
        )


def automatic_notes(anchors: Sequence[Anchor]) -> list[str]:
    """A line on the first checkpoint of automatic schedules, with a warning if it lacks too much or too little."""
    if len(anchors) == 1:
        return [f"warning: --methods auto has only checkpoint {anchors[0].step:,} to learn from"]
    first = anchors[0]
    line = f"auto: checkpoint {first.step:,} first, which lacks {first.lacking:.2f} of the final one's information"
    if LEAST_LACKING <= first.lacking <= MOST_LACKING:
        return [line]
    return [f"warning: {line}; no checkpoint lacks about {LACKING}, and others may not help"]


def _automatic(anchors: Sequence[Anchor], total: int) -> schedules.Schedule:
    def until_learned(evaluations: list[schedules.Evaluation]) -> list[schedules.Segment]:
        most = max(1, round(total * LONGEST))
        return schedules.until_learned(anchors, evaluations, share=LEARNED, max_steps=most)

    return until_learned


def fixed_schedule(
    student: DistillationArguments,
    total: int,
    steps: Sequence[int],
    directory: Path,
    loss_of_record: Callable[[Mapping[str, Any]], float],
) -> list[schedules.Segment]:
    """The schedule of a method that does not depend on the student's evaluations.

    Args:
        student: its arguments.
        total: its steps.
        steps: teacher steps at which checkpoints exist, increasing.
        directory: the teacher's, where `first_checkpoint` reads its training curve.
        loss_of_record: from a record of the teacher to the value whose drop is its transition.

    Raises:
        UserError: an argument of the schedule is out of its range.
    """
    if student.methods[0] == "progressive" and student.teacher_range is not None:
        if student.teacher_checkpoints is not None:
            raise UserError(
                "--teacher-checkpoints is spread over all of the teacher's steps: give either it or --teacher-range"
            )
        steps = _within(steps, *student.teacher_range)
    number = len(steps) if student.teacher_checkpoints is None else student.teacher_checkpoints
    every = max(1, total // max(1, number)) if student.teacher_every is None else student.teacher_every
    match student.methods[0]:
        case "one-shot":
            return schedules.one_shot(steps)
        case "progressive":
            return schedules.progressive(steps, every, student.teacher_checkpoints)
        case "two-shot":
            first = first_checkpoint(student.checkpoint[0], steps, directory, loss_of_record)
            return schedules.two_shot(steps, first, student.first_steps)
        case "accelerated":
            return schedules.accelerated(steps, student.speed)
        case "refreshed":
            return schedules.refreshed(steps, every, student.speed)
        case "custom":
            return custom_schedule(student.segments, steps)
        case method:
            raise AssertionError(method)


def _within(steps: Sequence[int], first: int, last: int) -> list[int]:
    """The checkpoints from `first` to `last`, and the final one."""
    within = [step for step in steps if first <= step <= last]
    if not within:
        raise UserError(
            f"no checkpoints in --teacher-range {first} {last}: the teacher's are at {steps[0]:,} to {steps[-1]:,}"
        )
    return sorted({*within, steps[-1]})


def first_checkpoint(
    name: str, steps: Sequence[int], directory: Path, loss_of_record: Callable[[Mapping[str, Any]], float]
) -> int:
    """The teacher step that --checkpoint stands for.

    Args:
        name: the step of a checkpoint, which is returned, or "before", "inside" or "after" the teacher's transition.
        steps: teacher steps at which checkpoints exist, increasing.
        directory: the teacher's, with its training curve in metrics.jsonl or in another log.
        loss_of_record: from a record of metrics.jsonl to the value whose drop is the transition; if there is none, that
            of the error rate is used.

    Raises:
        UserError: `name` is none of these, there is no such checkpoint, or the curve is missing or has no transition.
    """
    if name.isdecimal():
        return _existing(int(name), steps, "--checkpoint")
    places = ("before", "inside", "after")
    if name not in places:
        raise UserError(f"--checkpoint must be a teacher step, before, inside or after; got {name!r}")
    if (directory / "metrics.jsonl").exists():
        records = Run(directory).records()
        if any(record.get(name) is None for record in records for name in ("loss", "accuracy")):
            lacking = f"{directory / 'metrics.jsonl'} has evaluations without loss or accuracy"
            raise UserError(f"{lacking}: give --checkpoint a teacher step")
        evaluated, accuracies = (tuple(record[name] for record in records) for name in ("step", "accuracy"))
        curve = Curve(evaluated, tuple(map(loss_of_record, records)), "metrics.jsonl", accuracies)
    elif directory.is_dir() and (log := find_log(directory)):
        curve = read_curve(log)
    else:
        raise UserError(f"{directory} has no training log to find a transition in: give --checkpoint a teacher step")
    try:
        phases = find_transition(curve).phases
    except UserError as error:
        reason = str(error).partition(":")[0]
        raise UserError(
            f"{reason} (the training of {directory}): give --checkpoint one of its steps, {steps[0]} to {steps[-1]}"
        ) from error
    return choose_checkpoints(phases, steps)[places.index(name)]


def custom_schedule(segments: Sequence[str], steps: Sequence[int]) -> list[schedules.Segment]:
    """The schedule that --segments describes.

    Args:
        segments: "checkpoint:steps" each; the last may omit its steps.
        steps: teacher steps at which checkpoints exist, increasing.

    Raises:
        UserError: an item has another form, or there is no checkpoint of its teacher step.
    """
    pairs: list[tuple[int, int | None]] = []
    for i, item in enumerate(segments):
        checkpoint, _, count = item.partition(":")
        if not checkpoint.isdecimal() or not (count.isdecimal() or (not count and i == len(segments) - 1)):
            raise UserError(
                f"--segments must be a list of checkpoint:steps; only the last may omit its steps; got {item!r}"
            )
        pairs.append((_existing(int(checkpoint), steps, "--segments"), int(count) if count else None))
    return schedules.custom(pairs)


def _existing(step: int, steps: Sequence[int], option: str) -> int:
    """The step of a checkpoint that an option names; a `UserError` if there is no such checkpoint."""
    if step not in steps:
        nearest = sorted(sorted(steps, key=lambda other: abs(other - step))[:2])
        raise UserError(
            f"{option} names teacher step {step}, of which there is no checkpoint: the nearest are {listed(nearest)}"
        )
    return step
