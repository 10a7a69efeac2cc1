"""Make the runs of a sweep, several at a time on this machine or as Slurm jobs, each by a command of its own.

    scripts/sweep_seeds.sh parity_mlp laptop -j 2
    python -m common.cluster runs/parity_mlp/sweeps/mine --jobs 2 < list.tsv

The list is that of common/planned_runs.py. Only what is not complete is made, a teacher before its students, so that a
sweep that was stopped goes on when it is given again. It may be killed at any moment: its commands are then told to
stop (on Linux), and what they lock is waited for.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import tyro

from common.arguments import worker_threads
from common.cluster import slurm
from common.cluster.plan import PlannedRun, check_room, check_teachers, list_of, log_of, read_list
from common.errors import UserError
from common.runs.files import write_file

POLL_SECONDS = 0.05
"""Time between two looks at the commands that are running."""
LOOK_SECONDS = 1.0
"""Time between two looks at the runs that wait, if no command ended meanwhile."""
STOPPED = os.EX_TEMPFAIL
"""Exit code of what was told to stop and goes on when it is given again."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""What tells the launcher to stop."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""


@dataclass(frozen=True)
class SweepArguments:
    """Arguments of the launcher."""

    directory: tyro.conf.Positional[Path]
    """Where the runs of the sweep are; its logs go to the folder logs in it."""
    jobs: int | None = None
    """Runs at a time on this machine; by default one for each GPU, or one."""
    slurm: bool = False
    """Make the runs as Slurm jobs."""
    teacher_megabytes: int = 100
    """Room that a run needs if others wait for it."""


@dataclass
class _Started:
    """A command that is running."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int


@dataclass
class Outcome:
    """What became of a sweep's runs on this machine."""

    complete: int = 0
    """Runs that are complete."""
    failed: dict[PlannedRun, int] = field(default_factory=dict)
    """Runs whose command failed, and its exit code."""
    not_started: list[PlannedRun] = field(default_factory=list)
    """Runs whose teacher failed."""
    stopped: signal.Signals | None = None
    """The signal that stopped the sweep, if one did."""


def find_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip()]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def environment_of(slot: int, jobs: int, gpus: Sequence[str], group: str) -> dict[str, str]:
    """The environment of a command: its share of the machine, and the group under which wandb shows it.

    Args:
        slot: number of the command among those that run at a time, from 0.
        jobs: how many run at a time.
        gpus: of the machine, one for each command in turn.
        group: the sweep's name.
    """
    environment = {**os.environ, "WANDB_RUN_GROUP": group}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, worker_threads() // jobs)))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def make_runs(
    runs: Sequence[PlannedRun], directory: Path, jobs: int, gpus: Sequence[str], show: Callable[[str], None]
) -> Outcome:
    """Make the runs that are not complete, `jobs` at a time, until none is left that could be started.

    A run that another process is at work on is waited for. On a signal to stop no more is started, and the
    commands get SIGTERM and are waited for.

    Args:
        runs: of the sweep.
        directory: the sweep's.
        jobs: commands at a time.
        gpus: of the machine.
        show: gets a line that says how far the sweep is.
    """
    made = {str(run.directory): run for run in runs}
    waiting = list(runs)
    outcome = Outcome()
    started: list[_Started] = []
    began = time.monotonic()
    last_look = -LOOK_SECONDS

    def say() -> None:
        elapsed = time.monotonic() - began
        hours, minutes, seconds = int(elapsed // 3600), int(elapsed % 3600 // 60), int(elapsed % 60)
        counts = f"{outcome.complete} done, {len(started)} running, {len(outcome.failed)} failed, {len(waiting)} left"
        show(f"{counts}, {hours}:{minutes:02}:{seconds:02}")

    def sort_out(run: PlannedRun, code: int | None) -> None:
        """What is next for a run whose command ended with `code`, or that waits."""
        if run.complete:
            outcome.complete += 1
        elif code is None or stop or _is_open(run.directory):
            waiting.append(run)
        else:
            outcome.failed[run] = code

    def lost(run: PlannedRun) -> bool:
        teacher = made.get(run.teacher or "")
        return teacher is not None and (teacher in outcome.failed or teacher in outcome.not_started)

    with _stop_signals() as stop:
        told = False
        while started or (waiting and not stop):
            if stop and not told:
                told = True
                for one in started:
                    one.process.terminate()
            ended = [one for one in started if one.process.poll() is not None]
            for one in ended:
                started.remove(one)
                sort_out(one.run, one.process.returncode)
            if not stop and (ended or time.monotonic() - last_look >= LOOK_SECONDS):
                last_look = time.monotonic()
                looked_at, waiting = waiting, []
                for run in looked_at:
                    free = set(range(jobs)) - {one.slot for one in started}
                    teacher = made.get(run.teacher or "")
                    if lost(run):
                        outcome.not_started.append(run)
                    elif free and (teacher is None or teacher.complete) and not run.complete and not stop:
                        if _is_open(run.directory):
                            waiting.append(run)
                        else:
                            slot = min(free)
                            environment = environment_of(slot, jobs, gpus, directory.name)
                            started.append(_Started(run, _start(run, log_of(run, directory), environment), slot))
                    else:
                        sort_out(run, None)
            say()
            if started or waiting:
                time.sleep(POLL_SECONDS)
        outcome.stopped = stop[0] if stop else None
    return outcome


def _start(run: PlannedRun, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a run's command in a process group of its own: a terminal's Ctrl-C reaches the launcher alone."""
    launcher, libc = os.getpid(), ctypes.CDLL(None)

    def end_with_launcher() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != launcher:
                os._exit(STOPPED)

    with log.open("ab") as output:
        output.write(f"$ {run.command}\n".encode())
        output.flush()
        return subprocess.Popen(
            ["bash", "-c", f"exec {run.command}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
            preexec_fn=end_with_launcher,
        )


def _is_open(directory: Path) -> bool:
    """Whether a process is at work in a run's directory."""
    try:
        with (directory / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """A list that gets the signals that come."""
    received: list[signal.Signals] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, receive) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress_line() -> Iterator[Callable[[str], None]]:
    """Show the latest line on a terminal; in a log file each one whose counts are new."""
    last, on_terminal = "", sys.stderr.isatty()

    def show(line: str) -> None:
        nonlocal last
        shown = line if on_terminal else line.rpartition(", ")[0]
        if shown != last:
            text, end = (f"\r\033[K{line}", "") if on_terminal else (line, "\n")
            print(text, end=end, file=sys.stderr, flush=True)
        last = shown

    try:
        yield show
    finally:
        if on_terminal:
            print(file=sys.stderr)


@contextmanager
def _only_launcher(directory: Path) -> Iterator[None]:
    """Keep other launchers out of a sweep.

    Raises:
        UserError: there is another one.
    """
    with (directory / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work on the sweep in {directory}: let it end") from None
        yield


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.rpartition("\r")[2] for line in reversed(lines) if line.strip()), "")


def _report(outcome: Outcome, runs: Sequence[PlannedRun], directory: Path) -> None:
    """Say what became of the runs, those that failed with the last line of their logs; exit unless all are complete."""
    for run, code in outcome.failed.items():
        log = log_of(run, directory)
        print(f"failed: {run.directory} (exit code {code}), {log}: {_last_line(log)}", file=sys.stderr)
    for run in outcome.not_started:
        print(f"not started: {run.directory}, its teacher {run.teacher} failed", file=sys.stderr)
    summary = f"{directory}: {outcome.complete} of {len(runs)} runs are complete"
    if outcome.stopped is not None:
        print(f"{summary}; stopped by {outcome.stopped.name}: the same command goes on", file=sys.stderr)
        sys.exit(STOPPED)
    if outcome.failed:
        print(f"{summary}, {len(outcome.failed)} failed; the same command makes what is missing", file=sys.stderr)
        sys.exit(1)
    print(summary)


def launch(arguments: SweepArguments, lines: Sequence[str]) -> None:
    """Make the runs of a list, here or by Slurm.

    Raises:
        UserError: the list, the number of jobs or the teacher is not one, there is no room, or Slurm refuses.
    """
    gpus = find_gpus()
    jobs = max(1, len(gpus)) if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    directory = arguments.directory
    runs = read_list(lines)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: give the sweep another directory")
    check_teachers(runs)
    check_room(runs, directory, arguments.teacher_megabytes)
    if arguments.slurm:
        slurm.check()
    write_file(directory / "list.tsv", list_of(runs).encode())
    (directory / "logs").mkdir(exist_ok=True)
    with _only_launcher(directory):
        if arguments.slurm:
            slurm.submit(runs, directory)
            return
        with _progress_line() as show:
            outcome = make_runs(runs, directory, jobs, gpus, show)
    _report(outcome, runs, directory)
