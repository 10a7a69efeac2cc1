"""How a command starts and ends: presets on its command line, exit codes, and one-line errors instead of tracebacks."""

import errno
import gc
import hashlib
import inspect
import io
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tyro

from common.errors import UserError, one_line
from common.runs.names import ROOT
from common.runs.stopping import Stopped, catch_stop_signals

PRESET_DESCRIPTIONS = {
    "smoke": "seconds",
    "laptop": "shows the effect in minutes",
    "workstation": "as laptop, with a teacher near the best possible one, and more seeds and streams",
    "paper": "the published size",
}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_ACCESS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO),
)
"""Errors of the file system, not of this code."""
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
MOST_FILES = 1 << 16
"""That a process needs to have open."""

NO_TEMPORARY = "No usable temporary directory"
"""What Python says if there is no disk on which it can write a temporary file."""

OUT_OF_MEMORY = (
    "error: out of memory ({}): free some memory and rerun the command to resume, or start another run with a smaller "
    "--batch-size or, where there is that option, a larger --accumulate"
)
TORCH_OUT_OF_MEMORY = re.compile("^OutOfMemoryError|DefaultCPUAllocator: |std::bad_alloc")
"""In the class or message of an error: memory ran out. On a CPU torch has no class for it."""

LOST_PROCESS = re.compile("Connection (closed|reset) by peer")
"""In the message of an error of torch.distributed: another process has ended."""

RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""In the message of a library in Rust, the number of an error of the file system."""

OF_64_BITS = tyro.constructors.ConstructorRegistry()
"""How tyro reads whole numbers while a command runs: as others, if NumPy and torch can hold them."""


@OF_64_BITS.primitive_rule
def _integer(kind: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    def parsed(words: list[str]) -> int:
        number = int(words[0])
        if not -(2**63) <= number < 2**63:
            bound = "below 2^63" if number > 0 else "at least -2^63"
            _exit(f"error: {_option_of(words[0])} must be {bound}, got {words[0]:.30}", 2)
        return number

    if kind.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=parsed,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda number: [str(number)],
    )


def _option_of(word: str) -> str:
    """The option on the command line that a value belongs to."""
    option = "a number"
    for each in sys.argv[1:]:
        name, _, value = each.partition("=")
        option = name if name.startswith("--") else option
        if word in (each, value):
            break
    return option


def run_command(presets: Mapping[str, Any], run: Callable[[Any, Sequence[str]], None], description: str | None) -> None:
    """Parse a command line that begins with the name of a preset, and run the command.

    Args:
        presets: the command's arguments, by the name of the preset.
        run: called with the arguments as resolved and the command as a list, for config.json.
        description: shown by `--help`.
    """
    described = {name: (PRESET_DESCRIPTIONS[name], arguments) for name, arguments in presets.items()}
    run(tyro.extras.overridable_config_cli(described, description=description), command_line(run))


def command_line(function: Callable[..., object]) -> list[str]:
    """This process's command as it is run from the repository's root: `python -m <module of function> ...`."""
    module = Path(inspect.getfile(function)).resolve().relative_to(ROOT).with_suffix("")
    return ["python", "-m", ".".join(module.parts), *sys.argv[1:]]


def command(main: Callable[[], object]) -> None:
    """Run a command. Invalid input, a full or read-only disk, a stop signal or Ctrl-C ends it with one line on stderr.

    Output that cannot be written is dropped without stopping the command; for stdout, an error at the end says so.

    Exit codes: a `UserError`'s own, 2 for the disk and for stdout, 75 (EX_TEMPFAIL) for SIGTERM and SIGUSR1, 130 for
    Ctrl-C. Any other exception keeps its traceback.
    """
    prepare_streams()
    prepare_process()
    try:
        _require_utf8(sys.argv[1:])
        with catch_stop_signals(), OF_64_BITS:
            main()
        _require_stdout()
    except UserError as error:
        _exit(f"error: {error}", error.exit_code)
    except OSError as error:
        _exit_for_disk(error)
        raise
    except Stopped as stopped:
        _exit(str(stopped), stopped.exit_code)
    except MemoryError as error:
        _exit(OUT_OF_MEMORY.format(str(error) or "Python"), 2)
    except KeyboardInterrupt:
        _exit("interrupted: rerun the command to resume from the last saved state", 130)
    except Exception as error:
        if TORCH_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            reason = str(error).split("DefaultCPUAllocator: ")[-1].partition(". Error")[0]
            _exit(OUT_OF_MEMORY.format(reason.splitlines()[0]), 2)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and LOST_PROCESS.search(str(error)):
            _exit("error: another process of this training has ended: see what it says", 2)
        if match := RUST_ERROR.search(str(error)):  # `tokenizers` raises its errors of the file system as Exception
            _exit_for_disk(OSError(int(match[1]), os.strerror(int(match[1]))))
        raise


def _exit_for_disk(error: OSError) -> None:
    """End the command if the disk is full, access is denied, or too many files are open."""
    if error.errno in TOO_MANY_FILES:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        _exit(f"error: {error.strerror} ({limit:,} at most): raise the limit with ulimit -n, or give fewer runs", 2)
    if error.errno in (*DISK_FULL, *NO_ACCESS) or (error.strerror or "").startswith(NO_TEMPORARY):
        place = f"{error.filename}: " if error.filename else ""
        _exit(f"error: {place}{error.strerror}; once this is fixed, rerun the command to resume", 2)


def _require_utf8(words: Sequence[str]) -> None:
    """Reject names that could be neither printed nor recorded."""
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            with suppress(UnicodeError):
                name, encoding = os.fsencode(word).decode(), sys.getfilesystemencoding()
                if encoding != "utf-8":
                    raise UserError(f"{name} cannot be read in this locale, of {encoding}: set LC_ALL=C.UTF-8")
            raise UserError(f"{word} is not UTF-8: rename it, or give another name")


class _Output(io.FileIO):
    """A stream's file, to which writing never fails."""

    error: OSError | None = None
    """The first one, if something was lost."""

    def write(self, content: Any) -> int:
        """Write all that can be written."""
        rest = memoryview(content).cast("B")
        try:
            while rest:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.error = self.error or error
        return len(content)


def prepare_streams() -> None:
    """Let stdout and stderr never fail, be they closed, on a full disk, or of a locale that lacks a character.

    A file that is opened would otherwise take the place of a closed stream, and get what is written to that.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _unfailing(sys.stdout, 1)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _unfailing(sys.stderr, 2)


def _unfailing(stream: Any, descriptor: int) -> io.TextIOWrapper:
    """What replaces a stream of the process, or None, which is of a closed one."""
    output = _Output(descriptor, "wb", closefd=False)
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(output), "utf-8", "backslashreplace")
    with suppress(OSError):
        stream.flush()
    buffering, through = stream.line_buffering, stream.write_through
    file: Any = output if through else io.BufferedWriter(output)  # unbuffered by PYTHONUNBUFFERED
    return io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=buffering, write_through=through)


def _require_stdout() -> None:
    """End the command if something that it printed was lost, unless nobody wanted to read it."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    error = getattr(getattr(buffer, "raw", buffer), "error", None)
    if error is not None and error.errno != errno.EPIPE:
        _exit(f"error: stdout: {error.strerror}; the command is complete, but not all that it printed is there", 2)


def prepare_process() -> None:
    """Settings of the whole process, before the modules that do the work are imported.

    torch and transformers create half a million long-lived objects, and looking for garbage among them would take a
    quarter of a command's start-up time; this is done after every 10,000 new objects instead of 700.

    numba caches compiled code, but looks for changes only in the file of a compiled function and not in the files whose
    functions it calls. The cache is therefore kept under a hash of all sources that are compiled.
    """
    gc.set_threshold(10_000, 10, 10)
    allow_files()
    cache = ROOT / "common" / "__pycache__"
    if "NUMBA_CACHE_DIR" not in os.environ and os.access(cache.parent, os.W_OK):
        packages = [folder for folder in ROOT.iterdir() if (folder / "__init__.py").exists()]
        sources = sorted(path for package in packages for path in package.rglob("*.py"))
        compiled = [text for path in sources if b"numba" in (text := path.read_bytes())]
        os.environ["NUMBA_CACHE_DIR"] = str(cache / hashlib.sha256(b"".join(compiled)).hexdigest()[:16])


_collects_fast = False


@contextmanager
def fast_garbage_collection() -> Iterator[None]:
    """Look for garbage among new objects only; no more than that if it is nested.

    Every Trainer looks for it when it begins, which takes a third of a second with the half a million objects of torch
    and transformers.
    """
    global _collects_fast
    if _collects_fast:
        yield
        return
    _collects_fast = True
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _collects_fast = False


def allow_files() -> None:
    """Let this process open `MOST_FILES`, or as many as it may, as each run that is trained has a file open."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _exit(message: str, code: int) -> None:
    sys.stderr.write(f"{one_line(message)}\n")  # in one write, as several processes may share stderr
    sys.exit(code)
