"""Submit a sweep to Slurm: an array of teachers, and one of students that starts when the teachers have ended.

The plan of a submission is kept as slurm/<number>.tsv in the sweep's directory, and the array is named
<sweep>.<number>, so that the queue says which runs are waiting. `scripts/slurm/array.sbatch` is what each job executes.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.cluster.plan import PlannedRun, format_plan, read_plan
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


def submit(runs: Sequence[PlannedRun], directory: Path) -> None:
    """Submit the runs that are neither complete nor in the queue, and print what was submitted.

    A complete run that is not certainly that of the plan is submitted as well: its command says that it is complete, or
    refuses it. So are complete students of a teacher that is submitted.

    Students wait until all teachers that they need have ended, successfully or not. A student whose teacher is not
    complete then ends with an error, and is submitted again together with its teacher.

    Raises:
        UserError: sbatch failed.
    """
    queued = queued_runs(directory)
    planned = {str(run.directory) for run in runs}
    complete = _complete(runs)
    missing = [run for run in runs if run not in complete and str(run.directory) not in queued]
    first = [run for run in missing if run.teacher not in planned]
    students = [run for run in missing if run.teacher in planned]
    jobs = dict(queued)
    for part in (first, students):
        if part:
            teachers = sorted({jobs[run.teacher] for run in part if run.teacher in jobs}, key=int)
            part = [run if run.teacher in planned else replace(run, teacher=None) for run in part]
            job = _submit_array(part, directory, teachers)
            jobs |= {str(run.directory): job for run in part}
            print(f"job {job}: {len(part)} runs" + (f", after {', '.join(teachers)}" if teachers else ""))
    waiting = sum(str(run.directory) in queued and run not in complete for run in runs)
    counts = f"{len(missing)} runs, {waiting} were already in the queue, {len(complete)} of {len(runs)} complete"
    print(f"{directory}: submitted {counts}")


def _complete(runs: Sequence[PlannedRun]) -> set[PlannedRun]:
    """The complete runs of the plan whose teacher, if it is in the plan, is one of them as well."""
    found = {run for run in runs if run.complete and run.is_as_planned}
    lacking = {str(run.directory) for run in runs if run not in found}
    return {run for run in found if run.teacher not in lacking}


def queued_runs(directory: Path) -> dict[str, str]:
    """Runs that are waiting or running in the queue, of this sweep and of those next to it.

    Returns:
        The number of the array that executes a run, by the run's directory.
    """
    queue = _run_slurm_command("squeue", "--noheader", "--array", "--me", "--format=%F %K %j %Z")
    found = {}
    for line in queue.splitlines():
        array, task, name, place = line.split(maxsplit=3)
        sweep, _, number = name.rpartition(".")
        path = directory.parent / sweep / "slurm" / f"{number}.tsv"
        if Path(place) == ROOT and task.isdecimal() and path.is_file():
            runs = read_plan(path.read_text().splitlines())
            found[str(runs[int(task) - 1].directory)] = array
    return found


def _submit_array(runs: Sequence[PlannedRun], directory: Path, after: Sequence[str]) -> str:
    """Submit an array that starts when the arrays `after` have ended; its number."""
    folder = directory / "slurm"
    number = 1 + max((int(path.stem) for path in folder.glob("*.tsv")), default=0)
    path = folder / f"{number}.tsv"
    write_file(path, format_plan(runs).encode())
    at_once = os.environ.get("SWEEP_AT_ONCE")
    options = [
        "--parsable",
        f"--job-name={directory.name}.{number}",
        f"--array=1-{len(runs)}" + (f"%{at_once}" if at_once else ""),
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
