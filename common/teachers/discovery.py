"""A teacher's checkpoints, in a directory or on the Hugging Face hub, found by their names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, listed
from common.runs.files import NUMBER, read_json
from common.teachers import hub
from common.teachers.weights import ADAPTER, is_adapter, weight_files

STEP = f"0*(?P<step>{NUMBER})"
NAMES = (
    f"checkpoint-{STEP}",  # transformers.Trainer and this project
    f"((?P<stage>stage[0-9]+)-)?step[_-]?{STEP}(-tokens[0-9]+[A-Z]?)?",  # Pythia, OLMo and many others
    f"global_step{STEP}",  # DeepSpeed
    f"iter_{STEP}",  # Megatron
    f"ckpt[_-]{STEP}",
    STEP,
)
"""Names of checkpoint directories, branches and tags."""

EXAMPLE = "such as 'stage1-step(?P<step>[0-9]+).*'"
"""An example of a pattern, for messages."""

WEIGHT_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
"""Prefixes of files with these suffixes that hold no weights."""


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
        teacher: a directory whose subdirectories are checkpoints, such as that of a run of this project or of any
            `transformers.Trainer`; the directory of a single model; or a hub id `org/name` whose branches or tags are
            checkpoints, which are only listed here. `NAMES` has the names that are recognised.
        pattern: a regular expression that must match the whole name, with a group `step`; it replaces `NAMES`.

    Raises:
        UserError: the teacher does not exist, has no checkpoints, two for one step, or one with missing files; or the
            pattern does not compile or lacks the group.
    """
    checkpoints = named_checkpoints(teacher, pattern)
    for checkpoint in checkpoints:
        if isinstance(checkpoint.location, Path):
            weight_files(checkpoint.location)
    return checkpoints


def named_checkpoints(teacher: str | Path, pattern: str | None = None) -> list[Checkpoint]:
    """Like `find_checkpoints`, but without checking the checkpoints' files."""
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
            checkpoints = []  # for example, DeepSpeed's optimizer states
        final = saved_step(directory)
        if not checkpoints or (final is not None and final > checkpoints[-1].step):
            checkpoints.append(Checkpoint(final or step_in(directory.resolve().name) or 0, directory))
    if not checkpoints:
        raise UserError(_why_none(directory, pattern))
    return checkpoints


def step_in(name: str, pattern: str | None = None) -> int | None:
    """The step in a checkpoint's name; None if the name does not match `NAMES`, or the pattern if one is given.

    Raises:
        UserError: the pattern does not compile, has no group `step`, or the group matches something other than digits.
    """
    match = _match(name, pattern)
    return int(match["step"]) if match else None


def local_path(checkpoint: Checkpoint) -> Path:
    """The directory of a checkpoint; one on the hub is downloaded first, without pickles, unless it is cached.

    Raises:
        UserError: the download failed, or the checkpoint has no config or no safetensors.
    """
    if isinstance(checkpoint.location, Path):
        return checkpoint.location
    name, _, revision = checkpoint.location.partition("@")
    return hub.download(name, revision)


def is_evictable(checkpoint: Checkpoint) -> bool:
    """Whether this process downloaded a checkpoint."""
    return isinstance(checkpoint.location, str) and hub.is_downloaded(checkpoint.location)


def evict(checkpoint: Checkpoint) -> int:
    """Delete a checkpoint from the disk if this process downloaded it; returns the number of bytes freed."""
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
    """Steps and names of checkpoints, ordered by step."""
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
            raise UserError(
                f"{teacher} has two checkpoints for step {int(match['step'])}, {other} and {name}: {advice}"
            )
        if pattern is None:
            stages.setdefault(match.groupdict().get("stage") or "", name)
    if len(stages) > 1:
        raise UserError(f"{teacher} has checkpoints of several stages, such as {listed(stages.values())}: {advice}")
    return sorted(steps.items())


def _is_model(directory: Path) -> bool:
    """Whether a directory itself holds a model, such as the final one that a trainer saves next to its checkpoints."""
    has_weights = any((directory / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))
    return has_weights and (directory / "config.json").is_file() and not is_adapter(directory)


MOST_STATE = 10**9
"""Bytes of the largest trainer_state.json that is read; it has the log of the whole training."""


def saved_step(directory: Path) -> int | None:
    """The step that transformers.Trainer recorded in a directory, if any.

    Raises:
        UserError: its trainer_state.json is damaged.
    """
    path = directory / "trainer_state.json"
    if not path.is_file():
        return None
    advice = "copy it again, or choose others with --teacher-pattern"
    step = read_json(path, advice, MOST_STATE).get("global_step")
    if not isinstance(step, int):
        raise UserError(f"{path} is damaged (no global_step): {advice}")
    return step


def _why_none(directory: Path, pattern: str | None) -> str:
    """Why a directory has no checkpoints, and what to do."""
    entries = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    files = [path.name for path in entries if path.suffix in WEIGHT_SUFFIXES and not path.name.startswith(NO_WEIGHTS)]
    if is_adapter(directory):
        return f"{directory} {ADAPTER}"
    if files and pattern is None:
        return (
            f"{directory} has no checkpoint-<step> directory, but weight files ({listed(files)}): "
            f"convert them with `python -m common.teachers import {directory} --out TEACHER`"
        )
    return (
        f"{directory} has no checkpoint-<step> directory or the like: {_found([p.name for p in entries], pattern)}, "
        "or give a teacher that saved checkpoints"
    )


def _found(names: list[str], pattern: str | None) -> str:
    where = f"found {listed(names)}" if names else "found nothing"
    if pattern is not None:
        return f"{where}; --teacher-pattern {pattern} must match a whole name"
    return f"{where}; say how checkpoints are named with --teacher-pattern, {EXAMPLE}"
