"""Train students on parity from a teacher's checkpoints, one run per method, seed and width, all in one pass.

    python distill.py laptop --teacher ../runs/parity_mlp/laptop
    python distill.py laptop --methods two-shot --checkpoint before inside after --first-steps 100000

All students see the same stream of samples, so the input products and the teacher's logits are computed once.
"""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from common.arguments import require_at_least, require_seed
from common.checkpoints import find_checkpoints, local_path
from common.distillation import (
    DistillationArguments,
    check_plural,
    own_teacher,
    resolved_teacher,
    single_runs,
    supervision,
)
from common.errors import UserError
from common.runs import SURROUNDINGS, command, default_name, open_run
from parity_mlp.data import make_task
from parity_mlp.models import initial_tensors, load_tensors
from parity_mlp.training import ROOT, RUNS, Arguments, Student, check, task_of, train_together


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, DistillationArguments):
    """Arguments of `distill.py`."""

    widths: tuple[int, ...]
    """Neurons per hidden layer of the students."""
    saturation_steps: int = 100_000
    """Student steps after which the next checkpoint takes over in any case (until-saturation)."""


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
PLURAL = ("methods", "widths", "seeds", "checkpoint")
"""Arguments of which each run has one value."""


def distill(arguments: DistillArguments) -> None:
    """Make one run for every method, seed and width (and first checkpoint of two-shot), or finish them."""
    check(arguments)
    check_plural(arguments, PLURAL)
    require_at_least(1, arguments, "widths")
    require_seed(arguments, "seeds", "stream_seed")
    task = task_of(arguments)
    default = _default_teacher(arguments.preset)
    arguments = replace(arguments, teacher=resolved_teacher(arguments.teacher, default, ROOT))
    directory = ROOT / arguments.teacher
    teacher = find_checkpoints(directory if directory.exists() else arguments.teacher)
    load_tensors(local_path(teacher[-1]), task.d, task.classes)
    teacher_id = _check_own_teacher(arguments, directory)

    planned = [
        (
            single,
            supervision(single, single.steps, teacher, directory, task.classes, lambda record: 1 - record["accuracy"]),
        )
        for single in single_runs(arguments, PLURAL)
    ]
    with ExitStack() as stack:
        students = []
        for single, taught in planned:
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
            students.append(Student(run, taught, initial))
        if students:
            train_together(arguments, students, arguments.stream_seed, f"{len(students)} students")
        for student in students:
            print(f"{student.run.directory}: accuracy {student.records[-1]['accuracy']:.3f}")


def _default_teacher(preset: str) -> str:
    return (RUNS / preset).relative_to(ROOT).as_posix()


def _run_directory(arguments: DistillArguments, single: DistillArguments) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in runs/parity_mlp."""
    parts = [*single.methods, *single.checkpoint, f"width{single.widths[0]}", f"seed{single.seeds[0]}"]
    if arguments.out is not None:
        return arguments.out / "-".join(parts) if len(single_runs(arguments, PLURAL)) > 1 else arguments.out
    name = "-".join([arguments.preset, *parts])
    preset = replace(PRESETS[arguments.preset], teacher=_default_teacher(arguments.preset))
    return RUNS / default_name(single, preset, name, exclude=(*SURROUNDINGS, *PLURAL))


def _check_own_teacher(arguments: DistillArguments, directory: Path) -> str | None:
    """The id of a teacher that one of our runs made; None for any other.

    Raises:
        UserError: the run is not complete, its config.json is damaged, or it was trained for another support.
    """
    names = ("d", "k", "labels", "support", "support_seed")
    config = own_teacher(directory, names)
    if config is None:
        return None
    theirs = config["arguments"]
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
