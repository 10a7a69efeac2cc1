"""Which of a teacher's checkpoints to learn from: those inside the sharp transition of its training curve.

    schedule, choice = choose_schedule("path/to/teacher", every=100)

Checkpoints from inside the transition teach what later ones do not; those from before it do harm on grammars, where a
student of one and then of the final teacher ends below one of the final teacher alone (PCFG_mlm/README.md). So the
choice is spread equally over the transition, and ends with the final checkpoint. Without a transition, checkpoints are
chosen at equal spacing in the logarithm of the step, and the reason says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from common.arguments import require_at_least
from common.distillation.phases import MIN_EVALUATIONS, Phases, find_phases
from common.distillation.schedules import Segment, progressive
from common.errors import UserError
from common.teachers.curves import Curve, find_log, read_curve
from common.teachers.discovery import Checkpoint, find_checkpoints

NUMBER = 5
MIN_DESCENT = 0.2
"""Against the logarithm of the step, the curve has fallen before its plateau by at least this share of the drop."""


@dataclass(frozen=True)
class Transition:
    """Phases of a teacher's training, and where they were seen."""

    phases: Phases
    """In teacher steps."""
    logarithmic: bool
    """Whether they are those of the curve against the logarithm of the step."""
    curve: str
    """Such as "the loss against the step"."""


@dataclass(frozen=True)
class Choice:
    """Checkpoints to learn from."""

    checkpoints: tuple[int, ...]
    """Teacher steps, increasing; the last one is the final checkpoint's."""
    phases: Phases | None
    """Of the teacher's training, if it has a transition."""
    reason: str
    """One line: the transition that the choice rests on, or why it rests on none."""


def find_transition(curve: Curve) -> Transition:
    """The phases of a teacher's loss or else of its error rate, against the step or else against its logarithm.

    Both axes are tried, the step first. On the curves of `figures/data` it alone finds the transition of every teacher.
    Against the logarithm, that of a grammar reaches far into the tail (351 to 1,499 instead of 234 to 471), and of the
    MLP of width 50,000 the loss shows its initial descent (420k to 738k instead of 3.7M to 3.9M). A BERT on natural
    language has a transition against the logarithm only, and a soft one: its error rate falls from 956 to 2,125 of
    2,800 steps.

    Against the logarithm any smooth descent from the initial weights is flat and then drops, so that a transition there
    needs an earlier descent as well (`MIN_DESCENT`). Of simulated exponential and shifted power-law descents evaluated
    at equal spacing in the logarithm, more than 60% have a transition without this condition, and at most 1% with it;
    of power laws with a part that follows an annealed learning rate, up to 8%. A descent on two distant scales of time
    counts as a transition.

    Raises:
        UserError: there is none; the message is about the loss against the step.
    """
    if len(curve.steps) < MIN_EVALUATIONS:
        raise UserError(f"the curve has only {len(curve.steps)} evaluations: phases need at least {MIN_EVALUATIONS}")
    measures = {"loss": np.array(curve.losses)}
    if curve.accuracies is not None:
        measures["error rate"] = 1 - np.array(curve.accuracies)
    errors = []
    for find, axis in ((find_phases, "the step"), (_phases_in_logarithm, "the logarithm of the step")):
        for name, values in measures.items():
            try:
                phases = find(curve.steps, values)
            except UserError as error:
                errors.append(error)
            else:
                return Transition(phases, find is not find_phases, f"the {name} against {axis}")
    raise errors[0]


def choose(curve: Curve | None, checkpoints: Sequence[int], number: int = NUMBER) -> Choice:
    """Checkpoints to learn from: inside the transition and the final one, or else at equal spacing in log(step).

    Args:
        curve: the teacher's training curve, from `read_curve` or `evaluate_checkpoints`; None if there is none.
        checkpoints: teacher steps at which checkpoints exist, in any order.
        number: of checkpoints at most, the final one included.

    Raises:
        UserError: there is no checkpoint, or `number` is below 2.
    """
    steps = sorted(set(checkpoints))
    if not steps:
        raise UserError("the teacher has no checkpoints")
    if number < 2:
        raise UserError(f"the number of checkpoints must be at least 2, with the final one, got {number}")
    if curve is None:
        return _equally_spaced(steps, number, None, "there is no training curve")
    try:
        transition = find_transition(curve)
    except UserError as error:
        return _equally_spaced(steps, number, None, f"{str(error).partition(':')[0]} ({curve.source})")

    phases = transition.phases
    falls = f"{transition.curve} drops between steps {phases.start:,.0f} and {phases.end:,.0f} ({curve.source})"
    inside = [step for step in steps if phases.start < step < phases.end]
    if not inside:
        return _equally_spaced(steps, number, phases, f"{falls}, but the teacher has no checkpoint there")
    shares = (np.arange(number - 1) + 0.5) / (number - 1)  # the middles of equal parts
    if number == 2:
        wanted = [phases.steepest]
    elif transition.logarithmic:
        wanted = [phases.start * (phases.end / phases.start) ** share for share in shares]
    else:
        wanted = [phases.start + (phases.end - phases.start) * share for share in shares]
    chosen = tuple(sorted({*_nearest(inside, wanted), steps[-1]}))
    return Choice(chosen, phases, f"{falls}: checkpoints inside this transition, then the final one")


def choose_schedule(
    teacher: str | Path,
    *,
    every: int,
    number: int = NUMBER,
    log: str | Path | Curve | None = None,
    pattern: str | None = None,
    evaluate: Callable[[Sequence[Checkpoint]], Curve] | None = None,
) -> tuple[list[Segment], Choice]:
    """From a teacher to the schedule of a student that learns from the checkpoints of its transition.

    Args:
        teacher: a directory with checkpoints, or a hub id.
        every: student steps per checkpoint; the final one stays.
        number: of checkpoints at most, the final one included.
        log: the teacher's training log, or its curve; by default the log in its directory, if there is one.
        pattern: of the names of its checkpoints, as in `find_checkpoints`.
        evaluate: makes the curve if there is no log, for example
            `lambda checkpoints: evaluate_checkpoints(checkpoints, load, batches, "causal", "cuda")`.

    Raises:
        UserError: the teacher has no checkpoints, its log is missing or damaged, or a number is out of its range.
    """
    checkpoints = find_checkpoints(teacher, pattern)
    if log is None and Path(teacher).is_dir():
        log = find_log(Path(teacher))
    if log is None:
        curve = evaluate(checkpoints) if evaluate else None
    else:
        curve = log if isinstance(log, Curve) else read_curve(log)
    choice = choose(curve, [checkpoint.step for checkpoint in checkpoints], number)
    return progressive(choice.checkpoints, every), choice


@dataclass(frozen=True, kw_only=True)
class ChooseArguments:
    """Which of a teacher's checkpoints to learn from, by its training curve."""

    teacher: Annotated[str, tyro.conf.Positional]
    """Directory with checkpoints, or a hub id."""
    log: Path | None = None
    """The teacher's training log: metrics.jsonl, trainer_state.json, or a CSV file with columns step and loss; by
    default the one in its directory."""
    number: int = NUMBER
    """Number of checkpoints at most, the final one included."""
    every: int = 100
    """Student steps per checkpoint."""
    teacher_pattern: str | None = None
    """Regular expression with a group `step` that matches the names of the teacher's checkpoints."""


def choose_command(arguments: ChooseArguments) -> None:
    """Print the phases, the checkpoints, the reason, and how to use them.

    Raises:
        UserError: as `choose_schedule`.
    """
    require_at_least(2, arguments, "number")
    require_at_least(1, arguments, "every")
    _, choice = choose_schedule(
        arguments.teacher,
        every=arguments.every,
        number=arguments.number,
        log=arguments.log,
        pattern=arguments.teacher_pattern,
    )
    steps, phases = choice.checkpoints, choice.phases
    segments = [*(f"{step}:{arguments.every}" for step in steps[:-1]), str(steps[-1])]
    print(f"reason:      {choice.reason}")
    if phases:
        print(
            f"phases:      plateau from step {phases.plateau:,.0f}, transition from {phases.start:,.0f} to "
            f"{phases.end:,.0f}, fastest at {phases.steepest:,.0f}, tail from {phases.tail:,.0f}"
        )
    print(f"checkpoints: {' '.join(map(str, steps))}")
    print(f"arguments:   --methods custom --segments {' '.join(segments)}")
    print(f"in Python:   schedule = progressive({list(steps)}, every={arguments.every})")


def _phases_in_logarithm(steps: Sequence[int], values: np.ndarray) -> Phases:
    """Phases against log(step), in steps; the evaluation at step 0 does not count."""
    x, y = np.array(steps), values
    x, y = x[x > 0], y[x > 0]
    found = find_phases(np.log(x), y)
    phases = Phases(**{name: round(math.exp(value), 3) for name, value in vars(found).items()})
    plateau, tail = np.interp([phases.plateau, phases.tail], x, y)
    if y[0] - plateau < MIN_DESCENT * (plateau - tail):
        raise UserError("the curve has no descent before its plateau: it falls from the initial weights")
    return phases


def _equally_spaced(steps: Sequence[int], number: int, phases: Phases | None, why: str) -> Choice:
    """At i / number of the way from the first step to the last in log(step), for i = 1 to number."""
    trained = [step for step in steps if step > 0]
    wanted = [trained[0] * (trained[-1] / trained[0]) ** (i / number) for i in range(1, number + 1) if trained]
    chosen = _nearest(trained, wanted, math.log) or steps
    reason = f"{why}: {len(chosen)} checkpoints at equal spacing in the logarithm of the step"
    return Choice(tuple(sorted(chosen)), phases, reason)


def _nearest(steps: Sequence[int], wanted: Sequence[float], scale: Callable[[float], float] = float) -> list[int]:
    """For each wanted step the nearest that is not yet taken, from the last to the first."""
    left = list(steps)
    chosen = []
    for step in reversed(wanted):
        if left:
            chosen.append(min(left, key=lambda other: abs(scale(other) - scale(step))))
            left.remove(chosen[-1])
    return chosen
