"""The plan of a sweep: its runs, each with its command, and the checks before any run is started.

The plan is a file with one line per run: its directory, the directory of the teacher it waits for (or -), and its
command, separated by tabs.
"""

import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.files import find_json
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from common.teachers.trajectory import checkpoint_digests

RUN_MEGABYTES = 20
"""Disk space for a run that is not a teacher."""


@dataclass(frozen=True)
class PlannedRun:
    """A line of the plan."""

    directory: Path
    """Of the run."""
    teacher: str | None
    """Directory or hub id of the teacher that must exist before the run starts."""
    command: str
    """As a line of shell."""

    @property
    def complete(self) -> bool:
        """Whether the run is finished."""
        return Run(self.directory).complete

    @property
    def is_as_planned(self) -> bool:
        """Whether a complete run was made by this command, with its teacher as it is now.

        False if that is not certain: the command itself then says that the run is complete, or refuses it.
        """
        try:
            config = Run(self.directory).config
            is_own = config["argv"] in ([], shlex.split(self.command))  # [] if a script made it
            return is_own and (self.teacher is None or _has_taught(self.teacher, config))
        except (UserError, ValueError):
            return False


def _has_taught(teacher: str, config: Mapping[str, Any]) -> bool:
    """Whether a student with this config learnt from what is in its teacher's directory now; True for a hub id."""
    known = {step: digest for step, digest in config.get("teacher_checkpoints", {}).items() if digest is not None}
    arguments = config["arguments"]
    if not Path(teacher).is_dir():
        return True
    if arguments.get("teacher_id") not in (None, (find_json(Path(teacher) / "config.json") or {}).get("id")):
        return False
    checkpoints = find_checkpoints(teacher, arguments.get("teacher_pattern")) if known else []
    return checkpoint_digests([checkpoint for checkpoint in checkpoints if str(checkpoint.step) in known]) == known


def read_plan(lines: Sequence[str]) -> list[PlannedRun]:
    """The runs of a plan.

    Raises:
        UserError: the plan is empty, a line is invalid, or two runs have the same directory.
    """
    runs = []
    for line in lines:
        parts = line.rstrip("\n").split("\t")
        if len(parts) != 3 or not all(parts):
            raise UserError(f"a line of the plan is a run's directory, its teacher's or -, and a command; got {line!r}")
        directory, teacher, command = parts
        runs.append(PlannedRun(Path(directory), None if teacher == "-" else teacher, command))
    if not runs:
        raise UserError("the plan is empty: give it on stdin, as scripts/sweep_*.sh do")
    for path, count in Counter(run.directory for run in runs).items():
        if count > 1:
            raise UserError(f"the plan has two runs in {path}: give each run its own directory")
    return runs


def format_plan(runs: Sequence[PlannedRun]) -> str:
    """The plan that `read_plan` reads."""
    return "".join(f"{run.directory}\t{run.teacher or '-'}\t{run.command}\n" for run in runs)


def check_teachers(runs: Sequence[PlannedRun]) -> None:
    """Reject a plan with a teacher that neither exists nor is trained by it.

    Raises:
        UserError: names the teacher.
    """
    planned = {str(run.directory) for run in runs}
    for teacher in {run.teacher for run in runs if run.teacher is not None} - planned:
        find_checkpoints(teacher)
        if (Path(teacher) / "metrics.jsonl").exists() and not Run(Path(teacher)).complete:
            raise UserError(f"the teacher's run in {teacher} is not complete: rerun its train.py command to finish it")


def check_disk_space(runs: Sequence[PlannedRun], directory: Path, teacher_megabytes: int) -> None:
    """Refuse to start if there is too little disk space in the directory for the runs that are not complete.

    Raises:
        UserError: says how much is needed.
    """
    teachers = {run.teacher for run in runs}
    missing = [run for run in runs if not run.complete]
    needed = sum(teacher_megabytes if str(run.directory) in teachers else RUN_MEGABYTES for run in missing)
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free // 10**6
    if free < needed:
        raise UserError(
            f"{directory} has {free:,} MB of disk space, and {len(missing)} runs need about {needed:,} MB: "
            "free some space"
        )


def log_path(run: PlannedRun, directory: Path) -> Path:
    """Where the output of a run's command goes, in the directory of the sweep."""
    return directory / "logs" / f"{run.directory.name}.log"
