import json
import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from common.runs.run import Run
from tests.commands import ROOT, files
from tests.sweeps import assert_same_bits, assert_whole, copy_of_project, wait_until

SETTINGS = ("parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive")
PRESETS = ("smoke", "laptop", "paper")
SWEEPS = sorted(path.name for path in (ROOT / "scripts").glob("sweep_*.sh"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project in which nothing is trained."""
    return copy_of_project(tmp_path_factory.mktemp("scripts") / "project")


def commands(project, *words):
    """The commands that a sweep prints, as words."""
    done = project.call(f"scripts/{words[0]}", *words[1:], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [shlex.split(line) for line in done.stdout.splitlines()]


def value(command, flag):
    """The value of a flag that a command has once."""
    assert command.count(flag) == 1, (flag, command)
    return command[command.index(flag) + 1]


CHECK = """
import importlib
import json
import sys

for module, *words in json.load(sys.stdin):
    command = importlib.import_module(module)
    made = []
    name = module.rpartition(".")[2]
    setattr(command, name, lambda arguments, argv: made.append(arguments))  # instead of training
    sys.argv = ["command.py", *words]
    command.main()
    (arguments,) = made
    print(json.dumps({field: getattr(arguments, field, None) for field in ("steps", "lr", "preset")}))
"""
"""Parses commands as train.py and distill.py do, many in one process."""


@pytest.mark.slow
def test_every_command_of_every_sweep_is_one_run_that_its_parser_takes(project):
    assert len(SWEEPS) == 5
    parsed = []
    for sweep, setting, preset in product(SWEEPS, SETTINGS, PRESETS):
        listed = commands(project, sweep, setting, preset)
        outs = [value(command, "--out") for command in listed]
        assert len(set(outs)) == len(outs)
        trained = [value(command, "--out") for command in listed if command[2] == f"{setting}.train"]
        assert trained
        assert trained[0] == f"runs/{setting}/{preset}"
        folder = f"runs/{setting}/sweeps/{sweep[6:-3]}-{setting}-{preset}/"
        for command in listed:
            assert command[:2] == ["python", "-m"]
            if value(command, "--out") in trained:
                continue
            assert value(command, "--teacher") in trained
            assert value(command, "--out").startswith(folder)
            for flag in ("--methods", "--seeds"):
                value(command, flag)
        first_seed = [command for command in listed if "--seeds" not in command or value(command, "--seeds") == "0"]
        parsed += [command[2:] for command in first_seed]  # others differ in nothing else
    done = project.call("python", "-c", CHECK, input=json.dumps(parsed))
    assert done.returncode == 0, done.stderr
    for words, line in zip(parsed, done.stdout.splitlines(), strict=True):
        arguments = json.loads(line)
        assert arguments["preset"] == words[1]
        for plural in ("steps", "lr"):  # that have one value in every run
            assert not isinstance(arguments[plural], list) or len(arguments[plural]) == 1, words


def test_teachers_come_before_their_students(project):
    for setting in SETTINGS:
        listed = commands(project, "sweep_seeds.sh", setting, "smoke")
        outs = [value(command, "--out") for command in listed]
        for i, command in enumerate(listed):
            if "--teacher" in command:
                assert value(command, "--teacher") in outs[:i]
        assert len([command for command in listed if command[2].endswith(".train")]) == 3


def test_what_a_sweep_varies_is_what_it_is_named_after(project):
    def varied(sweep, flag):
        listed = commands(project, sweep, "PCFG_mlm", "laptop")
        return {value(command, flag) for command in listed if command[2] == "PCFG_mlm.distill"}

    assert varied("sweep_student_sizes.sh", "--student-heads") == {"2", "3", "4"}
    assert varied("sweep_budgets.sh", "--steps") == {"400", "500", "700", "1000", "2000"}
    assert varied("sweep_learning_rates.sh", "--lr") == {"5e-3", "1e-2", "2e-2"}
    assert varied("sweep_student_sizes.sh", "--steps") == {"700"}
    assert varied("sweep_seeds.sh", "--teacher") == {f"runs/PCFG_mlm/laptop{end}" for end in ("", "-seed1", "-seed2")}
    two_shot = [
        command for command in commands(project, "sweep_checkpoints.sh", "PCFG_mlm", "laptop") if "two-shot" in command
    ]
    assert {value(command, "--checkpoint") for command in two_shot} >= {"100", "400", "2000"}


def test_added_arguments_are_in_every_command_and_in_the_name_of_the_sweep_if_they_change_results(project):
    plain = commands(project, "sweep_seeds.sh", "parity_mlp", "smoke")
    added = ["--wandb", "offline", "--device", "cpu"]
    done = project.call("scripts/sweep_seeds.sh", "parity_mlp", "smoke", "--dry-run", "--", *added)
    assert [shlex.split(line) for line in done.stdout.splitlines()] == [[*command, *added] for command in plain]
    for support, shown in (("1,2,3,5", ""), ("1,2,3, 5", "~[0-9]+")):
        added = ["--support", support, "--d", "30"]
        done = project.call("scripts/sweep_seeds.sh", "parity_mlp", "smoke", "--dry-run", "--", *added)
        folder = f"runs/parity_mlp/sweeps/seeds-parity_mlp-smoke-support-1,2,3,5-d-30{shown}/"
        for line in done.stdout.splitlines():
            command = shlex.split(line)
            assert command[-4:] == added
            assert re.match(folder, value(command, "--out"))


def folder_of(project, *words):
    """The directory of a sweep."""
    done = project.call("scripts/sweep_seeds.sh", "parity_mlp", "smoke", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    (*_, command) = done.stdout.splitlines()
    return Path(value(shlex.split(command), "--out")).parent.name


def test_sweeps_of_other_arguments_or_of_another_teacher_have_another_directory(project):
    given = [
        *(["--lr", rate] for rate in ("1e-3", "1e3", "1e+3")),
        *(["--support", support] for support in ("1,2", "1, 2", "1 2", "1/2", "1,2-3")),
        *(["--support", *support] for support in (("1", "2"), ("1-2",))),
        *(["--a-b"], ["--ab"], ["--a", "b"], ["--a", "--b"], ["--a", "c", "b"], ["--a", "c", "--b"], ["--a-b", "x"]),
        *(["--corpus", "x" * 300], ["--corpus", "x" * 301], ["--corpus", "é"], ["--corpus", "è"], ["--corpus", ""]),
    ]
    folders = [folder_of(project, "--", *words) for words in given]
    for name in ("one/mine", "two/mine", "two/mi ne"):
        (project.root / name).mkdir(parents=True, exist_ok=True)
        folders += [folder_of(project, "--teacher", name, *more) for more in ((), ("--", "--lr", "0.1"))]
    folders += [folder_of(project, "--teacher", name) for name in ("org/name", "other/name", "name")]
    assert len(set(folders)) == len(folders)
    assert max(map(len, folders)) < 220
    assert folder_of(project, "--", "--lr", "0.1") == "seeds-parity_mlp-smoke-lr-0.1"
    assert "-teacher-mine-lr-0.1~" in folder_of(project, "--teacher", "one/mine", "--", "--lr", "0.1")
    more = ("--wandb", "offline")
    assert folder_of(project, "--", "--lr", "1e-3", *more) == folder_of(project, "--", "--lr", "1e-3")
    assert folder_of(project, "--teacher", "two/../one/mine/") == folder_of(project, "--teacher", "one/mine")


def test_a_teacher_of_ones_own_is_not_trained(project):
    teacher = project.root / "mine"
    teacher.mkdir(exist_ok=True)
    listed = commands(project, "sweep_seeds.sh", "parity_mlp", "smoke", "--teacher", "mine/")
    assert {command[2] for command in listed} == {"parity_mlp.distill"}
    assert {value(command, "--teacher") for command in listed} == {str(teacher)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no setting ''"),
        ("parity smoke", "no setting 'parity'; settings are parity_mlp"),
        ("parity_mlp", "no preset ''"),
        ("parity_mlp huge", "no preset 'huge'; presets are smoke"),
        ("parity_mlp smoke --jobs 2", "unknown argument '--jobs'"),
        ("parity_mlp smoke -j two", "-j takes a number of runs, at least 1; got 'two'"),
        ("parity_mlp smoke -j", "-j takes a number"),
        ("parity_mlp smoke -j 0", "-j takes a number"),
        ("parity_mlp smoke -j 2 --slurm", "-j and --slurm exclude each other"),
        ("parity_mlp smoke --teacher", "--teacher takes a directory"),
        ("parity_mlp smoke --teacher missing", "there is no directory missing"),
        ("parity_mlp smoke -- --force", "--force cannot be added"),
        ("parity_mlp smoke -- --out=here", "--out=here cannot be added"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_made(project, words, message):
    before = files(project.root)
    done = project.call("scripts/sweep_seeds.sh", *words.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert done.stdout == ""
    made = files(project.root).keys() - before.keys()
    assert not [name for name in made if "__pycache__" not in name]


def test_help_says_what_a_sweep_does_and_takes(project):
    done = project.call("scripts/sweep_budgets.sh", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("How long must a student train?")
    for word in ("--teacher RUN", "--dry-run", "-j N", "--slurm"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_with_the_runs_of_plain_commands(tmp_path):
    project, plain = (copy_of_project(tmp_path / name) for name in ("project", "plain"))
    sweep = ("sweep_checkpoints.sh", "parity_mlp", "smoke")
    listed = commands(project, *sweep)
    runs = [project.root / value(command, "--out") for command in listed]
    assert len(runs) >= 60

    def complete():
        return sum(Run(run).complete for run in runs)

    def some_are_at_work():
        return any((run / "metrics.jsonl").exists() and not Run(run).complete for run in runs)

    launcher = [f"scripts/{sweep[0]}", *sweep[1:], "-j", 2]
    for number in (0, 20, 40):
        process = project.start(*launcher)
        wait_until(lambda number=number: complete() >= number and some_are_at_work(), seconds=600)
        process.kill()
        process.communicate()
        assert complete() < len(runs)
    done = project.call(*launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{len(runs)} of {len(runs)} runs are complete\n")
    for run in runs:
        assert_whole(run)
    for command in (listed[0], listed[1], listed[len(listed) // 2], listed[-1]):
        done = plain.call(*command)
        assert done.returncode == 0, done.stderr
        assert_same_bits(project.root / value(command, "--out"), plain.root / value(command, "--out"))
    before = {run: (run / "done.json").stat().st_mtime_ns for run in runs}
    assert project.call(*launcher).returncode == 0
    assert {run: (run / "done.json").stat().st_mtime_ns for run in runs} == before
