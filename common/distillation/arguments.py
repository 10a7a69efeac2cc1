"""The arguments of distill.py."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from common.distillation import losses
from common.errors import UserError

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


def require_distinct(arguments: object, names: Sequence[str]) -> None:
    """Refuse plural arguments that name no run or one run twice.

    Raises:
        UserError: names the flag.
    """
    for name in names:
        values = getattr(arguments, name)
        if not values or len(set(values)) < len(values):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} needs at least one value and none twice, got {list(values)}")


def student_arguments(arguments: Arguments, plural: Sequence[str]) -> list[Arguments]:
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


def resolve_teacher(teacher: str, default: str, root: Path) -> str:
    """The teacher's directory, relative to the repository's root if it is in there, or its hub id."""
    if not teacher:
        return default
    path = Path(teacher).resolve()
    if not path.exists():
        return teacher
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
