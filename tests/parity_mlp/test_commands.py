"""What is special in this setting's commands: sizes, damaged networks, GPT-2 teachers, Weights & Biases."""

import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest

from common.parity import gpt2
from common.parity.mlp import architecture, initial_tensors, load_model
from common.runs.checkpoints import save_checkpoint
from common.runs.run import Run
from tests.commands import files, python
from tests.forked import forked
from tests.gpt2 import last_logits
from tests.parity import GPT2, MLP, assert_taught, recorded_objectives


@pytest.fixture(scope="module")
def teacher(teacher_of):
    return teacher_of(MLP)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train smoke --heads 2", "--heads"),
        ("train smoke --compile", "--compile"),
        ("distill smoke --student-heads 2", "--student-heads"),
    ],
)
def test_arguments_of_gpt2_are_usage_errors(capsys, words, named):
    code, stderr = MLP.start(capsys, *words.split())
    assert code == 2
    assert named in "\n".join(stderr)


def test_a_width_below_one_is_refused_before_anything_is_made(tmp_path, capsys, teacher):
    for words in ([*MLP.train, "--width", 0], [*MLP.distill, "--teacher", teacher, "--widths", 0]):
        line = MLP.fail_in_one_line(capsys, *words, "--out", tmp_path / "run")
        assert "--width" in line
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("option", "part", "advice"),
    [
        ("--batch-size", "a whole batch", "a smaller --batch-size"),
        ("--eval-samples", "evaluation data", "a smaller --eval-samples"),
        ("--width", "weights", "a smaller model"),
    ],
)
def test_what_does_not_fit_into_memory_is_told_what_to_make_smaller(tmp_path, capsys, option, part, advice):
    """There is no --accumulate to make larger."""
    line = MLP.fail_in_one_line(capsys, *MLP.train, option, 10**12, "--out", tmp_path / "run")
    assert re.search(rf"of memory \({part} .* are free [^:]*: give {advice}$", line)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--d 11", "was trained with d 10, but here it is 11: leave out --d, or give another --teacher"),
        ("--labels 4", "with labels 2, but here it is 4: leave out --labels, or give another --teacher"),
        ("--support 1,2,3", "but here it is 1,2,3: leave out --support, or give another --teacher"),
    ],
)
def test_a_teacher_of_another_size_is_one_line(tmp_path, capsys, teacher, words, message):
    words = [*MLP.distill, "--teacher", teacher, "--out", tmp_path / "run", *words.split()]
    assert message in MLP.fail_in_one_line(capsys, *words)
    assert files(tmp_path) == {}


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
    words = [*MLP.distill, "--teacher", tmp_path / "teacher", "--out", tmp_path / "run"]
    assert message in MLP.fail_in_one_line(capsys, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("one_torch_thread")
def test_a_gpt2_teaches_an_mlp(tmp_path, capsys):
    teacher = tmp_path / "teacher"
    GPT2.succeed(capsys, *GPT2.train, "--out", teacher)
    sizes = "--d 6 --k 2 --batch-size 8 --eval-every 50 --steps 120 --teacher-every 40 --methods progressive"
    words = [*MLP.distill, *shlex.split(sizes), "--teacher", teacher, "--out", tmp_path / "student"]
    with recorded_objectives() as seen:
        MLP.succeed(capsys, *words)

    def logits_at(step, bits):
        return last_logits(gpt2.load_model(teacher / f"checkpoint-{step}"), bits, 6)

    assert_taught(GPT2.task, seen["student"], logits_at, [10] * 40 + [20] * 40 + [30] * 40, 1)
    assert load_model(tmp_path / "student" / "checkpoint-120").output.out_features == 2
    assert Run(tmp_path / "student").config["arguments"]["teacher_id"] == Run(teacher).config["id"]


def test_a_trained_network_correlates_with_its_support(capsys, tmp_path, teacher):
    run = shutil.copytree(teacher, tmp_path / "run")
    MLP.succeed(capsys, "probe", *shlex.split("--samples 3000 --degrees 1 2 3 --run"), run)
    (path,) = (run / "probes").iterdir()
    degrees = json.loads(path.read_text())["checkpoints"][1]["degrees"]
    assert degrees[2]["inside"][0] > 0.3


def test_an_error_in_a_process_of_its_own_is_one_line(tmp_path, teacher):
    for name, words, code in (
        ("train", [*MLP.train[1:], "--k", 11], 2),
        ("train", [*MLP.train[1:], "--lr", 1e30], 3),
        ("distill", [*MLP.distill[1:], "--methods", "one-shot", "--alpha", 2, "--teacher", teacher], 2),
    ):
        failed = forked("-m", f"parity_mlp.{name}", *words, "--out", tmp_path / f"{name}-{code}")
        assert failed.returncode == code
        *shown, line = failed.stderr.splitlines()
        assert all(": step " in other for other in shown)
        assert line.startswith("error: ")
        assert failed.stdout == ""


def test_wandb_offline_keeps_every_run_in_its_own_folder(tmp_path, teacher):
    words = [*MLP.distill[1:], "--methods", "one-shot", "--seeds", 0, 1, "--teacher", teacher]
    folders = {name: str(tmp_path) for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    environment = {**os.environ, **folders, "WANDB_SILENT": "true"}
    done = python("-m", "parity_mlp.distill", *words, "--out", tmp_path / "runs", "--wandb", "offline", env=environment)
    assert done.returncode == 0, done.stderr
    for seed in range(2):
        run = Run(tmp_path / "runs" / f"one-shot-width8-seed{seed}")
        (log,) = run.directory.glob("wandb/offline-run-*/*.wandb")
        assert log.name == f"run-{run.config['id']}.wandb"
        for record in run.records()[1:]:
            assert str(record["loss"]).encode() in log.read_bytes()
