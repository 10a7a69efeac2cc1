"""What every `distill.py` has in common: the methods and their arguments, and what a student learns from.

A command makes one run for each combination of its plural arguments; the arguments of such a single run are the
command's with one value in each of them, `methods[0]` for example, and no checkpoint unless the method is two-shot.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from common import losses, schedules
from common.checkpoints import Checkpoint
from common.errors import UserError
from common.phases import choose_checkpoints, find_phases
from common.runs import Run

Method = Literal[
    "ce", "one-shot", "progressive", "two-shot", "until-saturation", "accelerated", "refreshed", "explicit"
]


@dataclass(frozen=True, kw_only=True)
class DistillationArguments:
    """How students are taught."""

    teacher: str = ""
    """Directory with checkpoint-<step> folders, or a hub id; by default the run of train.py with this preset."""
    methods: tuple[Method, ...] = ("ce", "one-shot", "progressive")
    """How students are taught."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students' initial weights."""
    stream_seed: int = 1000
    """Seed of the data stream that all students share."""
    teacher_every: int | None = None
    """Student steps per teacher checkpoint (progressive, refreshed): T in (N, T)-progressive distillation; by default
    the checkpoints share the steps equally."""
    teacher_checkpoints: int | None = None
    """Number of teacher checkpoints (progressive): N in (N, T)-progressive distillation; by default all."""
    teacher_range: tuple[int, int] | None = None
    """First and last teacher step whose checkpoints are used before the final one (progressive), such as those of its
    transition; by default all."""
    checkpoint: tuple[str, ...] = ("inside",)
    """First checkpoint (two-shot), one run each: a teacher step, or before, inside or after its transition."""
    first_steps: int
    """Student steps with the first checkpoint (two-shot)."""
    speed: float = 1.0
    """Teacher steps per student step (accelerated, refreshed)."""
    plan: tuple[str, ...] = ()
    """Checkpoints and student steps (explicit), such as 200:50 600:100; the last one stays."""
    saturation_window: int = 5
    """Evaluations without improvement after which the next checkpoint takes over (until-saturation)."""
    saturation_threshold: float = 0.01
    """Accuracy that counts as an improvement (until-saturation)."""
    saturation_steps: int
    """Student steps after which the next checkpoint takes over in any case (until-saturation)."""
    temperature: float = 1.0
    """Temperature of the teacher's logits; 0 is the arg-max."""
    end_temperature: float | None = None
    """Temperature at the last step, if it is annealed."""
    annealing: Literal["linear", "logarithmic"] = "linear"
    """How the temperature is annealed."""
    top_k: int | None = None
    """Keep the teacher's k most probable classes."""
    alpha: tuple[float, ...] = (0.0,)
    """Weight of the label's cross entropy against the teacher's; several values take over at --alpha-steps."""
    alpha_steps: tuple[int, ...] = ()
    """Steps at which alpha moves to its next value."""
    divergence: losses.Divergence = "forward-kl"
    """Divergence from the teacher."""
    beta: float = 0.5
    """Weight of KL(teacher || mixture) in the Jensen-Shannon divergence."""


Arguments = TypeVar("Arguments", bound=DistillationArguments)


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


def check_plural(arguments: object, names: Sequence[str]) -> None:
    """Refuse plural arguments that name no run or one run twice.

    Raises:
        UserError: names the flag.
    """
    for name in names:
        values = getattr(arguments, name)
        if not values or len(set(values)) < len(values):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} needs at least one value and none twice, got {list(values)}")


def single_runs(arguments: Arguments, plural: Sequence[str]) -> list[Arguments]:
    """The arguments of every run: one method, one value of each other plural argument, and one first checkpoint.

    Args:
        arguments: the command's.
        plural: names of its plural arguments, `checkpoint` among them; the last one changes fastest.
    """
    others = [name for name in plural if name not in ("methods", "checkpoint")]
    runs = []
    for method, *values in itertools.product(arguments.methods, *(getattr(arguments, name) for name in others)):
        for first in arguments.checkpoint if method == "two-shot" else ("",):
            chosen: dict[str, Any] = {name: (value,) for name, value in zip(others, values, strict=True)}
            runs.append(replace(arguments, methods=(method,), checkpoint=(first,) if first else (), **chosen))
    return runs


def resolved_teacher(teacher: str, default: str, root: Path) -> str:
    """The teacher's directory, relative to the repository's root if it is in there, or its hub id."""
    if not teacher:
        return default
    path = Path(teacher).resolve()
    if not path.exists():
        return teacher
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def own_teacher(directory: Path, names: Sequence[str]) -> Mapping[str, Any] | None:
    """The config of a teacher that one of our runs made; None for any other.

    Args:
        directory: the teacher's.
        names: arguments by which a run of the setting is known.

    Raises:
        UserError: the run is not complete, or its config.json is damaged.
    """
    path = directory / "config.json"
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} is cut off or damaged: give another --teacher") from None
    arguments = config.get("arguments") if isinstance(config, dict) else None
    if not isinstance(arguments, dict) or not arguments.keys() >= set(names):
        return None
    if not Run(directory).complete:
        raise UserError(f"the teacher's run in {directory} is not complete: finish it first, by its train.py command")
    return config


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
