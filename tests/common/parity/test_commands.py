"""The commands of both settings: students that are trained together, killed, stopped and diverged; wrong arguments."""

import itertools
import json
import math
import shutil

import pytest

from common.parity import commands, training
from common.parity.students import Student
from common.runs.resume import resume_steps
from common.runs.run import Run
from tests.commands import (
    ROOT,
    Killed,
    and_signal,
    assert_helpful_from_both_folders,
    assert_named,
    change_config,
    exit_code,
    files,
    python,
    refusals,
    results,
    results_below,
)
from tests.parity import GPT2, MLP, writes_until_killed

STUDENTS = ["--methods", "ce", "progressive", "until-saturation"]


@pytest.fixture(scope="module")
def three(case, teacher, tmp_path_factory):
    """Words of distill.py for three students, and what they compute undisturbed."""
    words = [*case.distill, *STUDENTS, *case.steps(saturation_steps=6), "--teacher", teacher, "--out"]
    words[-1:-1] = ["--dropout", "0.2", "--divergence", "reverse-kl"] if case.name == "parity_gpt2" else []
    place = tmp_path_factory.mktemp("undisturbed")
    assert exit_code(case.main(words), *words[1:], place) == 0
    return words, results_below(place)


# Killed


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
    if case.name == "parity_mlp":
        assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


# Stopped by a signal


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
    case, tmp_path, capsys, monkeypatch, three, owner, name, calls, units
):
    words, undisturbed = three
    step = None if units is None else units * case.unit
    with monkeypatch.context() as patch:
        if owner is None:
            case.patch_engine(patch, lambda engine: and_signal(engine, *calls))
        else:
            patch.setattr(owner, name, and_signal(getattr(owner, name), *calls))
        assert case.stopped(capsys, *words, tmp_path / "stopped") == step
    students = list((tmp_path / "stopped").iterdir())
    assert len(students) == 3
    for student in students:
        assert Run(student).complete if step is None else resume_steps(student) == [step]
    case.succeed(capsys, *words, tmp_path / "stopped")
    assert results_below(tmp_path / "stopped") == undisturbed


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


# Diverged


def test_a_student_that_diverges_does_not_stop_the_others(case, tmp_path, capsys, monkeypatch, teacher):
    score, calls = training.score, itertools.count(1)

    def score_not_finite(*arguments):
        return (math.nan, 0.5) if next(calls) == 4 else score(*arguments)  # the second student's second evaluation

    words = [*case.distill, "--methods", "one-shot", "--teacher", teacher, "--seeds", 0, 1, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "score", score_not_finite)
        code, stderr = case.start(capsys, *words, tmp_path / "runs")
    diverged = tmp_path / "runs" / case.student_run("one-shot", seed=1)
    assert code == 3
    assert f"{diverged.name}: the loss is not finite at step {5 * case.unit}" in stderr[-1]
    assert not Run(diverged).complete
    assert len(Run(diverged).records()) == 1
    case.succeed(capsys, *words, tmp_path / "whole")
    name = case.student_run("one-shot")
    assert results(tmp_path / "runs" / name) == results(tmp_path / "whole" / name)


# Wrongly called

WRONG = (
    ("--weight-decay -1", "--weight-decay"),
    "--label-temperature -1",
    ("--labels 3", "--labels 'power of two'"),
    ("--labels 16", "16 labels"),
    ("--k 11", "k 11"),
    ("--d 5000", "--d 'must be from 1 to 4,096, got 5,000'"),
    ("--support 0,1,10 --k 3", "support 10"),
    ("--support 0", "--support 1"),
    ("--support 0,1,1 --k 3", "'distinct coordinates'"),
    ("--support all", "--support first random all"),
    ("--support random --support-seed -1", "--support-seed"),
    "--device abacus",
)
WRONG_DISTILL = (
    ("--lr 0.1 -1", "--lr -1"),
    ("--lr 0.1 0.2 0.1", "--lr 0.1 0.2"),
    ("--lr 0.1 10 --weight-decay 1", "--weight-decay"),
    ("--methods one-shot --top-k 3", "--top-k 2 3"),
    ("--methods custom --segments 5:100 2000", "--segments 5"),
    ("--support 1,2,3 --k 3", "'trained with'"),
    ("--k 1", "'trained with k' 1"),
)


@refusals(*WRONG)
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(case, tmp_path, capsys, words, named):
    line = case.fail_in_one_line(capsys, *case.train, "--out", tmp_path / "run", *words.split())
    assert_named(line, named)
    assert files(tmp_path) == {}


@refusals(*WRONG, *WRONG_DISTILL)
def test_students_that_cannot_be_are_refused_before_anything_is_made(case, tmp_path, capsys, teacher, words, named):
    before = files(teacher)
    words = [*case.distill, "--teacher", teacher, "--out", tmp_path / "students", *words.split()]
    assert_named(case.fail_in_one_line(capsys, *words), named)
    assert files(tmp_path) == {}
    assert files(teacher) == before


# Teachers


def test_a_support_in_other_words_is_the_same_support(case, tmp_path, capsys, teacher):
    support = ",".join(map(str, range(case.k)))
    words = [*case.distill, "--methods", "one-shot", "--teacher", teacher, "--out", tmp_path / "student"]
    case.succeed(capsys, *words, "--support", support, "--support-seed", 5)


def test_a_teacher_of_another_kind_is_one_line(case, tmp_path, capsys, teacher):
    checkpoint = shutil.copytree(teacher, tmp_path / "teacher") / f"checkpoint-{30 * case.unit}"
    change_config(checkpoint, model_type="bert")
    words = [*case.distill, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students"]
    assert_named(case.fail_in_one_line(capsys, *words), f"{checkpoint} bert parity_mlp gpt2")
    assert not (tmp_path / "students").exists()


# Existing directories


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
    folder = ROOT / "runs" / "of-a-test" / case.name
    assert trained == folder / "smoke-seed3"
    assert student.parent == folder
    assert student.name.startswith(f"smoke-{case.student_run('ce')}")
    assert {setting for _, setting in opened} == {case.name}


# In processes of their own


def test_commands_start_from_the_root_and_from_the_folder(case):
    assert_helpful_from_both_folders(case.name)


def test_train_starts_from_the_folder_of_its_setting(tmp_path, teacher_of, one_torch_thread):
    run = tmp_path / "run"
    done = python("train.py", *GPT2.train[1:], "--out", run, cwd=ROOT / GPT2.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run}: accuracy ")
    assert "step 30 of 30, loss" in done.stderr
    assert results(run) == results(teacher_of(GPT2))


def test_probe_starts_from_the_folder_of_its_setting(tmp_path, teacher_of, one_torch_thread):
    """tests/parity_mlp/test_commands.py starts distill.py."""
    run = shutil.copytree(teacher_of(MLP), tmp_path / "run")
    done = python("probe.py", "--samples", 100, "--degrees", 1, "--run", run, cwd=ROOT / MLP.name)
    assert done.returncode == 0, done.stderr
    (path,) = (run / "probes").iterdir()
    assert done.stdout == f"{path}\n"
    assert [entry["step"] for entry in json.loads(path.read_text())["checkpoints"]] == [1000, 2000, 3000]
