"""Run a sweep on this machine, several jobs at a time, each by its own command; or submit it to Slurm.

Only jobs with incomplete runs are started, teachers before their students, so a sweep resumes when it is rerun; and
those with runs that are not certainly those of the plan, whose commands then say so, or refuse them. The launcher may
be killed at any moment: its commands are then told to stop (on Linux), and a rerun waits for those that still hold a
lock.
"""

import ctypes
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
from common.cluster.plan import Job, check_disk_space, check_teachers, format_plan, log_path, read_plan
from common.errors import UserError, listed, one_line
from common.runs.files import locked, write_file

POLL_SECONDS = 0.05
"""Interval between checks of the running commands."""
WAITING_POLL_SECONDS = 1.0
"""Interval between checks of the waiting jobs, unless a command ends in between."""
STOPPED_EXIT_CODE = os.EX_TEMPFAIL
"""Exit code of a command that was told to stop and resumes when it is rerun."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""


@dataclass(frozen=True)
class SweepArguments:
    """Arguments of the launcher."""

    directory: tyro.conf.Positional[Path]
    """Directory of the sweep; the logs of its jobs are in its folder `logs`."""
    jobs: int | None = None
    """Concurrent jobs on this machine; by default one per GPU, or one."""
    slurm: bool = False
    """Submit the jobs to Slurm."""
    teacher_megabytes: int = 100
    """Disk space of a run that other jobs wait for, in MB."""


@dataclass
class Outcome:
    """The jobs of a sweep after it has ended on this machine."""

    complete: set[Job] = field(default_factory=set)
    """Jobs whose runs are all complete."""
    failed: dict[Job, int] = field(default_factory=dict)
    """Jobs whose command failed, and its exit code."""
    not_started: list[Job] = field(default_factory=list)
    """Jobs whose teacher failed."""
    stopped: signal.Signals | None = None
    """The signal that stopped the sweep, if any."""


@dataclass
class _Process:
    """A running command."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    """Its index, from 0, among the commands that run at the same time."""


def launch(arguments: SweepArguments, lines: Sequence[str]) -> None:
    """Execute a sweep, here or by Slurm.

    Raises:
        UserError: an invalid plan, number of jobs or teacher, too little disk space, another launcher, or an error of
            Slurm.
    """
    gpus = find_gpus()
    at_once = max(1, len(gpus)) if arguments.jobs is None else arguments.jobs
    if at_once < 1:
        raise UserError(f"--jobs must be at least 1, got {at_once}")
    directory = arguments.directory
    jobs = read_plan(lines)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: give the sweep another directory")
    check_teachers(jobs)
    check_disk_space(jobs, directory, arguments.teacher_megabytes)
    if arguments.slurm:
        slurm.check()
    write_file(directory / "plan.tsv", format_plan(jobs).encode())
    (directory / "logs").mkdir(exist_ok=True)
    with locked(directory, f"another process is running the sweep in {directory}: wait until it ends"):
        if arguments.slurm:
            slurm.submit(jobs, directory)
            return
        with _status_line() as show:
            outcome = Launcher(jobs, directory, at_once, gpus, show).run()
    _report(outcome, jobs, directory)


class Launcher:
    """Starts the commands of a sweep, `at_once` at a time, until no more jobs can be started.

    If another process has a run of a job open, the launcher waits for it. After a stop signal it starts no more jobs,
    sends SIGTERM to the running commands and waits for them.

    Args:
        gpus: of the machine, as `find_gpus` gives them.
        show: called with a line about the sweep's progress.
    """

    def __init__(
        self, jobs: Sequence[Job], directory: Path, at_once: int, gpus: Sequence[str], show: Callable[[str], None]
    ) -> None:
        self._directory, self._at_once, self._gpus, self._show = directory, at_once, gpus, show
        self._by_directory = {str(job.directory): job for job in jobs}
        self._waiting = list(jobs)
        self._running: list[_Process] = []
        self._outcome = Outcome()
        self._received: list[signal.Signals] = []

    def run(self) -> Outcome:
        """Execute the sweep."""
        started, last_look, terminated = time.monotonic(), -WAITING_POLL_SECONDS, False
        with _collect_stop_signals(self._received):
            while self._running or (self._waiting and not self._received):
                if self._received and not terminated:
                    terminated = True
                    for command in self._running:
                        command.process.terminate()
                ended = self._collect_ended()
                if not self._received and (ended or time.monotonic() - last_look >= WAITING_POLL_SECONDS):
                    last_look = time.monotonic()
                    self._look_at_waiting()
                self._show_status(time.monotonic() - started)
                if self._running or self._waiting:
                    time.sleep(POLL_SECONDS)
        self._outcome.stopped = self._received[0] if self._received else None
        return self._outcome

    def _collect_ended(self) -> bool:
        """Account for the commands that have ended; returns whether there are any."""
        ended = [command for command in self._running if command.process.poll() is not None]
        for command in ended:
            self._running.remove(command)
            self._account(command.job, command.process.returncode)
        return bool(ended)

    def _look_at_waiting(self) -> None:
        """Start those of the waiting jobs that can be started."""
        waiting, self._waiting = self._waiting, []
        outcome = self._outcome
        for job in waiting:
            free = set(range(self._at_once)) - {command.slot for command in self._running}
            teacher = self._by_directory.get(job.teacher or "")
            if teacher is not None and (teacher in outcome.failed or teacher in outcome.not_started):
                outcome.not_started.append(job)
            elif self._received or not (teacher is None or teacher in outcome.complete):
                self._waiting.append(job)
            elif job.complete:
                outcome.complete.add(job)
            elif not free or job.is_in_use:
                self._waiting.append(job)
            else:
                slot = min(free)
                environment = command_environment(slot, self._at_once, self._gpus, self._directory.name)
                process = _start(job, log_path(job, self._directory), environment)
                self._running.append(_Process(job, process, slot))

    def _account(self, job: Job, code: int) -> None:
        """Count a job whose command has ended: complete, waiting, or failed with an exit code."""
        if (code == 0 and job.finished >= job.runs) or job.complete:
            self._outcome.complete.add(job)
        elif self._received or job.is_in_use:
            self._waiting.append(job)
        else:
            self._outcome.failed[job] = code

    def _show_status(self, elapsed: float) -> None:
        outcome = self._outcome
        hours, minutes, seconds = int(elapsed // 3600), int(elapsed % 3600 // 60), int(elapsed % 60)
        counts = f"{len(outcome.complete)} done, {len(self._running)} running, {len(outcome.failed)} failed"
        self._show(f"{counts}, {len(self._waiting)} left, {hours}:{minutes:02}:{seconds:02}")


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


def command_environment(slot: int, jobs: int, gpus: Sequence[str], group: str) -> dict[str, str]:
    """The environment of a command: its share of the machine, and the group under which wandb shows it.

    Args:
        slot: index of the command, from 0, among those that run at the same time.
        gpus: of the machine; commands take turns.
    """
    environment = {**os.environ, "WANDB_RUN_GROUP": group}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, worker_threads() // jobs)))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def _start(job: Job, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a job's command in a process group of its own, so that a terminal's Ctrl-C reaches the launcher alone."""
    launcher, libc = os.getpid(), ctypes.CDLL(None)

    def end_with_launcher() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != launcher:
                os._exit(STOPPED_EXIT_CODE)

    with log.open("ab") as output:
        output.write(f"$ {job.command}\n".encode())
        output.flush()
        return subprocess.Popen(
            ["bash", "-c", f"exec {job.command}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
            preexec_fn=end_with_launcher,
        )


@contextmanager
def _collect_stop_signals(received: list[signal.Signals]) -> Iterator[None]:
    """Append stop signals to a list instead of exiting on them."""

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    handlers = {number: signal.signal(number, receive) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _status_line() -> Iterator[Callable[[str], None]]:
    """Show the latest line on a terminal; in a log file, every line whose counts are new."""
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


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.rpartition("\r")[2] for line in reversed(lines) if line.strip()), "")


def _report(outcome: Outcome, jobs: Sequence[Job], directory: Path) -> None:
    """Print the outcome, with the last line of the log of each failed job; exit unless all runs are complete."""
    for job, code in outcome.failed.items():
        log = log_path(job, directory)
        names = f"; not complete: {listed(job.unfinished)}" if job.runs > 1 and job.unfinished else ""
        print(one_line(f"failed: {job.directory} (exit code {code}{names}), {log}: {_last_line(log)}"), file=sys.stderr)
    for job in outcome.not_started:
        print(f"not started: {job.directory}, its teacher {job.teacher} failed", file=sys.stderr)
    complete = sum(job.runs if job in outcome.complete else job.certain for job in jobs)
    summary = f"{directory}: {complete} of {sum(job.runs for job in jobs)} runs are complete"
    if outcome.stopped is not None:
        print(f"{summary}; stopped by {outcome.stopped.name}: rerun the command to resume", file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    if outcome.failed:
        print(f"{summary}, failed jobs: {len(outcome.failed)}; rerun the command to retry them", file=sys.stderr)
        sys.exit(1)
    print(summary)
