"""The commands as a user meets them: killed, stopped, out of disk, diverged, refused, called twice."""

import itertools
import math
import re
import resource
import shlex
import shutil

import pytest
import torch

from common.runs.resume import load_resume
from common.runs.run import Run, open_run
from common.teachers.discovery import find_checkpoints
from tests.commands import (
    KILL,
    STOPS,
    assert_named,
    change_config,
    cut,
    end_again_and_again,
    files,
    refusals,
    results,
    results_below,
    save_often,
    start,
)
from tests.every_setting import one_of_each_path
from tests.parity import CASES
from tests.pcfg import SETTINGS
from tests.text import TEXT_SETTINGS

pytestmark = one_of_each_path

# What a run is


def test_every_method_learns_from_the_checkpoints_of_its_schedule(setting, tmp_path, capsys, teacher):
    unit = setting.unit
    early = unit > 1  # the last checkpoint is due in the middle of the eighth unit
    expected = {
        "ce": [None] * 12,
        "one-shot": [30] * 12,
        "progressive": [10] * 4 + [20] * 4 + [30] * 4,
        "two-shot": [10] * 5 + [30] * 7,
        "until-saturation": [10] * 2 + [20] * 2 + [30] * 8,  # no accuracy is 1 above the one before it
        "accelerated": [10] * 5 + [20] * (3 - early) + [30] * (4 + early),
        "refreshed": [10] * 4 + [30] * 8,
        "custom": [10] * 5 + [30] * 4 + [20] * 3,
    }
    segments = [f"{10 * unit}:{5 * unit}", f"{30 * unit}:{4 * unit}", 20 * unit]
    words = [*setting.distill, *setting.steps(eval_every=1, checkpoint=10), "--segments", *segments]
    words += shlex.split("--eval-samples 8 --warmup 0 --temperature 1 --speed 4")
    words += ["--saturation-window", 1, "--saturation-threshold", 1, *setting.steps(saturation_steps=100)]
    students = tmp_path / "students"
    setting.succeed(capsys, *words, "--teacher", teacher, "--methods", *expected, "--out", students)
    names = {method: f"two-shot-{10 * unit}" if method == "two-shot" else method for method in expected}
    runs = {method: Run(students / setting.student_run(name)) for method, name in names.items()}
    assert set(students.iterdir()) == {run.directory for run in runs.values()}
    losses = {method: [record["loss"] for record in run.records()] for method, run in runs.items()}
    for method, teachers in expected.items():
        run = runs[method]
        assert run.complete
        assert run.config["arguments"]["teacher_id"] == Run(teacher).config["id"]
        (checkpoint,) = find_checkpoints(run.directory)
        assert checkpoint.step == 12 * unit
        assert setting.width_of_student(checkpoint.location) == setting.width
        _, *records = run.records()  # their teacher is that of the step before each evaluation
        assert [record["teacher"] for record in records] == [units and units * unit for units in teachers]
        if setting in SETTINGS:
            assert [record["kl"] is None for record in records] == [units is None for units in teachers]
    for one, other in itertools.combinations(expected, 2):
        parted = False
        taught = zip(expected[one], expected[other], losses[one][1:], losses[other][1:], strict=True)
        for step, (mine, yours, my_loss, your_loss) in enumerate(taught):
            parted = parted or mine != yours
            same = my_loss == pytest.approx(your_loss, rel=setting.rounding, abs=0)
            assert same != parted, (one, other, step)


# Killed, and stopped by a signal


@pytest.mark.slow
def test_a_run_stopped_and_killed_again_and_again_is_bit_identical(setting, tmp_path, capsys):
    words, run = [*setting.train, *setting.long.split(), "--out"], tmp_path / "run"
    setting.succeed(capsys, *words, tmp_path / "undisturbed")
    end_again_and_again([*STOPS, KILL, KILL, KILL], run, setting.main(words).__module__, *words[1:], run)
    setting.succeed(capsys, *words, run)
    assert results(run) == results(tmp_path / "undisturbed")


@pytest.mark.slow
def test_students_killed_again_and_again_are_bit_identical(setting, tmp_path, capsys, teacher):
    words = [*setting.distill, *setting.long_students.split(), "--teacher", teacher, "--out"]
    setting.succeed(capsys, *words, tmp_path / "undisturbed")
    last = max((tmp_path / "undisturbed").iterdir())
    assert last.name.startswith("until-saturation")
    assert len({record["teacher"] for record in Run(last).records()}) == 3
    if setting in (*SETTINGS, *TEXT_SETTINGS):  # students are trained one after the other
        shutil.copytree(last.parent, tmp_path / "killed", ignore=shutil.ignore_patterns(last.name))
    name = setting.main(words).__module__
    end_again_and_again([KILL, KILL], tmp_path / "killed" / last.name, name, *words[1:], tmp_path / "killed")
    setting.succeed(capsys, *words, tmp_path / "killed")
    assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


# Out of disk


def test_a_full_disk_is_one_line_and_the_rerun_command_resumes(setting, tmp_path, capsys, monkeypatch):
    words = [*setting.train, *setting.wide.split(), "--out"]
    setting.succeed(capsys, *words, tmp_path / "undisturbed")
    saves = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save_checkpoint = setting.saver.save_checkpoint

    def save(*arguments):
        saves.append(1)
        if len(saves) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        save_checkpoint(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(setting.saver, "save_checkpoint", save)
        save_often(patch)
        try:
            code, (*shown, line) = setting.start(capsys, *words, tmp_path / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert all(": step " in other for other in shown), shown
    assert line.startswith("error: ")
    assert "model.safetensors: File too large" in line
    there, undisturbed = files(tmp_path / "full"), files(tmp_path / "undisturbed")
    saved = {name: content for name, content in there.items() if name.startswith("checkpoint")}
    assert {name.split("/")[0] for name in saved} == {f"checkpoint-{units * setting.unit}" for units in (10, 20)}
    assert saved == {name: undisturbed[name] for name in saved}
    assert not [name for name in there if name.endswith(".unfinished")]
    assert load_resume(tmp_path / "full").step == 25 * setting.unit
    setting.succeed(capsys, *words, tmp_path / "full")
    assert results(tmp_path / "full") == results(tmp_path / "undisturbed")


# Diverged


@pytest.mark.parametrize("cadence", [{}, {"eval_every": 40, "checkpoint_every": 4}, {"eval_every": 40}])
def test_a_loss_that_is_not_finite_is_one_line_with_exit_code_three(setting, tmp_path, capsys, monkeypatch, cadence):
    save_often(monkeypatch)
    run = Run(tmp_path / "run")
    words = [*setting.train, "--out", run.directory]
    for _ in range(2):
        diverging = [*words, *setting.steps(**{"checkpoint_every": 0, **cadence}), "--lr", "1e30"]
        code, (*shown, line) = setting.start(capsys, *diverging)
        assert code == 3
        assert all(": step " in other or other.endswith("no saved state: starting over") for other in shown)
        assert re.fullmatch("error: .*/run: the loss is not finite at step [0-9,]+: give a lower --lr", line)
        assert not run.complete
        assert all(math.isfinite(record["loss"]) for record in run.records())
        assert not list(run.directory.rglob("*.safetensors"))
    setting.succeed(capsys, *words, "--force")


# Wrongly called

WRONG = (
    "--layers 0",
    "--batch-size 0",
    "--eval-every 0",
    "--eval-samples 0",
    "--checkpoint-every -1",
    "--steps 0",
    "--lr 0",
    "--lr nan",
    "--lr inf",
    "--warmup -0.1",
    "--warmup 1.1",
    "--warmup nan",
    ("--steps 1000000000001", "'--steps must be at most 1,000,000,000,000'"),
    ("--layers 1000000000", "'of memory'"),
)
WRONG_TRAIN = (
    ("--steps 1000000000000 --checkpoint-every 1", "'of disk (checkpoints'"),
    "--seed -1",
    ("--seed 9223372036854775808", "--seed 2^63"),
)
WRONG_DISTILL = (
    ("--methods ce ce", "--methods ce"),
    ("--seeds 0 0", "--seeds 0"),
    ("--seeds 0 -1", "--seeds -1"),
    "--stream-seed -1",
    ("--methods ce one-shot --alpha 2", "--alpha 2"),
    ("--methods one-shot --alpha 0.5 0", "--alpha-steps 2"),
    ("--methods one-shot --temperature -1", "--temperature -1"),
    ("--methods one-shot --temperature nan", "--temperature nan"),
    ("--methods one-shot --divergence jensen-shannon --beta 1", "--beta 1"),
    ("--methods progressive --teacher-every 0", "'student steps per checkpoint' 0"),
    ("--methods progressive --teacher-checkpoints 9", "'teacher step' first"),
    ("--methods two-shot --checkpoint 5", "--checkpoint 'teacher step 5'"),
    ("--methods two-shot --checkpoint 999999", "'teacher step 999999' nearest"),
    ("--methods custom --segments 999999:3 20", "--segments 'teacher step 999999'"),
    ("--methods one-shot --alpha 0.5 0 --alpha-steps -5", "--alpha-steps -5"),
    ("--methods until-saturation --saturation-threshold -0.1", "'improvement' -0.1"),
    ("--methods two-shot --checkpoint middle", "--checkpoint middle"),
    ("--methods accelerated --speed 0", "multiplier 0"),
    ("--methods custom", "'names no checkpoint'"),
    ("--methods custom --segments 10 20", "--segments 10"),
    ("--methods until-saturation --saturation-window 0", "'window of evaluations' 0"),
)


@pytest.mark.usefixtures("teacher")  # whose text is prepared
@refusals(*WRONG, *WRONG_TRAIN)
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(setting, tmp_path, capsys, words, named):
    line = setting.fail_in_one_line(capsys, *setting.train, "--out", tmp_path / "run", *words.split())
    assert_named(line, named)
    assert files(tmp_path) == {}


@refusals(*WRONG, *WRONG_DISTILL)
def test_students_that_cannot_be_are_refused_before_anything_is_made(setting, tmp_path, capsys, teacher, words, named):
    before = files(teacher)
    words = [*setting.distill, "--teacher", teacher, "--out", tmp_path / "students", *words.split()]
    assert_named(setting.fail_in_one_line(capsys, *words), named)
    assert files(tmp_path) == {}
    assert files(teacher) == before


@pytest.mark.usefixtures("teacher")
@pytest.mark.parametrize("option", ["--batch-size", "--eval-samples"])
def test_more_samples_than_there_are_or_fit_into_memory_are_refused(setting, tmp_path, capsys, option):
    line = setting.fail_in_one_line(capsys, *setting.train, option, 10**15, "--out", tmp_path / "run")
    assert "of memory" in line or "blocks" in line
    assert files(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_does_not_exist_is_one_line(setting, tmp_path, capsys, teacher):
    for words in (setting.train, [*setting.distill, "--teacher", teacher]):
        line = setting.fail_in_one_line(capsys, *words, "--device", "cuda", "--out", tmp_path / "run")
        assert_named(line, "--device cuda")
    assert files(tmp_path) == {}


# Teachers


@pytest.fixture
def mine(teacher, tmp_path):
    """A copy of the teacher."""
    return shutil.copytree(teacher, tmp_path / "teacher")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda teacher, unit: (teacher / "done.json").unlink(), "is not complete"),
        (lambda teacher, unit: change_config(teacher, setting="another"), "another"),
        (
            lambda teacher, unit: (teacher / f"checkpoint-{20 * unit}" / "model.safetensors").unlink(),
            "checkpoint-{} lacks model.safetensors: finish saving",
        ),
    ],
    ids=["incomplete", "other", "lacking"],
)
def test_a_run_that_cannot_teach_is_one_line(setting, tmp_path, capsys, mine, damage, named):
    damage(mine, setting.unit)
    line = setting.fail_in_one_line(capsys, *setting.distill, "--teacher", mine, "--out", tmp_path / "runs")
    assert named.format(20 * setting.unit) in line
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_is_missing_or_has_no_checkpoints_is_one_line(setting, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    for name, message in (("empty", "checkpoint-<step>"), ("missing", "there is no directory")):
        words = [*setting.distill, "--teacher", tmp_path / name, "--out", tmp_path / "students"]
        line = setting.fail_in_one_line(capsys, *words)
        assert str(tmp_path / name) in line
        assert message in line
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoint-{}/model.safetensors", "checkpoint-{}/config.json", "config.json"])
def test_a_truncated_file_of_the_teacher_is_one_line(setting, tmp_path, capsys, mine, name):
    damaged = mine / name.format(30 * setting.unit)
    cut(damaged)
    before = files(tmp_path)
    line = setting.fail_in_one_line(capsys, *setting.distill, "--teacher", mine, "--out", tmp_path / "students")
    assert str(damaged if setting.name in CASES else damaged.parent) in line
    assert files(tmp_path) == before


def test_students_resume_when_a_truncated_checkpoint_is_repaired(setting, tmp_path, capsys, teacher, mine):
    words = [*setting.distill, "--methods", "ce", "progressive", "--teacher"]
    words[-1:-1] = ["--dropout", 0.2] if setting.name != "parity_mlp" else []
    setting.succeed(capsys, *words, teacher, "--out", tmp_path / "undisturbed")
    checkpoint = f"checkpoint-{20 * setting.unit}/model.safetensors"
    cut(mine / checkpoint)
    code, _, stderr = start(capsys, setting.main(words), *words[1:], mine, "--out", tmp_path / "students")
    assert code == 2
    assert stderr.splitlines()[-1].startswith("error: ")
    damaged = mine / checkpoint
    assert str(damaged if setting.name in CASES else damaged.parent) in stderr.splitlines()[-1]
    shutil.copy(teacher / checkpoint, mine / checkpoint)
    setting.succeed(capsys, *words, mine, "--out", tmp_path / "students")
    assert results_below(tmp_path / "students") == results_below(tmp_path / "undisturbed")


def test_students_of_a_teacher_that_was_trained_anew_are_not_taken_for_complete(setting, tmp_path, capsys, mine):
    words = [*setting.distill, "--methods", "one-shot", "--teacher", mine, "--out", tmp_path / "run"]
    setting.succeed(capsys, *words)
    change_config(mine, id="another")
    assert "(the teacher was trained again since)" in setting.fail_in_one_line(capsys, *words)


# Existing directories


def test_a_second_process_on_the_same_run_is_refused(setting, tmp_path, capsys, mine):
    before = files(tmp_path)
    with open_run(mine, Run(mine).config["arguments"], setting=setting.name):
        for more in ([], ["--force"]):
            assert "another process" in setting.fail_in_one_line(capsys, *setting.train, "--out", mine, *more)
    assert files(tmp_path) == before


def test_other_arguments_or_a_foreign_directory_are_refused(setting, tmp_path, capsys, mine):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("Once")
    before = files(tmp_path)
    lr = Run(mine).config["arguments"]["lr"]
    line = setting.fail_in_one_line(capsys, *setting.train, "--lr", 0.001, "--out", mine)
    assert f"lr is {lr} there and 0.001 here" in line
    for more in ([], ["--force"]):
        line = setting.fail_in_one_line(capsys, *setting.train, *more, "--out", tmp_path / "thesis")
        assert "is not a run" in line
    assert files(tmp_path) == before


def test_a_run_of_another_setting_is_not_resumed(setting, capsys, mine):
    change_config(mine, setting=setting.other)
    assert f"a run of {setting.other}" in setting.fail_in_one_line(capsys, *setting.train, "--out", mine)


def test_a_complete_run_is_not_run_again_unless_forced(setting, tmp_path, capsys, monkeypatch, teacher):
    for words in (setting.train, [*setting.distill, "--methods", "progressive", "--teacher", teacher]):
        directory = tmp_path / words[0]
        words = [*words, "--out", directory]
        setting.succeed(capsys, *words)
        before, made = files(directory), results(directory)
        with monkeypatch.context() as patch:
            patch.setattr(setting.trainer, None)
            assert setting.succeed(capsys, *words) == f"{directory} is complete\n"
        assert files(directory) == before
        cut(find_checkpoints(directory)[-1].location / "model.safetensors")
        setting.succeed(capsys, *words, "--force")
        assert results(directory) == made


def test_students_that_are_added_later_join_those_that_are_complete(setting, tmp_path, capsys, teacher):
    words = [*setting.distill, "--teacher", teacher, "--methods", "ce", "one-shot", "--out", tmp_path, "--seeds"]
    setting.succeed(capsys, *words, 0)
    before = files(tmp_path)
    setting.succeed(capsys, *words, 0, 1)
    assert {name: files(tmp_path)[name] for name in before} == before
    assert len(list(tmp_path.iterdir())) == 4
