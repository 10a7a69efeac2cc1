"""Processes with modules that are imported already, against interpreters as a user starts them."""

import importlib
import os
import signal
import time

import pytest

from tests.commands import ROOT, python
from tests.forked import Forked, Pair, forked

SHOW = """
import os, sys
print(sys.argv[1:], __name__, os.getcwd(), os.environ.get("TEXT_BLOCKS"), os.environ.get("MPLBACKEND"))
print("an error", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["-c", "script", "-m"])
@pytest.mark.parametrize("changes", [{"TEXT_BLOCKS": "there"}, {"MPLBACKEND": "svg"}], ids=["forked", "started"])
def test_it_runs_as_in_an_interpreter(tmp_path, one_torch_thread, kind, changes):
    (tmp_path / "shown.py").write_text(SHOW)
    words = {"-c": ["-c", SHOW], "script": ["shown.py"], "-m": ["-m", "shown"]}[kind]
    environment = {**os.environ, **changes}
    mine, theirs = (run(*words, 3, "b c", cwd=tmp_path, env=environment) for run in (forked, python))
    assert (mine.returncode, mine.stdout, mine.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert mine.returncode == 3


def test_what_is_imported_is_not_imported_again(one_torch_thread):
    """Whatever importing it here has changed in the environment."""
    name = "common.language_models.commands"
    importlib.import_module(name)
    assert forked("-c", f"import sys; print('{name}' in sys.modules)").stdout == "True\n"
    assert python("-c", f"import sys; print('{name}' in sys.modules)").stdout == "False\n"


def test_a_killed_process_and_one_with_an_error(one_torch_thread):
    process = Forked("-c", "import time; print(1, flush=True); time.sleep(600)")
    while process.stdout != "1\n":
        time.sleep(0.01)
    assert process.returncode is None
    process.process.kill()
    assert process.wait().returncode == -signal.SIGKILL
    failed = forked("-c", "1 / 0")
    assert failed.returncode == 1
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")


JOINED = """
import os
import torch
from common.runs.processes import join_processes
processes, _ = join_processes("cpu")
total = torch.tensor([10.0**processes.index])
torch.distributed.all_reduce(total)
print(processes.index, processes.count, total.item(), flush=True)
"""


def test_two_processes_are_a_group_and_the_failure_of_one_ends_the_other(one_torch_thread):
    assert [done.stdout for done in Pair("-c", JOINED).wait()] == ["0 2 11.0\n", "1 2 11.0\n"]
    fails = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit(7); time.sleep(600)"
    assert [done.returncode for done in Pair("-c", fails).wait()] == [-signal.SIGKILL, 7]


def test_it_starts_in_the_root(one_torch_thread):
    assert forked("-c", "import os; print(os.getcwd())").stdout == f"{ROOT}\n"
