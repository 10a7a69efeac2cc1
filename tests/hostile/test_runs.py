"""Runs as they must not be: opened, resumed or listed as what they are, or refused by name."""

import csv
import io
import json
import math
import shutil

import pytest
from hypothesis import given, strategies as st

from common.runs.__main__ import main
from common.runs.checkpoints import save_checkpoint
from common.runs.files import digest_of
from common.runs.finding import OF_A_RUN
from common.runs.resume import load_resume, save_resume
from common.runs.run import Run, open_run
from tests.commands import start
from tests.files import CONFIG, TENSORS
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import damaged, json_files, restored

STATE = {"random": [1, 2**70], "best": 0.5}


def made(directory, end):
    """A run with two records, ended by a function of it, and a copy."""
    with open_run(directory, {"lr": 0.1}, setting="parity_mlp") as opened:
        for step in (0, 5):
            opened.log({"step": step, "loss": 0.5, "accuracy": None})
        save_checkpoint(directory, 4, TENSORS, CONFIG)
        end(opened)
    shutil.copytree(directory, directory.with_name("whole"))
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A complete run."""
    results = {"step": 5, "loss": 0.5, "accuracy": None}
    return made(tmp_path_factory.mktemp("runs") / "run", lambda run: run.finish(results))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run with a resume state."""
    return made(tmp_path_factory.mktemp("half") / "run", lambda run: save_resume(run.directory, 5, TENSORS, STATE))


def opened(directory):
    with open_run(directory, {"lr": 0.1}, setting="parity_mlp") as run:
        return run, run.records(), run.seconds


@given(st.sampled_from(["config.json", "done.json"]), st.data())
@cases(400)
def test_descriptions(run, name, data):
    path = restored(run) / name
    path.write_bytes(data.draw(json_files(json.loads(path.read_bytes()))))
    if (found := attempt(opened, run, names=str(run))) is not None:
        known, records, seconds = found
        assert known.complete
        assert known.setting == "parity_mlp"
        assert [record["step"] for record in records] == [0, 5]
        assert 0 <= seconds < math.inf


def line_changed(whole):
    """One of the lines of JSON changed, or the bytes damaged."""
    lines = whole.splitlines(keepends=True)

    def others(i):
        return json_files(json.loads(lines[i])).map(lambda new: b"".join([*lines[:i], new, b"\n", *lines[i + 1 :]]))

    return st.integers(0, len(lines) - 1).flatmap(others) | damaged(whole)


@given(st.data())
@cases(200)
def test_records(half, data):
    path = restored(half) / "metrics.jsonl"
    path.write_bytes(data.draw(line_changed(path.read_bytes())))
    records = attempt(Run(half).records, names=f"{path} is damaged")
    for record in records or ():
        assert record["step"] >= 0
        assert record.get("loss") is None or abs(record["loss"]) < math.inf


@given(st.sampled_from(["state.json", "tensors.safetensors", "metrics.jsonl"]), st.data())
@cases(600)
def test_states(half, name, data):
    restored(half)
    path = half / name if name == "metrics.jsonl" else half / "resume" / "5" / name
    whole = path.read_bytes()
    path.write_bytes(data.draw(json_files(json.loads(whole)) if name == "state.json" else damaged(whole)))
    if (resume := attempt(load_resume, half, names=name)) is not None:
        assert (resume.step, digest_of(resume.state)) == (5, digest_of(STATE))
        assert {key: tensor.tobytes() for key, tensor in resume.tensors.items()} == {
            key: tensor.tobytes() for key, tensor in TENSORS.items()
        }


def is_recognized(run):
    """Whether config.json says that this is a run, or says nothing at all."""
    try:
        config = json.loads((run / "config.json").read_bytes())
    except (ValueError, RecursionError):
        return True
    return not isinstance(config, dict) or not OF_A_RUN.isdisjoint(config)


@given(st.sampled_from(["config.json", "done.json", "metrics.jsonl"]), st.data())
@cases(200)
def test_tables(run, capsys, name, data):
    """A damaged run is a row that says so, whatever is done with the others."""
    path = restored(run) / name
    whole = path.read_bytes()
    path.write_bytes(data.draw(line_changed(whole) if name == "metrics.jsonl" else json_files(json.loads(whole))))
    words = data.draw(st.sampled_from([[], ["--csv", "-"], ["--sort", "final_loss", "--where", "state!=1"]]))
    code, stdout, _ = start(capsys, main, "table", run.parent, *words)
    assert code == 0
    rows = list(csv.reader(io.StringIO(stdout))) if "--csv" in words else stdout.splitlines()
    assert len(rows) == (3 if is_recognized(run) else 2)
    assert start(capsys, main, "compare", run, run.with_name("whole"))[0] in (0, 2)
