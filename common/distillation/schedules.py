"""Which teacher checkpoint supervises which student step.

A schedule is a list of `Segment`s in order: from student step `start` on, the student learns from the checkpoint that
the teacher saved at its step `checkpoint`. The last segment has no end; an empty schedule has no teacher. A negative
step is a designed target, which stands for a checkpoint that no teacher saved, and None is the labels. The list is all
that a trainer needs, so a schedule can be printed, stored in config.json and tested without a model.

`checkpoints` are the teacher steps at which checkpoints exist, in any order. Where a rule asks for a teacher step
without a checkpoint, the latest earlier checkpoint is used; it is an error if there is none.

(N, T)-progressive distillation is defined in section 2 of Panigrahi et al. (2025), arXiv:2410.05464; `accelerated`,
`refreshed` and `until_saturation` are variants published with it.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from common.distillation.automatic import Anchor
from common.errors import UserError, listed


@dataclass(frozen=True)
class Segment:
    start: int
    """First student step (counted from 0) of this segment."""
    checkpoint: int | None
    """Teacher step of the checkpoint in use; negative for a designed target, None for the labels."""


class Evaluation(NamedTuple):
    """An evaluation of a student in training."""

    step: int
    """Student steps taken."""
    accuracy: float
    """In [0, 1]."""
    kl: float | None = None
    """Divergence from what it learned from up to here, in nats: on parity on held-out samples, elsewhere the mean over
    the training steps since the evaluation before. None where it is not known."""


Schedule = Sequence[Segment] | Callable[[list[Evaluation]], Sequence[Segment]]
"""Segments, or a function from the student's evaluations so far, but for that at step 0, to segments."""


def segments_at(schedule: Schedule, records: Sequence[Mapping[str, Any]]) -> Sequence[Segment]:
    """The segments of a schedule, as far as a student's evaluations so far decide them.

    Args:
        schedule: of the student.
        records: of its evaluations, in order: step, accuracy and, if it is known, kl, as in an `Evaluation`.
    """
    if not callable(schedule):
        return schedule
    evaluated = [record for record in records if record["step"]]
    return schedule([Evaluation(record["step"], record["accuracy"], record.get("kl")) for record in evaluated])


def ce_only() -> list[Segment]:
    """No teacher: the student learns from the labels alone."""
    return []


def one_shot(checkpoints: Sequence[int]) -> list[Segment]:
    """Only the last checkpoint, from the first step on.

    Raises:
        UserError: no checkpoint.
    """
    return [Segment(0, _sorted(checkpoints)[-1])]


def progressive(checkpoints: Sequence[int], every: int, number: int | None = None) -> list[Segment]:
    """Each checkpoint in turn for `every` student steps, the last one to the end: (N, T) in the paper.

    Args:
        checkpoints: teacher steps.
        every: student steps per checkpoint (T).
        number: use only this many checkpoints (N), at i / N of the last teacher step for i = 1 to N.

    Raises:
        UserError: no checkpoint, none as early as 1 / N of the last, or an argument below 1.
    """
    steps = _sorted(checkpoints)
    _require_positive(every, "student steps per checkpoint")
    if number is not None:
        _require_positive(number, "the number of checkpoints")
        advice = f"give --teacher-checkpoints (number) of at most {steps[-1] // max(steps[0], 1)}"
        steps = [_latest(steps, steps[-1] * i // number, advice) for i in range(1, number + 1)]
    return _merged([Segment(i * every, step) for i, step in enumerate(steps)])


def custom(pairs: Sequence[tuple[int, int | None]]) -> list[Segment]:
    """The given checkpoints in the given order, which may differ from the teacher's.

    Args:
        pairs: (teacher step, student steps). The last checkpoint is used to the end, so its steps may be None.

    Raises:
        UserError: no pair, student steps below 1, or None before the last pair.
    """
    if not pairs:
        raise UserError("the schedule names no checkpoint: give --segments, such as 200:50 600:100")
    segments: list[Segment] = []
    start = 0
    for checkpoint, steps in pairs:
        segments.append(Segment(start, checkpoint))
        if steps is not None:
            _require_positive(steps, f"student steps for checkpoint {checkpoint}")
            start += steps
        elif len(segments) < len(pairs):
            raise UserError(f"checkpoint {checkpoint} needs a number of student steps; only the last may omit it")
    return _merged(segments)


def two_shot(checkpoints: Sequence[int], first: int, first_steps: int) -> list[Segment]:
    """Checkpoint `first` for `first_steps` student steps, then the last one: (2, T) in the paper.

    If `first` has no checkpoint, the latest earlier one is used.

    Raises:
        UserError: no checkpoint, none as early as `first`, or `first_steps` below 1.
    """
    steps = _sorted(checkpoints)
    first = _latest(steps, first, "give --checkpoint (first) a later step")
    return custom([(first, first_steps), (steps[-1], None)])


def designed(targets: Sequence[int], first_steps: int, then: int | None) -> list[Segment]:
    """Designed targets in turn for equal parts of `first_steps` student steps, then a checkpoint or the labels.

    Args:
        targets: negative steps, which stand for the targets.
        first_steps: student steps with all of them.
        then: the teacher step of the checkpoint, or None for the labels.

    Raises:
        UserError: there are fewer steps than targets, or no target.
    """
    if not 1 <= len(targets) <= first_steps:
        raise UserError(
            f"{len(targets)} designed targets need at least one step each: give --first-steps, which is {first_steps}"
        )
    starts = [first_steps * i // len(targets) for i in range(len(targets) + 1)]
    return [Segment(start, target) for start, target in zip(starts, [*targets, then], strict=True)]


def accelerated(checkpoints: Sequence[int], multiplier: float) -> list[Segment]:
    """Student step s learns from the latest checkpoint at or before teacher step multiplier * s.

    Before the first checkpoint is reached, the student learns from the first. Step 0 has the checkpoint of step 1, so
    that a large enough multiplier is exactly `one_shot`.

    Args:
        checkpoints: teacher steps.
        multiplier: teacher steps per student step, taken as the decimal number that it is printed as.

    Raises:
        UserError: no checkpoint, or a multiplier that is not positive and finite.
    """
    first, *later = _sorted(checkpoints)
    _require_positive(multiplier, "the multiplier")
    starts = {0: first}
    for step in later:
        start = math.ceil(step / Fraction(str(multiplier)))
        starts[start if start > 1 else 0] = step
    return [Segment(start, step) for start, step in starts.items()]


def refreshed(checkpoints: Sequence[int], refresh: int, speed: float = 1) -> list[Segment]:
    """A new checkpoint every `refresh` student steps: teacher step speed * (1 + step // refresh) * refresh.

    Args:
        checkpoints: teacher steps.
        refresh: student steps between changes.
        speed: teacher steps per student step, taken as the decimal number that it is printed as.

    Raises:
        UserError: no checkpoint, none as early as speed * refresh, or an argument that is not positive and finite.
    """
    steps = _sorted(checkpoints)
    _require_positive(refresh, "student steps between refreshes")
    _require_positive(speed, "the speed")
    stride = Fraction(str(speed)) * refresh
    advice = "give a larger --teacher-every (refresh) or --speed"
    _latest(steps, math.floor(stride), advice)  # an error if student step 0 has no checkpoint
    starts = {max(math.ceil(step / stride) - 1, 0) * refresh: step for step in steps}
    return [Segment(start, step) for start, step in starts.items()]


def until_saturation(
    checkpoints: Sequence[int],
    evaluations: Sequence[Evaluation],
    *,
    max_steps: int,
    window: int = 5,
    threshold: float = 0.01,
) -> list[Segment]:
    """Each checkpoint in turn until the student's accuracy stops improving: the segments known so far.

    An accuracy belongs to the checkpoint in use up to its evaluation. At each evaluation the student moves to the next
    checkpoint if, of the accuracies that belong to the current one, the best of the last `window` is less than
    `threshold` above the best of the earlier ones, or if the current one has been in use for at least `max_steps`.
    Checkpoints change at evaluations only, so a new evaluation can only append a segment that starts there, and a
    resumed run recovers its schedule from its recorded evaluations.

    Args:
        checkpoints: teacher steps.
        evaluations: in order.
        max_steps: largest number of student steps on one checkpoint.
        window: evaluations without improvement.
        threshold: the improvement that counts, in units of accuracy.

    Raises:
        UserError: no checkpoint, evaluations out of order, `max_steps` or `window` below 1, or `threshold` below 0.
    """
    first, *later = _sorted(checkpoints)
    if not threshold >= 0:
        raise UserError(f"the improvement that counts must be at least 0, got {threshold}")
    _require_positive(max_steps, "the largest number of student steps per checkpoint")
    _require_positive(window, "the window of evaluations")
    _require_order(evaluations)

    segments = [Segment(0, first)]
    accuracies: list[float] = []
    for step, accuracy, *_ in evaluations:
        if len(segments) > len(later):
            break
        accuracies.append(accuracy)
        best_before = max(accuracies[:-window], default=-math.inf)
        saturated = max(accuracies[-window:]) < best_before + threshold
        if saturated or step - segments[-1].start >= max_steps:
            segments.append(Segment(step, later[len(segments) - 1]))
            accuracies = []
    return segments


def until_learned(
    anchors: Sequence[Anchor], evaluations: Sequence[Evaluation], *, share: float, max_steps: int
) -> list[Segment]:
    """Each checkpoint in turn until the student has learned what it predicts: the segments known so far.

    At each evaluation the student moves to the next checkpoint if its divergence from the current one is at most
    `share` of the information in the current one's predictions, or if that has been in use for at least `max_steps`.

    Args:
        anchors: checkpoints, from `choose_anchors`.
        evaluations: in order, with the divergence from the checkpoint that was in use up to there.
        share: of the information.
        max_steps: largest number of student steps on one checkpoint.

    Raises:
        UserError: evaluations out of order or without divergence, `share` not above 0, or `max_steps` below 1.
    """
    _require_positive(share, "the share of the information")
    _require_positive(max_steps, "the largest number of student steps per checkpoint")
    _require_order(evaluations)
    first, *later = anchors
    segments, current = [Segment(0, first.step)], first
    for step, _, kl in evaluations:
        if not later:
            break
        if kl is None:
            raise UserError(
                f"the evaluation at step {step:,} has no divergence from the teacher, which the schedule depends on: "
                "resume with a RunTrainer, which records it"
            )
        if kl <= share * current.information or step - segments[-1].start >= max_steps:
            current, *later = later
            segments.append(Segment(step, current.step))
    return segments


def checkpoint_at(schedule: Sequence[Segment], step: int) -> int | None:
    """What supervises student step `step` (from 0), as in a `Segment`; None without a teacher."""
    if not schedule:
        return None
    return schedule[bisect_right(schedule, step, key=lambda segment: segment.start) - 1].checkpoint


def next_checkpoint(schedule: Sequence[Segment], step: int) -> int | None:
    """What takes over first after student step `step`, as in a `Segment`; None if nothing does."""
    return next((segment.checkpoint for segment in schedule if segment.start > step), None)


def check_schedule(schedule: Sequence[Segment], checkpoints: Collection[int]) -> None:
    """Reject a schedule that does not fit the teacher.

    Args:
        schedule: to check.
        checkpoints: teacher steps at which checkpoints exist.

    Raises:
        UserError: it does not consist of segments, they do not begin at step 0 or are out of order, or one names a
            missing checkpoint.
    """
    if not all(isinstance(segment, Segment) for segment in schedule):
        raise UserError(
            f"a schedule is a list of Segment(start, checkpoint), as progressive(...) makes; got {schedule}"
        )
    starts = [segment.start for segment in schedule]
    if starts[:1] not in ([], [0]) or any(start >= after for start, after in pairwise(starts)):
        raise UserError(f"the segments of a schedule must begin at step 0 and be in order, got steps {starts}")
    for segment in schedule:
        if segment.checkpoint is not None and segment.checkpoint not in checkpoints:
            raise UserError(f"the schedule names teacher step {segment.checkpoint}, which has no checkpoint")


def unused_segments(schedule: Sequence[Segment], steps: int) -> str:
    """A line about the segments that begin after the last of `steps` training steps; empty if there are none."""
    unused = [segment for segment in schedule if segment.start >= steps]
    if not unused:
        return ""
    saved = [step for segment in unused if (step := segment.checkpoint) is not None and step >= 0]
    designed = [step for segment in unused if (step := segment.checkpoint) is not None and step < 0]
    names = [f"{len(designed)} designed target{'s' * (len(designed) > 1)}"] if designed else []
    names += [f"teacher step{'s' * (len(saved) > 1)} {listed(saved)}"] if saved else []
    names += ["the labels"] if len(saved) + len(designed) < len(unused) else []
    return (
        f"the schedule is longer than the training of {steps:,} steps: the student does not learn from "
        f"{' and '.join(names)}, due at step {unused[0].start:,}"
    )


def spans(schedule: Sequence[Segment], start: int, stop: int) -> list[tuple[int, int, int | None]]:
    """Student steps `start` to `stop` (exclusive), split where the checkpoint changes.

    Returns:
        (first step, step after the last, what supervises them as in a `Segment`) in order, none of them empty.
    """
    changes = [segment.start for segment in schedule if start < segment.start < stop]
    return [(a, b, checkpoint_at(schedule, a)) for a, b in pairwise([start, *changes, stop]) if a < b]


def _require_order(evaluations: Sequence[Evaluation]) -> None:
    if any(first[0] >= then[0] for first, then in pairwise(evaluations)):
        raise UserError("the evaluations must be in order of student steps, each step once")


def _sorted(checkpoints: Sequence[int]) -> list[int]:
    if not checkpoints:
        raise UserError("the teacher has no checkpoints")
    return sorted(set(checkpoints))


def _latest(steps: list[int], wanted: int, advice: str) -> int:
    if wanted < steps[0]:
        raise UserError(
            f"the schedule needs a checkpoint at or before teacher step {wanted}; the first is {steps[0]}: {advice}"
        )
    return steps[bisect_right(steps, wanted) - 1]


def _merged(segments: list[Segment]) -> list[Segment]:
    return [next(group) for _, group in groupby(segments, key=lambda segment: segment.checkpoint)]


def _require_positive(value: float, name: str) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{name} must be positive and finite, got {value}")
