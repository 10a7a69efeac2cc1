"""Train students on parity from a teacher's checkpoints, one run per method, seed and width, all in one pass.

    python distill.py laptop --teacher ../runs/parity_mlp/laptop
    python distill.py laptop --methods two-shot --checkpoint before inside after --first-steps 100000

All students see the same stream of samples, so the input products and the teacher's logits are computed once.
"""

import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from common import losses, schedules
from common.checkpoints import Checkpoint, find_checkpoints, local_path
from common.errors import UserError
from common.phases import choose_checkpoints, find_phases
from common.runs import SURROUNDINGS, Run, command, default_name, open_run
from parity_mlp.data import make_task
from parity_mlp.models import initial_tensors, load_tensors
from parity_mlp.training import (
    FROM_LABELS,
    ROOT,
    RUNS,
    Arguments,
    Student,
    Supervision,
    check,
    require_at_least,
    require_seed,
    task_of,
    train_together,
)

Method = Literal[
    "ce", "one-shot", "progressive", "two-shot", "until-saturation", "accelerated", "refreshed", "explicit"
]


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments):
    """Arguments of `distill.py`."""

    teacher: str = ""
    """Directory with checkpoint-<step> folders, or a hub id; by default the run of train.py with this preset."""
    methods: tuple[Method, ...] = ("ce", "one-shot", "progressive")
    """How students are taught."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students' initial weights."""
    widths: tuple[int, ...]
    """Neurons per hidden layer of the students."""
    stream_seed: int = 1000
    """Seed of the data stream that all students share."""
    teacher_every: int
    """Student steps per teacher checkpoint (progressive, refreshed): T in (N, T)-progressive distillation."""
    teacher_checkpoints: int | None = None
    """Number of teacher checkpoints (progressive): N in (N, T)-progressive distillation; by default all."""
    checkpoint: tuple[str, ...] = ("inside",)
    """First checkpoint (two-shot), one run each: a teacher step, or before, inside or after its transition."""
    first_steps: int
    """Student steps with the first checkpoint (two-shot)."""
    speed: float = 1.0
    """Teacher steps per student step (accelerated, refreshed)."""
    plan: tuple[str, ...] = ()
    """Checkpoints and student steps (explicit), such as 200000:50000 600000:100000; the last one stays."""
    saturation_window: int = 5
    """Evaluations without improvement after which the next checkpoint takes over (until-saturation)."""
    saturation_threshold: float = 0.01
    """Accuracy that counts as an improvement (until-saturation)."""
    saturation_steps: int = 100_000
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


PRESETS = {
    "smoke": DistillArguments(
        preset="smoke",
        d=24,
        k=4,
        widths=(16,),
        steps=20_000,
        lr=0.02,
        eval_every=500,
        checkpoint_every=0,
        teacher_every=500,
        first_steps=4_000,
    ),
    "laptop": DistillArguments(
        preset="laptop",
        d=100,
        k=4,
        widths=(10,),
        steps=600_000,
        lr=0.01,
        eval_every=5_000,
        checkpoint_every=0,
        teacher_every=5_000,
        first_steps=100_000,
    ),
    "paper": DistillArguments(
        preset="paper",
        d=100,
        k=6,
        widths=(100,),
        steps=8_000_000,
        lr=0.01,
        eval_every=20_000,
        checkpoint_every=0,
        teacher_every=100_000,
        first_steps=1_000_000,
    ),
}
DESCRIPTIONS = {"smoke": "seconds", "laptop": "shows the effect in seconds", "paper": "the published size"}
PLURAL = ("methods", "seeds", "widths", "checkpoint")
"""Arguments of which each run has one value."""


def distill(arguments: DistillArguments) -> None:
    """Make one run for every method, seed and width (and first checkpoint of two-shot), or finish them."""
    check(arguments)
    _check_students(arguments)
    task = task_of(arguments)
    arguments = replace(arguments, teacher=_resolved_teacher(arguments))
    directory = ROOT / arguments.teacher
    teacher = find_checkpoints(directory if directory.exists() else arguments.teacher)
    load_tensors(local_path(teacher[-1]), task.d, task.classes)
    teacher_id = _check_own_teacher(arguments, directory)

    planned = [(single, _supervision(single, teacher, directory)) for single in _single_runs(arguments)]
    with ExitStack() as stack:
        students = []
        for single, supervision in planned:
            config = {**asdict(single), "teacher_id": teacher_id}
            opened = open_run(
                _run_directory(arguments, single), config, force=single.force, wandb=single.wandb, group=single.preset
            )
            run = stack.enter_context(opened)
            if run.complete:
                print(f"{run.directory} is complete")
                continue
            initial = initial_tensors(
                task.d, single.widths[0], task.classes, single.layers, single.seeds[0], single.dtype
            )
            students.append(Student(run, supervision, initial))
        if students:
            train_together(arguments, students, arguments.stream_seed, f"{len(students)} students")
        for student in students:
            print(f"{student.run.directory}: accuracy {student.records[-1]['accuracy']:.3f}")


def _resolved_teacher(arguments: DistillArguments) -> str:
    """The teacher's directory, relative to the repository's root if it is in there, or its hub id."""
    if not arguments.teacher:
        return _default_teacher(arguments.preset)
    path = Path(arguments.teacher).resolve()
    if not path.exists():
        return arguments.teacher
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def _default_teacher(preset: str) -> str:
    return (RUNS / preset).relative_to(ROOT).as_posix()


def _check_students(arguments: DistillArguments) -> None:
    """Refuse numbers out of range, and lists that name no run or one run twice."""
    for name in PLURAL:
        values = getattr(arguments, name)
        if not values or len(set(values)) < len(values):
            raise UserError(f"--{name} needs at least one value and none twice, got {list(values)}")
    require_at_least(1, arguments, "widths")
    require_seed(arguments, "seeds", "stream_seed")
    if not arguments.alpha:
        raise UserError("--alpha needs at least one value")


def _single_runs(arguments: DistillArguments) -> list[DistillArguments]:
    """The arguments of every run: one method, one seed, one width and, for two-shot, one first checkpoint."""
    runs = []
    for method, width, seed in itertools.product(arguments.methods, arguments.widths, arguments.seeds):
        for first in arguments.checkpoint if method == "two-shot" else ("",):
            checkpoint = (first,) if first else ()
            runs.append(replace(arguments, methods=(method,), widths=(width,), seeds=(seed,), checkpoint=checkpoint))
    return runs


def _run_directory(arguments: DistillArguments, single: DistillArguments) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in runs/parity_mlp."""
    parts = [*single.methods, *single.checkpoint, f"width{single.widths[0]}", f"seed{single.seeds[0]}"]
    if arguments.out is not None:
        return arguments.out / "-".join(parts) if len(_single_runs(arguments)) > 1 else arguments.out
    name = "-".join([arguments.preset, *parts])
    preset = replace(PRESETS[arguments.preset], teacher=_default_teacher(arguments.preset))
    return RUNS / default_name(single, preset, name, exclude=(*SURROUNDINGS, *PLURAL))


def _supervision(single: DistillArguments, teacher: Sequence[Checkpoint], directory: Path) -> Supervision:
    """What the student of a single run learns from.

    Raises:
        UserError: an argument of the schedule or of the loss is out of its range.
    """
    method = single.methods[0]
    if method == "ce":
        return FROM_LABELS
    steps = [checkpoint.step for checkpoint in teacher]
    end_temperature = single.temperature if single.end_temperature is None else single.end_temperature
    if not 0 <= min(single.alpha) <= max(single.alpha) <= 1:
        raise UserError(f"--alpha must be between 0 and 1, got {single.alpha}")
    losses.stepwise(single.alpha, single.alpha_steps, 0)
    losses.annealed_temperature(0, single.temperature, end_temperature, single.steps, single.annealing)
    if single.top_k is not None and not 1 <= single.top_k <= single.labels:
        raise UserError(f"--top-k must be between 1 and the number of labels, {single.labels}; got {single.top_k}")
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
        fixed = _fixed_schedule(single, steps, directory)
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


def _fixed_schedule(single: DistillArguments, steps: list[int], directory: Path) -> list[schedules.Segment]:
    match single.methods[0]:
        case "one-shot":
            return schedules.one_shot(steps)
        case "progressive":
            return schedules.progressive(steps, single.teacher_every, single.teacher_checkpoints)
        case "two-shot":
            return schedules.two_shot(steps, _first_checkpoint(single, steps, directory), single.first_steps)
        case "accelerated":
            return schedules.accelerated(steps, single.speed)
        case "refreshed":
            return schedules.refreshed(steps, single.teacher_every, single.speed)
        case "explicit":
            return _planned(single.plan, steps)
        case method:
            raise AssertionError(method)


def _first_checkpoint(single: DistillArguments, steps: list[int], directory: Path) -> int:
    """The teacher step that --checkpoint names."""
    named = single.checkpoint[0]
    if named.isdigit():
        return int(named)
    places = ("before", "inside", "after")
    if named not in places:
        raise UserError(f"--checkpoint is a teacher step, before, inside or after; got {named!r}")
    if not (directory / "metrics.jsonl").exists():
        raise UserError(f"{directory} has no metrics.jsonl to find a transition in: give --checkpoint a teacher step")
    records = Run(directory).records()
    phases = find_phases([record["step"] for record in records], [1 - record["accuracy"] for record in records])
    return choose_checkpoints(phases, steps)[places.index(named)]


def _planned(plan: Sequence[str], steps: list[int]) -> list[schedules.Segment]:
    """The schedule that --plan describes."""
    pairs: list[tuple[int, int | None]] = []
    for i, item in enumerate(plan):
        checkpoint, _, count = item.partition(":")
        if not checkpoint.isdigit() or not (count.isdigit() or (not count and i == len(plan) - 1)):
            raise UserError(f"--plan is a list of checkpoint:steps, the last may lack its steps; got {item!r}")
        earlier = [step for step in steps if step <= int(checkpoint)]
        if not earlier:
            raise UserError(f"--plan names checkpoint {checkpoint}, but the first is {steps[0]}")
        pairs.append((earlier[-1], int(count) if count else None))
    return schedules.explicit(pairs)


def _check_own_teacher(arguments: DistillArguments, directory: Path) -> str | None:
    """The id of a teacher that one of our runs made; None for any other.

    Raises:
        UserError: the run is not complete, its config.json is damaged, or it was trained for another support.
    """
    path = directory / "config.json"
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} is cut off or damaged: give another --teacher") from None
    theirs = config.get("arguments", {})
    names = ("d", "k", "labels", "support", "support_seed")
    if not theirs.keys() >= set(names):
        return None
    if not Run(directory).complete:
        raise UserError(f"the teacher's run in {directory} is not complete: finish it first, by its train.py command")
    if make_task(*(theirs[name] for name in names)) != task_of(arguments):
        name = next(name for name in names if theirs[name] != getattr(arguments, name))
        raise UserError(
            f"{directory} was trained with {name} {theirs[name]}, but here it is {getattr(arguments, name)}"
        )
    return config.get("id")


def main() -> None:
    """Parse the command line."""
    presets = {name: (DESCRIPTIONS[name], arguments) for name, arguments in PRESETS.items()}
    distill(tyro.extras.overridable_config_cli(presets, description=__doc__))


if __name__ == "__main__":
    command(main)
