"""The commands as a user meets them: killed, out of room, wrongly called, called twice, and from every folder."""

import itertools
import json
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from common.parity import training
from common.parity.mlp import architecture, initial_tensors, load_model
from common.parity.task import make_task
from common.runs.checkpoints import save_checkpoint
from common.runs.resume import load_resume, resume_steps
from common.runs.run import Run, open_run
from common.teachers.discovery import find_checkpoints
from parity_mlp import distill, probe, train
from parity_mlp.data import signs
from tests.commands import (
    ROOT,
    Killed,
    and_signal,
    cut,
    files,
    python,
    results,
    results_below,
    start as start_main,
    stop_again_and_again,
    stopped,
)

COMMANDS = {"train": train, "distill": distill, "probe": probe}
SIZES = "--d 10 --k 3 --lr 0.05 --eval-every 500 --eval-samples 512"
TRAIN = shlex.split(f"train smoke {SIZES} --steps 6000 --width 40 --checkpoint-every 2000")
DISTILL = shlex.split(f"distill smoke {SIZES} --steps 4000 --widths 8 --teacher-every 1000 --first-steps 1000")


def start(capsys, name, *words):
    """Run a command in this process; its exit code and what it wrote on stderr."""
    code, _, stderr = start_main(capsys, COMMANDS[name].main, *words)
    return code, stderr


def succeed(capsys, *words):
    code, stderr = start(capsys, *words)
    assert code == 0, stderr


def fail_in_one_line(capsys, *words, code=2):
    """Run a command that must fail; the line that it writes."""
    got, stderr = start(capsys, *words)
    (line,) = stderr.splitlines()
    assert got == code
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    directory = tmp_path_factory.mktemp("parity") / "teacher"
    sizes = {"d": 10, "k": 3, "width": 40, "steps": 3000, "lr": 0.05, "eval_every": 500, "checkpoint_every": 1000}
    train.train(train.TrainArguments(preset="smoke", **sizes, out=directory))
    return directory


# Killed

NEVER_ENDING = """
import signal
import sys
from importlib import import_module

from common.runs import Run, command
from parity_mlp import training

training.RESUME_SECONDS = 0
Run.finish = lambda run, summary: signal.pause()
del sys.argv[0]
command(import_module(f"parity_mlp.{sys.argv[0]}").main)
"""


def kill_again_and_again(run, times, words):
    """Kill a command each time that the metrics of `run` have grown by a random number of lines."""

    def lines():
        return (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0

    numbers = random.Random(0)
    for _ in range(times):
        wanted = lines() + numbers.randint(1, 6)
        command = [sys.executable, "-c", NEVER_ENDING, *map(str, words)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while lines() < wanted and process.poll() is None:
                time.sleep(0.001)
            process.kill()
            assert process.wait() == -signal.SIGKILL, process.stderr.read()


def test_a_run_killed_ten_times_ends_with_the_same_bits(tmp_path, capsys):
    cadence = shlex.split("--steps 20000 --eval-every 150 --checkpoint-every 400 --adaptive-checkpoints")
    words = [*TRAIN, "--width", 128, *cadence, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    kill_again_and_again(tmp_path / "killed", 10, [*words, tmp_path / "killed"])
    assert not Run(tmp_path / "killed").complete
    assert load_resume(tmp_path / "killed") is not None
    succeed(capsys, *words, tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


STUDENTS = [*DISTILL, "--methods", "ce", "progressive", "until-saturation", "--seeds", "0"]


def test_students_killed_together_end_with_the_same_bits(tmp_path, capsys, teacher):
    words = [*STUDENTS, "--eval-every", "50", "--teacher-every", "333", "--teacher", teacher, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    run = tmp_path / "killed" / "until-saturation-width8-seed0"
    kill_again_and_again(run, 3, [*words, tmp_path / "killed"])
    succeed(capsys, *words, tmp_path / "killed")
    assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


@pytest.mark.parametrize("save", range(1, 8))
def test_students_left_at_different_steps_end_with_the_same_bits(tmp_path, capsys, monkeypatch, teacher, save):
    words = [*STUDENTS, "--teacher", teacher, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    saves = itertools.count()

    def save_until_killed(*arguments):
        if next(saves) == 3 + save:  # after those of step 0
            raise Killed
        add_resume(*arguments)

    add_resume = training.add_resume
    with monkeypatch.context() as patch:
        patch.setattr(training, "RESUME_SECONDS", 0)
        patch.setattr(training, "add_resume", save_until_killed)
        with pytest.raises(Killed):
            start(capsys, *words, tmp_path / "killed")
    students = sorted((tmp_path / "killed").iterdir())
    resumes = [load_resume(student) for student in students]
    assert len({resume.step if resume else 0 for resume in resumes}) == (1 if save % 3 == 0 else 2)
    shutil.rmtree(students[save % 3] / "resume", ignore_errors=True)
    succeed(capsys, *words, tmp_path / "killed")
    assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


# Told to stop


def test_a_run_told_to_stop_three_times_ends_with_the_same_bits(tmp_path, capsys):
    cadence = shlex.split("--width 128 --steps 20000 --eval-every 150 --checkpoint-every 400 --adaptive-checkpoints")
    words = [*TRAIN, *cadence, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    stop_again_and_again(tmp_path / "stopped", train.__name__, *words[1:], tmp_path / "stopped")
    succeed(capsys, *words, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("owner", "name", "calls", "step"),
    [
        (training, "engine_for_training", [1], 0),
        (training, "_objective", [2], 500),
        (training, "_score", [5], 500),
        (Run, "log", [6], 500),
        (training, "add_resume", [2, 5], 0),
        (Run, "finish", [2], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_students_told_to_stop_are_saved_together_and_end_with_the_same_bits(
    tmp_path, capsys, monkeypatch, teacher, owner, name, calls, step
):
    words = [*STUDENTS, "--teacher", teacher, "--teacher-every", "333", "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_signal(getattr(owner, name), *calls))
        assert stopped(capsys, distill.main, *words[1:], tmp_path / "stopped") == step
    students = list((tmp_path / "stopped").iterdir())
    assert len(students) == 3
    for student in students:
        assert Run(student).complete if step is None else resume_steps(student) == [step]
    succeed(capsys, *words, tmp_path / "stopped")
    assert results_below(tmp_path / "stopped") == results_below(tmp_path / "undisturbed")


def test_a_student_that_has_diverged_stops_with_the_others_and_diverges_again(tmp_path, capsys, monkeypatch, teacher):
    words = [*DISTILL, "--methods", "ce", "--seeds", "0", "--lr", "0.05", "1e30", "--teacher", teacher, "--out"]
    whole = start(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", and_signal(Run.log, 4))
        code, stderr = start(capsys, *words, tmp_path / "stopped")
    assert code == 75
    assert stderr.splitlines()[-1].startswith("stopped by SIGTERM at step ")
    again = start(capsys, *words, tmp_path / "stopped")
    assert again[0] == whole[0] == 3
    (complete,) = [run for run in (tmp_path / "undisturbed").iterdir() if Run(run).complete]
    assert results(tmp_path / "stopped" / complete.name) == results(complete)


def test_students_that_are_added_later_join_those_that_are_complete(tmp_path, capsys, teacher):
    words = [*DISTILL, "--teacher", teacher, "--methods", "ce", "one-shot", "--out", tmp_path / "students", "--seeds"]
    succeed(capsys, *words, 0)
    before = files(tmp_path / "students")
    succeed(capsys, *words, 0, 1)
    assert {name: files(tmp_path / "students")[name] for name in before} == before
    assert len(list((tmp_path / "students").iterdir())) == 4


# Out of room

FULL_AT_THE_THIRD_CHECKPOINT = """
import resource
import sys

from common.runs import command
from parity_mlp import train, training

saves = 0

def save(*arguments):
    global saves
    saves += 1
    if saves == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save_checkpoint(*arguments)

save_checkpoint, training.save_checkpoint = training.save_checkpoint, save
training.RESUME_SECONDS = 0
del sys.argv[0]
command(train.main)
"""


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, capsys):
    words = [*TRAIN, "--width", 4000, "--steps", 3000, "--checkpoint-every", 500, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    full = python("-c", FULL_AT_THE_THIRD_CHECKPOINT, *words, tmp_path / "full")
    assert full.returncode == 2
    *shown, line = full.stderr.splitlines()
    assert all(": step " in other for other in shown)
    assert line.startswith("error: ")
    assert "model.safetensors: File too large" in line
    there = files(tmp_path / "full")
    assert {name.split("/")[0] for name in there if name.startswith("checkpoint")} == {
        "checkpoint-500",
        "checkpoint-1000",
    }
    assert not [name for name in there if name.endswith(".unfinished")]
    undisturbed = files(tmp_path / "undisturbed")
    assert all(there[name] == undisturbed[name] for name in there if name.startswith("checkpoint"))
    succeed(capsys, *words, tmp_path / "full")
    assert results(tmp_path / "full") == results(tmp_path / "undisturbed")


# Wrongly called


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--k 11", "k = 11 need 11 coordinates"),
        ("--labels 3", "--labels must be a power of two"),
        ("--labels 16", "need 45 coordinates"),
        ("--support 0,1,10", "support index 10 is out of range"),
        ("--support 0,1", "--support names 2 coordinates"),
        ("--support 0,1,1", "distinct coordinates"),
        ("--support all", "--support is first, random or comma-separated"),
        ("--steps 0", "--steps must be at least 1"),
        ("--lr 0", "--lr must be positive"),
        ("--lr nan", "--lr must be positive"),
        ("--width 0", "--width"),
        ("--seed -1", "--seed"),
        ("--seed 99999999999999999999", "below 2^63"),
        ("--support random --support-seed -1", "--support-seed"),
        ("--device abacus", "--device abacus cannot be used"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(tmp_path, capsys, words, message):
    line = fail_in_one_line(capsys, *TRAIN, *words.split(), "--out", tmp_path / "run")
    assert message in line
    assert files(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line(tmp_path, capsys):
    line = fail_in_one_line(capsys, *TRAIN, "--device", "cuda", "--out", tmp_path / "run")
    assert "--device cuda cannot be used" in line
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train smokey", "smokey"),
        ("train smoke --learning-rat 1", "--learning-rat"),
        ("train smoke --steps many", "--steps"),
        ("distill smoke --methods guess", "--methods"),
        ("probe", "--run"),
    ],
)
def test_usage_errors_name_the_word_and_exit_with_two(capsys, words, named):
    code, stderr = start(capsys, *words.split())
    assert code == 2
    assert named in stderr


def test_a_loss_that_is_not_finite_is_one_line_with_exit_code_three(tmp_path, capsys):
    words = [*TRAIN, "--lr", "1e10", "--out", tmp_path / "run"]
    for _ in range(2):
        line = fail_in_one_line(capsys, *words, code=3)
        assert "the loss is not finite at step 500: give a lower --lr" in line
        assert not list((tmp_path / "run").glob("checkpoint-*"))
        assert not Run(tmp_path / "run").complete
    succeed(capsys, *TRAIN, "--out", tmp_path / "run", "--force")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods ce one-shot --alpha 2", "--alpha must be between 0 and 1"),
        ("--methods one-shot --alpha 0.5 0", "boundaries separate"),
        ("--methods one-shot --temperature -1", "temperatures must be 0 or more"),
        ("--methods one-shot --top-k 3", "--top-k must be between 1 and the number of labels"),
        ("--methods one-shot --divergence jensen-shannon --beta 1", "--beta must be between 0 and 1"),
        ("--methods progressive --teacher-every 0", "student steps per checkpoint must be positive"),
        ("--methods progressive --teacher-checkpoints 9", "the first is 1000"),
        ("--methods two-shot --checkpoint 500", "the first is 1000"),
        ("--methods two-shot --checkpoint middle", "--checkpoint is a teacher step, before, inside or after"),
        ("--methods accelerated --speed 0", "must be positive"),
        ("--methods explicit", "names no checkpoint"),
        ("--methods explicit --plan 1000 2000", "--plan is a list of checkpoint:steps"),
        ("--methods explicit --plan 10:100 2000", "the first is 1000"),
        ("--methods until-saturation --saturation-window 0", "window"),
        ("--methods one-shot --d 11", "has d = 10, but this task has 11"),
        ("--methods one-shot --labels 4", "has classes = 2, but this task has 4"),
        ("--methods one-shot --support 1,2,3", "was trained with support"),
        ("--methods one-shot --k 2", "was trained with k 3, but here it is 2"),
        ("--methods one-shot --widths 0", "--widths"),
        ("--methods one-shot --seeds 0 0", "--seeds"),
        ("--methods one-shot --stream-seed -1", "--stream-seed"),
    ],
)
def test_students_that_cannot_be_are_refused_before_anything_is_made(tmp_path, capsys, teacher, words, message):
    before = files(teacher)
    line = fail_in_one_line(
        capsys, *DISTILL, "--seeds", 0, "--teacher", teacher, "--out", tmp_path / "student", *words.split()
    )
    assert message in line
    assert files(tmp_path) == {}
    assert files(teacher) == before


def test_a_support_in_other_words_is_the_same_support(tmp_path, capsys, teacher):
    words = [*DISTILL, "--methods", "one-shot", "--seeds", 0, "--teacher", teacher, "--out", tmp_path / "student"]
    succeed(capsys, *words, "--support", "0,1,2", "--support-seed", 5)


def test_a_student_that_diverges_does_not_stop_the_others(tmp_path, capsys, monkeypatch, teacher):
    real, calls = training._score, []

    def score(*arguments):
        calls.append(1)
        return (math.nan, 0.5) if len(calls) == 4 else real(*arguments)  # the second student's second evaluation

    words = [*DISTILL, "--methods", "one-shot", "--teacher", teacher, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "_score", score)
        code, stderr = start(capsys, *words, tmp_path / "runs", "--seeds", 0, 1)
    *_, line = stderr.splitlines()  # after those that show progress
    assert code == 3
    assert "one-shot-width8-seed1: the loss is not finite" in line
    assert not Run(tmp_path / "runs" / "one-shot-width8-seed1").complete
    assert len(Run(tmp_path / "runs" / "one-shot-width8-seed1").records()) == 1
    succeed(capsys, *words, tmp_path / "alone", "--seeds", 0)
    assert results(tmp_path / "runs" / "one-shot-width8-seed0") == results(tmp_path / "alone")


def test_a_teacher_whose_run_is_not_complete_is_one_line(tmp_path, capsys, teacher):
    unfinished = shutil.copytree(teacher, tmp_path / "teacher")
    (unfinished / "done.json").unlink()
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", unfinished, "--out", tmp_path / "runs")
    assert "is not complete" in line
    assert not (tmp_path / "runs").exists()


def test_students_of_a_teacher_that_was_trained_anew_are_not_taken_for_complete(tmp_path, capsys, teacher):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    words = [*DISTILL, "--methods", "one-shot", "--seeds", 0, "--teacher", mine, "--out", tmp_path / "run"]
    succeed(capsys, *words)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "id": "another"}))
    assert "teacher_id" in fail_in_one_line(capsys, *words)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.weight": np.zeros((16, 10), np.float32)}, "the tensor hidden.0.weight is missing"),
        ({"hidden.0.weight": np.zeros((10, 16), np.float32)}, "the tensor hidden.0.weight is (10, 16)"),
        (initial_tensors(10, 16, 2, 1, 0, "float16"), "float32 or float64"),
    ],
)
def test_tensors_that_are_not_the_network_that_the_config_describes_are_one_line(tmp_path, capsys, tensors, message):
    shape = architecture(initial_tensors(10, 16, 2, 1, 0, "float32"))
    save_checkpoint(tmp_path / "teacher", 100, tensors, shape)
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "run")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_missing_or_has_no_checkpoints_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    for name, message in (("empty", "has no checkpoint-<step> directory"), ("missing", "there is no directory")):
        line = fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / name, "--out", tmp_path / "students")
        assert message in line
        assert str(tmp_path / name) in line
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoint-3000/model.safetensors", "checkpoint-3000/config.json", "config.json"])
def test_a_file_of_the_teacher_that_is_cut_off_is_one_line(tmp_path, capsys, teacher, name):
    shutil.copytree(teacher, tmp_path / "teacher")
    cut(tmp_path / "teacher" / name)
    before = files(tmp_path)
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students")
    assert str(tmp_path / "teacher" / name) in line
    assert files(tmp_path) == before


def test_students_go_on_when_a_checkpoint_that_is_cut_off_is_mended(tmp_path, capsys, teacher):
    words = [*DISTILL, "--methods", "progressive", "--seeds", 0, "--teacher-every", 1500]
    succeed(capsys, *words, "--teacher", teacher, "--out", tmp_path / "undisturbed")
    shutil.copytree(teacher, tmp_path / "teacher")
    damaged = tmp_path / "teacher" / "checkpoint-2000" / "model.safetensors"
    cut(damaged)
    code, stderr = start(capsys, *words, "--teacher", tmp_path / "teacher", "--out", tmp_path / "student")
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"error: {damaged} is truncated or damaged")
    shutil.copy(teacher / "checkpoint-2000" / "model.safetensors", damaged)
    succeed(capsys, *words, "--teacher", tmp_path / "teacher", "--out", tmp_path / "student")
    assert results(tmp_path / "student") == results(tmp_path / "undisturbed")


def test_a_second_process_on_the_same_run_is_refused(tmp_path, capsys):
    words = [*TRAIN, "--out", tmp_path / "run"]
    succeed(capsys, *words)
    before = files(tmp_path)
    with open_run(tmp_path / "run", Run(tmp_path / "run").config["arguments"]):
        for more in ([], ["--force"]):
            assert "another process is at work" in fail_in_one_line(capsys, *words, *more)
    assert files(tmp_path) == before


def test_other_arguments_or_a_foreign_directory_are_refused(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("Once")
    succeed(capsys, *TRAIN, "--out", tmp_path / "run")
    before = files(tmp_path)
    line = fail_in_one_line(capsys, *TRAIN, "--lr", 0.01, "--out", tmp_path / "run")
    assert "lr is 0.05 there and 0.01 here" in line
    for more in ([], ["--force"]):
        assert "is not a run" in fail_in_one_line(capsys, *TRAIN, *more, "--out", tmp_path / "thesis")
    assert files(tmp_path) == before


# Called twice


def test_a_complete_run_is_not_run_again_unless_forced(tmp_path, capsys):
    words = [*TRAIN, "--out", tmp_path / "run"]
    succeed(capsys, *words)
    before, made = files(tmp_path), results(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_together", None)
        succeed(capsys, *words)
    assert files(tmp_path) == before
    cut(tmp_path / "run" / "checkpoint-2000" / "model.safetensors")
    succeed(capsys, *words, "--force")
    assert results(tmp_path / "run") == made


# Probes

PROBE = shlex.split("probe --samples 3000 --outside 7 --degrees 1 2 3 4 --run")


@pytest.fixture
def probed(teacher, tmp_path, monkeypatch):
    """A copy of the teacher, and the list of calls that probe it."""
    calls = []
    real = probe.probe_monomials
    monkeypatch.setattr(probe, "probe_monomials", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    return shutil.copytree(teacher, tmp_path / "run"), calls


def entries(run):
    (path,) = (run / "probes").glob("*.json")
    return json.loads(path.read_text())["checkpoints"]


@pytest.mark.parametrize("output", [0, 1])
def test_probed_correlations_are_means_over_the_samples(probed, capsys, output):
    run, _ = probed
    succeed(capsys, *PROBE, run, "--output", output, "--seed", 4)
    assert [entry["step"] for entry in entries(run)] == [1000, 2000, 3000]
    bits = make_task(10, 3).sample(4, "probe", 0, 3000)
    x = signs(bits, 10)
    with torch.no_grad():
        probability = load_model(run / "checkpoint-2000")(torch.from_numpy(x)).double().softmax(1)[:, output].numpy()
    centred = probability - probability.mean()
    entry = entries(run)[1]
    assert entry["support"] == [0, 1, 2]
    assert [degree["degree"] for degree in entry["degrees"]] == [1, 2, 3, 4]
    for degree in entry["degrees"]:
        for side in ("inside", "outside"):
            subsets = degree[f"{side}_subsets"]
            expected = [abs(np.mean(x[:, subset].prod(axis=1) * centred)) for subset in subsets]
            np.testing.assert_allclose(degree[side], expected, atol=1e-6)
        assert len(degree["outside"]) == 7
    assert entry["degrees"][2]["inside"][0] > 0.3


def test_only_checkpoints_that_are_new_are_probed(probed, capsys):
    run, calls = probed
    succeed(capsys, *PROBE, run)
    first = files(run)
    assert len(calls) == 3
    succeed(capsys, *PROBE, run)
    assert len(calls) == 3
    assert files(run) == first

    before = entries(run)
    tensors = initial_tensors(10, 16, 2, 1, 0, "float32")
    save_checkpoint(run, 1500, tensors, architecture(tensors))
    succeed(capsys, *PROBE, run)
    assert len(calls) == 4
    after = entries(run)
    assert [entry["step"] for entry in after] == [1000, 1500, 2000, 3000]
    assert [after[0], *after[2:]] == before

    (there,) = (run / "probes").iterdir()
    succeed(capsys, *PROBE, run, "--seed", 1)
    assert len(calls) == 8
    (other,) = set((run / "probes").iterdir()) - {there}
    assert "seed1" in other.name
    assert json.loads(there.read_text())["checkpoints"] == after
    assert json.loads(other.read_text())["checkpoints"] != after


def test_a_probe_that_is_cut_off_goes_on(probed, capsys, monkeypatch):
    run, calls = probed
    write = probe.write_file

    def write_until_killed(path, content):
        if len(calls) == 3:
            raise Killed
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(probe, "write_file", write_until_killed)
        with pytest.raises(Killed):
            start(capsys, *PROBE, run)
    assert len(entries(run)) == 2
    succeed(capsys, *PROBE, run)
    assert len(calls) == 4
    assert [entry["step"] for entry in entries(run)] == [1000, 2000, 3000]


def test_a_probe_told_to_stop_leaves_at_once_and_goes_on(probed, capsys, monkeypatch):
    run, _ = probed
    succeed(capsys, *PROBE, run)
    whole = entries(run)
    shutil.rmtree(run / "probes")
    with monkeypatch.context() as patch:
        patch.setattr(probe, "load_network", and_signal(probe.load_network, 3))
        assert stopped(capsys, probe.main, *PROBE[1:], run) is None
    assert entries(run) == whole[:2]
    succeed(capsys, *PROBE, run)
    assert entries(run) == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--output 2", "--output is a class, 0 to 1"),
        ("--output -1", "--output is a class, 0 to 1"),
        ("--node 1", "--node an inner node, 0 to 0"),
        ("--node -1", "--node an inner node, 0 to 0"),
        ("--degrees 0", "degree"),
        ("--degrees 11", "degree"),
        ("--samples 0", "at least"),
        ("--samples -5", "--samples"),
        ("--seed -1", "--seed"),
        ("--device abacus", "--device abacus cannot be used"),
    ],
)
def test_a_probe_that_cannot_be_is_one_line_and_writes_nothing(probed, capsys, words, message):
    run, _ = probed
    before = files(run)
    assert message in fail_in_one_line(capsys, *PROBE, run, *words.split())
    assert files(run) == before


def test_a_probe_of_something_else_than_a_run_is_one_line(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    for name in ("thesis", "missing"):
        assert "is not a run" in fail_in_one_line(capsys, *PROBE, tmp_path / name)
    with open_run(tmp_path / "run", {"d": 10, "k": 3, "labels": 2, "support": "first", "support_seed": 0}):
        pass
    before = files(tmp_path)
    assert "has no checkpoint-<step>" in fail_in_one_line(capsys, *PROBE, tmp_path / "run")
    assert files(tmp_path) == before


# In processes of their own


@pytest.mark.parametrize(
    ("arguments", "cwd"),
    [
        (["-m", "parity_mlp.train"], ROOT),
        (["parity_mlp/train.py"], ROOT),
        (["train.py"], ROOT / "parity_mlp"),
    ],
)
def test_train_starts_from_every_folder(tmp_path, arguments, cwd):
    done = python(*arguments, *TRAIN[1:], "--out", tmp_path / "run", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert "step 6,000 of 6,000, loss" in done.stderr
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "run")] == [2000, 4000, 6000]


def test_distill_and_probe_start_from_the_folder_of_the_setting(tmp_path, teacher):
    folder = ROOT / "parity_mlp"
    words = [*DISTILL[1:], "--methods", "progressive", "--seeds", 0, "--teacher", teacher, "--out", tmp_path / "run"]
    done = python("distill.py", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").complete
    done = python("probe.py", *PROBE[1:], tmp_path / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "run" / "probes").iterdir()
    assert done.stdout == f"{path}\n"
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [4000]


def test_an_error_in_a_process_of_its_own_is_one_line(tmp_path, teacher):
    for name, words, code in (
        ("train", [*TRAIN[1:], "--k", 11], 2),
        ("train", [*TRAIN[1:], "--lr", 1e10], 3),
        ("distill", [*DISTILL[1:], "--methods", "one-shot", "--alpha", 2, "--teacher", teacher], 2),
    ):
        failed = python("-m", f"parity_mlp.{name}", *words, "--out", tmp_path / f"{name}-{code}")
        assert failed.returncode == code
        assert len(failed.stderr.splitlines()) == 1
        assert failed.stderr.startswith("error: ")
        assert failed.stdout == ""


def test_wandb_offline_keeps_every_run_in_its_own_folder(tmp_path, teacher):
    words = [*DISTILL[1:], "--methods", "one-shot", "--seeds", 0, 1, "--teacher", teacher, "--out", tmp_path / "runs"]
    places = {name: str(tmp_path) for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    environment = {**os.environ, **places, "WANDB_SILENT": "true"}
    done = python("-m", "parity_mlp.distill", *words, "--wandb", "offline", env=environment)
    assert done.returncode == 0, done.stderr
    for seed in range(2):
        run = Run(tmp_path / "runs" / f"one-shot-width8-seed{seed}")
        (log,) = run.directory.glob("wandb/offline-run-*/*.wandb")
        assert log.name == f"run-{run.config['id']}.wandb"
        for record in run.records()[1:]:
            assert str(record["loss"]).encode() in log.read_bytes()
