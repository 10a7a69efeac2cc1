"""How a command starts and ends: presets on its command line, exit codes, and one-line errors instead of tracebacks."""

import errno
import gc
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from common.errors import UserError
from common.runs.names import ROOT
from common.runs.stopping import Stopped, catch_stop_signals

PRESET_DESCRIPTIONS = {"smoke": "seconds", "laptop": "shows the effect in minutes", "paper": "the published size"}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
"""Errors of the file system, not of this code."""

NO_TEMPORARY = "No usable temporary directory"
"""What Python says if there is no disk on which it can write a temporary file."""

OUT_OF_MEMORY = (
    "error: out of memory ({}): free some memory and rerun the command to resume, or start another run with a smaller "
    "--batch-size or a larger --accumulate"
)
TORCH_OUT_OF_MEMORY = re.compile("^OutOfMemoryError|DefaultCPUAllocator: |std::bad_alloc")
"""In the class or message of an error: memory ran out. On a CPU torch has no class for it."""

LOST_PROCESS = re.compile("Connection (closed|reset) by peer")
"""In the message of an error of torch.distributed: another process has ended."""

RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""In the message of a library in Rust, the number of an error of the file system."""


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

    Exit codes: a `UserError`'s own, 2 for the disk, 75 (EX_TEMPFAIL) for SIGTERM and SIGUSR1, 130 for Ctrl-C. Any other
    exception keeps its traceback.
    """
    prepare_process()
    try:
        _require_utf8(sys.argv[1:])
        with catch_stop_signals():
            main()
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
    """End the command if the disk is full or access is denied."""
    if error.errno in (*DISK_FULL, *NO_ACCESS) or (error.strerror or "").startswith(NO_TEMPORARY):
        place = f"{error.filename}: " if error.filename else ""
        _exit(f"error: {place}{error.strerror}; once this is fixed, rerun the command to resume", 2)


def _require_utf8(words: Sequence[str]) -> None:
    """Reject names that could be neither printed nor recorded."""
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise UserError(f"{word} is not UTF-8: rename it, or give another name")


def prepare_process() -> None:
    """Settings of the whole process, before the modules that do the work are imported.

    torch and transformers create half a million long-lived objects, and looking for garbage among them would take a
    quarter of a command's start-up time; this is done after every 10,000 new objects instead of 700.

    numba caches compiled code, but looks for changes only in the file of a compiled function and not in the files whose
    functions it calls. The cache is therefore kept under a hash of all sources that are compiled.
    """
    gc.set_threshold(10_000, 10, 10)
    cache = ROOT / "common" / "__pycache__"
    if "NUMBA_CACHE_DIR" not in os.environ and os.access(cache.parent, os.W_OK):
        packages = [folder for folder in ROOT.iterdir() if (folder / "__init__.py").exists()]
        sources = sorted(path for package in packages for path in package.rglob("*.py"))
        compiled = [text for path in sources if b"numba" in (text := path.read_bytes())]
        os.environ["NUMBA_CACHE_DIR"] = str(cache / hashlib.sha256(b"".join(compiled)).hexdigest()[:16])


def _exit(message: str, code: int) -> None:
    sys.stderr.write(f"{one_line(message)}\n")  # in one write, as several processes may share stderr
    sys.exit(code)


def one_line(message: str) -> str:
    """A message in one line; what would change what a terminal shows, as a file's name or content may, is escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.splitlines()))
    return "".join(shown)
