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


KILLED_AGAIN_AND_AGAIN = """
import math
import os
import random
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from common.runs import Run, command

times, run, training, name, *arguments = sys.argv[1:]
training = import_module(training)
training.RESUME_SECONDS, training.RESUME_SHARE = 0, math.inf
main = import_module(name).main
Run.finish = lambda run, summary: signal.pause()
sys.argv = ["command.py", *arguments]
metrics = Path(run) / "metrics.jsonl"
numbers = random.Random(0)

def lines():
    return metrics.read_bytes().count(b"\\n") if metrics.exists() else 0

for _ in range(int(times)):
    wanted = lines() + numbers.randint(1, 5)
    child = os.fork()
    if child == 0:
        command(main)
        os._exit(1)
    while lines() < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(numbers.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def kill_again_and_again(times, run, training, name, *words):
    """Kill a command each time that the metrics of `run` have grown by a random number of lines, and a bit later.

    `training` is the module that decides when resume states are written, here as often as possible, and `name` that of
    the command.
    """
    done = python("-c", KILLED_AGAIN_AND_AGAIN, times, run, training.__name__, name, *words)
    assert done.returncode == 0, done.stderr
    assert not runs.Run(run).complete
    assert (run / "resume").is_dir()


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
