"""Make the runs of a sweep as Slurm jobs: an array of teachers, and one of students that begins when it has ended.

A submission's list is kept as slurm/<number>.tsv in the sweep's directory, and the array's name is <sweep>.<number>, so
that the queue tells which runs are waiting there. `scripts/slurm/array.sbatch` is what each job does.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from common.cluster.plan import PlannedRun, list_of, read_list
from common.errors import UserError
from common.runs.files import write_file

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "slurm" / "array.sbatch"


def check() -> None:
    """Refuse to submit where that cannot be.

    Raises:
        UserError: there is no sbatch, the controller does not answer, or a partition is not there.
    """
    there = _answer("sinfo", "--noheader", "--format=%P").split()
    wanted = os.environ.get("SBATCH_PARTITION")
    names = {name.rstrip("*") for name in there}
    shown = ", ".join(sorted(names)) or "none"
    if wanted is None and not any(name.endswith("*") for name in there):
        raise UserError(f"Slurm has no default partition: set SBATCH_PARTITION to one of these: {shown}")
    for name in wanted.split(",") if wanted is not None else ():
        if name not in names:
            raise UserError(f"there is no partition {name!r}: set SBATCH_PARTITION to one of these: {shown}")


def submit(runs: Sequence[PlannedRun], directory: Path) -> None:
    """Submit the runs that are neither complete nor in the queue, and say so.

    Students wait until all teachers that they need have ended, well or not; one whose teacher is not complete then ends
    with an error, and is submitted again with its teacher.

    Args:
        runs: of the sweep.
        directory: the sweep's.

    Raises:
        UserError: sbatch refuses.
    """
    queued = queued_runs(directory)
    made = {str(run.directory) for run in runs}
    missing = [run for run in runs if not run.complete and str(run.directory) not in queued]
    first = [run for run in missing if run.teacher not in made]
    second = [run for run in missing if run.teacher in made]
    jobs = dict(queued)
    for part in (first, second):
        if part:
            teachers = {jobs[run.teacher] for run in part if run.teacher in jobs}
            part = [run if run.teacher in made else PlannedRun(run.directory, None, run.command) for run in part]
            job = _submit(part, directory, sorted(teachers, key=int))
            jobs |= {str(run.directory): job for run in part}
            print(f"job {job}: {len(part)} runs" + (f", after {', '.join(sorted(teachers))}" if teachers else ""))
    complete = sum(run.complete for run in runs)
    there = sum(str(run.directory) in queued and not run.complete for run in runs)
    print(f"{directory}: {len(missing)} runs submitted, {there} were in the queue, {complete} of {len(runs)} complete")


def queued_runs(directory: Path) -> dict[str, str]:
    """Runs that are waiting or running in the queue, of this sweep and of those beside it.

    Args:
        directory: the sweep's.

    Returns:
        The number of the array that makes a run, by the run's directory.
    """
    queue = _answer("squeue", "--noheader", "--array", "--me", "--format=%F %K %j %Z")
    found = {}
    for line in queue.splitlines():
        array, task, name, place = line.split(maxsplit=3)
        sweep, _, number = name.rpartition(".")
        path = directory.parent / sweep / "slurm" / f"{number}.tsv"
        if Path(place) == ROOT and task.isdecimal() and path.is_file():
            runs = read_list(path.read_text().splitlines())
            found[str(runs[int(task) - 1].directory)] = array
    return found


def _submit(runs: Sequence[PlannedRun], directory: Path, after: Sequence[str]) -> str:
    """Submit an array, to begin when the arrays `after` have ended; its number."""
    folder = directory / "slurm"
    number = 1 + max((int(path.stem) for path in folder.glob("*.tsv")), default=0)
    path = folder / f"{number}.tsv"
    write_file(path, list_of(runs).encode())
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
    answer = _answer("sbatch", *options, str(SCRIPT), str(path), str(directory))
    return answer.strip().split(";")[0]


def _answer(*words: str) -> str:
    """What one of Slurm's commands says.

    Raises:
        UserError: it is not installed, or it fails.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UserError(f"there is no {words[0]} on this machine: leave out --slurm to make the runs here") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())
        raise UserError(f"Slurm's {words[0]} failed: {said}") from None
