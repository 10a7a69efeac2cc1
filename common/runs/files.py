"""Files on disk: written atomically, read back, locked.

Files and directories are written under a hidden name in the same folder, flushed to disk and then renamed, so that a
reader finds either all of the content or none of it, however the writer ended. What a killed writer leaves behind is
named `*.unfinished`, and readers ignore it. Only JSON and safetensors are read, never a pickle.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from common.errors import UserError

NUMBER = "(0|[1-9][0-9]*)"
"""Pattern of a step in a file name."""

SAMPLED_ABOVE = 1 << 22
"""Bytes above which a file is sampled."""
BLOCK, BLOCKS = 4096, 64
"""Bytes of a block, and number of blocks, from the beginning of the file to its end."""


@contextmanager
def locked(directory: Path, message: str) -> Iterator[None]:
    """Hold the lock of an existing directory, which only one process can hold.

    Raises:
        UserError: another process holds it; the error has this message.
    """
    with (directory / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        yield


@contextmanager
def shared_lock(directory: Path) -> Iterator[None]:
    """Hold a lock of a directory, in a file beside it, together with its other writers.

    The directory is created if it does not exist. The first one removes what killed writers left behind.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _lock_beside(directory).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # others are writing
        else:
            remove_unfinished(directory)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _lock_beside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.lock")


def is_locked(directory: Path) -> bool:
    """Whether a process holds the lock of a directory, which may not exist."""
    try:
        with (directory / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def append_to_file(path: Path, content: bytes) -> None:
    """Append `content` to a file and flush it to disk; the file is created if it does not exist.

    Raises:
        OSError: names the file, which then has its old length.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except FileNotFoundError as error:
        raise PermissionError(errno.EACCES, "no file can be created there", str(path)) from error
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


def make_directory(path: Path) -> None:
    """Create a directory and those above it, unless they exist.

    Raises:
        OSError: names a directory that cannot be created; below /proc the system says instead that it is missing.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise PermissionError(errno.EACCES, "no directory can be created there", str(path)) from error


def write_file(path: Path, content: bytes) -> None:
    """Create or replace a file atomically; its directory is created if it does not exist.

    Raises:
        OSError: an existing file is unchanged.
    """
    make_directory(path.parent)
    unfinished = _unfinished(path)
    try:
        append_to_file(unfinished, content)
        os.replace(unfinished, path)
        _sync_directory(path.parent)
    finally:
        _discard(unfinished)


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Create a directory with these files atomically, or replace the files of an existing one, each atomically.

    Raises:
        OSError: no directory was created; in an existing one every file is complete, old or new.
    """
    if path.is_dir():
        for name, content in files.items():
            write_file(path / name, content)
        return
    make_directory(path.parent)
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
    """Remove a file or a directory, if it exists; a reader never finds half a directory."""
    if path.exists():
        unfinished = _unfinished(path)
        os.rename(path, unfinished)
        _discard(unfinished)


def remove_unfinished(directory: Path) -> None:
    """Remove what killed writers left behind, at any depth, except in folders with a `shared_lock`.

    Only for a directory with no other writer.
    """
    for leftover in list(directory.rglob(".*.unfinished")):
        if leftover.parent == directory or not _lock_beside(leftover.parent).exists():
            _discard(leftover)


def _unfinished(path: Path) -> Path:
    """A hidden name next to `path`; what an earlier process with this process id left there is removed."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    _discard(unfinished)
    return unfinished


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Flush new and changed names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def to_json(value: Mapping[str, object]) -> bytes:
    """Indented JSON."""
    return (json.dumps(dict(value), indent=2) + "\n").encode()


def to_safetensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The tensors as a safetensors file, whatever their memory order; with the metadata that transformers expects."""
    in_order = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    return safetensors.numpy.save(in_order, metadata={"format": "pt"})


def json_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that this is the text of; None if it is anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def find_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file, or it holds anything else."""
    return json_object(path.read_bytes()) if path.is_file() else None


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or damaged; the message ends with the advice.
    """
    try:
        value = json_object(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    if value is None:
        raise UserError(f"{path} is truncated or damaged: {advice}")
    return value


def digest_of(value: object) -> str:
    """A digest of a JSON value; the same after a round trip through a file."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def sampled_digest(path: Path) -> str:
    """A digest of a file's content or, above `SAMPLED_ABOVE`, of its size and of blocks that are spread over it."""
    size = path.stat().st_size
    hashed = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= SAMPLED_ABOVE:
            hashed.update(file.read())
        else:
            for i in range(BLOCKS):
                file.seek((size - BLOCK) * i // (BLOCKS - 1))
                hashed.update(file.read(BLOCK))
    return hashed.hexdigest()[:32]


def read_safetensors(path: Path, advice: str) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, by name.

    Raises:
        UserError: the file is missing, damaged, or of a type that NumPy does not have (bfloat16).
    """
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except safetensors.SafetensorError:
        raise UserError(f"{path} is truncated or damaged: {advice}") from None
    except TypeError as error:
        raise UserError(f"{path} has a dtype that NumPy lacks ({error}): save it in float32") from None
