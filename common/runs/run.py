"""The directory of a run: read it, or open it to write; see the package's docstring for its files."""

import json
import math
import os
import secrets
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DivergedError, UserError, one_line
from common.runs.checkpoints import checkpoint_digests, saved_checkpoints
from common.runs.differences import differences
from common.runs.files import (
    append_to_file,
    find_json,
    json_lines,
    locked,
    make_directory,
    read_file,
    remove,
    remove_unfinished,
    sampled_digest,
    shared_lock,
    to_json,
    write_file,
)
from common.runs.resume import ADVICE, Resume, drop_later
from common.runs.tracking import WandbMode, open_tracker
from common.runs.validity import is_damaged, is_valid_record, require_undamaged
from common.runs.versions import commit, resumed_config, versions

FILE_DIGESTS = ("records", "checkpoints")
"""Entries of done.json that identify the run's files."""


@dataclass(frozen=True)
class Run:
    """A run's directory. `Run(directory)` reads one; `open_run` opens one for writing."""

    directory: Path
    tracker: Any = None
    """The wandb run that mirrors this one."""

    @property
    def complete(self) -> bool:
        """Whether the run is finished."""
        return find_json(self.directory / "done.json") is not None

    @property
    def config(self) -> dict[str, Any]:
        """`setting`, `argv`, `arguments` (by name), `versions` (by package), `commit`, `id`, `seconds` of earlier
        sessions, and of a student `teacher_checkpoints`, digests of those that it learns from by teacher step.

        Raises:
            UserError: the directory is not a run, its config.json is damaged, or an earlier version of this code made
                it.
        """
        require_undamaged(self.directory)
        path = self.directory / "config.json"
        config = find_json(path)
        if config is None or "arguments" not in config:
            raise UserError(f"{self.directory} is not a run: it has no valid config.json")
        if "setting" not in config or "argv" not in config:
            raise UserError(
                f'{path} was written by an earlier version: add "setting" ("parity_gpt2" if '
                'its model is gpt2, else such as "PCFG_mlm") and "argv" (its command as a list, or []); in its '
                '"arguments" remove "model", rename "plan" to "segments", and in "methods" "explicit" to "custom"'
            )
        return {**config, "arguments": _Arguments(path, config["arguments"])}

    @property
    def setting(self) -> str:
        """Name of the setting whose command made the run."""
        return self.config["setting"]

    @property
    def summary(self) -> dict[str, Any]:
        """The results of a complete run.

        Raises:
            UserError: the run is not complete.
        """
        return {name: value for name, value in self._done.items() if name not in FILE_DIGESTS}

    @property
    def _done(self) -> dict[str, Any]:
        done = find_json(self.directory / "done.json")
        if done is None:
            raise UserError(f"{self.directory} is not a complete run: rerun its command to finish it")
        return done

    @property
    def seconds(self) -> float:
        """Total wall time of all sessions, up to the last record or state of each; the same for runs that share a pass.

        It is computed from modification times, which copies must preserve: a session begins by writing config.json.
        """
        ends = [self.directory / name for name in (("done.json",) if self.complete else ("metrics.jsonl", "resume"))]
        begin = (self.directory / "config.json").stat().st_mtime
        end = max((path.stat().st_mtime for path in ends if path.exists()), default=begin)
        return self.config.get("seconds", 0.0) + max(end - begin, 0.0)

    def records(self) -> list[dict[str, Any]]:
        """Every complete record, in the order in which they were logged.

        Raises:
            UserError: the directory is not a run, or a record is damaged.
        """
        path = self.directory / "metrics.jsonl"
        if not path.is_file():
            raise UserError(f"{self.directory} is not a run: it has no metrics.jsonl")
        records = []
        for number, record in enumerate(json_lines(path, ADVICE), 1):
            if record is None or not is_valid_record(record):
                raise UserError(f"{path} is damaged in line {number}: to start over, rerun its command with --force")
            records.append(record)
        return records

    def log(self, record: Mapping[str, object]) -> None:
        """Append a record; it is on disk when this returns.

        Args:
            record: `step` and what was measured there. Numbers that are not finite are written as null.

        Raises:
            ValueError: the step is not a non-negative integer, or the loss or the accuracy is not a number.
            OSError: nothing was appended.
        """
        plain = _plain({"step": record["step"], **record})
        if not is_valid_record(plain):
            raise ValueError(f"a record needs a step, and numbers as loss and accuracy; got {plain}")
        append_to_file(self.directory / "metrics.jsonl", _json_line(plain))
        self.track(plain)

    def track(self, record: Mapping[str, Any]) -> None:
        """Send a record to the tracker, if there is one, unless it has the record from an earlier session."""
        if self.tracker is not None and record["step"] >= self.tracker.starting_step:
            self.tracker.log(dict(record), step=record["step"])

    def rewind(self, resume: Resume | None) -> None:
        """Drop the records, checkpoints and states after a resume state, or all of them if there is none.

        The tracker gets the records that are kept.
        """
        step, length = (resume.step, resume.length) if resume else (-1, 0)
        metrics = self.directory / "metrics.jsonl"
        kept = read_file(metrics, ADVICE)[:length]  # may be refused, before anything is removed
        drop_later(self.directory, step)
        if resume is None and metrics.stat().st_size:
            sys.stderr.write(one_line(f"{self.directory} has no saved state: starting over") + "\n")
        write_file(metrics, kept)
        for record in self.records():
            self.track(record)

    def keep_teacher(self, digests: Mapping[str, str | None]) -> None:
        """Record the checkpoints that the run learns from, or compare them with those that it began with.

        Args:
            digests: of each checkpoint, by its teacher step; None for one that exists and is not used.

        Raises:
            UserError: names a checkpoint that is missing, new or another one.
        """
        config = self.config
        if "teacher_checkpoints" not in config:
            write_file(self.directory / "config.json", to_json({**config, "teacher_checkpoints": dict(digests)}))
        known = self.config["teacher_checkpoints"]
        self.require_teacher(digests)
        if missing := [step for step in known if known[step] is not None and digests.get(step) is None]:
            raise self._other_teacher(min(missing, key=int), "is missing")

    def require_teacher(self, digests: Mapping[str, str | None]) -> None:
        """Compare some checkpoints with those that the run began with, if these were recorded; as `keep_teacher`."""
        known = self.config.get("teacher_checkpoints", digests)
        used = {step: digest for step, digest in digests.items() if digest is not None}
        changes = [step for step in used if step not in known or known[step] not in (None, used[step])]
        if changes:
            step = min(changes, key=int)
            raise self._other_teacher(step, "has changed" if step in known else "is new")

    def _other_teacher(self, step: str, how: str) -> UserError:
        return UserError(
            f"checkpoint {step} of the teacher of {self.directory} {how} since the run began: restore the teacher, "
            "or start over with --force"
        )

    def missing_checkpoints(self, used: Collection[int]) -> list[str]:
        """Names of the checkpoints that a complete run saved and lacks now; empty for runs of earlier versions.

        Args:
            used: steps of checkpoints that must be those that the run saved.

        Raises:
            UserError: one of them is another one.
        """
        saved = self._done.get("checkpoints")
        if saved is None:
            return []
        found = checkpoint_digests(self.directory, sys.maxsize)
        for name in (f"checkpoint-{step}" for step in sorted(used)):
            if found.get(name) != saved.get(name):
                raise UserError(f"{self.directory / name} is not the checkpoint that this run saved: restore the run")
        return [name for name in saved if name not in found]

    def require_results(self) -> None:
        """Check that the records of a complete run are those that it was completed with.

        Raises:
            UserError: they are missing, damaged or others.
        """
        _ = self.records()
        if self._done.get("records") not in (None, sampled_digest(self.directory / "metrics.jsonl")):
            raise UserError(
                f"{self.directory} is complete, but done.json is not of the records in metrics.jsonl: restore them, or "
                "start over with --force"
            )

    def finish(self, summary: Mapping[str, object]) -> None:
        """Mark the run complete with a few results and what identifies its files, and remove its resume state."""
        plain = _plain(dict(summary))
        files = sampled_digest(self.directory / "metrics.jsonl"), checkpoint_digests(self.directory, sys.maxsize)
        write_file(self.directory / "done.json", _json_line(plain | dict(zip(FILE_DIGESTS, files, strict=True))))
        remove(self.directory / "resume")
        if self.tracker is not None:
            self.tracker.summary.update(plain)


class _Arguments(dict[str, Any]):
    """A run's arguments; one that its config.json lacks is a UserError."""

    def __init__(self, path: Path, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._path = path

    def __missing__(self, name: str) -> Any:
        advice = "restore it, or start over: rerun its command with --force"
        raise UserError(f"{self._path} lacks the argument {name}: {advice}")


@contextmanager
def open_run(
    directory: Path,
    arguments: Mapping[str, object],
    *,
    setting: str,
    argv: Sequence[str] = (),
    force: bool = False,
    wandb: WandbMode = "disabled",
    group: str | None = None,
) -> Iterator[Run]:
    """Start a run, or resume one that was started with the same arguments; its directory is locked meanwhile.

    `EXECUTION_ARGUMENTS` may differ from those that the run was started with, and an option that is newer than the run
    may be None.

    Args:
        directory: created if it does not exist.
        arguments: every argument of the command as resolved, by name.
        argv: the command as a list; empty if the run is not made by a command.
        force: start over; what the earlier run wrote there is removed, and nothing else.
        wandb: whether Weights & Biases gets the records as well.
        group: wandb's group, under which it shows this run together with others, unless WANDB_RUN_GROUP is set.

    Raises:
        UserError: another process has the run open, the directory holds something that is not a run, a damaged run, or
            a run of another setting or with other arguments, an argument is not a finite number, or wandb fails.
    """
    run = Run(directory)
    plain = _plain_arguments(arguments)
    _refuse_foreign(directory, force)
    if run.complete and not force and not os.access(directory, os.W_OK):
        _refuse_different_run(run, setting, plain)
        yield run
        return
    is_new_directory = not directory.exists()
    make_directory(directory)
    with (
        locked(directory, f"another process is using {directory}: wait until it ends, or give another --out"),
        ExitStack() as stack,
    ):
        remove_unfinished(directory)
        if (directory / ".probes.lock").exists():
            with shared_lock(directory / "probes"):
                pass  # removes what killed probes left behind
        if force:
            _remove_own_files(directory)
        if force or not (directory / "config.json").exists():
            stack.enter_context(_discarded_if_refused(directory, is_new_directory))
            config = {
                "setting": setting,
                "argv": list(argv),
                "arguments": plain,
                "versions": versions(),
                "commit": commit(),
                "id": secrets.token_hex(8),
                "seconds": 0.0,
            }
            write_file(directory / "config.json", to_json(config))
        else:
            _refuse_different_run(run, setting, plain)
            if not run.complete:
                resumed = resumed_config(directory, run.config)
                write_file(directory / "config.json", to_json({**resumed, "seconds": run.seconds}))
        if not (directory / "metrics.jsonl").exists():
            write_file(directory / "metrics.jsonl", b"")
        if run.complete:
            remove(directory / "resume")
        if wandb != "disabled" and not run.complete:
            group = os.environ.get("WANDB_RUN_GROUP") or group
            run = Run(directory, stack.enter_context(open_tracker(directory, run.config, wandb, group)))
        yield run


@contextmanager
def _discarded_if_refused(directory: Path, is_new: bool) -> Iterator[None]:
    """Leave nothing of a run that begins here if its input is refused before its first record.

    Args:
        directory: the run's, locked.
        is_new: whether the directory is removed as well, if it is empty.
    """
    try:
        yield
    except UserError as error:
        if not isinstance(error, DivergedError) and not os.path.getsize(directory / "metrics.jsonl"):
            _remove_own_files(directory)
            remove(directory / "config.json")
            if is_new:
                remove(directory / ".lock")
                if not os.listdir(directory):
                    directory.rmdir()
        raise


def _remove_own_files(directory: Path) -> None:
    """Remove all that a run wrote, except its config.json."""
    for name in ("done.json", "resume", "metrics.jsonl", "probes", "wandb"):
        remove(directory / name)
    for checkpoint in saved_checkpoints(directory).values():
        remove(checkpoint)


def _plain_arguments(arguments: Mapping[str, object]) -> dict[str, Any]:
    """The arguments as JSON gives them back: tuples as lists, paths as strings."""
    plain = {}
    for name, value in arguments.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=os.fspath, allow_nan=False))
        except ValueError:
            raise UserError(f"{name} is {value}: give finite numbers") from None
    return plain


def _refuse_foreign(directory: Path, force: bool) -> None:
    """Reject a directory that holds anything but a run, or the leftovers of one killed before it wrote config.json.

    A run whose config.json is damaged can be started over by force.
    """
    if not directory.exists() or (force and is_damaged(directory)):
        return
    if directory.is_dir() and all(path.name == ".lock" or path.suffix == ".unfinished" for path in directory.iterdir()):
        return
    try:
        _ = Run(directory).config
    except UserError as error:
        raise UserError(f"{error}; for a new run give another --out") from None


def _refuse_different_run(run: Run, setting: str, given: dict[str, Any]) -> None:
    done = run.directory / "done.json"
    if done.exists() and not run.complete:
        raise UserError(f"{done} is damaged: start over with --force")
    advice = "give another --out, or --force to remove that run and start over"
    if run.setting != setting:
        raise UserError(f"{run.directory} holds a run of {run.setting}, not of {setting}: {advice}")
    found = differences(run.config["arguments"], given)
    if found:
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise UserError(f"{run.directory} holds a run with other arguments ({shown}): {advice}")
    if run.complete:
        run.require_results()


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
