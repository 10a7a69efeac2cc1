"""Train students on parity from a teacher's checkpoints: one run per method, seed, size and rate, all in one pass.

    python distill.py laptop --teacher ../runs/parity_mlp/laptop
    python distill.py laptop --methods two-shot --checkpoint before inside after --first-steps 100000
    python distill.py laptop --model gpt2 --student-heads 2 4 --lr 1e-4 3e-4

All students see the same stream of samples, so that the teacher's logits and, for MLPs, the products of inputs are
computed once. Students and teacher need not be of the same model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common.arguments import require_at_least, require_seed
from common.cli import command, run_command
from common.distillation.arguments import DistillationArguments, require_distinct, resolve_teacher, student_arguments
from common.distillation.supervision import own_teacher, supervision
from common.errors import UserError
from common.parity.arguments import (
    ROOT,
    RUNS,
    GPT2Arguments,
    MLPArguments,
    Model,
    check,
    join_processes_of,
    model_of_command_line,
    run_name,
    task_of,
)
from common.parity.networks import initial_network, load_network
from common.parity.task import make_task
from common.parity.training import Student, train_together
from common.runs.names import EXECUTION_ARGUMENTS, default_name
from common.runs.processes import open_shared_run
from common.teachers.discovery import find_checkpoints, local_path


@dataclass(frozen=True, kw_only=True)
class DistillArguments(MLPArguments, DistillationArguments):
    """Arguments of `distill.py` for MLP students."""

    widths: tuple[int, ...]
    """Neurons per hidden layer of the students."""
    lr: tuple[float, ...]
    """Learning rates, one run each."""
    saturation_steps: int = 100_000
    """Student steps after which the next checkpoint takes over in any case (until-saturation)."""


@dataclass(frozen=True, kw_only=True)
class DistillGPT2Arguments(GPT2Arguments, DistillationArguments):
    """Arguments of `distill.py` for GPT-2 students."""

    student_heads: tuple[int, ...]
    """Attention heads of the students."""
    lr: tuple[float, ...]
    """Largest learning rates, one run each."""
    saturation_steps: int = 1_000
    """Student steps after which the next checkpoint takes over in any case (until-saturation)."""


PRESETS: dict[Model, dict[str, DistillArguments | DistillGPT2Arguments]] = {
    "mlp": {
        "smoke": DistillArguments(
            preset="smoke",
            d=24,
            k=4,
            widths=(16,),
            steps=20_000,
            lr=(0.02,),
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
            lr=(0.01,),
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
            lr=(0.01,),
            eval_every=20_000,
            checkpoint_every=0,
            teacher_every=100_000,
            first_steps=1_000_000,
        ),
    },
    "gpt2": {
        "smoke": DistillGPT2Arguments(
            preset="smoke",
            d=8,
            k=2,
            student_heads=(1,),
            initial_std=0.1,
            steps=400,
            lr=(1e-3,),
            eval_every=20,
            checkpoint_every=0,
            eval_samples=512,
            teacher_every=20,
            first_steps=100,
        ),
        "laptop": DistillGPT2Arguments(
            preset="laptop",
            d=20,
            k=4,
            student_heads=(2,),
            initial_std=0.1,
            steps=6_000,
            lr=(1e-3,),
            lr_schedule="constant",
            eval_every=50,
            checkpoint_every=0,
            teacher_every=50,
            first_steps=2_000,
        ),
        "paper": DistillGPT2Arguments(
            preset="paper",
            d=100,
            k=6,
            student_heads=(4,),
            steps=250_000,
            lr=(3e-4,),
            eval_every=1_000,
            checkpoint_every=0,
            teacher_every=10_000,
            first_steps=50_000,
            saturation_steps=10_000,
        ),
    },
}


def distill(arguments: DistillArguments | DistillGPT2Arguments, argv: Sequence[str] = ()) -> None:
    """Make one run for every method, size, seed and rate (and first checkpoint of two-shot), or finish them."""
    plural, size = _plural(arguments), _size(arguments)
    check(arguments, arguments.lr)
    require_distinct(arguments, plural)
    require_at_least(1, arguments, size)
    require_seed(arguments, "seeds", "stream_seed")
    task = task_of(arguments)
    default = _default_teacher(arguments)
    arguments = replace(arguments, teacher=resolve_teacher(arguments.teacher, default, ROOT))
    directory = ROOT / arguments.teacher
    teacher = find_checkpoints(directory if directory.exists() else arguments.teacher)
    load_network(local_path(teacher[-1]), task)
    teacher_id = _check_own_teacher(arguments, directory)

    planned = [
        (
            single,
            supervision(single, single.steps, teacher, directory, task.classes, lambda record: 1 - record["accuracy"]),
        )
        for single in student_arguments(arguments, plural)
    ]
    processes, device = join_processes_of(arguments)
    with ExitStack() as stack:
        students = []
        for single, taught in planned:
            config = {**asdict(single), "teacher_id": teacher_id}
            options = {
                "setting": f"parity_{arguments.model}",
                "argv": argv,
                "force": single.force,
                "wandb": single.wandb,
                "group": single.preset,
            }
            opened = open_shared_run(_run_directory(arguments, single), config, processes, **options)
            run = stack.enter_context(opened)
            if run.complete:
                processes.say(f"{run.directory} is complete")
                continue
            initial = initial_network(single, getattr(single, size)[0], single.seeds[0])
            students.append(Student(run, taught, initial, single.lr[0]))
        if students:
            description = f"{len(students)} students"
            train_together(arguments, students, arguments.stream_seed, description, device, processes)
        for student in students:
            processes.say(f"{student.run.directory}: accuracy {student.records[-1]['accuracy']:.3f}")


def _size(arguments: DistillArguments | DistillGPT2Arguments) -> str:
    """The argument that says how large students are."""
    return "widths" if isinstance(arguments, DistillArguments) else "student_heads"


def _plural(arguments: DistillArguments | DistillGPT2Arguments) -> tuple[str, ...]:
    """Arguments of which each run has one value."""
    return "methods", _size(arguments), "lr", "seeds", "checkpoint"


def _default_teacher(arguments: DistillArguments | DistillGPT2Arguments) -> str:
    return (RUNS / run_name(arguments.model, arguments.preset)).relative_to(ROOT).as_posix()


def _run_directory(
    arguments: DistillArguments | DistillGPT2Arguments, single: DistillArguments | DistillGPT2Arguments
) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in runs/parity_mlp."""
    size, plural = _size(single), _plural(single)
    parts = [*single.methods, *single.checkpoint]
    parts += [f"{'width' if size == 'widths' else 'heads'}{getattr(single, size)[0]}", f"seed{single.seeds[0]}"]
    if arguments.out is not None:
        parts += [f"lr{single.lr[0]}"] if len(arguments.lr) > 1 else []
        return arguments.out / "-".join(parts) if len(student_arguments(arguments, plural)) > 1 else arguments.out
    name = "-".join([run_name(arguments.model, arguments.preset), *parts])
    preset = replace(PRESETS[arguments.model][arguments.preset], teacher=_default_teacher(arguments))
    in_name = [argument for argument in plural if argument != "lr"]
    return RUNS / default_name(single, preset, name, exclude=(*EXECUTION_ARGUMENTS, *in_name))


def _check_own_teacher(arguments: DistillArguments | DistillGPT2Arguments, directory: Path) -> str | None:
    """The id of a teacher that one of our runs made; None for any other.

    Raises:
        UserError: the run is not complete, its config.json is damaged, or it was trained for another support.
    """
    names = ("d", "k", "labels", "support", "support_seed")
    config = own_teacher(directory, ("parity_mlp", "parity_gpt2"))
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
    run_command(PRESETS[model_of_command_line()], distill, __doc__)


if __name__ == "__main__":
    command(main)
