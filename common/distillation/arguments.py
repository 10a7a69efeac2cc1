"""The arguments of every distill.py. This module imports nothing slow, so that commands start quickly."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from common.arguments import is_of_type, option_of
from common.errors import UserError

Method = Literal[
    "ce",
    "one-shot",
    "progressive",
    "two-shot",
    "designed",
    "auto",
    "until-saturation",
    "accelerated",
    "refreshed",
    "custom",
    "explicit",
]
Annealing = Literal["linear", "logarithmic"]
Divergence = Literal["forward-kl", "reverse-kl", "jensen-shannon"]
Targets = Literal["exact", "sampled", "top-k"]
TARGET_SAMPLES = 50
"""Of each position, by default."""


@dataclass(frozen=True, kw_only=True)
class DistillationArguments:
    """How students are supervised."""

    design_defaults = MappingProxyType[str, Any]({})
    """Arguments of designed targets, if a setting has them, and what they are by default; None in runs of other
    methods. One of them is plural."""

    teacher: str = ""
    """Directory with checkpoint-<step> folders, or a hub id; by default the run of train.py with this preset."""
    teacher_pattern: str | None = None
    """Regular expression for the names of the teacher's checkpoints, with a group named step, such as
    'stage1-step(?P<step>[0-9]+).*'; by default common names are recognised."""
    trust_trajectory: bool = False
    """Warn about checkpoints that do not seem to be what their names say, instead of rejecting them."""
    methods: tuple[Method, ...] = ("ce", "one-shot", "progressive")
    """How students are supervised, one run each; explicit is the old name of custom."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students' initial weights, one run each."""
    stream_seed: int = 1000
    """Seed of the data stream that all students share."""
    teacher_every: int | None = None
    """Student steps per teacher checkpoint (progressive, refreshed): T in (N, T)-progressive distillation; by default
    the checkpoints each get an equal number of steps."""
    teacher_checkpoints: int | None = None
    """Number of teacher checkpoints (progressive): N in (N, T)-progressive distillation; by default all."""
    teacher_range: tuple[int, int] | None = None
    """First and last teacher step of the checkpoints used before the final one (progressive), such as those of the
    transition; all by default."""
    checkpoint: tuple[str, ...] = ("inside",)
    """First checkpoint (two-shot), one run each: a teacher step, or before, inside or after the teacher's
    transition."""
    first_steps: int
    """Student steps with the first checkpoint (two-shot) or the designed target (designed)."""
    speed: float = 1.0
    """Teacher steps per student step (accelerated, refreshed)."""
    segments: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--plan",))] = ()
    """Checkpoints and student steps (custom), such as 200:50 600:100; the last checkpoint is used to the end."""
    saturation_window: int = 5
    """Evaluations without improvement after which the next checkpoint takes over (until-saturation)."""
    saturation_threshold: float = 0.01
    """Increase in accuracy that counts as an improvement (until-saturation)."""
    saturation_steps: int
    """Student steps after which the next checkpoint takes over at the latest (until-saturation)."""
    temperature: float = 1.0
    """Temperature of the teacher's logits; 0 is the arg-max."""
    end_temperature: float | None = None
    """Temperature at the last step, if it is annealed."""
    annealing: Annealing = "linear"
    """How the temperature is annealed."""
    top_k: int | None = None
    """Keep the teacher's k most probable classes."""
    alpha: tuple[float, ...] = (0.0,)
    """Weight of the cross entropy with the labels; the divergence has weight 1 - alpha. Several values are used in
    turn, changing at --alpha-steps."""
    alpha_steps: tuple[int, ...] = ()
    """Steps at which alpha changes to its next value."""
    divergence: Divergence = "forward-kl"
    """Divergence from the teacher."""
    beta: float = 0.5
    """Weight of KL(teacher || mixture) in the Jensen-Shannon divergence."""

    def __post_init__(self) -> None:
        """Replace the old name of a method, and write the steps in `checkpoint` without leading zeros."""
        methods = tuple("custom" if method == "explicit" else method for method in self.methods)
        checkpoint = tuple(str(int(name)) if name.isdecimal() else name for name in self.checkpoint)
        object.__setattr__(self, "methods", methods)
        object.__setattr__(self, "checkpoint", checkpoint)


Arguments = TypeVar("Arguments", bound=DistillationArguments)

BELONGS_TO = {"start": "grammar", "weights": "corpus"}
"""Arguments of a task that say something about another one, and nothing without it."""


def with_designs(arguments: Arguments) -> Arguments:
    """The arguments of a command, with the defaults of designed targets if one of its methods has them.

    Raises:
        UserError: the setting has no designed targets, or an argument of them is given without the method.
    """
    defaults = arguments.design_defaults
    given = {name: getattr(arguments, name) for name in defaults if getattr(arguments, name) is not None}
    if "designed" in arguments.methods:
        if not defaults:
            raise UserError("--methods designed is for settings on parity and on grammars: give another method")
        return replace(arguments, **{**defaults, **given})
    if given:
        raise UserError(f"{option_of(next(iter(given)))} is for --methods designed: give that too, or leave it out")
    return arguments


def needs_teacher(arguments: DistillationArguments) -> bool:
    """Whether a student of a command, with `with_designs`, learns from a teacher's checkpoints."""
    alone = ("ce", "designed") if getattr(arguments, "then", None) == "labels" else ("ce",)
    return any(method not in alone for method in arguments.methods)


def require_distinct(arguments: object, names: Sequence[str]) -> None:
    """Reject plural arguments with no values or repeated ones.

    Args:
        arguments: the command's.
        names: of the plural arguments.

    Raises:
        UserError: names the flag.
    """
    for name in names:
        values = getattr(arguments, name)
        if not values or len(set(values)) < len(values):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} needs at least one value, without repeats, got {list(values)}")


def student_arguments(arguments: Arguments, plural: Sequence[str]) -> list[Arguments]:
    """The arguments of each student's run: one method, and one value of every other plural argument that it uses.

    Args:
        arguments: the command's.
        plural: names of its plural arguments; the last one varies fastest, but for those of one method only.
    """
    of_designs = arguments.design_defaults
    names = sorted((name for name in plural if name != "methods"), key=["checkpoint", *of_designs].__contains__)
    students = []
    for method in arguments.methods:
        absent: dict[str, Any] = {} if method == "two-shot" else {"checkpoint": ()}
        absent |= {} if method == "designed" else dict.fromkeys(of_designs)
        used = [name for name in names if name not in absent]
        for values in itertools.product(*(getattr(arguments, name) for name in used)):
            chosen: dict[str, Any] = {name: (value,) for name, value in zip(used, values, strict=True)}
            students.append(replace(arguments, methods=(method,), **absent, **chosen))
    return students


def resolve_teacher(teacher: str, default: str, root: Path) -> str:
    """The teacher's directory, relative to the repository's root if it is in the repository, or its hub id.

    Args:
        teacher: as given on the command line.
        default: used if `teacher` is empty.
        root: of the repository.
    """
    if not teacher:
        return default
    path = Path(teacher).resolve()
    if not path.exists():
        return teacher
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def with_task_of(
    teacher: Mapping[str, Any] | None, arguments: Arguments, names: Sequence[str], argv: Sequence[str]
) -> Arguments:
    """The arguments, with the teacher's task where the command does not say what the task is.

    Args:
        teacher: arguments, by name, of a run of this project; None for any other teacher, which does not say.
        arguments: of the command.
        names: of those that describe the task.
        argv: the command; empty if there is none, and all arguments were meant as they are.

    Raises:
        UserError: the config has a value of a type that the argument cannot have.
    """
    if teacher is None or not argv:
        return arguments
    options = [word.split("=")[0] for word in argv if word.startswith("--")]
    given = {option.removeprefix("--").removeprefix("no-").replace("-", "_") for option in options}
    hints = get_type_hints(type(arguments))
    taken: dict[str, Any] = {}
    for name in [name for name in names if name in teacher and not {name, BELONGS_TO.get(name)} & given]:
        value = teacher[name]
        if not is_of_type(value, hints[name]):
            raise UserError(f"the config.json of the teacher's run has {name} {value!r}: give another --teacher")
        taken[name] = tuple(value) if isinstance(value, list) else value
    return replace(arguments, **taken)
