"""A probe of every checkpoint of a run, and the JSON file that it writes in the run's directory; or of any teacher.

The file has one entry for each checkpoint, and what is measured without one. It is written after each measurement, so
that an interrupted probe resumes and only new checkpoints are probed. It also says which run, and which weights, were
measured: results of others are refused.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.arguments import is_of_type, option_of
from common.errors import UserError, listed
from common.probes.arguments import ProbedArguments
from common.runs.files import find_json, read_json, shared_lock, write_file
from common.runs.names import RUNS, default_name
from common.runs.progress import progress
from common.runs.run import Run
from common.runs.validity import require_undamaged
from common.teachers.discovery import Checkpoint, find_checkpoints, local_path
from common.teachers.tensors import ADVICE
from common.teachers.trajectory import checkpoint_digests

UNNAMED = ("run", "out", "device", "columns", "rows")
"""Arguments that change no result, and are no part of the file's name."""
OTHER = {
    "run": "another run",
    "id": "this run before it was trained again",
    "settings": "other settings",
    "data": "other data",
}
"""What a file is a probe of, by the entry of its identity that differs."""


def given_task(arguments: ProbedArguments) -> dict[str, Any] | None:
    """The arguments of the task of a teacher that is not a run of this project; None for a run.

    Raises:
        UserError: one is missing, or it is a run, which says its task itself.
    """
    names = (*arguments.required, *arguments.defaults)
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if is_run(arguments.run):
        if given:
            raise UserError(f"{arguments.run} is a run, which says what its task is: leave out {_flags(given)}")
        return None
    if missing := [name for name in arguments.required if name not in given]:
        raise UserError(
            f"{arguments.run} is not a run of this project, which would say what its task is: give {_flags(missing)}"
        )
    return {**arguments.defaults, **given}


def is_run(directory: Path) -> bool:
    """Whether a directory has the config.json of a run of this project, be it of an earlier version.

    Raises:
        UserError: it has, but a damaged one.
    """
    require_undamaged(directory)
    config = find_json(directory / "config.json")
    return config is not None and "arguments" in config


@dataclass(frozen=True)
class ProbedData:
    """What the data of a probe is, for the file of a teacher that is not a run."""

    resolved: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the task that are not recorded as given, such as names of files, which depend on the folder."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that change if the data does, such as hashes."""


NO_DATA = ProbedData()


def probe_file(arguments: ProbedArguments, setting: str, name: str, data: ProbedData = NO_DATA) -> Path:
    """The file of a probe's results: --out, one in the run's directory, or one of ours for another teacher.

    Args:
        arguments: of the command, with defaults for everything but `run`.
        setting: of the command.
        name: of the probe; arguments other than the defaults are appended to it.
        data: of the probe.

    Raises:
        UserError: it is a directory, or holds a probe of another run or teacher, or of other data.
    """
    own = is_run(arguments.run)
    folder = arguments.run / "probes" if own else RUNS / setting / f"probes-of-{arguments.run.resolve().name}"
    defaults = type(arguments)(run=arguments.run)
    path = arguments.out or folder / f"{default_name(arguments, defaults, name, exclude=UNNAMED)}.json"
    if path.is_dir():
        raise UserError(f"--out {path} is a directory: give a file")
    if obstacles := [parent for parent in path.parents if parent.exists() and not parent.is_dir()]:
        raise UserError(f"--out {path} cannot be created: {obstacles[0]} is no directory")
    if path.exists() and own and arguments.out is None:
        require_run(read_probe(path), path, Run(arguments.run).config.get("id"))
    if path.exists() and (arguments.out is not None or not own):
        content = read_json(path, "give another --out")
        for what, mine in identity(arguments, path, data).items():
            if what == "id" and what not in content:  # of an earlier version
                continue
            if content.get(what) != json.loads(json.dumps(mine)):
                shown = "than here" if what == "data" else f"({str(content.get(what))[:200]})"
                raise UserError(f"{path} holds a probe of {OTHER[what]} {shown}: give another --out")
    return path


def identity(arguments: ProbedArguments, path: Path, data: ProbedData = NO_DATA) -> dict[str, Any]:
    """What a probe's file says of the command: its settings, whose checkpoints, and which data, if that does not show
    in its path.

    Args:
        arguments: of the command.
        path: of the file.
        data: of the probe.
    """
    settings = {key: value for key, value in asdict(arguments).items() if key not in UNNAMED}
    if settings["teacher_pattern"] is None:
        del settings["teacher_pattern"]
    for key in (*arguments.required, *arguments.defaults):
        del settings[key]
    run = str(arguments.run.resolve() if arguments.run.exists() else arguments.run)
    task = given_task(arguments)
    if task is None:
        of_run = {"id": Run(arguments.run).config.get("id"), "settings": settings}
        return of_run if path.parent == arguments.run / "probes" else {"run": run, **of_run}
    whose = {"run": run, "settings": {**settings, **task, **data.resolved}}
    return {**whose, "data": dict(data.identity)} if data.identity else whose


def probe_checkpoints(
    arguments: ProbedArguments,
    argv: Sequence[str],
    setting: str,
    name: str,
    measure: Callable[[Path], dict[str, Any]],
    once: Mapping[str, Callable[[], object]] | None = None,
    samples: int = 1,
    data: ProbedData = NO_DATA,
) -> None:
    """Measure what is not in the probe's file yet, and print the file's name.

    Args:
        arguments: of the command, with defaults for everything but `run`.
        argv: the command, for the file.
        setting: of the command.
        name: of the probe; arguments other than the defaults are appended to it.
        measure: from a checkpoint's directory to JSON values.
        once: what is measured without a checkpoint, by name.
        samples: per checkpoint, to show the speed.
        data: of the probe.

    Raises:
        UserError: the run has no checkpoint or one that has changed since it was probed, the file is damaged or of
            another probe, or a measurement is NaN.
    """
    checkpoints = find_checkpoints(arguments.run, arguments.teacher_pattern)
    path = probe_file(arguments, setting, name, data)
    existing = read_probe(path, "checkpoints") if path.exists() else {}
    content = {"argv": list(argv), **identity(arguments, path, data), "checkpoints": [], **existing}
    done = {entry["step"]: entry for entry in content["checkpoints"] if "digest" in entry}
    if len(done) < len(content["checkpoints"]):
        print(f"{path} does not say which weights were measured: they are probed again", file=sys.stderr)
    _require_same(done, checkpoints, path)
    for key, value in (once or {}).items():
        if key not in content:
            content[key] = value()
            write_probe(arguments, path, content)
    with progress(len(checkpoints), len(done), f"probing {arguments.run.name}", samples) as show:
        for checkpoint in checkpoints:
            if checkpoint.step in done:
                continue
            measured = measure(local_path(checkpoint))
            _require_numbers(measured, checkpoint)
            (digest,) = checkpoint_digests([checkpoint]).values()
            done[checkpoint.step] = {"step": checkpoint.step, "digest": digest, **measured}
            content["checkpoints"] = [done[step] for step in sorted(done)]
            write_probe(arguments, path, content)
            show(len(done), checkpoint=checkpoint.step)
    print(path)


def require_run(content: Mapping[str, Any], path: Path, run_id: str | None) -> None:
    """Reject a probe's file of another run than the one with this id; earlier versions did not write whose it is.

    Raises:
        UserError: names the file.
    """
    if content.get("id") not in (None, run_id):
        raise UserError(f"{path} holds a probe of another run: remove it, and probe again, or give another --out")


def _require_same(done: Mapping[int, Mapping[str, Any]], checkpoints: Iterable[Checkpoint], path: Path) -> None:
    """Reject checkpoints that are not those which a file has the results of, by their steps."""
    for step, digest in checkpoint_digests([known for known in checkpoints if known.step in done]).items():
        if done[int(step)]["digest"] != digest:
            raise UserError(
                f"checkpoint {int(step):,} has changed since it was probed: remove {path}, and probe again, or give "
                "another --out"
            )


def _require_numbers(measured: Any, checkpoint: Checkpoint) -> None:
    """Reject NaN at any depth of JSON values; a divergence may be infinite."""
    match measured:
        case dict():
            for value in measured.values():
                _require_numbers(value, checkpoint)
        case list() | tuple():
            for value in measured:
                _require_numbers(value, checkpoint)
        case float() if math.isnan(measured):
            raise UserError(f"{checkpoint.location} predicts NaN or infinity: its weights are damaged; {ADVICE}")


def read_probe(path: Path, *needed: str) -> dict[str, Any]:
    """What a probe wrote in a file; its checkpoints, if it has any, have steps.

    Args:
        path: of the file.
        needed: entries that it must have.

    Raises:
        UserError: the file is missing, damaged or lacks one of them.
    """
    advice = "remove it, and probe again"
    content = read_json(path, advice)
    entries = content.get("checkpoints", [])
    has_steps = isinstance(entries, list) and all(
        isinstance(entry, dict) and is_of_type(entry.get("step"), int) for entry in entries
    )
    if not has_steps or not isinstance(content.get("settings", {}), dict) or not content.keys() >= {*needed}:
        raise UserError(f"{path} is truncated or damaged: {advice}")
    return content


def write_probe(arguments: ProbedArguments, path: Path, content: Mapping[str, Any]) -> None:
    """Write the file of a probe; in a run, what killed probes left behind is removed."""
    with shared_lock(path.parent) if path.parent == arguments.run / "probes" else nullcontext():
        write_file(path, json.dumps(content).encode())


def _flags(names: Iterable[str]) -> str:
    return listed(option_of(name) for name in names)
