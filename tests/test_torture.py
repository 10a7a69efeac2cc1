"""scripts/torture.py: commands that survive it, and commands that do not."""

import re
import runpy
import sys

import pytest

from tests.commands import ROOT, python

SCRIPT = ROOT / "scripts" / "torture.py"
WRITE = "import os, pathlib, sys; place = pathlib.Path(sys.argv[1], 'run'); place.mkdir(parents=True, exist_ok=True); "


@pytest.fixture
def torture(monkeypatch):
    """Torture a program instead of a setting; the exit code."""
    module = runpy.run_path(str(SCRIPT))
    main = module["main"]

    def call(program):
        monkeypatch.setitem(
            main.__globals__, "commands", lambda setting, directory, more: [[sys.executable, "-c", program, directory]]
        )
        monkeypatch.setattr(sys, "argv", ["torture.py", "parity_mlp", "0.01"])
        return main()

    return call


@pytest.mark.slow
def test_a_setting_survives():
    done = python(SCRIPT, "parity_mlp", "0.2", "--d", 10, "--k", 2, "--steps", 200, "--eval-every", 50)
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.fullmatch(
        r"parity_mlp: (\d+) rounds, (\d+) kills, (\d+) stops, (\d+) disk faults, 0 unexpected ends, 0 differences\n",
        done.stdout,
    )
    assert match
    assert int(match[1]) >= 1
    assert sum(map(int, match.groups()[1:])) >= 1


def test_differences_are_found(torture, capsys):
    assert torture(WRITE + "(place / 'done.json').write_bytes(os.urandom(8))") == 1
    assert "differs: run/done.json" in capsys.readouterr().out


def test_unexpected_ends_are_found(torture, tmp_path, capsys):
    """The program succeeds only once."""
    once = f"place = pathlib.Path({str(tmp_path)!r}, 'begun'); place.exists() and sys.exit(9); place.touch()"
    assert torture(f"{WRITE}{once}") == 1
    assert "exit code 9" in capsys.readouterr().out
