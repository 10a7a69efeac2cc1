"""The list of a sweep: its runs, each with the command that makes it, and what must hold before any is started.

The list has a line for each run: its directory, the directory of the teacher that it waits for (or -), and its command,
with tabs between them.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints

RUN_MEGABYTES = 20
"""Room that a run needs, unless others wait for it."""


@dataclass(frozen=True)
class PlannedRun:
    """A line of a sweep's list."""

    directory: Path
    """The run's."""
    teacher: str | None
    """Directory or hub id of the teacher that must be there before the run starts."""
    command: str
    """As a shell reads it."""

    @property
    def complete(self) -> bool:
        """Whether the run was finished."""
        return Run(self.directory).complete


def read_list(lines: Sequence[str]) -> list[PlannedRun]:
    """A sweep's runs from the lines of its list.

    Raises:
        UserError: there is none, a line is not one, or two are of one run.
    """
    runs = []
    for line in lines:
        parts = line.rstrip("\n").split("\t")
        if len(parts) != 3 or not all(parts):
            raise UserError(f"a line of the list is a run's directory, its teacher's or -, and a command; got {line!r}")
        directory, teacher, words = parts
        runs.append(PlannedRun(Path(directory), None if teacher == "-" else teacher, words))
    if not runs:
        raise UserError("the list of runs is empty: give it on stdin, as scripts/sweep_*.sh do")
    directories = Counter(run.directory for run in runs)
    for twice in (path for path, count in directories.items() if count > 1):
        raise UserError(f"the list has two runs in {twice}: give each run a directory of its own")
    return runs


def list_of(runs: Sequence[PlannedRun]) -> str:
    """The list that `read_list` reads."""
    return "".join(f"{run.directory}\t{run.teacher or '-'}\t{run.command}\n" for run in runs)


def check_teachers(runs: Sequence[PlannedRun]) -> None:
    """Refuse a list whose teachers are neither there nor made by it.

    Raises:
        UserError: names the teacher.
    """
    made = {str(run.directory) for run in runs}
    for teacher in {run.teacher for run in runs if run.teacher is not None} - made:
        find_checkpoints(teacher)
        if (Path(teacher) / "metrics.jsonl").exists() and not Run(Path(teacher)).complete:
            raise UserError(f"the teacher's run in {teacher} is not complete: finish it first, by its train.py command")


def check_room(runs: Sequence[PlannedRun], directory: Path, teacher_megabytes: int) -> None:
    """Refuse to start where the disk has no room for the runs that are to be made.

    Args:
        runs: of the sweep, the complete ones included.
        directory: the sweep's, which there need not be yet.
        teacher_megabytes: room that a run needs if others wait for it.

    Raises:
        UserError: says how much is needed.
    """
    teachers = {run.teacher for run in runs}
    missing = [run for run in runs if not run.complete]
    needed = sum(teacher_megabytes if str(run.directory) in teachers else RUN_MEGABYTES for run in missing)
    there = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free // 10**6
    if free < needed:
        raise UserError(
            f"{directory} has room for {free:,} MB, and {len(missing)} runs need about {needed:,} MB: remove something"
        )


def log_of(run: PlannedRun, directory: Path) -> Path:
    """Where the output of a run's command goes."""
    return directory / "logs" / f"{run.directory.name}.log"
