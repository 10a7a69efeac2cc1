"""A run is a directory, and this is what every command does with one: name it, open it, record, show, finish.

    config.json         every argument as resolved, package versions, git commit, seconds of earlier sessions
    metrics.jsonl       one record per line, each with the `step` it was made at
    checkpoint-<step>/  the model, see checkpoints.py
    resume/             what is needed to go on, until the run is complete
    probes/  wandb/     where a probe or Weights & Biases was asked for
    done.json           written last: the run is complete

A run that is killed at any moment and started again with the same command ends with the same files, if its script
keeps to this order:

    with open_run(directory, config) as run:
        resume = load_resume(run.directory)
        run.rewind(resume.step if resume else -1)
        ...at each evaluation:  run.log({"step": step, ...})
                                save_checkpoint(run.directory, step, ...)
                                save_resume(run.directory, step, ...)
        run.finish({...})

    python -m common.runs table runs/               a line for each run
    python -m common.runs compare RUN OTHER_RUN     where two runs differ
    python -m common.runs sync runs/                give past runs to Weights & Biases
"""

import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from common.checkpoints import append_to_file, remove, remove_unfinished, write_file
from common.errors import UserError
from common.stopping import Stopped, catch_stop_signals

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SURROUNDINGS = ("out", "force", "device", "wandb")
"""Arguments that say where and how a run is made, and not what it computes."""

PACKAGES = ("torch", "numpy", "numba", "transformers", "progressive-distillation")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of the system that are not this code's: no room to write, and no right or no way to."""

WandbMode = Literal["offline", "online", "disabled"]


@dataclass(frozen=True)
class Run:
    """A run's directory. `Run(directory)` reads one; to write, take it from `open_run`."""

    directory: Path
    tracker: Any = None
    """The wandb run that gets every record as well."""

    @property
    def complete(self) -> bool:
        """Whether the run was finished."""
        return (self.directory / "done.json").exists()

    @property
    def config(self) -> dict[str, Any]:
        """`arguments` (by name), `versions` (by package), `commit`, `id` and `seconds` of earlier sessions.

        Raises:
            UserError: the directory is not a run's.
        """
        try:
            config = json.loads((self.directory / "config.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            config = None
        if not isinstance(config, dict) or "arguments" not in config:
            raise UserError(f"{self.directory} is not a run: it has no config.json of one")
        return config

    @property
    def summary(self) -> dict[str, Any]:
        """What a complete run was finished with.

        Raises:
            UserError: the run is not complete.
        """
        try:
            return json.loads((self.directory / "done.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise UserError(f"{self.directory} is not a complete run: its own command finishes it") from None

    @property
    def seconds(self) -> float:
        """Wall time of all sessions, each up to the last record or state that it wrote; runs that are trained together
        take the same.

        It is told by the times of files, config.json being written when a session begins: a copy must keep them.
        """
        ends = [self.directory / name for name in (("done.json",) if self.complete else ("metrics.jsonl", "resume"))]
        begin = (self.directory / "config.json").stat().st_mtime
        end = max((path.stat().st_mtime for path in ends if path.exists()), default=begin)
        return self.config.get("seconds", 0.0) + max(end - begin, 0.0)

    def records(self) -> list[dict[str, Any]]:
        """Every complete record, in the order they were logged.

        Raises:
            UserError: the directory is not a run's, or a record is damaged.
        """
        return [record for _, record in self._lines()]

    def log(self, record: Mapping[str, object]) -> None:
        """Append a record; it is on the disk when this returns.

        Args:
            record: `step` and whatever was measured there. Numbers that are not finite are written as null.

        Raises:
            OSError: nothing was appended.
        """
        plain = _plain({"step": record["step"], **record})
        append_to_file(self.directory / "metrics.jsonl", _json_line(plain))
        self.track(plain)

    def track(self, record: Mapping[str, Any]) -> None:
        """Give a record to wandb, if it gets this run's and does not have it from an earlier session."""
        if self.tracker is not None and record["step"] >= self.tracker.starting_step:
            self.tracker.log(dict(record), step=record["step"])

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, and a last one that was cut off; -1 drops all. wandb gets those that stay."""
        kept = [(line, record) for line, record in self._lines() if record["step"] <= step]
        write_file(self.directory / "metrics.jsonl", b"".join(line for line, _ in kept))
        for _, record in kept:
            self.track(record)

    def finish(self, summary: Mapping[str, object]) -> None:
        """Mark the run complete with a few results, and remove what it would need to go on."""
        plain = _plain(dict(summary))
        write_file(self.directory / "done.json", _json_line(plain))
        remove(self.directory / "resume")
        if self.tracker is not None:
            self.tracker.summary.update(plain)

    def _lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        path = self.directory / "metrics.jsonl"
        try:
            *lines, _ = path.read_bytes().split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.directory} is not a run: it has no metrics.jsonl") from None
        try:
            return [(line + b"\n", json.loads(line)) for line in lines]
        except ValueError:
            raise UserError(f"{path} is damaged: start the run over with --force") from None


@contextmanager
def open_run(
    directory: Path,
    config: Mapping[str, object],
    *,
    force: bool = False,
    exclude: Collection[str] = SURROUNDINGS,
    wandb: WandbMode = "disabled",
    group: str | None = None,
) -> Iterator[Run]:
    """Start a run, or go on with one that was started with the same arguments; no one else can meanwhile.

    Args:
        directory: made if there is none.
        config: every argument of the command as resolved, by name.
        force: start over; what the earlier run wrote there is removed, and nothing else.
        exclude: arguments that may differ from those the run was started with.
        wandb: whether Weights & Biases gets the records as well; its files are in the run's directory.
        group: under which wandb shows this run together with others, unless WANDB_RUN_GROUP says another.

    Raises:
        UserError: another process has the run open, the directory holds something that is not a run or a run with
            other arguments, an argument is not a finite number, or wandb refuses.
    """
    run = Run(directory)
    arguments = _plain_arguments(config)
    _refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, "let it end, or give another --out"), ExitStack() as stack:
        remove_unfinished(directory)
        if force:
            for name in ("done.json", "resume", "metrics.jsonl", "probes", "wandb"):
                remove(directory / name)
            for checkpoint in directory.glob("checkpoint-*"):
                remove(checkpoint)
        if force or not (directory / "config.json").exists():
            start = {"arguments": arguments, "versions": _versions(), "commit": _commit(), "id": secrets.token_hex(8)}
            write_file(directory / "config.json", _config_file({**start, "seconds": 0.0}))
        else:
            _refuse_other_arguments(run, arguments, exclude)
            if not run.complete:
                write_file(directory / "config.json", _config_file({**run.config, "seconds": run.seconds}))
        if not (directory / "metrics.jsonl").exists():
            write_file(directory / "metrics.jsonl", b"")
        if run.complete:
            remove(directory / "resume")
        if wandb != "disabled" and not run.complete:
            tracker = stack.enter_context(open_tracker(run, wandb, os.environ.get("WANDB_RUN_GROUP") or group))
            run = Run(directory, tracker)
        yield run


@contextmanager
def locked(directory: Path, advice: str) -> Iterator[None]:
    """Keep other processes from opening a run, whose directory is there.

    Raises:
        UserError: one has it open; the message ends with the advice.
    """
    with (directory / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {directory}: {advice}") from None
        yield


def open_tracker(
    run: Run, mode: Literal["offline", "online"], group: str | None, silent: bool = False
) -> AbstractContextManager[Any]:
    """The wandb run that belongs to this run, by the id in its config; it must be given every record from the first.

    Online, wandb goes on with what it has, and `starting_step` is the first step that it lacks. What it writes offline
    would replace all that it has when it is uploaded, so that there must be one offline run which is whole: those that
    earlier sessions left are removed.

    Args:
        run: that wandb gets.
        mode: whether it goes over the network or into files.
        group: under which wandb shows it together with others.
        silent: wandb prints nothing.

    Raises:
        UserError: wandb refuses.
    """
    import wandb

    config = run.config
    if mode == "offline":
        for earlier in run.directory.glob(f"wandb/offline-run-*-{config['id']}"):
            remove(earlier)
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "progressive-distillation"),
            group=group,
            name=run.directory.name,
            id=config["id"],
            resume="allow",
            reinit="create_new",
            config=config["arguments"],
            dir=run.directory,
            mode=mode,
            settings=wandb.Settings(console="off", silent=silent),
        )
    except wandb.Error as error:
        raise UserError(f"wandb: {error}; --wandb offline needs no connection") from error


def default_name(
    arguments: "DataclassInstance",
    preset: "DataclassInstance",
    name: str,
    exclude: Collection[str] = SURROUNDINGS,
) -> str:
    """A run's name: the preset's, then each argument that differs from it; `laptop-lr0.01-method=one_shot-seed1`.

    Different arguments never have the same name, nor names that differ in case only. A name that would be longer than
    200 bytes is cut and ends in a hash of the whole.

    Args:
        arguments: None, numbers, strings, paths, and lists or tuples of these.
        preset: the same dataclass, its fields in lower case, as it is before any argument is given.
        name: the preset's, one word.
        exclude: arguments to leave out.

    Raises:
        TypeError: an argument is of another type.
    """
    for field in dataclasses.fields(arguments):
        value = _text(getattr(arguments, field.name))
        if field.name not in exclude and value != _text(getattr(preset, field.name)):
            bare = value[0].isdigit() and not re.search("[0-9]", field.name)
            name += f"-{field.name}{'' if bare else '='}{value}"
    if len(name) <= 200:
        return name
    return f"{name[:167]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def command(main: Callable[[], object]) -> None:
    """Run a command; wrong input, a full or forbidden disk, a signal to stop and Ctrl-C end it in one line on stderr.

    Exit codes: a `UserError`'s own, 2 for the disk, 75 (EX_TEMPFAIL) for SIGTERM and SIGUSR1, 130 for Ctrl-C. Any other
    exception keeps its traceback.
    """
    try:
        with catch_stop_signals():
            main()
    except UserError as error:
        _stop(f"error: {error}", error.exit_code)
    except OSError as error:
        if error.errno not in (*FULL, *FORBIDDEN):
            raise
        place = f"{error.filename}: " if error.filename else ""
        _stop(f"error: {place}{error.strerror}; once that is mended, the same command goes on", 2)
    except Stopped as stopped:
        _stop(str(stopped), stopped.exit_code)
    except KeyboardInterrupt:
        _stop("interrupted: the same command goes on from the last saved state", 130)


@contextmanager
def progress(total: int, initial: int, description: str, batch_size: int) -> Iterator[Callable[..., None]]:
    """Show how far a run is: a bar on a terminal; in a log file a line at each tenth of the way.

    Args:
        total: steps of the whole run.
        initial: steps done before, in a run that goes on.
        description: what is being trained.
        batch_size: samples per step.

    Yields:
        `show(step, **values)`, to be called with the steps done and what to show beside them, such as `loss`,
        `accuracy` and the current `teacher` checkpoint. Samples per second are shown as well.
    """
    started, tenth = time.perf_counter(), max(1, total // 10)
    last = initial
    with tqdm(total=total, initial=initial, desc=description, unit="step", dynamic_ncols=True, disable=None) as bar:

        def show(step: int, **values: float) -> None:
            nonlocal last
            speed = (step - initial) * batch_size / max(time.perf_counter() - started, 1e-9)
            shown = [f"{name} {value:{',' if isinstance(value, int) else '.4g'}}" for name, value in values.items()]
            text = ", ".join([*shown, f"{speed:,.0f} samples/s"])
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - last)
            if bar.disable and (step // tenth > last // tenth or last < step == total):
                print(f"{description}: step {step:,} of {total:,}, {text}", file=sys.stderr, flush=True)
            last = step

        yield show


def worker_threads() -> int:
    """How many threads to use: OMP_NUM_THREADS if it is set, otherwise the processors this process may run on.

    Raises:
        UserError: OMP_NUM_THREADS is not a positive whole number.
    """
    wanted = os.environ.get("OMP_NUM_THREADS")
    if wanted is not None:
        if not re.fullmatch("[1-9][0-9]*", wanted):
            raise UserError(f"OMP_NUM_THREADS is {wanted!r}: set it to a positive whole number, or not at all")
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plain_arguments(config: Mapping[str, object]) -> dict[str, Any]:
    """The arguments as JSON gives them back: tuples as lists, paths as strings."""
    plain = {}
    for name, value in config.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=os.fspath, allow_nan=False))
        except ValueError:
            raise UserError(f"{name} is {value}: give finite numbers") from None
    return plain


def _refuse_foreign(directory: Path) -> None:
    """A run that was killed before it wrote config.json left nothing but the lock and unfinished files."""
    if not directory.exists():
        return
    if directory.is_dir() and all(path.name == ".lock" or path.suffix == ".unfinished" for path in directory.iterdir()):
        return
    try:
        _ = Run(directory).config
    except UserError as error:
        raise UserError(f"{error}; give another --out") from None


def _refuse_other_arguments(run: Run, given: dict[str, Any], exclude: Collection[str]) -> None:
    there = run.config["arguments"]
    names = [name for name in {**given, **there} if name not in exclude]
    differing = [
        f"{name} is {there.get(name, 'absent')} there and {given.get(name, 'absent')} here"
        for name in names
        if name not in there or name not in given or there[name] != given[name]
    ]
    if differing:
        shown = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
        raise UserError(
            f"{run.directory} holds a run with other arguments ({shown}): "
            "give another --out, or --force to remove that run and start over"
        )


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _commit() -> str | None:
    """The git commit of this code, with `-dirty` if files were changed since; None outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _config_file(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()


def _json_line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """The same in the types of JSON; arrays, tensors and their scalars become lists and numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: object) -> str:
    """An argument within a run's name; sequences are joined by commas, with a last one if they are short of two."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_word, value)) + ("," if len(value) < 2 else "")
    return _word(value)


def _word(value: Any) -> str:
    """A single value within a run's name, no two alike.

    In strings `-` and `/` become `_` and `+`, and all but a-z, 0-9 and `.` is written as %hex; so is the first
    letter of a string that would look like a number or a constant. The empty string is `%`.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return str(value).lower()
    text = re.sub("[^a-z0-9.]", lambda match: {"-": "_", "/": "+"}.get(match[0], _hex(match[0])), os.fspath(value))
    if text in ("none", "true", "false", "inf", "nan") or text[:1].isdigit():
        text = _hex(text[0]) + text[1:]
    return text or "%"


def _hex(letter: str) -> str:
    return "".join(f"%{byte:02x}" for byte in os.fsencode(letter))


def _stop(message: str, code: int) -> None:
    sys.stderr.write(" ".join(message.splitlines()) + "\n")  # at once, as several processes may share it
    sys.exit(code)


if __name__ == "__main__":
    from common.run_commands import main

    command(main)
