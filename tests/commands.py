"""Commands as a user starts them, in this process or in one of their own, and what they leave on the disk."""

import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import command
from common.runs import resume
from common.runs.run import Run
from common.runs.stopping import SIGNALS
from tests.forked import forked

ROOT = Path(__file__).parents[1]


class Killed(BaseException):
    """Stands for SIGKILL at a place that no signal from outside would hit."""


def exit_code(main, *words):
    """Run a command's `main` in this process, whose signal handlers stay as they are."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command.py", *map(str, words)])
        try:
            command(main)
            return 0
        except SystemExit as stop:
            return stop.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def start(capsys, main, *words):
    """Run a command's `main` in this process; its exit code and what it wrote on stdout and stderr."""
    capsys.readouterr()
    return exit_code(main, *words), *capsys.readouterr()


def succeed(capsys, main, *words):
    """Run a command in this process; what it wrote on stdout."""
    code, stdout, stderr = start(capsys, main, *words)
    assert code == 0, stderr
    return stdout


def stopped(capsys, main, *words):
    """Run a command that must be stopped by SIGTERM; the step that it names, or None."""
    code, stdout, stderr = start(capsys, main, *words)
    match = re.fullmatch("stopped by SIGTERM( at step ([0-9,]+))?: .*", stderr.splitlines()[-1])
    assert (code, stdout) == (75, "")
    return int(match[2].replace(",", "")) if match[1] else None


def and_signal(function, *calls):
    """The same function, but at the calls of these numbers, from 1, this process first gets SIGTERM, twice."""
    counter = itertools.count(1)

    def call(*arguments, **options):
        if next(counter) in calls:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **options)

    return call


def fail_in_one_line(capsys, main, *words, code=2):
    """Run a command that must fail; the line that it writes."""
    got, stdout, stderr = start(capsys, main, *words)
    (line,) = stderr.splitlines()
    assert got == code
    assert stdout == ""
    assert line.startswith("error: ")
    return line


def assert_named(line, named):
    """A refusal names each of these: a flag, a file, a value, or several words in quotes."""
    for word in shlex.split(named):
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", line), f"{word} is not in {line!r}"


def refusals(*cases):
    """Parametrise with arguments, and what the line that refuses them must name: they themselves, or another text."""
    return pytest.mark.parametrize(
        ("words", "named"), [case if isinstance(case, tuple) else (case, case) for case in cases]
    )


def assert_helpful_from_both_folders(setting):
    """Scripts of a setting start from the root and from their folder, as far as their help, which imports little."""
    for script, cwd in ((f"{setting}/train.py", ROOT), ("probe.py", ROOT / setting)):
        done = python(script, "--help", cwd=cwd)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: ")


def save_often(patch):
    """Write the resume state whenever that is possible."""
    patch.setattr(resume, "RESUME_SECONDS", 0)
    patch.setattr(resume, "RESUME_SHARE", math.inf)


def python(*arguments, cwd=ROOT, **settings):
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, **settings
    )


KILL = (signal.SIGKILL,)
STOPS = ((signal.SIGTERM,), (signal.SIGUSR1,), (signal.SIGTERM, signal.SIGUSR1))
"""Signals that a command gets; the two of a pair are so near that either may come first."""

ENDED_AGAIN_AND_AGAIN = """
import json
import math
import os
import random
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from common.cli import command, prepare_process
from common.runs import resume
from common.runs.run import Run
from common.runs.stopping import stop_requested

signals, run, name, *arguments = sys.argv[1:]
main = import_module(name).main
prepare_process()
import_module(f"{name.split('.')[0]}.training")  # once, and not in every child

def never(run, summary):
    while not stop_requested():
        time.sleep(0.001)

Run.finish = never
sys.argv = ["command.py", *arguments]
metrics = Path(run) / "metrics.jsonl"
numbers = random.Random(0)

def lines():
    return metrics.read_bytes().count(b"\\n") if metrics.exists() else 0

for sent in json.loads(signals):
    wanted = lines() + numbers.randint(1, 5)
    child = os.fork()
    if child == 0:
        if sent == [signal.SIGKILL]:
            resume.RESUME_SECONDS, resume.RESUME_SHARE = 0, math.inf
        command(main)
        os._exit(1)
    while lines() < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(numbers.uniform(0, 0.05))
    for number in sent:
        os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (-signal.SIGKILL if sent == [signal.SIGKILL] else os.EX_TEMPFAIL), code
"""


def end_again_and_again(ends, run, name, *words):
    """End a command by each of these signals, after the metrics of `run` have grown by a random number of lines, and a
    bit later.

    A command that will be killed writes its resume state as often as possible, one that will be stopped only then. If
    the first one is stopped, none has to start over, and they say nothing but that they are stopped. `name` is the
    command's module.
    """
    done = forked("-c", ENDED_AGAIN_AND_AGAIN, json.dumps(ends), run, name, *words)
    assert done.returncode == 0, done.stderr
    assert not Run(run).complete
    assert (run / "resume").is_dir()
    if ends[0] == KILL:
        return
    said = [line for line in done.stderr.splitlines() if not re.match("([^ ]+|[0-9]+ students): step ", line)]
    stops = [sent for sent in ends if sent != KILL]
    assert len(said) == len(stops), done.stderr
    for line, numbers in zip(said, stops, strict=True):
        names = "|".join(number.name for number in numbers)
        assert re.fullmatch(f"stopped by ({names})( at step [0-9,]+)?: .*", line)


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


def change_config(directory, **changes):
    """Change the config.json of a run or a checkpoint."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
