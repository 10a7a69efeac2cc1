"""Which of a teacher's checkpoints to learn from: those inside the sharp transition of its training curve.

    schedule, choice = choose_schedule("path/to/teacher", every=100)

Checkpoints from inside the transition teach what later ones do not. Those from before it do harm on grammars, where a
student of one of them and then of the final teacher ends below a student of the final teacher only
(PCFG_mlm/README.md). The choice is therefore spread evenly over the transition, and ends with the final checkpoint.
Without a transition, checkpoints are chosen at equal spacing in the logarithm of the step, and the reason says so.
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

DEFAULT_NUMBER = 5
MIN_DESCENT = 0.2
"""Against the logarithm of the step, the curve must fall before its plateau by at least this share of the drop."""


@dataclass(frozen=True)
class Transition:
    """Phases of a teacher's training, and the curve that shows them."""

    phases: Phases
    """In teacher steps."""
    logarithmic: bool
    """Whether they were found against the logarithm of the step."""
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
    """One line: the transition that the choice is based on, or why there is none."""


def find_transition(curve: Curve) -> Transition:
    """The phases of a teacher's loss, or else of its error rate, against the step, or else against its logarithm.

    Both axes are tried, the step first: on the curves of `figures/data`, it alone finds the transition of every
    teacher. Against the logarithm, that of a grammar reaches far into the tail (351 to 1,499 instead of 234 to 471),
    and that of the MLP of width 50,000 is the initial descent of its loss (420k to 738k instead of 3.7M to 3.9M). A
    BERT on natural language has a transition only against the logarithm, and a soft one: its error rate falls from
    step 956 to step 2,125 of 2,800.

    Against the logarithm any smooth descent from the initial weights is flat and then drops, so a transition there also
    needs an earlier descent (`MIN_DESCENT`). Of simulated exponential and shifted power-law descents evaluated at equal
    spacing in the logarithm, more than 60% have a transition without this condition, and at most 1% with it; of power
    laws with a part that follows an annealed learning rate, up to 8%. A descent on two very different time scales
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


def choose(curve: Curve | None, checkpoints: Sequence[int], number: int = DEFAULT_NUMBER) -> Choice:
    """Checkpoints to learn from: inside the transition and the final one, or else at equal spacing in log(step).

    Args:
        curve: the teacher's training curve, from `read_curve` or `evaluate_checkpoints`; None if there is none.
        checkpoints: teacher steps at which checkpoints exist, in any order.
        number: the largest number of checkpoints, including the final one.

    Raises:
        UserError: there is no checkpoint, or `number` is below 2.
    """
    steps = sorted(set(checkpoints))
    if not steps:
        raise UserError("the teacher has no checkpoints")
    if number < 2:
        raise UserError(f"the number of checkpoints must be at least 2, including the final one, got {number}")
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
    shares = (np.arange(number - 1) + 0.5) / (number - 1)  # midpoints of equal parts
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
    number: int = DEFAULT_NUMBER,
    log: str | Path | Curve | None = None,
    pattern: str | None = None,
    evaluate: Callable[[Sequence[Checkpoint]], Curve] | None = None,
) -> tuple[list[Segment], Choice]:
    """The schedule of a student that learns from the checkpoints of a teacher's transition.

    Args:
        teacher: a directory with checkpoints, or a hub id.
        every: student steps per checkpoint; the final one is used to the end.
        number: the largest number of checkpoints, including the final one.
        log: the teacher's training log, or its curve; by default the log in its directory, if there is one.
        pattern: for the names of its checkpoints, as in `find_checkpoints`.
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
    """Choose which of a teacher's checkpoints to learn from, by its training curve."""

    teacher: Annotated[str, tyro.conf.Positional]
    """Directory with checkpoints, or a hub id."""
    log: Path | None = None
    """The teacher's training log: metrics.jsonl, trainer_state.json, or a CSV file with columns step and loss; by
    default the one in its directory."""
    number: int = DEFAULT_NUMBER
    """Largest number of checkpoints, including the final one."""
    every: int = 100
    """Student steps per checkpoint."""
    teacher_pattern: str | None = None
    """Regular expression for checkpoint names, with a group named step."""


def choose_command(arguments: ChooseArguments) -> None:
    """Print the phases, the checkpoints, the reason, and how to use them.

    Raises:
        UserError: as for `choose_schedule`.
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
    """Phases against log(step), in steps; the evaluation at step 0 is ignored."""
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
    """For each wanted step, from the last to the first, the nearest one that is not taken yet."""
    left = list(steps)
    chosen = []
    for step in reversed(wanted):
        if left:
            chosen.append(min(left, key=lambda other: abs(scale(other) - scale(step))))
            left.remove(chosen[-1])
    return chosen
