"""A teacher's checkpoints, in a directory or on the Hugging Face hub, found by their names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, listed
from common.runs.files import NUMBER, read_json
from common.teachers import hub
from common.teachers.weights import ADAPTER, is_adapter, weight_files

STEP = f"(?P<step>{NUMBER})"
NAMES = (
    f"checkpoint-{STEP}",  # transformers.Trainer and this project
    f"((?P<stage>stage[0-9]+)-)?step[_-]?{STEP}(-tokens[0-9]+[A-Z]?)?",  # Pythia, OLMo and many others
    f"global_step{STEP}",  # DeepSpeed
    f"iter_0*{STEP}",  # Megatron
    f"ckpt[_-]{STEP}",
    STEP,
)
"""What directories, branches and tags of checkpoints are called."""

EXAMPLE = "such as 'stage1-step(?P<step>[0-9]+).*'"
"""Of a pattern."""

WEIGHT_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
"""How other files with these suffixes begin."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a teacher."""

    step: int
    """Teacher step at which it was saved."""
    location: Path | str
    """A local directory, or `org/name@revision` on the Hugging Face hub."""


def find_checkpoints(teacher: str | Path, pattern: str | None = None) -> list[Checkpoint]:
    """All checkpoints of a teacher, in the order of their steps.

    Args:
        teacher: a directory whose directories are checkpoints, such as that of a run of this project or of any
            `transformers.Trainer`, or which is a model itself; or else a hub id `org/name` whose branches or tags are
            checkpoints, which are only listed here. `NAMES` has the names that are known.
        pattern: a regular expression for the whole name, with a group `step`, that replaces `NAMES`.

    Raises:
        UserError: the teacher does not exist, has no checkpoint, two for a step, or one that lacks its files; or the
            pattern does not compile or has no such group.
    """
    checkpoints = named_checkpoints(teacher, pattern)
    for checkpoint in checkpoints:
        if isinstance(checkpoint.location, Path):
            weight_files(checkpoint.location)
    return checkpoints


def named_checkpoints(teacher: str | Path, pattern: str | None = None) -> list[Checkpoint]:
    """As `find_checkpoints`, but the files of the checkpoints are not looked at."""
    directory = Path(teacher)
    if not directory.is_dir():
        revisions = hub.revisions(str(teacher))
        steps = _by_step(teacher, revisions, pattern)
        if not steps:
            kind = "cached revision" if hub.is_offline() else "branch or tag"
            raise UserError(f"{teacher} has no {kind} step<N> or the like: {_found(revisions, pattern)}")
        return [Checkpoint(step, f"{teacher}@{name}") for step, name in steps]
    steps = _by_step(teacher, (path.name for path in directory.iterdir() if path.is_dir()), pattern)
    checkpoints = [Checkpoint(step, directory / name) for step, name in steps]
    if pattern is None and _is_model(directory):
        if not any((directory / name / "config.json").is_file() for _, name in steps):
            checkpoints = []  # such as the states of optimizers that DeepSpeed saves
        final = saved_step(directory)
        if not checkpoints or (final is not None and final > checkpoints[-1].step):
            checkpoints.append(Checkpoint(final or step_in(directory.resolve().name) or 0, directory))
    if not checkpoints:
        raise UserError(_why_none(directory, pattern))
    return checkpoints


def step_in(name: str, pattern: str | None = None) -> int | None:
    """The step in a checkpoint's name; None if it is not one of `NAMES`, or not of the pattern that replaces them.

    Raises:
        UserError: the pattern does not compile, has no group `step`, or the group matches something else than digits.
    """
    match = _match(name, pattern)
    return int(match["step"]) if match else None


def local_path(checkpoint: Checkpoint) -> Path:
    """The directory of a checkpoint; one on the hub is downloaded, without pickles, unless it is cached.

    Raises:
        UserError: the download failed, or it has no config or no safetensors.
    """
    if isinstance(checkpoint.location, Path):
        return checkpoint.location
    name, _, revision = checkpoint.location.partition("@")
    return hub.download(name, revision)


def evict(checkpoint: Checkpoint) -> int:
    """Free the disk space of a checkpoint that this process downloaded, and of no other; the number of bytes freed."""
    return 0 if isinstance(checkpoint.location, Path) else hub.evict(checkpoint.location)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--teacher-pattern {pattern} is not a regular expression: {error}") from None
    if "step" not in compiled.groupindex:
        raise UserError(f"--teacher-pattern {pattern} lacks the group (?P<step>[0-9]+)")
    return compiled


def _match(name: str, pattern: str | None) -> re.Match[str] | None:
    if pattern is None:
        return next(filter(None, (re.fullmatch(known, name) for known in NAMES)), None)
    match = _compiled(pattern).fullmatch(name)
    if match and not re.fullmatch("[0-9]+", match["step"] or ""):
        raise UserError(f"the group step of --teacher-pattern {pattern} is {match['step']!r} in {name}, not digits")
    return match


def _by_step(teacher: str | Path, names: Iterable[str], pattern: str | None) -> list[tuple[int, str]]:
    """Steps and names of checkpoints, in the order of steps."""
    advice = f"choose between them with --teacher-pattern, {EXAMPLE}"
    if pattern is not None:
        _compiled(pattern)
    steps: dict[int, str] = {}
    stages: dict[str, str] = {}
    for name in sorted(set(names)):
        match = _match(name, pattern)
        if match is None:
            continue
        other = steps.setdefault(int(match["step"]), name)
        if other != name:
            raise UserError(f"{teacher} has two checkpoints of step {int(match['step'])}, {other} and {name}: {advice}")
        if pattern is None:
            stages.setdefault(match.groupdict().get("stage") or "", name)
    if len(stages) > 1:
        raise UserError(f"{teacher} has checkpoints of several stages, such as {listed(stages.values())}: {advice}")
    return sorted(steps.items())


def _is_model(directory: Path) -> bool:
    """Whether a directory itself holds a model, such as the final one that a trainer saves beside its checkpoints."""
    has_weights = any((directory / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))
    return has_weights and (directory / "config.json").is_file() and not is_adapter(directory)


def saved_step(directory: Path) -> int | None:
    """The step that transformers.Trainer noted in a directory, if any.

    Raises:
        UserError: its trainer_state.json is damaged.
    """
    path = directory / "trainer_state.json"
    if not path.is_file():
        return None
    advice = "complete it by a copy, or choose others with --teacher-pattern"
    step = read_json(path, advice).get("global_step")
    if not isinstance(step, int):
        raise UserError(f"{path} is damaged, it has no global_step: {advice}")
    return step


def _why_none(directory: Path, pattern: str | None) -> str:
    """What a directory without checkpoints is."""
    entries = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    files = [path.name for path in entries if path.suffix in WEIGHT_SUFFIXES and not path.name.startswith(NO_WEIGHTS)]
    if is_adapter(directory):
        return f"{directory} {ADAPTER}"
    if files and pattern is None:
        return (
            f"{directory} has no checkpoint-<step> directory, but files of weights ({listed(files)}): "
            f"`python -m common.teachers import {directory} --out TEACHER` converts them"
        )
    return (
        f"{directory} has no checkpoint-<step> directory or the like: {_found([p.name for p in entries], pattern)}, "
        "or give a teacher that saved checkpoints"
    )


def _found(names: list[str], pattern: str | None) -> str:
    where = f"found {listed(names)}" if names else "found nothing there"
    if pattern is not None:
        return f"{where}; --teacher-pattern {pattern} must match a whole name"
    return f"{where}; say how checkpoints are named with --teacher-pattern, {EXAMPLE}"
