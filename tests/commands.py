"""Commands as a user starts them, in this process or in one of their own, and what they leave on the disk."""

import subprocess
import sys
from pathlib import Path

import pytest

from common import runs

ROOT = Path(__file__).parents[1]


class Killed(BaseException):
    """Stands for SIGKILL at a place that no signal from outside would hit."""


def start(capsys, main, *words):
    """Run a command's `main` in this process; its exit code and what it wrote on stdout and stderr."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command.py", *map(str, words)])
        try:
            runs.command(main)
            code = 0
        except SystemExit as stop:
            code = stop.code
    return code, *capsys.readouterr()


def succeed(capsys, main, *words):
    """Run a command in this process; what it wrote on stdout."""
    code, stdout, stderr = start(capsys, main, *words)
    assert code == 0, stderr
    return stdout


def fail_in_one_line(capsys, main, *words, code=2):
    """Run a command that must fail; the line that it writes."""
    got, stdout, stderr = start(capsys, main, *words)
    (line,) = stderr.splitlines()
    assert got == code
    assert stdout == ""
    assert line.startswith("error: ")
    return line


def python(*arguments, cwd=ROOT, **settings):
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, **settings
    )


def files(directory):
    """Everything below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


def results(directory):
    """What a run computed, without the id that it was given."""
    named = {name: content for name, content in files(directory).items() if content and not name.endswith(".lock")}
    return {name: content for name, content in named.items() if Path(name).parent.name or name != "config.json"}


def results_below(directory):
    return {run.name: results(run) for run in directory.iterdir()}


def cut(path):
    """Leave the first half of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
