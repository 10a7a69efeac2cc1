"""Half runs whose files are damaged, lost or exchanged before they are resumed."""

import itertools
import json
import re
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from common.runs.resume import resume_steps
from common.runs.run import Run
from common.runs.table import table_row
from common.teachers.discovery import find_checkpoints
from tests.commands import Killed, change_config, cut, exit_code, files, results, save_often
from tests.every_setting import one_of_each_path
from tests.parity import CASES

pytestmark = one_of_each_path


def kill_at_record(setting, number, *words):
    """Run a command until it is to log this record; its states are written as often as possible."""
    log, calls = Run.log, itertools.count(1)

    def log_until_killed(run, record):
        if next(calls) == number:
            raise Killed
        log(run, record)

    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        patch.setattr(Run, "log", log_until_killed)
        with pytest.raises(Killed):
            exit_code(setting.main(words), *words[1:])


def swap(one, other):
    place = one.with_name("place")
    for source, target in ((one, place), (other, one), (place, other)):
        source.rename(target)


def change_tensors(path, change):
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].size)
    change(tensors, name)
    save_file(tensors, path, metadata={"format": "pt"})


def lose_a_record(run):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:1], *lines[2:]]))


def edit_a_record(run):
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 1))


def state(run, name):
    (found,) = run.glob(f"resume/*/{name}")
    return found


TENSORS = "tensors.safetensors"
DAMAGES = {
    "tensor removed": (lambda run: change_tensors(state(run, TENSORS), dict.pop), f"{TENSORS} is damaged"),
    "tensor transposed": (
        lambda run: change_tensors(
            state(run, TENSORS), lambda tensors, name: tensors.update({name: tensors[name].T.copy()[None]})
        ),
        f"{TENSORS} is damaged",
    ),
    "tensor changed": (
        lambda run: change_tensors(
            state(run, TENSORS), lambda tensors, name: tensors.update({name: tensors[name] * 2 + 1})
        ),
        f"{TENSORS} is damaged",
    ),
    "empty state": (lambda run: state(run, "state.json").write_text("{}"), "state.json is damaged"),
    "cut state": (lambda run: cut(state(run, "state.json")), "state.json is truncated or damaged"),
    "earlier state": (
        lambda run: state(run, "state.json").parent.rename(run / "resume" / "7"),
        "resume/7/state.json is damaged",
    ),
    "later state": (
        lambda run: state(run, "state.json").parent.rename(run / "resume" / "99999999"),
        "resume/99999999/state.json is damaged",
    ),
    "no records": (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl has lost records or was edited"),
    "lost record": (lose_a_record, "metrics.jsonl has lost records or was edited"),
    "edited record": (edit_a_record, "metrics.jsonl has lost records or was edited"),
    "checkpoint lost": (lambda run: shutil.rmtree(find_checkpoints(run)[0].location), "is missing: restore it"),
    "checkpoints swapped": (
        lambda run: swap(*(checkpoint.location for checkpoint in find_checkpoints(run)[:2])),
        "is not the checkpoint that this run saved: restore it",
    ),
    "arguments a list": (lambda run: change_config(run, arguments=[]), "config.json is damaged"),
    "setting a number": (lambda run: change_config(run, setting=7), "config.json is damaged"),
    "damaged end": (lambda run: (run / "done.json").write_text('{"step'), "done.json is damaged"),
    "cut config": (lambda run: cut(run / "config.json"), "config.json is damaged"),
}


@pytest.fixture(scope="module")
def whole(setting, teacher):
    """The results of the run, without those of probes of other tests."""
    return {name: content for name, content in results(teacher).items() if not name.startswith("probes/")}


@pytest.fixture(scope="module")
def killed(setting, tmp_path_factory):
    """A run killed after it saved its state at 25 units, with checkpoints at 10 and 20."""
    run = tmp_path_factory.mktemp("killed") / "run"
    kill_at_record(setting, 7, *setting.train, "--out", run)
    assert resume_steps(run) == [25 * setting.unit]
    return run


@pytest.fixture
def half(killed, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed, tmp_path / "half")


def test_a_damaged_half_run_is_refused_in_one_line_or_started_over_by_force(setting, tmp_path, capsys, half, whole):
    for name, (damage, message) in DAMAGES.items():
        run = tmp_path / name
        shutil.copytree(half, run)
        damage(run)
        before = files(run)
        line = setting.fail_in_one_line(capsys, *setting.train, "--out", run)
        assert message in line, name
        assert re.search("start over(, rerun its command)? with --force", line), name
        assert {**files(run), "config.json": before["config.json"]} == before, name
    setting.succeed(capsys, *setting.train, "--force", "--out", run)
    assert results(run) == whole


def test_what_a_half_run_wrote_after_its_state_may_be_damaged(setting, capsys, half, whole):
    with (half / "metrics.jsonl").open("a") as metrics:
        metrics.write((half / "metrics.jsonl").read_text() + "[1]\n{")
    shutil.copytree(find_checkpoints(half)[0].location, half / f"checkpoint-{27 * setting.unit}")
    setting.succeed(capsys, *setting.train, "--out", half)
    assert results(half) == whole


# Teachers


def test_a_half_run_notices_that_its_teacher_changed(setting, tmp_path, capsys, teacher):
    """The teacher is not a run, so that it has no id."""
    unit, foreign = setting.unit, foreign_teacher(tmp_path, teacher)
    words = [*setting.distill, "--methods", "progressive", "--teacher", foreign, "--out", tmp_path / "half"]
    kill_at_record(setting, 3, *words)
    assert resume_steps(tmp_path / "half") == [5 * unit]
    known = json.loads((tmp_path / "half" / "config.json").read_text())["teacher_checkpoints"]
    assert set(known) == {str(step * unit) for step in (10, 20, 30)}
    shutil.copytree(foreign, tmp_path / "whole")

    def double(tensors, name):
        tensors[name] = tensors[name] * 2

    changes = {
        "is missing": lambda: shutil.rmtree(foreign / f"checkpoint-{10 * unit}"),
        "is new": lambda: shutil.copytree(foreign / f"checkpoint-{10 * unit}", foreign / f"checkpoint-{5 * unit}"),
        "has changed": lambda: swap(foreign / f"checkpoint-{10 * unit}", foreign / f"checkpoint-{20 * unit}"),
        "has changed ": lambda: change_tensors(foreign / f"checkpoint-{10 * unit}" / "model.safetensors", double),
    }
    for how, change in changes.items():
        change()
        before = files(tmp_path / "half")
        code, stderr = setting.start(capsys, *words, "--trust-trajectory")
        step = (5 if how == "is new" else 10) * unit
        assert code == 2
        assert f"checkpoint {step} of the teacher of {tmp_path / 'half'} {how.strip()}" in stderr[-1]
        assert stderr[-1].endswith("restore the teacher, or start over with --force")
        assert {**files(tmp_path / "half"), "config.json": before["config.json"]} == before
        shutil.rmtree(foreign)
        shutil.copytree(tmp_path / "whole", foreign)
    setting.succeed(capsys, *words)
    assert Run(tmp_path / "half").complete


def foreign_teacher(tmp_path, teacher):
    """The checkpoints of a run, without what makes it one."""
    foreign = tmp_path / "foreign"
    for checkpoint in find_checkpoints(teacher):
        shutil.copytree(checkpoint.location, foreign / checkpoint.location.name)
    return foreign


def test_a_complete_run_notices_that_its_teacher_changed(setting, tmp_path, capsys, teacher):
    foreign = foreign_teacher(tmp_path, teacher)
    words = [*setting.distill, "--methods", "one-shot", "--teacher", foreign, "--out", tmp_path / "run"]
    setting.succeed(capsys, *words)
    before = results(tmp_path / "run")
    setting.succeed(capsys, *words)
    last = find_checkpoints(foreign)[-1]
    change_tensors(last.location / "model.safetensors", lambda tensors, name: tensors.update({name: tensors[name] * 2}))
    line = setting.fail_in_one_line(capsys, *words)
    assert f"checkpoint {last.step} of the teacher of {tmp_path / 'run'} has changed since the run began" in line
    assert results(tmp_path / "run") == before


def test_checkpoints_that_a_student_does_not_use_may_be_damaged_or_new(setting, tmp_path, capsys, teacher):
    unit, foreign = setting.unit, foreign_teacher(tmp_path, teacher)
    cut(foreign / f"checkpoint-{20 * unit}" / "model.safetensors")
    schedule = ["--methods", "custom", "--segments", f"{10 * unit}:{7 * unit}", f"{30 * unit}"]
    words = [*setting.distill, *schedule, "--teacher", foreign]
    setting.succeed(capsys, *words, "--out", tmp_path / "whole")
    kill_at_record(setting, 3, *words, "--out", tmp_path / "half")
    shutil.copytree(foreign / f"checkpoint-{10 * unit}", foreign / f"checkpoint-{15 * unit}")
    setting.succeed(capsys, *words, "--out", tmp_path / "half")
    assert results(tmp_path / "half") == results(tmp_path / "whole")
    line = setting.fail_in_one_line(capsys, *setting.distill, "--methods", "progressive", "--teacher", foreign)
    assert f"{foreign / f'checkpoint-{20 * unit}' / 'model.safetensors'} is truncated" in line


def test_weights_that_are_not_finite_are_refused_before_training(setting, tmp_path, capsys, teacher):
    """A single value of a checkpoint in the middle of the schedule."""
    foreign = foreign_teacher(tmp_path, teacher)
    path = foreign / f"checkpoint-{20 * setting.unit}" / "model.safetensors"

    def spoil(tensors, name):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[tensors[name].size // 3] = float("nan")

    change_tensors(path, spoil)
    words = [*setting.distill, "--methods", "progressive", "--teacher", foreign, "--out", tmp_path / "run"]
    for more in ([], ["--trust-trajectory"]):
        line = setting.fail_in_one_line(capsys, *words, *more)
        assert f"{path.parent} has weights that are NaN or infinite" in line
        assert not (tmp_path / "run").exists()


def test_a_complete_run_whose_records_changed_is_refused_and_damaged_in_the_table(setting, tmp_path, capsys, teacher):
    changes = {
        "edited": lambda run: edit_last(run),
        "lost": lambda run: (run / "metrics.jsonl").unlink(),
        "empty": lambda run: (run / "metrics.jsonl").write_text(""),
        "cut": lambda run: cut(run / "metrics.jsonl"),
        "line": lambda run: (run / "metrics.jsonl").write_text("[1]\n"),
    }
    for name, change in changes.items():
        run = tmp_path / name
        shutil.copytree(teacher, run)
        change_config(run, arguments=Run(teacher).config["arguments"])
        change(run)
        before = files(run)
        line = setting.fail_in_one_line(capsys, *setting.train, "--out", run)
        assert str(run) in line, name
        assert files(run) == before, name
        assert table_row(Run(run))["state"] == "damaged"
        assert str(run) in capsys.readouterr().err


def test_the_end_of_another_run_does_not_make_a_run_complete(setting, tmp_path, capsys, half, whole, teacher):
    shutil.copy(teacher / "done.json", half)
    before = files(half)
    line = setting.fail_in_one_line(capsys, *setting.train, "--out", half)
    assert "done.json is not of the records in metrics.jsonl" in line
    assert files(half) == before
    words = [*setting.distill, "--methods", "one-shot", "--teacher", half, "--out", tmp_path / "student"]
    assert "done.json is not of the records" in setting.fail_in_one_line(capsys, *words)
    assert table_row(Run(half))["state"] == "damaged"
    (half / "done.json").unlink()
    setting.succeed(capsys, *setting.train, "--out", half)
    assert results(half) == whole


def test_a_teacher_that_lacks_checkpoints_is_trusted_only_on_demand(setting, tmp_path, capsys, teacher):
    for lost in ([30], [10, 20]):
        copy = tmp_path / f"without{len(lost)}"
        shutil.copytree(teacher, copy)
        for step in lost:
            shutil.rmtree(copy / f"checkpoint-{step * setting.unit}")
        words = [*setting.distill, "--methods", "one-shot", "--teacher", copy, "--out", tmp_path / f"of{len(lost)}"]
        line = setting.fail_in_one_line(capsys, *words)
        count = "a checkpoint" if len(lost) == 1 else "2 checkpoints"
        assert f"{copy} lacks {count} that it saved, such as checkpoint-{lost[-1] * setting.unit}: " in line
        assert not (tmp_path / f"of{len(lost)}").exists()
        code, stderr = setting.start(capsys, *words, "--trust-trajectory")
        assert code == 0
        assert any(line.startswith("warning: ") and f"lacks {count}" in line for line in stderr)


def test_files_beside_the_weights_of_a_checkpoint_may_change(setting, tmp_path, capsys, teacher):
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    (copy / f"checkpoint-{30 * setting.unit}" / "README.md").write_text("Final")
    words = [*setting.distill, "--methods", "one-shot", "--teacher", copy, "--out", tmp_path / "run"]
    setting.succeed(capsys, *words)


def test_swapped_checkpoints_of_a_teacher_are_refused(setting, tmp_path, capsys, teacher):
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    swap(*(copy / f"checkpoint-{step * setting.unit}" for step in (10, 30)))
    words = [*setting.distill, "--methods", "one-shot", "--teacher", copy, "--out", tmp_path / "run"]
    for more in ([], ["--trust-trajectory"]):
        line = setting.fail_in_one_line(capsys, *words, *more)
        assert f"{copy / f'checkpoint-{30 * setting.unit}'} is not the checkpoint that this run saved" in line
    assert not (tmp_path / "run").exists()


def edit_last(run):
    *lines, last = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    record = json.loads(last)
    (run / "metrics.jsonl").write_text("".join([*lines, json.dumps({**record, "accuracy": 0.123}) + "\n"]))


def test_a_run_without_a_saved_state_says_that_it_starts_over(setting, capsys, half, whole):
    shutil.rmtree(half / "resume")
    code, stderr = setting.start(capsys, *setting.train, "--out", half)
    assert code == 0
    assert f"{half} has no saved state: starting over" in stderr
    assert results(half) == whole


def test_a_schedule_that_is_too_long_is_told(setting, tmp_path, capsys, teacher):
    unit = setting.unit
    schedule = ["--methods", "custom", "--segments", f"{10 * unit}:{10**6}", f"{30 * unit}"]
    code, stderr = setting.start(capsys, *setting.distill, *schedule, "--teacher", teacher, "--out", tmp_path / "run")
    assert code == 0
    (line,) = [line for line in stderr if "the schedule is longer than the training" in line]
    assert line.startswith("warning: ")
    assert f"does not learn from teacher step {30 * unit}" in line


def test_a_teacher_whose_config_lacks_arguments_is_refused(setting, tmp_path, capsys, teacher):
    shutil.copytree(teacher, tmp_path / "teacher")
    change_config(tmp_path / "teacher", arguments={})
    path = tmp_path / "teacher" / "config.json"
    words = [*setting.distill, "--methods", "one-shot", "--teacher", path.parent, "--out", tmp_path / "student"]
    assert str(path.parent) in setting.fail_in_one_line(capsys, *words)
    probe = ["probe", *(["ngrams"] if setting not in CASES.values() else [])]
    line = setting.fail_in_one_line(capsys, *probe, "--run", path.parent)
    assert f"{path} lacks the argument " in line
    cut(path)
    for command in (words, [*probe, "--run", path.parent]):
        assert str(path) in setting.fail_in_one_line(capsys, *command)
    assert not (tmp_path / "student").exists()
