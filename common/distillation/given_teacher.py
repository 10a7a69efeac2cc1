"""The teacher that all students of a command learn from: where it is, its checkpoints, and whether it is a run of this
project.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.files import read_json
from common.runs.names import ROOT, RUNS
from common.runs.run import Run
from common.teachers.discovery import Checkpoint, find_checkpoints


@dataclass(frozen=True)
class GivenTeacher:
    """Whom all students of a command learn from."""

    directory: Path
    """Where it is, unless it is on the hub."""
    checkpoints: Sequence[Checkpoint]
    config: Mapping[str, Any] | None
    """The config.json of a run of this project; None of another teacher."""


def default_teacher(setting: str, preset: str) -> str:
    """The run of train.py with a preset, relative to the repository's root."""
    return (RUNS / setting / preset).relative_to(ROOT).as_posix()


def find_teacher(
    name: str, pattern: str | None, setting: str, preset: str, settings: Sequence[str], needed: bool = True
) -> GivenTeacher:
    """The teacher of this name.

    Args:
        name: from `resolve_teacher`.
        pattern: of the names of its checkpoints, or None.
        setting, preset: of the students.
        settings: whose runs can be teachers.
        needed: False if no student learns from it; the default teacher may then be missing, and has no checkpoints.

    Raises:
        UserError: there is none, its checkpoints are not what they must be, or see `own_teacher`.
    """
    directory = ROOT / name
    if name == default_teacher(setting, preset) and not directory.exists():
        if not needed:
            return GivenTeacher(directory, (), None)
        command = f"python -m {setting}.train {preset}"
        raise UserError(f"there is no teacher {name}: give --teacher, or train it with {command}")
    checkpoints = find_checkpoints(directory if directory.exists() else name, pattern)
    return GivenTeacher(directory, checkpoints, own_teacher(directory, settings))


def own_teacher(directory: Path, settings: Sequence[str]) -> Mapping[str, Any] | None:
    """The config of a teacher that is a run of this project; None for any other teacher.

    Args:
        directory: the teacher's.
        settings: whose runs can be teachers.

    Raises:
        UserError: the run is incomplete or of another setting, or its config.json is damaged.
    """
    path = directory / "config.json"
    if not os.path.lexists(path) or not isinstance(read_json(path, "give another --teacher").get("arguments"), dict):
        return None
    run = Run(directory)
    if run.setting not in settings:
        raise UserError(f"the teacher in {directory} is a run of {run.setting}: give a run of {' or '.join(settings)}")
    if not run.complete:
        raise UserError(f"the teacher's run in {directory} is not complete: rerun its train.py command to finish it")
    run.require_results()
    return run.config


def teacher_id_of(directory: Path, teacher: str | None, has_teacher: bool) -> str | None:
    """The id of the teacher in the config of a student's run.

    A student that learns from no checkpoint keeps the one that its run began with, as a teacher that is trained since
    changes nothing for it.

    Args:
        directory: of the run.
        teacher: the id of the teacher that there is now, None if there is none or it is no run.
        has_teacher: whether the student learns from a checkpoint.
    """
    if has_teacher or not (directory / "config.json").is_file():
        return teacher
    kept: str | None = Run(directory).config["arguments"].get("teacher_id", teacher)
    return kept


def own_checkpoint_warnings(directory: Path, used: Sequence[Checkpoint], trust: bool) -> list[str]:
    """A line if a teacher that is a run of this project lacks checkpoints that it saved, and is trusted all the same.

    Args:
        directory: the run's.
        used: the checkpoints that supervise students.
        trust: accept a run that lacks checkpoints.

    Raises:
        UserError: it lacks checkpoints and is not trusted, or a checkpoint is not the one that the run saved.
    """
    missing = Run(directory).missing_checkpoints([checkpoint.step for checkpoint in used])
    if not missing:
        return []
    count = f"{len(missing)} checkpoints" if len(missing) > 1 else "a checkpoint"
    line = f"the teacher's run in {directory} lacks {count} that it saved, such as {missing[-1]}"
    if not trust:
        raise UserError(f"{line}: copy them again, or use the others with --trust-trajectory")
    return [f"warning: {line}"]
