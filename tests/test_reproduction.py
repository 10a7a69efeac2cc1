"""scripts/reproduce.sh when it is stopped, with a stand-in for the commands that it starts."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import get_args

import psutil
import pytest
from make_figures import SettingName

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """#!/bin/sh
case "$*" in *.train* | $ENDED) exit 0 ;; esac
echo "$$ $*" >> commands
exec sleep 600
"""


@pytest.fixture
def copy(tmp_path):
    """The script in a folder of its own, with an environment in which all is installed."""
    for name in ("scripts/reproduce.sh", "scripts/environment.sh", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "environment" / "python"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)
    wanted = "".join((tmp_path / name).read_text() for name in ("requirements.txt", "pyproject.toml")).rstrip("\n")
    (python.parent / ".progressive-distillation").write_text(f"{tmp_path} {wanted}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "number", "ended"),
    [
        ("parity_mlp smoke", 1, ""),
        ("all smoke", 1, ""),
        ("all smoke", 2, "*parity*"),
        ("PCFG_mlm smoke", 1, ""),
        ("text_mlm smoke", 2, ""),
        ("all smoke", 4, "*[yG]_*"),
    ],
)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_script_leaves_no_command_behind(copy, words, number, ended, sent):
    """`number` commands are running, after those that match the pattern `ended` have ended."""
    environment = copy / "environment"
    settings = {
        **os.environ,
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment}:{os.environ['PATH']}",
        "ENDED": ended,
    }
    command = [copy / "scripts" / "reproduce.sh", *words.split()]
    with subprocess.Popen(
        command,
        env=settings,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background job ignores
    ) as script:
        commands = copy / "commands"
        while script.poll() is None and (not commands.exists() or commands.read_text().count("\n") < number):
            time.sleep(0.01)
        script.send_signal(sent)
        _, stderr = script.communicate()
    assert script.returncode == 143, stderr
    started = {int(line.split()[0]) for line in commands.read_text().splitlines()}
    processes = psutil.process_iter(["status"])
    assert not started & {process.pid for process in processes if process.info["status"] != psutil.STATUS_ZOMBIE}


def test_all_settings_are_reproduced_and_then_reported(copy):
    environment = copy / "environment"
    (environment / "python").write_text('#!/bin/sh\necho "$*" >> commands\n')
    settings = {**os.environ, "VIRTUAL_ENV": str(environment), "PATH": f"{environment}:{os.environ['PATH']}"}
    subprocess.run([copy / "scripts" / "reproduce.sh", "all", "smoke"], env=settings, check=True)
    commands = (copy / "commands").read_text().splitlines()
    for setting in get_args(SettingName):
        assert f"-m {setting}.train smoke" in commands
        assert any(command.startswith(f"-m {setting}.distill smoke") for command in commands)
    assert commands[-1] == "figures/report.py --preset smoke --runs runs"
