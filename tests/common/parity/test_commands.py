"""The commands of both settings as a user meets them: killed, stopped, out of disk, diverged, wrongly called."""

import itertools
import json
import math
import re
import resource
import shutil

import pytest
import torch

from common.parity import commands, training
from common.parity.students import Student
from common.runs import resume
from common.runs.resume import load_resume, resume_steps
from common.runs.run import Run, open_run
from common.teachers.discovery import find_checkpoints
from tests.commands import (
    ROOT,
    Killed,
    and_signal,
    cut,
    files,
    kill_again_and_again,
    python,
    results,
    results_below,
    stop_again_and_again,
    stopped,
)
from tests.parity import save_often, writes_until_killed

STUDENTS = ["--methods", "ce", "progressive", "until-saturation"]


def fail_in_one_line(case, capsys, *words, code=2):
    """Run a command that must fail before it shows progress; its one line."""
    got, (line,) = case.start(capsys, *words)
    assert got == code
    assert line.startswith("error: ")
    return line


# Killed


@pytest.mark.slow
def test_a_run_killed_six_times_is_bit_identical(case, tmp_path, capsys):
    words = [*case.train, *case.long.split(), "--adaptive-checkpoints", "--out"]
    case.succeed(capsys, *words, tmp_path / "undisturbed")
    kill_again_and_again(6, tmp_path / "killed", resume, f"{case.setting}.train", *words[1:], tmp_path / "killed")
    case.succeed(capsys, *words, tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


@pytest.mark.slow
def test_students_killed_six_times_together_are_bit_identical(case, tmp_path, capsys, teacher):
    words = [*case.distill, *STUDENTS, *case.long_students.split(), *case.steps(saturation_steps=6)]
    words += ["--teacher", teacher, "--out"]
    case.succeed(capsys, *words, tmp_path / "undisturbed")
    run = tmp_path / "killed" / case.student_run("until-saturation")
    kill_again_and_again(6, run, resume, f"{case.setting}.distill", *words[1:], tmp_path / "killed")
    case.succeed(capsys, *words, tmp_path / "killed")
    assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


def test_students_killed_between_any_two_writes_of_their_states_are_bit_identical(
    case, tmp_path, capsys, monkeypatch, teacher
):
    words = [*case.distill, *case.steps(saturation_steps=6), "--methods", "progressive", "until-saturation"]
    words += ["--teacher", teacher, "--out"]
    case.succeed(capsys, *words, tmp_path / "undisturbed")
    expected = results_below(tmp_path / "undisturbed")
    differing = 0
    for number in itertools.count():
        killed = tmp_path / str(number)
        try:
            with monkeypatch.context() as patch:
                calls = writes_until_killed(patch, number)
                case.start(capsys, *words, killed)
            break
        except Killed:
            steps = [resume_steps(student) for student in killed.iterdir() if not Run(student).complete]
            differing += len(set(map(tuple, steps))) > 1
        case.succeed(capsys, *words, killed)
        assert results_below(killed) == expected, number
    assert number == next(calls) == 4 * 4 + 2  # at 0, 5, 10 and 12 units two calls for each student, and its end
    assert differing == 7


def test_a_student_without_a_state_starts_over_and_the_others_resume(case, tmp_path, capsys, monkeypatch, teacher):
    """A GPT-2 then depends on the others by rounding."""
    words = [*case.distill, "--methods", "ce", "one-shot", "progressive", "--teacher", teacher, "--out"]
    case.succeed(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        writes_until_killed(patch, 12)
        with pytest.raises(Killed):
            case.start(capsys, *words, tmp_path / "killed")
    students = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert [resume_steps(tmp_path / "killed" / name) for name in students] == [[5 * case.unit]] * 3
    shutil.rmtree(tmp_path / "killed" / students[1] / "resume")
    case.succeed(capsys, *words, tmp_path / "killed")
    for name in students:
        mine, whole = (Run(tmp_path / place / name) for place in ("killed", "undisturbed"))
        for record, expected in zip(mine.records(), whole.records(), strict=True):
            assert record == {key: value and pytest.approx(value, rel=1e-5) for key, value in expected.items()}
    if case.setting == "parity_mlp":
        assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


# Stopped by a signal


@pytest.mark.slow
def test_a_run_stopped_three_times_is_bit_identical(case, tmp_path, capsys):
    words = [*case.train, *case.long.split(), "--adaptive-checkpoints", "--out"]
    case.succeed(capsys, *words, tmp_path / "undisturbed")
    stop_again_and_again(tmp_path / "stopped", f"{case.setting}.train", *words[1:], tmp_path / "stopped")
    case.succeed(capsys, *words, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("owner", "name", "calls", "units"),
    [
        (None, "training_engine", [1], 0),
        (Student, "objective", [2], 5),
        (training, "score", [5], 5),
        (training, "score", [7], 10),
        (Run, "log", [4, 7], 5),
        (training, "add_resume", [2, 5], 0),
        (Run, "finish", [2], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_students_stopped_by_a_signal_are_saved_together_and_are_bit_identical(
    case, tmp_path, capsys, monkeypatch, teacher, owner, name, calls, units
):
    words = [*case.distill, *STUDENTS, *case.steps(saturation_steps=6), "--teacher", teacher, "--out"]
    words[-1:-1] = ["--dropout", "0.2", "--divergence", "reverse-kl"] if case.setting == "parity_gpt2" else []
    case.succeed(capsys, *words, tmp_path / "undisturbed")
    step = None if units is None else units * case.unit
    with monkeypatch.context() as patch:
        if owner is None:
            case.patch_engine(patch, lambda engine: and_signal(engine, *calls))
        else:
            patch.setattr(owner, name, and_signal(getattr(owner, name), *calls))
        assert stopped(capsys, case.main(words), *words[1:], tmp_path / "stopped") == step
    students = list((tmp_path / "stopped").iterdir())
    assert len(students) == 3
    for student in students:
        assert Run(student).complete if step is None else resume_steps(student) == [step]
    case.succeed(capsys, *words, tmp_path / "stopped")
    assert results_below(tmp_path / "stopped") == results_below(tmp_path / "undisturbed")


def test_a_diverged_student_stops_with_the_others_and_diverges_again(case, tmp_path, capsys, monkeypatch, teacher):
    words = [*case.distill, "--methods", "ce", "--lr", "0.01", "1e30", "--teacher", teacher, "--out"]
    whole, _ = case.start(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", and_signal(Run.log, 4))
        code, stderr = case.start(capsys, *words, tmp_path / "stopped")
    assert code == 75
    assert stderr[-1].startswith("stopped by SIGTERM at step ")
    again, _ = case.start(capsys, *words, tmp_path / "stopped")
    assert again == whole == 3
    (complete,) = [run for run in (tmp_path / "undisturbed").iterdir() if Run(run).complete]
    assert results(tmp_path / "stopped" / complete.name) == results(complete)


def test_students_that_are_added_later_join_those_that_are_complete(case, tmp_path, capsys, teacher):
    words = [*case.distill, "--teacher", teacher, "--methods", "ce", "one-shot", "--out", tmp_path / "students"]
    case.succeed(capsys, *words, "--seeds", 0)
    before = files(tmp_path / "students")
    case.succeed(capsys, *words, "--seeds", 0, 1)
    assert {name: files(tmp_path / "students")[name] for name in before} == before
    assert len(list((tmp_path / "students").iterdir())) == 4


# Out of disk


def test_a_full_disk_is_one_line_and_the_rerun_command_resumes(case, tmp_path, capsys, monkeypatch):
    wide = ["--width", 4000] if case.setting == "parity_mlp" else ["--heads", 10, "--dropout", 0.1]
    words = [*case.train, *wide, "--out"]
    case.succeed(capsys, *words, tmp_path / "undisturbed")
    saves = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(*arguments):
        saves.append(1)
        if len(saves) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        save_checkpoint(*arguments)

    save_checkpoint = training.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", save)
        save_often(patch)
        try:
            code, (*shown, line) = case.start(capsys, *words, tmp_path / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert all(": step " in other for other in shown)
    assert line.startswith("error: ")
    assert "model.safetensors: File too large" in line
    there, undisturbed = files(tmp_path / "full"), files(tmp_path / "undisturbed")
    saved = {name: content for name, content in there.items() if name.startswith("checkpoint")}
    assert {name.split("/")[0] for name in saved} == {f"checkpoint-{units * case.unit}" for units in (10, 20)}
    assert saved == {name: undisturbed[name] for name in saved}
    assert not [name for name in there if name.endswith(".unfinished")]
    assert load_resume(tmp_path / "full").step == 25 * case.unit
    case.succeed(capsys, *words, tmp_path / "full")
    assert results(tmp_path / "full") == results(tmp_path / "undisturbed")


# Diverged


@pytest.mark.parametrize("cadence", [{}, {"eval_every": 40, "checkpoint_every": 4}, {"eval_every": 40}])
def test_a_loss_that_is_not_finite_is_one_line_with_exit_code_three(case, tmp_path, capsys, monkeypatch, cadence):
    save_often(monkeypatch)
    words = [*case.train, *case.steps(**{"checkpoint_every": 0, **cadence}), "--lr", "1e30", "--out", tmp_path / "run"]
    for _ in range(2):
        code, (*shown, line) = case.start(capsys, *words)
        assert code == 3
        assert all(": step " in other for other in shown)
        assert re.fullmatch("error: .*/run: the loss is not finite at step [0-9,]+: give a lower --lr", line)
        run = Run(tmp_path / "run")
        assert not run.complete
        assert all(math.isfinite(record["loss"]) for record in run.records())
        assert not list(run.directory.rglob("*.safetensors"))
    case.succeed(capsys, *case.train, "--out", tmp_path / "run", "--force")


def test_a_student_that_diverges_does_not_stop_the_others(case, tmp_path, capsys, monkeypatch, teacher):
    score, calls = training.score, itertools.count(1)

    def score_not_finite(*arguments):
        return (math.nan, 0.5) if next(calls) == 4 else score(*arguments)  # the second student's second evaluation

    words = [*case.distill, "--methods", "one-shot", "--teacher", teacher, "--seeds", 0, 1, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "score", score_not_finite)
        code, stderr = case.start(capsys, *words, tmp_path / "runs")
    diverged = tmp_path / "runs" / f"one-shot-{case.student_name}-seed1"
    assert code == 3
    assert f"{diverged.name}: the loss is not finite at step {5 * case.unit}" in stderr[-1]
    assert not Run(diverged).complete
    assert len(Run(diverged).records()) == 1
    case.succeed(capsys, *words, tmp_path / "whole")
    name = case.student_run("one-shot")
    assert results(tmp_path / "runs" / name) == results(tmp_path / "whole" / name)


# Wrongly called

WRONG = [
    ("--layers 0", "--layers must be at least 1, got 0"),
    ("--batch-size 0", "--batch-size must be at least 1, got 0"),
    ("--eval-every 0", "--eval-every must be at least 1, got 0"),
    ("--eval-samples 0", "--eval-samples must be at least 1, got 0"),
    ("--checkpoint-every -1", "--checkpoint-every must be at least 0, got -1"),
    ("--steps 0", "--steps must be at least 1, got 0"),
    ("--lr 0", "--lr must be positive and finite, got 0"),
    ("--lr nan", "--lr must be positive and finite, got nan"),
    ("--lr inf", "--lr must be positive and finite, got inf"),
    ("--weight-decay -1", "--weight-decay must be at least 0 and at most 0.5 / lr"),
    ("--warmup 1.1", "--warmup is a fraction of the steps, between 0 and 1; got 1.1"),
    ("--warmup nan", "--warmup is a fraction of the steps, between 0 and 1; got nan"),
    ("--label-temperature -1", "--label-temperature must be at least 0"),
    ("--labels 3", "--labels must be a power of two"),
    ("--labels 16", "16 labels with k = "),
    ("--k 11", "k = 11 need 11 coordinates"),
    ("--support 0,1,10 --k 3", "support index 10 is out of range"),
    ("--support 0", "--support names 1 coordinates"),
    ("--support 0,1,1 --k 3", "distinct coordinates"),
    ("--support all", "--support is first, random or comma-separated"),
    ("--support random --support-seed -1", "--support-seed"),
    ("--device abacus", "--device abacus cannot be used"),
]
WRONG_TRAIN = [
    ("--seed -1", "--seed must be at least 0, got -1"),
    ("--seed 9223372036854775808", "--seed must be below 2^63"),
]
WRONG_DISTILL = [
    ("--lr 0.1 -1", "--lr must be positive and finite, got -1"),
    ("--lr 0.1 0.2 0.1", "--lr needs at least one value and none twice, got [0.1, 0.2, 0.1]"),
    ("--lr 0.1 10 --weight-decay 1", "--weight-decay must be at least 0 and at most 0.5 / lr"),
    ("--methods ce ce", "--methods needs at least one value and none twice, got ['ce', 'ce']"),
    ("--seeds 0 0", "--seeds needs at least one value and none twice, got [0, 0]"),
    ("--seeds 0 -1", "--seeds must be at least 0, got -1"),
    ("--stream-seed -1", "--stream-seed must be at least 0, got -1"),
    ("--methods ce one-shot --alpha 2", "--alpha must be between 0 and 1"),
    ("--methods one-shot --alpha 0.5 0", "--alpha-steps"),
    ("--methods one-shot --temperature -1", "--temperature must be 0 or more"),
    ("--methods one-shot --temperature nan", "--temperature must be 0 or more, got nan"),
    ("--methods one-shot --top-k 3", "--top-k must be between 1 and the number of classes, 2, got 3"),
    ("--methods one-shot --divergence jensen-shannon --beta 1", "--beta must be between 0 and 1"),
    ("--methods progressive --teacher-every 0", "student steps per checkpoint must be positive"),
    ("--methods progressive --teacher-checkpoints 9", "the first is "),
    ("--methods two-shot --checkpoint 5", "at or before teacher step 5; the first is "),
    ("--methods two-shot --checkpoint middle", "--checkpoint must be a teacher step, before, inside or after"),
    ("--methods accelerated --speed 0", "must be positive"),
    ("--methods custom", "names no checkpoint"),
    ("--methods custom --segments 1000 2000", "is a list of checkpoint:steps"),
    ("--methods custom --segments 5:100 2000", "the first is "),
    ("--methods until-saturation --saturation-window 0", "window"),
    ("--support 1,2,3 --k 3", "was trained with "),
    ("--k 1", "but here it is 1"),
]


@pytest.mark.parametrize(("words", "message"), [*WRONG, *WRONG_TRAIN])
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(case, tmp_path, capsys, words, message):
    assert message in fail_in_one_line(case, capsys, *case.train, "--out", tmp_path / "run", *words.split())
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("words", "message"), [*WRONG, *WRONG_DISTILL])
def test_students_that_cannot_be_are_refused_before_anything_is_made(case, tmp_path, capsys, teacher, words, message):
    before = files(teacher)
    words = [*case.distill, "--teacher", teacher, "--out", tmp_path / "students", *words.split()]
    assert message in fail_in_one_line(case, capsys, *words)
    assert files(tmp_path) == {}
    assert files(teacher) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_does_not_exist_is_one_line(case, tmp_path, capsys):
    words = [*case.train, "--device", "cuda", "--out", tmp_path / "run"]
    assert "--device cuda cannot be used" in fail_in_one_line(case, capsys, *words)
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
def test_usage_errors_name_the_argument_and_exit_with_two(case, capsys, words, named):
    code, stderr = case.start(capsys, *words.split())
    assert code == 2
    assert named in "\n".join(stderr)


# Teachers


def test_a_support_in_other_words_is_the_same_support(case, tmp_path, capsys, teacher):
    support = ",".join(map(str, range(case.k)))
    words = [*case.distill, "--methods", "one-shot", "--teacher", teacher, "--out", tmp_path / "student"]
    case.succeed(capsys, *words, "--support", support, "--support-seed", 5)


def test_a_teacher_whose_run_is_not_complete_is_one_line(case, tmp_path, capsys, teacher):
    unfinished = shutil.copytree(teacher, tmp_path / "teacher")
    (unfinished / "done.json").unlink()
    line = fail_in_one_line(case, capsys, *case.distill, "--teacher", unfinished, "--out", tmp_path / "runs")
    assert "is not complete" in line
    assert not (tmp_path / "runs").exists()


def test_a_teacher_of_another_setting_is_one_line(case, tmp_path, capsys, teacher):
    other = shutil.copytree(teacher, tmp_path / "teacher")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "setting": "PCFG_mlm"}))
    line = fail_in_one_line(case, capsys, *case.distill, "--teacher", other, "--out", tmp_path / "runs")
    assert "PCFG_mlm" in line
    assert not (tmp_path / "runs").exists()


def test_students_of_a_teacher_that_was_trained_anew_are_not_taken_for_complete(case, tmp_path, capsys, teacher):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    words = [*case.distill, "--methods", "one-shot", "--teacher", mine, "--out", tmp_path / "run"]
    case.succeed(capsys, *words)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "id": "another"}))
    assert "teacher_id" in fail_in_one_line(case, capsys, *words)


def test_a_teacher_that_is_missing_or_has_no_checkpoints_is_one_line(case, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    for name in ("empty", "missing"):
        words = [*case.distill, "--teacher", tmp_path / name, "--out", tmp_path / "students"]
        assert str(tmp_path / name) in fail_in_one_line(case, capsys, *words)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoint-{}/model.safetensors", "checkpoint-{}/config.json", "config.json"])
def test_a_truncated_file_of_the_teacher_is_one_line(case, tmp_path, capsys, teacher, name):
    damaged = shutil.copytree(teacher, tmp_path / "teacher") / name.format(30 * case.unit)
    cut(damaged)
    before = files(tmp_path)
    words = [*case.distill, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students"]
    assert str(damaged) in fail_in_one_line(case, capsys, *words)
    assert files(tmp_path) == before


def test_a_teacher_of_another_kind_is_one_line(case, tmp_path, capsys, teacher):
    path = shutil.copytree(teacher, tmp_path / "teacher") / f"checkpoint-{30 * case.unit}" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "bert"}))
    words = [*case.distill, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students"]
    line = fail_in_one_line(case, capsys, *words)
    assert f"{path.parent} holds a 'bert' model, not 'parity_mlp' or 'gpt2'" in line
    assert not (tmp_path / "students").exists()


def test_students_resume_when_a_truncated_checkpoint_is_repaired(case, tmp_path, capsys, teacher):
    words = [*case.distill, "--methods", "ce", "progressive", "--out"]
    words[-1:-1] = ["--dropout", "0.2"] if case.setting == "parity_gpt2" else []
    case.succeed(capsys, *words, tmp_path / "undisturbed", "--teacher", teacher)
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    checkpoint = f"checkpoint-{20 * case.unit}/model.safetensors"
    cut(mine / checkpoint)
    code, stderr = case.start(capsys, *words, tmp_path / "students", "--teacher", mine)
    assert code == 2
    assert stderr[-1].startswith(f"error: {mine / checkpoint} is ")
    shutil.copy(teacher / checkpoint, mine / checkpoint)
    case.succeed(capsys, *words, tmp_path / "students", "--teacher", mine)
    assert results_below(tmp_path / "students") == results_below(tmp_path / "undisturbed")


# Existing directories


def test_a_second_process_on_the_same_run_is_refused(case, tmp_path, capsys, teacher):
    run = shutil.copytree(teacher, tmp_path / "run")
    before = files(tmp_path)
    with open_run(run, Run(run).config["arguments"], setting=case.setting):
        for more in ([], ["--force"]):
            assert "another process" in fail_in_one_line(case, capsys, *case.train, "--out", run, *more)
    assert files(tmp_path) == before


def test_other_arguments_or_a_foreign_directory_are_refused(case, tmp_path, capsys, teacher):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("Once")
    run = shutil.copytree(teacher, tmp_path / "run")
    before = files(tmp_path)
    line = fail_in_one_line(case, capsys, *case.train, "--lr", 0.001, "--out", run)
    assert re.search("lr is 0.0[15] there and 0.001 here", line)
    for more in ([], ["--force"]):
        words = [*case.train, *more, "--out", tmp_path / "thesis"]
        assert "is not a run" in fail_in_one_line(case, capsys, *words)
    assert files(tmp_path) == before


def test_a_run_of_the_other_setting_is_not_resumed(case, tmp_path, capsys, teacher):
    run = shutil.copytree(teacher, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    other = {"parity_mlp": "parity_gpt2", "parity_gpt2": "parity_mlp"}[case.setting]
    (run / "config.json").write_text(json.dumps({**config, "setting": other}))
    assert f"a run of {other}" in fail_in_one_line(case, capsys, *case.train, "--out", run)


def test_a_complete_run_is_not_run_again_unless_forced(case, tmp_path, capsys, monkeypatch, teacher):
    for words in (case.train, [*case.distill, "--methods", "progressive", "--teacher", teacher]):
        directory = tmp_path / words[0]
        words = [*words, "--out", directory]
        case.succeed(capsys, *words)
        before, made = files(directory), results(directory)
        with monkeypatch.context() as patch:
            patch.setattr(commands, "train_together", None)
            assert case.succeed(capsys, *words) == f"{directory} is complete\n"
        assert files(directory) == before
        cut(find_checkpoints(directory)[-1].location / "model.safetensors")
        case.succeed(capsys, *words, "--force")
        assert results(directory) == made


def test_a_run_without_out_is_in_the_folder_of_its_setting(case, tmp_path, capsys, monkeypatch, teacher):
    monkeypatch.setattr(commands, "RUNS", ROOT / "runs" / "of-a-test")
    opened = []

    def refuse(directory, config, processes, **options):
        opened.append((directory, options["setting"]))
        raise Killed

    monkeypatch.setattr(commands, "open_shared_run", refuse)
    for words in (["train", "smoke", "--seed", "3"], ["distill", "smoke", *case.distill[2:], "--teacher", teacher]):
        with pytest.raises(Killed):
            case.start(capsys, *words)
    (trained, _), (student, _) = opened
    folder = ROOT / "runs" / "of-a-test" / case.setting
    assert trained == folder / "smoke-seed3"
    assert student.parent == folder
    assert student.name.startswith(f"smoke-{case.student_run('ce')}")
    assert {setting for _, setting in opened} == {case.setting}


# In processes of their own


def test_train_starts_from_every_folder(case, tmp_path, teacher):
    for number, (arguments, cwd) in enumerate(
        [
            (["-m", f"{case.setting}.train"], ROOT),
            ([f"{case.setting}/train.py"], ROOT),
            (["train.py"], ROOT / case.setting),
        ]
    ):
        run = tmp_path / str(number)
        done = python(*arguments, *case.train[1:], "--out", run, cwd=cwd)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{run}: accuracy ")
        assert f"step {30 * case.unit:,} of {30 * case.unit:,}, loss" in done.stderr
        assert results(run) == results(teacher)


def test_distill_and_probe_start_from_the_folder_of_the_setting(case, tmp_path, teacher):
    words = [*case.distill[1:], "--methods", "progressive", "--teacher", teacher, "--out", tmp_path / "run"]
    done = python("distill.py", *words, cwd=ROOT / case.setting)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").complete
    done = python("probe.py", "--samples", 100, "--degrees", 1, "--run", tmp_path / "run", cwd=ROOT / case.setting)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "run" / "probes").iterdir()
    assert done.stdout == f"{path}\n"
    assert [entry["step"] for entry in json.loads(path.read_text())["checkpoints"]] == [12 * case.unit]
