"""Probes of checkpoints that are not a run's: the task is given, and nothing is written beside the checkpoints."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from common.probes import checkpoints
from tests.commands import assert_named, files

PROBE = shlex.split("probe --samples 400 --outside 4 --degrees 1 2 3")


@pytest.fixture
def foreign(case, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "RUNS", tmp_path / "runs")
    for checkpoint in teacher.glob("checkpoint-*"):
        shutil.copytree(checkpoint, tmp_path / "theirs" / checkpoint.name)
    return tmp_path / "theirs"


def probe(case, capsys, *words):
    path = Path(case.succeed(capsys, *PROBE, *words).strip())
    return path, json.loads(path.read_text())


def test_the_probe_of_a_foreign_teacher_is_that_of_the_same_run(case, capsys, tmp_path, teacher, foreign):
    before = files(foreign)
    run = shutil.copytree(teacher, tmp_path / "run")
    path, own = probe(case, capsys, "--run", run)
    assert path.parent == run / "probes"
    assert set(own) == {"argv", "id", "settings", "checkpoints"}
    assert set(own["settings"]) == {"samples", "degrees", "outside", "seed", "output", "node"}
    task = ["--d", case.d, "--k", case.k, "--support", ",".join(map(str, range(case.k)))]
    path, theirs = probe(case, capsys, "--run", foreign, *task)
    assert path.parent == tmp_path / "runs" / case.name / "probes-of-theirs"
    assert theirs["checkpoints"] == own["checkpoints"]
    assert theirs["run"] == str(foreign)
    assert own["settings"].items() <= theirs["settings"].items()
    assert theirs["settings"]["labels"] == 2
    out = tmp_path / "elsewhere" / "file.json"
    path, again = probe(case, capsys, "--run", foreign, *task, "--out", out)
    assert path == out
    assert again["checkpoints"] == own["checkpoints"]
    assert files(foreign) == before


def test_what_is_missing_of_a_task_is_named(case, capsys, foreign):
    for words, named in (((), "--d --k --support"), (("--d", case.d), "--k --support")):
        line = case.fail_in_one_line(capsys, *PROBE, "--run", foreign, *words)
        assert "is not a run of this project" in line
        assert_named(line, named)
    assert "give --k and --support" in line


def test_a_run_says_its_task_itself(case, capsys, tmp_path, teacher):
    line = case.fail_in_one_line(capsys, *PROBE, "--run", teacher, "--k", case.k)
    assert_named(line, "'is a run' --k")


def test_a_file_of_another_teacher_or_of_other_settings_is_not_continued(case, capsys, tmp_path, foreign):
    task = ["--d", case.d, "--k", case.k, "--support", "first"]
    path, _ = probe(case, capsys, "--run", foreign, *task)
    other = shutil.copytree(foreign, tmp_path / "other" / "theirs")
    before = files(tmp_path)
    assert_named(case.fail_in_one_line(capsys, *PROBE, "--run", other, *task), f"{path} --out")
    for words in (["--seed", 1, "--out", path], ["--out", path.parent]):
        assert "--out" in case.fail_in_one_line(capsys, *PROBE, "--run", foreign, *task, *words)
    assert files(tmp_path) == before


def test_results_of_weights_that_were_replaced_are_refused(case, capsys, foreign):
    task = ["--d", case.d, "--k", case.k, "--support", "first"]
    path, _ = probe(case, capsys, "--run", foreign, *task)
    shutil.rmtree(foreign / f"checkpoint-{30 * case.unit}")
    shutil.copytree(foreign / f"checkpoint-{10 * case.unit}", foreign / f"checkpoint-{30 * case.unit}")
    before = files(path.parent)
    line = case.fail_in_one_line(capsys, *PROBE, "--run", foreign, *task)
    assert f"checkpoint {30 * case.unit:,} has changed since it was probed: remove {path}, and probe again, or" in line
    assert files(path.parent) == before
    path.unlink()
    _, again = probe(case, capsys, "--run", foreign, *task)
    first, _, last = again["checkpoints"]
    assert last == {**first, "step": last["step"]}


def test_a_file_beside_the_checkpoints_of_a_foreign_teacher_says_whose_it_is(case, capsys, foreign):
    task = ["--d", case.d, "--k", case.k, "--support"]
    out = foreign / "probes" / "mine.json"
    probe(case, capsys, "--run", foreign, *task, "first", "--out", out)
    other = ",".join(map(str, range(1, case.k + 1)))
    assert_named(case.fail_in_one_line(capsys, *PROBE, "--run", foreign, *task, other, "--out", out), f"{out} --out")


def test_checkpoints_by_other_names(case, capsys, foreign):
    for number in (10, 20, 30):
        (foreign / f"checkpoint-{number * case.unit}").rename(foreign / f"after{number}")
    task = ["--d", case.d, "--k", case.k, "--support", "first"]
    _, found = probe(case, capsys, "--run", foreign, *task, "--teacher-pattern", "after(?P<step>[0-9]+)")
    assert [entry["step"] for entry in found["checkpoints"]] == [10, 20, 30]
