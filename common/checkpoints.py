"""Checkpoints on disk: written atomically, found in a teacher's directory or on the Hugging Face hub, read back.

A checkpoint is a directory `checkpoint-<step>` with `config.json` and `model.safetensors`, as `from_pretrained`
expects it. Files and directories are written under a hidden name beside their place, forced to the disk and then
renamed, so that a reader finds the whole or nothing, however the writer ended. What a killed writer left behind ends
in `.unfinished`; no reader looks at it. Only JSON and safetensors are read, never a pickle.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import safetensors.numpy
from huggingface_hub.errors import HFValidationError, HTTPError

from common.errors import UserError

NUMBER = "(0|[1-9][0-9]*)"


@dataclass(frozen=True)
class Checkpoint:
    step: int
    """Teacher step at which it was saved."""
    location: Path | str
    """A local directory, or `org/name@step<N>` on the Hugging Face hub."""


@dataclass(frozen=True)
class Resume:
    step: int
    """Steps done when the state was saved."""
    tensors: dict[str, np.ndarray]
    """Weights and optimiser moments, by name."""
    state: dict[str, Any]
    """Everything else that is needed to go on: counters, random number generators."""


def append_to_file(path: Path, content: bytes) -> None:
    """Add `content` at the end of a file and force it to the disk; the file is made if there is none.

    Raises:
        OSError: it names the file, which is then as long as before.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        length = os.fstat(descriptor).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, length)
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Make or replace a file atomically; its directory is made if there is none.

    Raises:
        OSError: what was there is still there, and whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        append_to_file(unfinished, content)
        os.replace(unfinished, path)
        _sync_directory(path.parent)
    finally:
        _discard(unfinished)


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a directory with these files atomically, or replace the files of one that is there, each atomically.

    Raises:
        OSError: there is no new directory, or every file of the old one is still there, and whole.
    """
    if path.is_dir():
        for name, content in files.items():
            write_file(path / name, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        unfinished.mkdir()
        for name, content in files.items():
            append_to_file(unfinished / name, content)
        _sync_directory(unfinished)
        os.rename(unfinished, path)
        _sync_directory(path.parent)
    finally:
        _discard(unfinished)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there; a reader never finds half a directory."""
    if path.exists():
        unfinished = _unfinished(path)
        os.rename(path, unfinished)
        _discard(unfinished)


def remove_unfinished(directory: Path) -> None:
    """Remove what killed writers left behind, at any depth. Only for a directory that no one else writes to."""
    for leftover in list(directory.rglob(".*.unfinished")):
        _discard(leftover)


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, np.ndarray], config: Mapping[str, object]) -> None:
    """Write `checkpoint-<step>` into a run's directory.

    One that is there already, because the run was stopped after it and went on from an earlier state, is replaced.

    Args:
        tensors: the model's weights by name, of any shape and memory order.
        config: what is needed to build the model, as JSON values.

    Raises:
        OSError: there is no new checkpoint, and an earlier one of this step is still whole.
    """
    files = {"config.json": _to_json(config), "model.safetensors": _to_safetensors(tensors)}
    write_directory(run / f"checkpoint-{step}", files)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and weights of the checkpoint in directory `path`.

    Raises:
        UserError: a file is missing, cut off, damaged, or of a type that NumPy does not have (bfloat16).
    """
    advice = f"remove {path} and make it again"
    return read_config(path), _read_safetensors(path / "model.safetensors", advice)


def read_config(path: Path) -> dict[str, Any]:
    """Config of the checkpoint in directory `path`.

    Raises:
        UserError: it is missing, cut off or damaged.
    """
    return _read_json(path / "config.json", f"remove {path} and make it again")


def find_checkpoints(teacher: str | Path) -> list[Checkpoint]:
    """All checkpoints of a teacher, in the order of their steps.

    Args:
        teacher: a directory with `checkpoint-<step>` directories, from a run of this project or of any Hugging Face
            trainer, or else a hub id `org/name` with branches or tags `step<N>`, which are only listed here.

    Raises:
        UserError: no such teacher, no checkpoint, or one without its files.
    """
    locations: dict[int, Path | str] = {}
    if Path(teacher).is_dir():
        for directory in Path(teacher).iterdir():
            if match := re.fullmatch(f"checkpoint-{NUMBER}", directory.name):
                locations[int(match[1])] = _with_weights(directory)
        wanted = "checkpoint-<step> directory"
    else:
        for revision in _hub_revisions(str(teacher)):
            if match := re.fullmatch(f"step{NUMBER}", revision):
                locations[int(match[1])] = f"{teacher}@{revision}"
        wanted = "branch or tag step<N>"
    if not locations:
        raise UserError(f"{teacher} has no {wanted}: give a teacher that saved checkpoints")
    return [Checkpoint(step, location) for step, location in sorted(locations.items())]


def local_path(checkpoint: Checkpoint) -> Path:
    """The directory of a checkpoint; one on the hub is downloaded, without any pickle, unless it is cached.

    Raises:
        UserError: the download failed, or it has no config or no safetensors.
    """
    if isinstance(checkpoint.location, Path):
        return checkpoint.location
    name, revision = checkpoint.location.split("@")
    patterns = ["*.json", "*.safetensors", "*.txt"]
    try:
        return _with_weights(Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)))
    except (HTTPError, OSError) as error:
        raise UserError(
            f"cannot download {checkpoint.location} from the Hugging Face hub ({type(error).__name__}): "
            "look at the connection and the room on the disk, then run the same command again"
        ) from error


def save_resume(run: Path, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, object]) -> None:
    """Write what is needed to go on from `step` into a run's directory, and remove what was kept for earlier steps.

    Args:
        tensors: arrays by name, of any shape and memory order.
        state: JSON values; numbers come back exactly, tuples as lists.

    Raises:
        OSError: the state saved before is still whole.
    """
    add_resume(run, step, tensors, state)
    keep_resume(run, step)


def add_resume(run: Path, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, object]) -> None:
    """`save_resume`, but what was kept for earlier steps stays until `keep_resume`.

    Runs that are trained together add their states one after another and then remove the earlier ones, so that at any
    moment there is a step at which all of them have one.
    """
    files = {"state.json": _to_json(state), "tensors.safetensors": _to_safetensors(tensors)}
    write_directory(run / "resume" / str(step), files)


def keep_resume(run: Path, step: int) -> None:
    """Remove what was kept for other steps than this one."""
    for other in _resume_directories(run):
        if int(other.name) != step:
            remove(other)


def resume_steps(run: Path) -> list[int]:
    """Steps for which a complete state is there, increasing."""
    complete = {"state.json", "tensors.safetensors"}
    return sorted(int(path.name) for path in _resume_directories(run) if complete <= set(os.listdir(path)))


def load_resume(run: Path, step: int | None = None) -> Resume | None:
    """A complete state that `save_resume` wrote for this run, by default the newest, or None.

    Raises:
        UserError: one of its files is damaged.
    """
    steps = resume_steps(run)
    if not steps or step not in (None, *steps):
        return None
    chosen = run / "resume" / str(steps[-1] if step is None else step)
    advice = "start the run over with --force"
    tensors = _read_safetensors(chosen / "tensors.safetensors", advice)
    return Resume(int(chosen.name), tensors, _read_json(chosen / "state.json", advice))


def _resume_directories(run: Path) -> list[Path]:
    return [path for path in run.glob("resume/*") if re.fullmatch(NUMBER, path.name)]


def _unfinished(path: Path) -> Path:
    """A hidden name beside `path`, free of what an earlier process of the same number left there."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    _discard(unfinished)
    return unfinished


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Force names made or changed in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _to_json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(dict(value), indent=2) + "\n").encode()


def _to_safetensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """safetensors takes the memory as it lies, so it must be in C order; `format` is as transformers writes it."""
    in_order = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    return safetensors.numpy.save(in_order, metadata={"format": "pt"})


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is cut off or damaged: {advice}")
    return value


def _read_safetensors(path: Path, advice: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except safetensors.SafetensorError:
        raise UserError(f"{path} is cut off or damaged: {advice}") from None
    except TypeError as error:
        raise UserError(f"{path} holds numbers that NumPy does not have ({error}): save it in float32") from None


def _with_weights(directory: Path) -> Path:
    if not (directory / "config.json").is_file() or not any(directory.glob("model*.safetensors")):
        raise UserError(f"{directory} lacks config.json or model.safetensors: remove it, or let its run finish it")
    return directory


def _hub_revisions(name: str) -> list[str]:
    advice = "give a run's directory, or org/name of a model on the Hugging Face hub"
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"there is no directory {name}: {advice}")
    try:
        refs = huggingface_hub.HfApi().list_repo_refs(name)
    except (HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"there is no directory {name}, and the Hugging Face hub cannot list a model of that name "
            f"({type(error).__name__}): {advice}"
        ) from error
    return [ref.name for ref in [*refs.branches, *refs.tags]]
