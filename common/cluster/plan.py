"""The plan of a sweep: its jobs, each with its command, and the checks before any job is started.

A job trains a teacher, or students that share one. The plan is a file with one line per job: its directory, its number
of runs, the directory of the teacher it waits for (or -), and its command, separated by tabs.
"""

import re
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.files import find_json, is_locked
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from common.teachers.trajectory import checkpoint_digests

RUN_MEGABYTES = 20
"""Disk space for a run that is not a teacher."""


@dataclass(frozen=True)
class Job:
    """A line of the plan."""

    directory: Path
    """Of its run, or of several ones, each of which has a folder in it; `--out` of the command."""
    runs: int
    """Number of runs that the command makes."""
    teacher: str | None
    """Directory or hub id of the teacher that must exist before the job starts."""
    command: str
    """As a line of shell."""

    @property
    def existing(self) -> list[Run]:
        """Its runs, as far as they exist; other directories may be among them."""
        if self.runs == 1:
            return [Run(self.directory)]
        folders = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        return [Run(path) for path in folders if path.is_dir()]

    @property
    def finished(self) -> int:
        """Number of complete runs, whichever command made them."""
        return sum(run.complete for run in self.existing)

    @property
    def unfinished(self) -> list[str]:
        """Names of the runs that have begun and are not complete."""
        return [
            run.directory.name
            for run in self.existing
            if (run.directory / "metrics.jsonl").exists() and not run.complete
        ]

    @property
    def certain(self) -> int:
        """Number of complete runs that this command made, with its teacher as it is now; of others, its command says
        that they are complete, or refuses them.
        """
        try:
            configs = [run.config for run in self.existing if run.complete]
            own = [config for config in configs if config["argv"] in ([], shlex.split(self.command))]  # [] of a script
            return len(own) if self.teacher is None or _has_taught(self.teacher, own) else 0
        except (UserError, ValueError):
            return 0

    @property
    def complete(self) -> bool:
        """Whether all of its runs are certainly complete."""
        return self.finished == self.runs == self.certain

    @property
    def is_in_use(self) -> bool:
        """Whether a process has one of its runs open."""
        return any(is_locked(run.directory) for run in self.existing)


def _has_taught(teacher: str, students: Sequence[Mapping[str, Any]]) -> bool:
    """Whether students with these configs learnt from what is in their teacher's directory now; True for a hub id."""
    if not students or not Path(teacher).is_dir():
        return True
    teacher_id = (find_json(Path(teacher) / "config.json") or {}).get("id")
    known: dict[str, str] = {}
    for config in students:
        if config["arguments"].get("teacher_id") not in (None, teacher_id):
            return False
        for step, digest in config.get("teacher_checkpoints", {}).items():
            if digest is not None and known.setdefault(step, digest) != digest:
                return False
    checkpoints = find_checkpoints(teacher, students[0]["arguments"].get("teacher_pattern")) if known else []
    return checkpoint_digests([checkpoint for checkpoint in checkpoints if str(checkpoint.step) in known]) == known


def read_plan(lines: Sequence[str]) -> list[Job]:
    """The jobs of a plan.

    Raises:
        UserError: the plan is empty, a line is invalid, or two jobs have the same directory.
    """
    jobs = []
    for line in lines:
        parts = line.rstrip("\n").split("\t")
        if len(parts) != 4 or not all(parts) or not re.fullmatch("[1-9][0-9]{0,8}", parts[1]):
            raise UserError(
                "a line of the plan is a job's directory, its number of runs, its teacher's directory or -, and a "
                f"command; got {line!r}"
            )
        directory, runs, teacher, command = parts
        jobs.append(Job(Path(directory), int(runs), None if teacher == "-" else teacher, command))
    if not jobs:
        raise UserError("the plan is empty: give it on stdin, as scripts/sweep_*.sh do")
    for path, count in Counter(job.directory for job in jobs).items():
        if count > 1:
            raise UserError(f"the plan has two jobs in {path}: give each job its own directory")
    return jobs


def format_plan(jobs: Sequence[Job]) -> str:
    """The plan that `read_plan` reads."""
    return "".join(f"{job.directory}\t{job.runs}\t{job.teacher or '-'}\t{job.command}\n" for job in jobs)


def check_teachers(jobs: Sequence[Job]) -> None:
    """Reject a plan with a teacher that neither exists nor is trained by it.

    Raises:
        UserError: names the teacher.
    """
    planned = {str(job.directory) for job in jobs}
    for teacher in {job.teacher for job in jobs if job.teacher is not None} - planned:
        find_checkpoints(teacher)
        if (Path(teacher) / "metrics.jsonl").exists() and not Run(Path(teacher)).complete:
            raise UserError(f"the teacher's run in {teacher} is not complete: rerun its train.py command to finish it")


def check_disk_space(jobs: Sequence[Job], directory: Path, teacher_megabytes: int) -> None:
    """Refuse to start if there is too little disk space in the directory for the runs that are not complete.

    Raises:
        UserError: says how much is needed.
    """
    teachers = {job.teacher for job in jobs}
    missing = {job: max(job.runs - job.finished, 0) for job in jobs}
    needed = sum(
        count * (teacher_megabytes if str(job.directory) in teachers else RUN_MEGABYTES)
        for job, count in missing.items()
    )
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free // 10**6
    if free < needed:
        raise UserError(
            f"{directory} has {free:,} MB of disk space, and {sum(missing.values())} runs need about {needed:,} MB: "
            "free some space"
        )


def log_path(job: Job, directory: Path) -> Path:
    """Where the output of a job's command goes, in the directory of the sweep."""
    return directory / "logs" / f"{job.directory.name}.log"
