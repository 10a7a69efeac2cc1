"""scripts/reproduce.sh when it is stopped, with a stand-in for the commands that it starts."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
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
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # which a shell's background job or nohup ignores
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


FAILING = """#!/bin/sh
case "$*" in
    *.train*--seed*) # once the other teacher has begun
        while [ ! -e begun ]; do sleep 0.01; done
        exit 3
        ;;
    *.train*)
        trap 'sleep 0.3; touch saved; exit 75' TERM
        touch begun
        sleep 600 > /dev/null 2>&1 &
        wait
        ;;
esac
"""


def test_a_script_that_fails_ends_after_the_command_beside_it_has_saved_its_state(copy):
    environment = copy / "environment"
    (environment / "python").write_text(FAILING)
    settings = {**os.environ, "VIRTUAL_ENV": str(environment), "PATH": f"{environment}:{os.environ['PATH']}"}
    done = subprocess.run([copy / "scripts" / "reproduce.sh", "PCFG_mlm", "workstation"], env=settings, check=False)
    assert done.returncode == 3
    assert (copy / "saved").exists()


def test_a_failure_beside_a_longer_command_is_said_at_the_end(copy):
    environment = copy / "environment"
    (environment / "python").write_text(
        '#!/bin/sh\ncase "$*" in *.train*--seed*) sleep 0.3 ;; *.train*) exit 3 ;; esac\n'
    )
    settings = {**os.environ, "VIRTUAL_ENV": str(environment), "PATH": f"{environment}:{os.environ['PATH']}"}
    command = [copy / "scripts" / "reproduce.sh", "PCFG_mlm", "workstation"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: a command failed: its message is above")


def commands_of(copy, *words, shown="$*", **variables):
    """The commands of Python that the script starts, all of which succeed at once, or what else the shell shows."""
    environment = copy / "environment"
    (environment / "python").write_text(f'#!/bin/sh\necho "{shown}" >> commands\n')
    settings = {**os.environ, "VIRTUAL_ENV": str(environment), "PATH": f"{environment}:{os.environ['PATH']}"}
    subprocess.run([copy / "scripts" / "reproduce.sh", *words], env={**settings, **variables}, check=True)
    return (copy / "commands").read_text().splitlines()


@pytest.mark.parametrize(("wanted", "of_two", "of_four"), [("", "8", "4"), ("3", "3", "3")])
def test_commands_that_run_at_once_share_the_processors(copy, wanted, of_two, of_four):
    (copy / "environment" / "getconf").write_text("#!/bin/sh\necho 16\n")
    (copy / "environment" / "getconf").chmod(0o755)
    commands = commands_of(copy, "all", "smoke", shown="$OMP_NUM_THREADS $*", OMP_NUM_THREADS=wanted)
    threads = {command.partition(" ")[2]: command.partition(" ")[0] for command in commands}
    assert threads["-m parity_mlp.train smoke"] == wanted
    for setting in ("PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive"):
        assert threads[f"-m {setting}.train smoke"] == of_two
        students = {of for words, of in threads.items() if words.startswith(f"-m {setting}.distill smoke")}
        assert students == {of_four}


def test_commands_of_the_paper_preset_have_a_gpu_and_all_threads_to_themselves(copy):
    commands = commands_of(copy, "all", "paper", shown="$OMP_NUM_THREADS $*", OMP_NUM_THREADS="")
    assert all(command.startswith(" ") for command in commands)
    settings = [command.split()[1].partition(".")[0] for command in commands if " -m " in command]
    assert settings == sorted(settings, key=get_args(SettingName).index)


def test_all_settings_are_reproduced_and_then_reported(copy):
    commands = commands_of(copy, "all", "smoke")
    for setting in get_args(SettingName):
        assert f"-m {setting}.train smoke" in commands
        assert any(command.startswith(f"-m {setting}.distill smoke") for command in commands)
    assert commands[-1] == "figures/report.py --preset smoke --runs runs"


@pytest.mark.parametrize("setting", get_args(SettingName))
@pytest.mark.parametrize("preset", ["smoke", "laptop", "paper", "workstation"])
def test_its_commands_are_parsed(copy, monkeypatch, setting, preset):
    if preset == "workstation" and not setting.startswith("PCFG"):
        done = subprocess.run([copy / "scripts" / "reproduce.sh", setting, preset], capture_output=True, check=False)
        assert done.returncode == 2
        return
    *commands, figures = commands_of(copy, setting, preset)
    assert figures == f"figures/make_figures.py {setting} --preset {preset} --runs runs"
    parsed = {"train": [], "distill": [], "probe": []}
    for command in commands:
        m, name, *words = command.split()
        module = importlib.import_module(name)
        function = name.partition(".")[2]
        with monkeypatch.context() as patch:
            patch.setattr(module, function, lambda arguments, argv, of=function: parsed[of].append(arguments))
            patch.setattr(sys, "argv", ["command.py", *words])
            module.main()
        assert m == "-m"
    assert all(parsed.values())
    if preset == "workstation":
        first, second = sorted(parsed["train"], key=lambda each: each.seed)
        assert replace(second, seed=first.seed, out=None) == first
        pairs = [each for each in parsed["distill"] if "two-shot" not in each.methods]
        who = {(each.stream_seed, each.teacher, *each.methods) for each in pairs}
        both, taught = ("ce", "one-shot", "progressive"), ("one-shot", "progressive")
        assert who == {
            *((stream, "", *both) for stream in (3000, 4000)),
            *((stream, str(second.out), *taught) for stream in (3000, 4000)),
        }
        assert {probe.run for probe in parsed["probe"]} == {Path("runs", setting, "workstation"), second.out}
