"""Commands of Transformer settings in several processes: as one, stopped, and with a changing number of them.

Run as a script, this file is one process of those that the tests start.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common.distillation.trainer import ProgressiveDistillationTrainer
from common.parity.students import Student
from common.runs.checkpoints import read_checkpoint
from common.runs.resume import resume_steps
from common.runs.run import Run
from common.runs.stopping import stop_requested
from common.teachers.discovery import find_checkpoints
from parity_gpt2 import train as parity
from PCFG_autoregressive import train as autoregressive
from PCFG_mlm import train as mlm
from tests.commands import ROOT, and_signal, exit_code, succeed

PCFG = shlex.split("smoke --batch-size 8 --heads 2 --eval-samples 32 --eval-every 4 --steps 12 --dropout 0")
PARITY = "smoke --d 6 --batch-size 8 --heads 2 --head-dim 3 --eval-samples 32 --eval-every 4 --steps 28"
COMMANDS = {
    "parity_gpt2": (parity.main, shlex.split(PARITY)),
    "PCFG_mlm": (mlm.main, PCFG),
    "PCFG_autoregressive": (autoregressive.main, PCFG),
}
STOPPED_AT = {"parity_gpt2": (12, 20), "PCFG_mlm": (3, 5), "PCFG_autoregressive": (3, 5)}
"""Steps after three safe points and two more: of parity at evaluations, of the others at every step."""
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command_line(setting, directory, name):
    return [*COMMANDS[setting][1], "--out", directory / f"{setting} {name}"]


def stop_at(patch, call):
    """Send the signal in this process between two safe points, before call number `call`."""
    for owner, name in ((ProgressiveDistillationTrainer, "compute_loss"), (Student, "objective")):
        patch.setattr(owner, name, and_signal(getattr(owner, name), call))


def run_command(setting, directory, name):
    """Run a command; its exit code."""
    return exit_code(COMMANDS[setting][0], *command_line(setting, directory, name))


def in_each_process(directory):
    """What each of two processes does; all commands share a process group, as gloo cannot be initialised twice."""
    join = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend: torch.distributed.is_initialized() or join(backend)
    for setting in COMMANDS:
        assert run_command(setting, directory, "two") == 0
        with pytest.MonkeyPatch.context() as patch:
            if os.environ["RANK"] == "1":
                stop_at(patch, 2)
            assert run_command(setting, directory, "changing") == 75


def never_ending(directory):
    """A command that waits for a signal at the end of its training, unless it has received one."""
    train = ProgressiveDistillationTrainer.train

    def train_and_wait(trainer):
        train(trainer)
        while not stop_requested():
            time.sleep(0.001)

    ProgressiveDistillationTrainer.train = train_and_wait
    sys.exit(run_command("PCFG_mlm", directory, "launched"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_processes")
    with pytest.MonkeyPatch.context() as patch:
        for setting in COMMANDS:
            stop_at(patch, 3)
            assert run_command(setting, directory, "changing") == 75
            patch.undo()
    arguments = [sys.executable, *LAUNCH, "each", str(directory)]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return directory


def assert_near(run, expected):
    """The records and checkpoints of two runs are the same up to rounding."""
    for here, there in zip(run.records(), expected.records(), strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-4) for name, value in there.items()}
    steps = [checkpoint.step for checkpoint in find_checkpoints(expected.directory)]
    assert [checkpoint.step for checkpoint in find_checkpoints(run.directory)] == steps
    for step in steps:
        mine, theirs = (read_checkpoint(each.directory / f"checkpoint-{step}")[1] for each in (run, expected))
        for name, tensor in theirs.items():
            if not name.endswith(("c_attn.bias", "key.bias")):  # of which keys' have no gradient but rounding
                np.testing.assert_allclose(mine[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("setting", COMMANDS)
def test_two_processes_or_a_changing_number_make_the_run_of_one(tmp_path, capsys, two_processes, setting):
    main = COMMANDS[setting][0]
    succeed(capsys, main, *command_line(setting, tmp_path, "one"))
    one = Run(tmp_path / f"{setting} one")
    assert_near(Run(two_processes / f"{setting} two"), one)
    changing = two_processes / f"{setting} changing"
    assert resume_steps(changing) == [STOPPED_AT[setting][1]]
    succeed(capsys, main, *command_line(setting, two_processes, "changing"))
    assert_near(Run(changing), one)
    assert Run(changing).complete


@pytest.mark.slow
def test_torchrun_forwards_a_stop_signal_and_one_process_resumes(tmp_path, capsys):
    """torchrun itself ends with a traceback; its processes do not."""
    run = tmp_path / "PCFG_mlm launched"
    metrics = run / "metrics.jsonl"
    arguments = [sys.executable, *LAUNCH, "never ending", str(tmp_path)]
    with subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2) and process.poll() is None:
            time.sleep(0.001)
        process.terminate()
        stderr = process.communicate(timeout=600)[1]
    assert process.returncode > 0
    said = re.findall("^stopped by SIGTERM.*: rerun the command to resume$", stderr, re.MULTILINE)
    assert len(said) == 2
    assert said[0] == said[1]
    assert stderr.count("Traceback") == 1
    assert "SignalException" in stderr
    for name in ("launched", "one"):
        succeed(capsys, mlm.main, *command_line("PCFG_mlm", tmp_path, name))
    assert_near(Run(run), Run(tmp_path / "PCFG_mlm one"))


if __name__ == "__main__":
    {"each": in_each_process, "never ending": never_ending}[sys.argv[1]](Path(sys.argv[2]))
