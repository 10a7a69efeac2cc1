"""Students of `--methods auto` in every setting: whom they learn from, stopped and resumed, and what is refused."""

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
def test_the_arg_max_is_refused(setting, teacher, tmp_path, capsys):
    words = [*setting.distill, "--methods", "auto", "--temperature", "0", "--teacher", teacher]
    line = setting.fail_in_one_line(capsys, *words, "--out", tmp_path / "student")
    assert line == "error: --methods auto needs probabilities, not the arg-max: give --temperature 1"
