"""Submit a sweep to Slurm: an array of teachers, and one of students that starts when the teachers have ended.

Each job of the plan is a task of an array. The plan of a submission is kept as slurm/<number>.tsv in the sweep's
directory, and the array is named <sweep>.<number>, so that the queue says what is waiting.
`scripts/slurm/array.sbatch` is what each task executes.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.cluster.plan import Job, format_plan, read_plan
from common.errors import UserError
from common.runs.files import write_file
from common.runs.names import ROOT

SCRIPT = ROOT / "scripts" / "slurm" / "array.sbatch"


def check() -> None:
    """Check that jobs can be submitted.

    Raises:
        UserError: Slurm is not installed, its controller does not answer, or a partition does not exist.
    """
    partitions = _run_slurm_command("sinfo", "--noheader", "--format=%P").split()
    wanted = os.environ.get("SBATCH_PARTITION")
    names = {name.rstrip("*") for name in partitions}
    choice = f"set SBATCH_PARTITION to one of these: {', '.join(sorted(names)) or 'none'}"
    if wanted is None and not any(name.endswith("*") for name in partitions):
        raise UserError(f"Slurm has no default partition: {choice}")
    for name in wanted.split(",") if wanted is not None else ():
        if name not in names:
            raise UserError(f"there is no partition {name!r}: {choice}")


def submit(jobs: Sequence[Job], directory: Path) -> None:
    """Submit the jobs that are neither complete nor in the queue, and print what was submitted.

    A job whose complete runs are not certainly those of the plan is submitted as well: its command says that they are
    complete, or refuses them. So are complete students of a teacher that is submitted.

    Students wait until all teachers that they need have ended, successfully or not. Students whose teacher is not
    complete then end with an error, and are submitted again together with their teacher.

    Raises:
        UserError: sbatch failed.
    """
    queued = queued_jobs(directory)
    planned = {str(job.directory) for job in jobs}
    complete = _complete(jobs)
    missing = [job for job in jobs if job not in complete and str(job.directory) not in queued]
    first = [job for job in missing if job.teacher not in planned]
    students = [job for job in missing if job.teacher in planned]
    arrays = dict(queued)
    for part in (first, students):
        if part:
            teachers = sorted({arrays[job.teacher] for job in part if job.teacher in arrays}, key=int)
            part = [job if job.teacher in planned else replace(job, teacher=None) for job in part]
            array = _submit_array(part, directory, teachers)
            arrays |= {str(job.directory): array for job in part}
            print(f"job {array}: {len(part)} tasks" + (f", after {', '.join(teachers)}" if teachers else ""))
    waiting = sum(str(job.directory) in queued and job not in complete for job in jobs)
    counts = f"{len(missing)} tasks, {waiting} were already in the queue, {len(complete)} of {len(jobs)} complete"
    print(f"{directory}: submitted {counts}")


def _complete(jobs: Sequence[Job]) -> set[Job]:
    """The complete jobs of the plan whose teacher, if it is in the plan, is one of them as well."""
    found = {job for job in jobs if job.complete}
    lacking = {str(job.directory) for job in jobs if job not in found}
    return {job for job in found if job.teacher not in lacking}


def queued_jobs(directory: Path) -> dict[str, str]:
    """Jobs that are waiting or running in the queue, of this sweep and of those next to it.

    Returns:
        The number of the array that executes a job, by the job's directory.
    """
    queue = _run_slurm_command("squeue", "--noheader", "--array", "--me", "--format=%F %K %j %Z")
    found = {}
    for line in queue.splitlines():
        array, task, name, place = line.split(maxsplit=3)
        sweep, _, number = name.rpartition(".")
        path = directory.parent / sweep / "slurm" / f"{number}.tsv"
        if Path(place) == ROOT and task.isdecimal() and path.is_file():
            jobs = read_plan(path.read_text().splitlines())
            found[str(jobs[int(task) - 1].directory)] = array
    return found


def _submit_array(jobs: Sequence[Job], directory: Path, after: Sequence[str]) -> str:
    """Submit an array that starts when the arrays `after` have ended; its number."""
    folder = directory / "slurm"
    number = 1 + max((int(path.stem) for path in folder.glob("*.tsv")), default=0)
    path = folder / f"{number}.tsv"
    write_file(path, format_plan(jobs).encode())
    at_once = os.environ.get("SWEEP_AT_ONCE")
    options = [
        "--parsable",
        f"--job-name={directory.name}.{number}",
        f"--array=1-{len(jobs)}" + (f"%{at_once}" if at_once else ""),
        f"--chdir={ROOT}",
        f"--output={folder.resolve()}/{number}-%a.out",
    ]
    if cpus := os.environ.get("SWEEP_CPUS"):
        options.append(f"--cpus-per-task={cpus}")
    if after:
        options.append(f"--dependency=afterany:{':'.join(after)}")
    output = _run_slurm_command("sbatch", *options, str(SCRIPT), str(path), str(directory))
    return output.strip().split(";")[0]


def _run_slurm_command(*command: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
        UserError: it is not installed, or it fails.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed here: leave out --slurm to run on this machine") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"Slurm's {command[0]} failed: {' '.join(error.stderr.split())}") from None
