"""scripts/torture.py: commands that survive it, and commands that do not."""

import re
import runpy
import sys
from importlib import import_module

import pytest

from tests.commands import ROOT, exit_code

SCRIPT = ROOT / "scripts" / "torture.py"
WRITE = "import os, pathlib, sys; place = pathlib.Path(sys.argv[1], 'run'); place.mkdir(parents=True, exist_ok=True); "


@pytest.fixture
def script():
    """The names of the script."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def torture(script, monkeypatch):
    """Torture a program instead of a setting; the exit code."""

    def call(program, minutes=0.01, seed=0):
        command = [sys.executable, "-c", program]
        monkeypatch.setitem(script["main"].__globals__, "commands", lambda setting, *rest: [[*command, rest[0]]])
        monkeypatch.setattr(sys, "argv", ["torture.py", "parity_mlp", str(minutes), "--seed", str(seed)])
        return script["main"]()

    return call


def test_its_commands_make_the_runs_that_are_compared(script, tmp_path):
    """That these survive is tested in test_commands.py."""
    more = "--d 10 --k 2 --steps 200 --eval-every 50".split()
    for name in ("one", "other"):
        for _, _, module, *words in script["commands"]("parity_mlp", tmp_path / name, more):
            assert exit_code(import_module(module).main, *words) == 0
    one, other = (script["results"](tmp_path / name) for name in ("one", "other"))
    names = ("teacher", "students/ce-width16-seed0", "students/progressive-width16-seed0")
    assert {name for name in one if name.endswith("done.json")} == {f"{name}/done.json" for name in names}
    assert script["differences"](one, other) == []


SURVIVING = """
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *arguments: os._exit(75))
place = pathlib.Path(sys.argv[1])
place.mkdir(exist_ok=True)
try:
    (place / "unfinished").write_bytes(bytes(1000))
    (place / "unfinished").rename(place / "done.json")
except OSError:
    sys.exit(2)
"""


def test_a_program_survives(torture, capsys):
    """With this seed, the disk is full the first time, and the second time a kill comes at once."""
    assert torture(SURVIVING, minutes=0.03, seed=6770) == 0
    match = re.fullmatch(
        r"parity_mlp: (\d+) rounds, (\d+) kills, (\d+) stops, (\d+) disk faults, 0 unexpected ends, 0 differences\n",
        capsys.readouterr().out,
    )
    assert match
    rounds, kills, _, faults = map(int, match.groups())
    assert min(rounds, kills, faults) >= 1


def test_differences_are_found(torture, capsys):
    assert torture(WRITE + "(place / 'done.json').write_bytes(os.urandom(8))") == 1
    assert "differs: run/done.json" in capsys.readouterr().out


def test_unexpected_ends_are_found(torture, tmp_path, capsys):
    """The program succeeds only once."""
    once = f"place = pathlib.Path({str(tmp_path)!r}, 'begun'); place.exists() and sys.exit(9); place.touch()"
    assert torture(f"{WRITE}{once}") == 1
    assert "exit code 9" in capsys.readouterr().out
