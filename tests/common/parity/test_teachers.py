"""Other people's teachers of both settings: what `distill.py` says of them before it trains, and what it refuses."""

import json
import math
import shutil

import pytest
import torch

from common.errors import UserError
from common.parity.frozen import frozen_logits, load_network
from common.runs.run import Run
from tests.commands import files
from tests.damage import change_weights, enlarge, fill, point_elsewhere


@pytest.fixture
def foreign(case, teacher, tmp_path):
    """The teacher's checkpoints without its run."""
    for checkpoint in teacher.glob("checkpoint-*"):
        shutil.copytree(checkpoint, tmp_path / "foreign" / checkpoint.name)
    return tmp_path / "foreign"


def notes(case, capsys, *words):
    """What a command that succeeds writes on stderr before it trains."""
    code, lines = case.start(capsys, *words)
    assert code == 0, lines
    return [line for line in lines if "teacher step" in line or line.startswith("warning: ")]


def accuracy(case, checkpoint, task, samples):
    bits = task.sample(1000, "evaluation", 0, samples)
    logits = frozen_logits(load_network(checkpoint, task), case.d, "cpu")(bits)
    return (logits.argmax(1) == task.labels(bits)).mean()


def test_the_accuracy_of_the_last_checkpoint_in_use_is_printed_once(case, capsys, tmp_path, foreign):
    step = 20 * case.unit
    words = [*case.distill, "--methods", "custom", "--segments", f"{10 * case.unit}:2", step, "--seeds", 0, 1]
    words += ["--eval-samples", 4096, "--teacher", foreign, "--out", tmp_path / "students"]
    (line,) = notes(case, capsys, *words)
    expected = accuracy(case, foreign / f"checkpoint-{step}", case.task, 4096)
    assert f"teacher step {step:,}: accuracy {expected:.3f} on the student's evaluation data" in line
    assert notes(case, capsys, *words) == []  # all runs are complete


def test_a_teacher_of_another_parity_is_a_warning(case, capsys, tmp_path, foreign):
    words = [*case.distill, "--k", case.k + 1, "--methods", "one-shot", "--teacher", foreign]
    (line,) = notes(case, capsys, *words, "--out", tmp_path / "student")
    assert line.startswith(f"warning: teacher step {30 * case.unit:,}: accuracy 0.")
    assert "at chance (0.5" in line


def test_students_of_the_labels_have_no_teacher_to_report(case, capsys, tmp_path, foreign):
    words = [*case.distill, "--methods", "ce", "--teacher", foreign, "--out", tmp_path / "student"]
    assert notes(case, capsys, *words) == []


def test_checkpoints_of_another_step_are_refused_unless_they_are_trusted_or_not_used(case, capsys, tmp_path, foreign):
    second, last = (f"checkpoint-{units * case.unit}" for units in (20, 30))
    shutil.rmtree(foreign / second)
    shutil.copytree(foreign / last, foreign / second)
    words = [*case.distill, "--teacher", foreign, "--out", tmp_path / "students", "--methods"]
    line = case.fail_in_one_line(capsys, *words, "ce", "progressive")
    assert f"step {20 * case.unit} and the last step" in line
    assert "--trust-trajectory" in line
    assert not (tmp_path / "students").exists()
    found, _ = notes(case, capsys, *words, "progressive", "--trust-trajectory")
    assert found.startswith(f"warning: step {20 * case.unit} and the last step")
    shutil.rmtree(tmp_path / "students")
    case.succeed(capsys, *words, "one-shot")
    assert Run(tmp_path / "students").complete


def test_checkpoints_by_other_names(case, capsys, tmp_path, foreign):
    for number in (10, 20, 30):
        (foreign / f"checkpoint-{number * case.unit}").rename(foreign / f"after{number}")
    words = [*case.distill, "--methods", "custom", "--segments", "10:5", "20", "--teacher", foreign]
    words += ["--out", tmp_path / "student"]
    assert "--teacher-pattern" in case.fail_in_one_line(capsys, *words)
    case.succeed(capsys, *words, "--teacher-pattern", "after(?P<step>[0-9]+)")
    assert [record["teacher"] for record in Run(tmp_path / "student").records()][-1] == 20


def test_a_run_that_is_older_than_the_options_resumes(case, capsys, tmp_path, teacher):
    words = [*case.distill, "--methods", "one-shot", "--teacher", teacher, "--out", tmp_path / "student"]
    case.succeed(capsys, *words)
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    for name in ("teacher_pattern", "trust_trajectory"):
        del config["arguments"][name]
    (tmp_path / "student" / "config.json").write_text(json.dumps(config))
    before = files(tmp_path / "student")
    assert case.succeed(capsys, *words, "--trust-trajectory") == f"{tmp_path / 'student'} is complete\n"
    assert files(tmp_path / "student") == before
    line = case.fail_in_one_line(capsys, *words, "--teacher-pattern", "checkpoint-(?P<step>.*)")
    assert "teacher_pattern is absent there" in line


# Damaged teachers

NOT_FINITE = {
    "nan": (fill(math.nan), "has weights that are NaN or infinite, such as"),
    "inf": (fill(math.inf), "has weights that are NaN or infinite, such as"),
    "absurd": (enlarge, "predicts NaN or infinity"),
}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("damage", NOT_FINITE)
def test_a_teacher_that_is_not_finite_is_refused(case, capsys, tmp_path, foreign, damage, temperature):
    change, message = NOT_FINITE[damage]
    change_weights(foreign / f"checkpoint-{30 * case.unit}", change)
    words = ["--methods", "one-shot", "--temperature", temperature, "--teacher", foreign, "--out", tmp_path / "student"]
    line = case.fail_in_one_line(capsys, *case.distill, *words)
    assert f"{foreign / f'checkpoint-{30 * case.unit}'} {message}" in line
    assert not list(tmp_path.glob("student/checkpoint-*"))


@pytest.mark.parametrize("damage", NOT_FINITE)
def test_a_later_checkpoint_that_is_not_finite_is_refused_when_it_is_used(case, capsys, tmp_path, foreign, damage):
    change, message = NOT_FINITE[damage]
    change_weights(foreign / f"checkpoint-{20 * case.unit}", change)
    segments = [f"{10 * case.unit}:2", f"{20 * case.unit}:2", 30 * case.unit]
    words = ["--methods", "custom", "--segments", *segments, "--trust-trajectory", "--temperature", 0]
    code, lines = case.start(capsys, *case.distill, *words, "--teacher", foreign, "--out", tmp_path / "student")
    assert code == 2
    assert f"{foreign / f'checkpoint-{20 * case.unit}'} {message}" in lines[-1]
    assert not Run(tmp_path / "student").complete


@pytest.mark.parametrize("damage", NOT_FINITE)
def test_a_checkpoint_that_is_not_finite_is_not_probed(case, capsys, tmp_path, foreign, damage):
    change, message = NOT_FINITE[damage]
    change_weights(foreign / f"checkpoint-{20 * case.unit}", change)
    words = ["probe", "--samples", 100, "--d", case.d, "--k", case.k, "--support", "first", "--run", foreign]
    code, lines = case.start(capsys, *words, "--out", tmp_path / "probe")
    assert code == 2
    assert f"{foreign / f'checkpoint-{20 * case.unit}'} {message}" in lines[-1]
    entries = json.loads((tmp_path / "probe").read_text(), parse_constant=pytest.fail)["checkpoints"]
    assert [entry["step"] for entry in entries] == [10 * case.unit]


@pytest.mark.parametrize("name", ["evil.bin", "../outside.safetensors"])
def test_only_safetensors_of_the_checkpoint_are_read(case, capsys, tmp_path, foreign, name):
    point_elsewhere(foreign / f"checkpoint-{30 * case.unit}", name)
    with pytest.raises(UserError, match="not a safetensors file beside it"):
        load_network(foreign / f"checkpoint-{30 * case.unit}", case.task)
    words = ["--methods", "one-shot", "--teacher", foreign, "--out", tmp_path / "student"]
    assert name in case.fail_in_one_line(capsys, *case.distill, *words)


def odd(tensor):
    return tensor.double() if tensor.ndim > 1 else tensor.float()


@pytest.mark.parametrize("change", [odd, torch.Tensor.long, torch.Tensor.half, torch.Tensor.bfloat16])
def test_weights_of_several_or_other_dtypes_are_one_line(case, capsys, tmp_path, foreign, change):
    for checkpoint in foreign.iterdir():
        change_weights(checkpoint, change)
    words = ["--methods", "one-shot", "--teacher", foreign, "--out", tmp_path / "student", "--trust-trajectory"]
    line = case.fail_in_one_line(capsys, *case.distill, *words)
    assert f"{foreign / f'checkpoint-{30 * case.unit}'}: " in line
    assert "float32" in line
