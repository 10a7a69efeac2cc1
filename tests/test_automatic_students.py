"""Students of `--methods auto` in every setting: whom they learn from, stopped and resumed, and what is refused."""

import shutil

import pytest

from common.runs.run import Run
from tests.commands import and_signal, results
from tests.every_setting import one_of_each_path

AUTO = ("--methods", "auto", "--temperature", "1")


def test_students_learn_from_a_checkpoint_and_then_from_the_final_one(setting, teacher, tmp_path, capsys):
    words = [*setting.distill, *AUTO, "--teacher", teacher, "--out", tmp_path / "student"]
    setting.succeed(capsys, *words)
    run = Run(tmp_path / "student")
    taught = [record["teacher"] for record in run.records()]
    first, last = taught[0], 30 * setting.unit
    assert first in (10 * setting.unit, 20 * setting.unit)
    assert taught == [first, first, last, last]  # at 0, 5, 10 and 12 units; a sixth of the steps has passed at 5
    assert all(record["kl"] > 0 for record in run.records()[1:])
    used = {int(step) for step, digest in run.config["teacher_checkpoints"].items() if digest is not None}
    assert used == {first, last}
    assert setting.succeed(capsys, *words).endswith("is complete\n")


@one_of_each_path
def test_a_stopped_student_resumes_to_the_same_bits(setting, teacher, tmp_path, capsys, monkeypatch):
    words = [*setting.distill, *AUTO, "--teacher", teacher, "--out"]
    setting.succeed(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", and_signal(Run.log, 3))
        assert setting.stopped(capsys, *words, tmp_path / "stopped") == 10 * setting.unit
    setting.succeed(capsys, *words, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "undisturbed")


@one_of_each_path
@pytest.mark.parametrize(
    ("option", "value"),
    [("--temperature", "0"), ("--end-temperature", "2"), ("--top-k", "1"), ("--divergence", "reverse-kl")],
)
def test_other_divergences_are_refused(setting, teacher, tmp_path, capsys, option, value):
    words = [*setting.distill, *AUTO, "--teacher", teacher, "--out", tmp_path / "student", option, value]
    line = setting.fail_in_one_line(capsys, *words)
    reason = "compares forward KL divergences of all classes at temperature 1"
    assert line.startswith(f"error: --methods auto {reason}: {option} {value}")
    assert not (tmp_path / "student").exists()


@one_of_each_path
def test_evaluations_too_far_apart_are_refused(setting, teacher, tmp_path, capsys):
    words = [*setting.distill, *AUTO, *setting.steps(eval_every=7), "--teacher", teacher]
    line = setting.fail_in_one_line(capsys, *words, "--out", tmp_path / "student")
    assert "leaves none in the first half of" in line
    assert not (tmp_path / "student").exists()


@one_of_each_path
def test_a_teacher_with_one_checkpoint_is_all_there_is_to_learn_from(setting, teacher, tmp_path, capsys):
    last = f"checkpoint-{30 * setting.unit}"
    shutil.copytree(teacher / last, tmp_path / "teacher" / last)
    words = [*setting.distill, *AUTO, "--teacher", tmp_path / "teacher", "--out", tmp_path / "student"]
    code, stderr = setting.start(capsys, *words)
    assert code == 0
    assert any("auto has only checkpoint" in line for line in stderr)
    assert {record["teacher"] for record in Run(tmp_path / "student").records()} == {30 * setting.unit}


@one_of_each_path
def test_students_without_a_teacher_stay_complete_after_one_is_trained(setting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("common.distillation.given_teacher.RUNS", tmp_path / "no-runs")
    monkeypatch.setattr("common.distillation.given_teacher.ROOT", tmp_path)
    words = [*setting.distill, "--methods", "ce", "--out", tmp_path / "student"]
    setting.succeed(capsys, *words)
    assert Run(tmp_path / "student").config["arguments"]["teacher_id"] is None
    default = tmp_path / "no-runs" / setting.name / "smoke"
    setting.train_teacher(default)
    assert setting.succeed(capsys, *words).endswith("is complete\n")
