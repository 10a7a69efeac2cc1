"""Probes of both settings on grammars: only what is missing is measured, and what cannot be probed."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import PCFG_mlm.bayes_optimal
from common.pcfg import probing
from common.probes import checkpoints
from common.runs.run import open_run
from tests.commands import ROOT, Killed, and_signal, assert_named, files, python, refusals
from tests.pcfg import AUTOREGRESSIVE, MLM, SETTINGS

PROBES = {
    "ngrams": "ngrams --sentences 12 --run",
    "nonterminals": "nonterminals --training 64 --heldout 20 --epochs 1 --heads 2 --dimension 8 --run",
    "generation": "generation --continuations 20 --tokens 5 --run",
    "windows": "windows --positions 12 --sizes 1 3 --run",
}


@pytest.fixture(params=SETTINGS, ids=lambda setting: setting.name)
def pcfg(request):
    return request.param


@pytest.fixture
def run(pcfg, teacher_of, tmp_path):
    """A run with checkpoints at steps 10, 20 and 30."""
    return shutil.copytree(teacher_of(pcfg), tmp_path / "run")


@pytest.fixture(params=PROBES)
def words(pcfg, request):
    if pcfg is MLM and request.param == "generation":
        pytest.skip("BERT does not generate")
    return ["probe", *shlex.split(PROBES[request.param])]


@pytest.fixture
def loaded(pcfg, monkeypatch):
    """A list that grows with each checkpoint that is measured."""
    calls, load = [], pcfg.setting.load_model
    counting = replace(pcfg.setting, load_model=lambda *arguments: calls.append(1) or load(*arguments))
    monkeypatch.setattr(pcfg.module("training"), "SETTING", counting)
    return calls


def probe(pcfg, capsys, *words):
    """Run probe.py and read the file that it names."""
    return json.loads(Path(pcfg.succeed(capsys, *words).strip()).read_text())


def test_only_checkpoints_that_are_new_are_probed(pcfg, run, capsys, words, loaded):
    probe(pcfg, capsys, *words, run)
    first = files(run)
    assert len(loaded) == 3
    probe(pcfg, capsys, *words, run)
    assert len(loaded) == 3
    assert files(run) == first

    shutil.copytree(run / "checkpoint-10", run / "checkpoint-15")
    entries = probe(pcfg, capsys, *words, run)["checkpoints"]
    assert len(loaded) == 4
    assert [entry["step"] for entry in entries] == [10, 15, 20, 30]
    assert {**entries[1], "step": 10} == entries[0]

    other = probe(pcfg, capsys, *words, run, "--seed", 1)
    assert len(loaded) == 8
    assert len(list((run / "probes").iterdir())) == 2
    assert other["settings"]["seed"] == 1
    assert words[1] == "generation" or other["checkpoints"] != entries
    probe(pcfg, capsys, *words, run, "--device", "cpu")
    assert len(loaded) == 8


def test_a_probe_stopped_by_a_signal_leaves_at_once_and_resumes(pcfg, run, capsys, words, monkeypatch):
    whole = probe(pcfg, capsys, *words, run)
    (path,) = (run / "probes").iterdir()
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "local_path", and_signal(checkpoints.local_path, 2))
        assert pcfg.stopped(capsys, *words, run) is None
    assert json.loads(path.read_text()) == {**whole, "checkpoints": whole["checkpoints"][:1]}
    assert probe(pcfg, capsys, *words, run) == whole


def test_a_killed_probe_resumes(pcfg, run, capsys, words, loaded, monkeypatch):
    write = checkpoints.write_file

    def write_until_killed(path, content):
        if len(loaded) == 2:
            raise Killed
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_file", write_until_killed)
        with pytest.raises(Killed):
            pcfg.start(capsys, *words, run)
    exact = []
    for module, name in ((PCFG_mlm.bayes_optimal, "cavities"), (probing, "ancestor_posteriors")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, real=real: exact.append(1) or real(*arguments))
    content = probe(pcfg, capsys, *words, run)
    assert len(loaded) == 4
    assert not exact
    assert [entry["step"] for entry in content["checkpoints"]] == [10, 20, 30]
    shutil.rmtree(run / "probes")
    assert probe(pcfg, capsys, *words, run) == content
    assert bool(exact) == ("bayes_optimal" in content)


@refusals(
    ("ngrams --sentences 0", "--sentences 0"),
    ("ngrams --sizes 3 1", "--sizes 1"),
    ("ngrams --positions -1", "--positions -1"),
    ("ngrams --spacing 40", "5-gram 40"),
    ("ngrams --spacing 0", "positions"),
    ("ngrams --seed -1", "--seed -1"),
    ("nonterminals --training 0", "--training 0"),
    ("nonterminals --lr nan", "--lr nan"),
    ("nonterminals --levels 1", "nonterminal"),
    ("nonterminals --levels 5", "--levels small 4 5"),
    ("nonterminals --exact -1", "--exact -1"),
    ("windows --positions -1", "--positions -1"),
    ("windows --sizes 1 0", "--sizes 0"),
    ("windows --sizes 3 1", "--sizes '3 1'"),
    ("windows --sizes 1 1", "--sizes '1 1'"),
    ("windows --seed -1", "--seed -1"),
    ("windows --eval-samples 4", "'is a run' --eval-samples"),
)
def test_a_probe_that_cannot_be_is_one_line_and_writes_nothing(pcfg, run, capsys, words, named):
    before = files(run)
    assert_named(pcfg.fail_in_one_line(capsys, "probe", *words.split(), "--run", run), named)
    assert files(run) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_does_not_exist_is_refused(pcfg, run, capsys, words):
    assert_named(pcfg.fail_in_one_line(capsys, *words, run, "--device", "cuda"), "--device cuda")


def test_a_probe_of_something_else_than_a_run_is_one_line(pcfg, run, tmp_path, capsys, words):
    (tmp_path / "thesis").mkdir()
    for name in ("thesis", "missing"):
        assert "is not a run" in pcfg.fail_in_one_line(capsys, *words, tmp_path / name)
    with open_run(tmp_path / "parity", {"d": 10, "k": 3}, setting="parity_mlp"):
        pass
    line = pcfg.fail_in_one_line(capsys, *words, tmp_path / "parity")
    assert_named(line, f"parity_mlp {pcfg.name}")
    for step in (10, 20, 30):
        shutil.rmtree(run / f"checkpoint-{step}")
    assert "has no checkpoint-<step>" in pcfg.fail_in_one_line(capsys, *words, run)


def test_it_starts_from_the_folder_of_the_setting(teacher_of, tmp_path):
    run = shutil.copytree(teacher_of(AUTOREGRESSIVE), tmp_path / "run")
    done = python("probe.py", *shlex.split(PROBES["ngrams"]), run, cwd=ROOT / AUTOREGRESSIVE.name)
    assert done.returncode == 0, done.stderr
    (path,) = (run / "probes").iterdir()
    assert done.stdout == f"{path}\n"
