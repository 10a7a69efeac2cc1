"""Files on disk: written atomically, read back, locked.

Files and directories are written under a hidden name in the same folder, flushed to disk and then renamed, so that a
reader finds either all of the content or none of it, however the writer ended. What a killed writer leaves behind is
named `*.unfinished`, and readers ignore it. Only JSON and safetensors are read, never a pickle.

Only regular files are opened, as a FIFO would keep its reader waiting for ever, and no more is read into memory than
such a file may have.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from common.errors import UserError
from common.resources import require_memory

NUMBER = "(0|[1-9][0-9]*)"
"""Pattern of a step in a file name."""

MOST_JSON = 1 << 26
"""Bytes of the largest JSON file that is read, and of the longest line of records."""
MOST_RECORDS = 1 << 32
"""Bytes of the largest file of records that is read."""
MOST_TEXT = 1 << 30
"""Bytes of the largest file of a tokenizer that is read."""
RECORD_MEMORY = 4
"""Bytes of memory per byte of such a file, once it is parsed, at least."""

SAMPLED_ABOVE = 1 << 22
"""Bytes above which a file is sampled."""
BLOCK, BLOCKS = 4096, 64
"""Bytes of a block, and number of blocks, from the beginning of the file to its end."""


def open_descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file; links are followed. With `os.O_CREAT` it is created if nothing is there.

    Raises:
        UserError: something else is there, such as a directory or a FIFO.
        OSError: names the file.
    """
    try:
        require_regular(path)  # before it is opened, as that may change a device
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged in the meantime
        os.close(descriptor)
        raise UserError(f"{path} changes while it is read: start again")
    return descriptor


def require_regular(path: Path) -> Path:
    """The path of an existing file, for a library that opens it.

    Raises:
        UserError: something else is there.
        OSError: names the file; nothing is there, or it cannot be reached.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {'a directory' if stat.S_ISDIR(mode) else 'no regular file'}: replace or remove it")
    return path


def require_readable(name: Path | str) -> Path | str:
    """The name of a folder, such as a tokenizer's, for a library that reads it, or of anything else.

    Raises:
        UserError: something in the folder is neither a file nor a folder, or a file other than weights is too large.
    """
    for path in sorted(Path(name).iterdir()) if os.path.isdir(name) else ():
        if path.exists() and not path.is_dir():
            size = require_regular(path).stat().st_size
            if size > MOST_TEXT and path.suffix in (".json", ".txt", ".model", ".jinja"):
                raise UserError(f"{path} has {size:,} bytes, and at most {MOST_TEXT:,} are read")
    return name


def open_to_read(path: Path) -> BufferedReader:
    """`open_descriptor` to read, as a file object."""
    return os.fdopen(open_descriptor(path), "rb")


def read_file(path: Path, advice: str, most: int = MOST_RECORDS) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: it is something else, has more than `most` bytes, or does not fit into memory; the last two messages
            end with the advice.
        OSError: names the file.
    """
    with open_to_read(path) as file:
        return file.read(_size(file, path, most, advice))


def json_lines(path: Path, advice: str) -> Iterator[dict[str, Any] | None]:
    """The JSON object in each line of a file of records, or None if it holds anything else, one at a time.

    A last line that was cut off is left out.

    Raises:
        UserError: it is something else than a regular file, has more than `MOST_RECORDS` bytes, or a line of more than
            `MOST_JSON`, or does not fit into memory; all but the first of these messages end with the advice.
        OSError: names the file.
    """
    with open_to_read(path) as file:
        _size(file, path, MOST_RECORDS, advice, RECORD_MEMORY)
        while (line := file.readline(MOST_JSON + 1)).endswith(b"\n"):
            yield json_object(line)
        if len(line) > MOST_JSON:
            raise UserError(f"{path} has a line of more than {MOST_JSON:,} bytes: {advice}")


def _size(file: BufferedReader, path: Path, most: int, advice: str, memory: int = 1) -> int:
    """The bytes of a file: at most `most`, and so few that there is this number of bytes of memory for each of them."""
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise UserError(f"{path} has {size:,} bytes, and at most {most:,} are read: {advice}")
    require_memory({f"the content of {path}": memory * size}, advice)
    return size


@contextmanager
def locked(directory: Path, message: str) -> Iterator[None]:
    """Hold the lock of an existing directory, which only one process can hold.

    Raises:
        UserError: another process holds it; the error has this message.
    """
    with open_lock(directory / ".lock") as lock:
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
    make_directory(directory)
    with open_lock(_lock_beside(directory)) as lock:
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


def open_lock(path: Path) -> BufferedWriter:
    """The file of a lock, which is created if it does not exist."""
    return os.fdopen(open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def is_locked(directory: Path) -> bool:
    """Whether a process holds the lock of a directory, which may not exist."""
    if not (directory / ".lock").is_file():
        return False
    try:
        with open_to_read(directory / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def append_to_file(path: Path, content: bytes) -> None:
    """Append `content` to a file and flush it to disk; the file is created if it does not exist.

    Raises:
        UserError: something else is there.
        OSError: names the file, which then has its old length.
    """
    try:
        descriptor = open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
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
        UserError: something else is there.
        OSError: an existing file is unchanged.
    """
    if path.exists():
        require_regular(path)
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


def to_safetensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The tensors as a safetensors file, whatever their memory order; by default with transformers' metadata."""
    in_order = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    return safetensors.numpy.save(in_order, metadata={"format": "pt"} if metadata is None else dict(metadata))


def json_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that this is the text of; None if it is anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def find_json(path: Path, most: int = MOST_JSON) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file, or it holds anything else.

    Raises:
        UserError: it has more than `most` bytes.
    """
    return json_object(read_file(path, "restore or remove it", most)) if path.is_file() else None


def read_json(path: Path, advice: str, most: int = MOST_JSON) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing, damaged or has more than `most` bytes; the message ends with the advice. Or it
            is no file.
    """
    try:
        value = json_object(read_file(path, advice, most))
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
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        hashed = hashlib.sha256(str(size).encode())
        if size <= SAMPLED_ABOVE:
            hashed.update(file.read(size))
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
        return safetensors.numpy.load_file(require_regular(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}") from None
    except safetensors.SafetensorError:
        raise UserError(f"{path} is truncated or damaged: {advice}") from None
    except TypeError as error:
        raise UserError(f"{path} has a dtype that NumPy lacks ({error}): save it in float32") from None
