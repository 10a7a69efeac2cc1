"""Runs with damaged files, on a read-only disk, refused before they begin, or whose teacher changes."""

from functools import partial

import pytest

from common.errors import DivergedError, UserError
from common.runs import run as module
from common.runs.checkpoints import save_checkpoint
from common.runs.run import Run
from tests.commands import change_config
from tests.files import content, make_read_only

open_run = partial(module.open_run, setting="parity_mlp")

START_OVER = "to start over, rerun its command with --force"


def train(directory):
    """A complete run with two records and a checkpoint."""
    with open_run(directory, {"lr": 0.1}) as run:
        for step in (0, 5):
            run.log({"step": step, "loss": 0.5})
        save_checkpoint(directory, 5, {}, {})
        run.finish({"loss": 0.5})


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": []},
        {"setting": 7},
        {"argv": "python"},
        {"argv": [1]},
        {"versions": None},
        {"seconds": "1"},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"id": 7},
        {"commit": 7},
        {"teacher_checkpoints": {"last": "a"}},
    ],
    ids=str,
)
def test_a_config_with_values_of_other_types_is_one_line_and_can_be_started_over(tmp_path, changes):
    train(tmp_path / "run")
    change_config(tmp_path / "run", **changes)
    before = content(tmp_path / "run")
    message = rf"^{tmp_path}/run/config.json is damaged: {START_OVER}"
    with pytest.raises(UserError, match=f"{message}$"):
        _ = Run(tmp_path / "run").config
    with pytest.raises(UserError, match=f"{message}; .*--out$"), open_run(tmp_path / "run", {"lr": 0.1}):
        pass
    assert content(tmp_path / "run") == before
    with open_run(tmp_path / "run", {"lr": 0.1}, force=True) as run:
        assert run.config["arguments"] == {"lr": 0.1}


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_config_is_started_over_by_force_if_all_else_is_of_a_run(tmp_path, text):
    run = tmp_path / "run"
    train(run)
    (run / ".checkpoint-9.77.unfinished").mkdir()
    (run / "config.json").write_bytes(text)
    (run / "notes.txt").write_text("mine")
    before = content(run)
    for force in (False, True):
        with pytest.raises(UserError, match=r"is not a run.*--out$"), open_run(run, {"lr": 0.1}, force=force):
            pass
    assert content(run) == before
    (run / "notes.txt").unlink()
    with (
        pytest.raises(UserError, match=f"config.json is damaged: {START_OVER}"),
        open_run(run, {"lr": 0.1}),
    ):
        pass
    with open_run(run, {"lr": 0.1}, force=True):
        pass
    assert {path.name for path in run.iterdir()} == {".lock", "config.json", "metrics.jsonl"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_run_with_a_damaged_done_json_is_not_complete(tmp_path, text):
    train(tmp_path / "run")
    (tmp_path / "run" / "done.json").write_text(text)
    before = content(tmp_path / "run")
    assert not Run(tmp_path / "run").complete
    with pytest.raises(UserError, match="is not a complete run"):
        _ = Run(tmp_path / "run").summary
    with pytest.raises(UserError, match=r"done.json is damaged: start over with --force$"):
        train(tmp_path / "run")
    assert content(tmp_path / "run") == before
    with open_run(tmp_path / "run", {"lr": 0.1}, force=True):
        pass


# Refused, and read-only


def refuse(directory, *records):
    """Open a run, log some records, and find that its input cannot be."""
    with pytest.raises(UserError, match="cannot be"):
        log_and_refuse(directory, records)


def log_and_refuse(directory, records):
    with open_run(directory, {"lr": 0.1}) as run:
        for record in records:
            run.log(record)
        save_checkpoint(directory, 0, {}, {})
        raise UserError("this cannot be")


def test_a_refused_new_run_leaves_nothing_behind(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".lock").touch()
    for name in ("new", "mine"):
        refuse(tmp_path / name)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["mine", "mine/.lock"]


def test_a_run_with_records_or_of_an_earlier_session_stays_when_it_is_refused(tmp_path):
    refuse(tmp_path / "run", {"step": 0})
    with open_run(tmp_path / "empty", {"lr": 0.1}):
        pass
    refuse(tmp_path / "empty")
    with pytest.raises(DivergedError), open_run(tmp_path / "diverged", {"lr": 0.1}):
        raise DivergedError("the loss is not finite")
    for name in ("run", "empty", "diverged"):
        assert Run(tmp_path / name).config["arguments"] == {"lr": 0.1}


def test_a_complete_run_on_a_read_only_disk_is_opened(tmp_path, monkeypatch):
    train(tmp_path / "run")
    with open_run(tmp_path / "half", {"lr": 0.1}):
        pass
    before = content(tmp_path)
    make_read_only(monkeypatch)
    with open_run(tmp_path / "run", {"lr": 0.1}, wandb="online") as run:
        assert run.complete
    with pytest.raises(UserError, match="other arguments"), open_run(tmp_path / "run", {"lr": 0.2}):
        pass
    for name, force in (("half", False), ("run", True)):
        with pytest.raises(OSError, match="Read-only"), open_run(tmp_path / name, {"lr": 0.1}, force=force):
            pass
    assert content(tmp_path) == before


# Teachers


def test_a_run_keeps_its_teacher(tmp_path):
    known = {"90": "a", "100": "b"}
    with open_run(tmp_path / "run", {}) as run:
        for _ in range(2):
            run.keep_teacher(known)
            assert run.config["teacher_checkpoints"] == known
        for other, message in (
            ({"100": "b"}, "checkpoint 90 of the teacher of .* is missing"),
            ({"90": "b", "100": "a"}, "checkpoint 90 .* has changed"),
            ({**known, "95": "c"}, "checkpoint 95 .* is new"),
            ({}, "checkpoint 90 .* is missing"),
        ):
            with pytest.raises(UserError, match=f"^{message} since the run began: .*--force$"):
                run.keep_teacher(other)
        assert run.config["teacher_checkpoints"] == known
