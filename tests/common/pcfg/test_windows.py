"""The probe of windows: its file against plain computations, the choice of positions, and models without divergence."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import PCFG_autoregressive.bayes_optimal
import PCFG_mlm.bayes_optimal
from common.distillation.losses import IGNORED_LABEL
from common.language_models.setting import task_of_run
from common.pcfg.batches import evaluation_batches
from common.pcfg.windows import choose_positions, divergences
from common.resources import require_memory
from common.teachers.discovery import find_checkpoints
from tests.pcfg import MLM, SETTINGS, SMALL

OPTIMA = {"PCFG_mlm": PCFG_mlm.bayes_optimal, "PCFG_autoregressive": PCFG_autoregressive.bayes_optimal}
SIZES = (1, 3, 7)


@pytest.fixture(params=SETTINGS, ids=lambda setting: setting.name)
def pcfg(request):
    return request.param


def labels_of(task, batches):
    """Each sentence's tensors and the column of a label, in the order of the batches."""
    for batch in batches:
        for row, labels in enumerate(batch.labels):
            for column in range(len(labels)):
                if labels[column] not in (IGNORED_LABEL, task.bos):
                    yield batch, row, column


def test_the_file_has_plain_means_over_all_labels(pcfg, teacher_of, capsys, tmp_path):
    run, optimum = teacher_of(pcfg), OPTIMA[pcfg.name]
    words = ["windows", "--run", run, "--positions", 0, "--sizes", *SIZES, "--out", tmp_path / "windows.json"]
    content = json.loads(Path(pcfg.succeed(capsys, "probe", *words).strip()).read_text())
    task = task_of_run(run, pcfg.setting)
    batches = evaluation_batches(task, 32, 32)
    labels = list(labels_of(task, batches))
    assert (content["positions"], content["eval_samples"]) == (len(labels), 32)
    exact = np.array([optimum.window_posteriors_of_label(task, *label, SIZES) for label in labels])
    tokens = [*SIZES, None]

    best = optimum.bayes_optimal(task, batches)
    certain = sum(int((batch.labels == task.bos).sum()) for batch in batches)
    share = (len(labels) + certain) / len(labels)
    whole = content["windows"][-1]
    assert whole["loss"] == pytest.approx(share * best.loss)
    assert 1 - whole["accuracy"] == pytest.approx(share * (1 - best.accuracy))
    assert 1 - whole["expected_accuracy"] == pytest.approx(share * (1 - best.expected_accuracy))
    for i, entry in enumerate(content["windows"]):
        assert entry["tokens"] == tokens[i]
        positive = np.where(exact[:, i] > 0, exact[:, i], 1)
        assert entry["entropy"] == pytest.approx(-(positive * np.log(positive)).sum(axis=1).mean())

    kind = AutoModelForMaskedLM if pcfg is MLM else AutoModelForCausalLM
    for checkpoint, entry in zip(find_checkpoints(run), content["checkpoints"], strict=True):
        model = kind.from_pretrained(checkpoint.location).eval()
        found = []
        for batch, row, column in labels:
            inputs = {name: tensor[[row]] for name, tensor in asdict(batch).items() if name != "labels"}
            with torch.no_grad():
                logits = model(**inputs).logits[0, column if pcfg is MLM else column - 1]
            found.append(logits.double().softmax(dim=-1).numpy())
        ratio = np.where(exact > 0, exact, 1) / np.where(exact > 0, np.array(found)[:, None], 1)
        expected = (exact * np.log(ratio)).sum(axis=2).mean(axis=0)
        assert [window["tokens"] for window in entry["windows"]] == tokens
        assert [window["kl"] for window in entry["windows"]] == pytest.approx(expected, abs=1e-5)


def test_a_model_that_predicts_as_a_window_does_has_no_divergence_from_it(pcfg):
    task = pcfg.task(SMALL)
    batches = evaluation_batches(task, 4, 4)
    predict = OPTIMA[pcfg.name].window_posteriors_of_label
    exact = torch.from_numpy(np.array([predict(task, *label, SIZES) for label in labels_of(task, batches)]))
    for i in range(len(SIZES) + 1):
        logits = exact[:, i].clamp(min=1e-300).log() + torch.arange(len(exact))[:, None]
        found = divergences(exact, logits).mean(dim=0)
        assert found[i].item() == pytest.approx(0, abs=1e-12)
        assert all(found[j] > 0.01 for j in range(len(found)) if j != i)


def test_positions_are_drawn_from_all_labels_alike(pcfg):
    task = pcfg.task(SMALL)
    batches = evaluation_batches(task, 24, 8)
    every = [(id(batch.labels), row, column) for batch, row, column in labels_of(task, batches)]
    original = {tuple(row.tolist()): place for batch in batches for place in [id(batch.labels)] for row in batch.labels}
    assert len(original) == 24

    def chosen(positions, seed):
        places = []
        for batch, labels in choose_positions(task, batches, positions, seed):
            for some, row, kept in zip(batch.labels, batch.input_ids, labels, strict=True):
                which = original[tuple(some.tolist())]
                (source,) = (each for each in batches if id(each.labels) == which)
                index = next(i for i, other in enumerate(source.labels) if other.equal(some))
                assert source.input_ids[index].equal(row)
                columns = (kept != IGNORED_LABEL).nonzero()[:, 0]
                assert kept[columns].equal(some[columns])
                assert len(columns)
                places += [(which, index, column) for column in columns.tolist()]
        return places

    assert chosen(0, 0) == chosen(len(every), 1) == chosen(10**12, 2) == every
    counts = dict.fromkeys(every, 0)
    for seed in range(200):
        drawn = chosen(20, seed)
        assert len(set(drawn)) == 20
        assert drawn == [place for place in every if place in set(drawn)]
        for place in drawn:
            counts[place] += 1
    share = 20 / len(every)
    square = sum((count - 200 * share) ** 2 for count in counts.values()) / (200 * share * (1 - share))
    assert abs(square - len(every)) < 6 * (2 * len(every)) ** 0.5
    assert chosen(20, 3) == chosen(20, 3)


def test_sentences_without_labels_are_refused(pcfg, teacher_of, capsys, tmp_path, monkeypatch):
    assert choose_positions(pcfg.task(SMALL), evaluation_batches(pcfg.task(SMALL), 1, 1), 1, 0)
    monkeypatch.setattr("common.pcfg.windows.evaluation_batches", lambda *arguments: [])
    words = ["probe", "windows", "--run", teacher_of(pcfg), "--out", tmp_path / "windows.json"]
    assert "no position of the evaluation sentences has a label" in pcfg.fail_in_one_line(capsys, *words)


@pytest.mark.parametrize("probe", ["windows", "bayes-optimal"])
def test_more_sentences_than_fit_into_memory_are_refused(pcfg, teacher_of, capsys, tmp_path, probe):
    shutil.copytree(teacher_of(pcfg) / "checkpoint-30", tmp_path / "theirs" / "checkpoint-30")
    words = ["probe", probe, "--run", tmp_path / "theirs", "--grammar", "small", "--eval-samples", 10**15]
    assert f"--eval-samples {10**15}" in pcfg.fail_in_one_line(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_posteriors_that_do_not_fit_into_memory_are_refused(pcfg, teacher_of, capsys, tmp_path, monkeypatch):
    def with_less(parts):
        require_memory({what: needed * 10**10 for what, needed in parts.items() if "--positions" in what})

    monkeypatch.setattr("common.pcfg.windows.require_memory", with_less)
    words = ["windows", "--run", teacher_of(pcfg), "--positions", 9, "--sizes", 1, "--out", tmp_path / "windows.json"]
    assert "--positions 9 with 2 windows" in pcfg.fail_in_one_line(capsys, "probe", *words)
