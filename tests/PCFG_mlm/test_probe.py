"""Probes of runs that train.py made: their files against naive computations, and everything that cuts them off."""

import json
import shlex
import shutil
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from common.language_models.setting import task_of_run
from common.pcfg import probing
from common.pcfg.batches import evaluation_batches
from common.pcfg.grammar_files import load_grammar
from common.pcfg.probing import bayes_optimal_levels, labelled_sentences
from common.pcfg.sampler import sample
from common.probes.ngrams import ngram
from common.teachers.discovery import find_checkpoints
from PCFG_mlm import bayes_optimal as optimum, train
from PCFG_mlm.batches import MaskedTask
from PCFG_mlm.bayes_optimal import bayes_optimal
from PCFG_mlm.models import load_model
from PCFG_mlm.training import SETTING
from tests.commands import change_config, cut, files
from tests.pcfg import MLM

TINY = """
S -> A B [0.4] | B A C [0.6]
A -> x y | y x x
B -> z x [0.3] | y z [0.6] | y z z [0.1]
C -> x | y
"""
AMBIGUOUS = """
S -> A B [0.6] | B A [0.4]
A -> C [0.3] | C D [0.7]
B -> D C | D
C -> x | y x
D -> y [0.8] | x y [0.2]
"""
NGRAMS = shlex.split("ngrams --sentences 12 --exact 3 --run")
NONTERMINALS = shlex.split("nonterminals --training 64 --heldout 20 --epochs 1 --heads 2 --dimension 8 --run")


def succeed(capsys, *words):
    """Run probe.py and read the file that it names."""
    return json.loads(Path(MLM.succeed(capsys, "probe", *words).strip()).read_text())


def fail_in_one_line(capsys, *words):
    return MLM.fail_in_one_line(capsys, "probe", *words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the smallest grammar of the package, with checkpoints at steps 10, 20 and 30."""
    directory = tmp_path_factory.mktemp("runs") / "small"
    train.train(replace(train.PRESETS["smoke"], steps=30, checkpoint_every=10, eval_every=30, out=directory))
    return directory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run on a grammar all of whose sentences can be listed, without hidden positions."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.cfg").write_text(TINY)
    arguments = replace(train.PRESETS["smoke"], grammar=str(folder / "tiny.cfg"), hide_masked=False, out=folder / "run")
    train.train(replace(arguments, steps=10, checkpoint_every=10, eval_every=10, eval_samples=8))
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("probes"))


def shown_of(length, p, variant, sizes):
    """Positions that are visible: with only p masked, with an n-gram masked, or with all but an n-gram masked."""
    if variant == 0:
        return set(range(length)) - {p}
    first, last = ngram(p, sizes[(variant - 1) % len(sizes)])
    window = set(range(first, last + 1))
    return set(range(length)) - window if variant <= len(sizes) else window - {p}


def distances(answer, sequences, pairs, sizes):
    """|p_n - p_0|_1 by a function of (sequence, position, visible positions): (pairs, 2 len(sizes))."""
    found = []
    for i, p in pairs:
        answers = [
            answer(sequences[i], p, shown_of(len(sequences[i]), p, variant, sizes))
            for variant in range(1 + 2 * len(sizes))
        ]
        found.append([np.abs(other - answers[0]).sum() for other in answers[1:]])
    return np.array(found)


def values_of(entry):
    return np.array([statistics["values"] for statistics in (*entry["robust"], *entry["close"])]).T


# N-grams


@pytest.mark.parametrize("hide_masked", [True, False])
def test_ngrams_of_each_checkpoint_are_those_of_full_sentences(trained, tiny, capsys, hide_masked):
    directory, words, sizes = (trained, "", (2, 3, 4, 5)) if hide_masked else (tiny, "--spacing 2 --sizes 2 3", (2, 3))
    content = succeed(capsys, *NGRAMS, directory, "--values", "--positions", 0, "--seed", 5, *words.split())
    task = task_of_run(directory, SETTING)
    assert task.hide_masked is hide_masked
    drawn = sample(task.grammar, 5, "probe", 0, 12)
    sequences = [np.concatenate([[task.bos], drawn.sentence(i)]) for i in range(12)]
    left, right = ngram(0, max(sizes))
    spacing = 2 if words else int(task.grammar.expected_length // 2)
    assert content["spacing"] == spacing
    assert content["positions"] == [
        [i, p]
        for i, sequence in enumerate(sequences)
        for p in range(spacing, len(sequence), spacing)
        if p + left > 0 and p + right < len(sequence)
    ]
    checkpoints = find_checkpoints(directory)
    assert [entry["step"] for entry in content["checkpoints"]] == [checkpoint.step for checkpoint in checkpoints]
    for checkpoint, entry in zip(checkpoints, content["checkpoints"], strict=True):
        model = load_model(checkpoint.location, task).eval()

        def answer(sequence, p, shown, model=model):
            masked = [i for i in range(len(sequence)) if i not in shown]
            input_ids = torch.tensor(np.array([sequence]))
            input_ids[0, masked] = task.mask
            attention_mask = torch.ones_like(input_ids)
            if hide_masked:
                attention_mask[0, masked] = 0
            with torch.no_grad():
                return model(input_ids=input_ids, attention_mask=attention_mask).logits[0, p].softmax(dim=-1).numpy()

        expected = distances(answer, sequences, content["positions"], sizes)
        np.testing.assert_allclose(values_of(entry), expected, atol=2e-5)
        assert entry["pairs"] == len(expected)
        for statistics, column in zip((*entry["robust"], *entry["close"]), expected.T, strict=True):
            assert statistics["median"] == pytest.approx(np.median(column), abs=2e-5)


def all_sentences():
    """Every sentence of the tiny grammar as token ids (x, y, z = 0, 1, 2), and its probability."""
    words = {
        "A": [("xy", 0.5), ("yxx", 0.5)],
        "B": [("zx", 0.3), ("yz", 0.6), ("yzz", 0.1)],
        "C": [("x", 0.5), ("y", 0.5)],
    }
    found = {}
    for probability, sides in ((0.4, "AB"), (0.6, "BAC")):
        for choice in product(*(words[side] for side in sides)):
            sentence = tuple("xyz".index(letter) for word, _ in choice for letter in word)
            found[sentence] = found.get(sentence, 0) + probability * np.prod([chance for _, chance in choice])
    assert sum(found.values()) == pytest.approx(1)
    return found


def test_bayes_optimal_values_are_those_of_a_list_of_all_sentences(tiny, capsys):
    words = shlex.split("--values --positions 0 --spacing 2 --sizes 2 3 --exact 10")
    content = succeed(capsys, *NGRAMS, tiny, *words)
    task = task_of_run(tiny, SETTING)
    drawn = sample(task.grammar, 0, "probe", 0, 10)
    sequences = [np.concatenate([[task.bos], drawn.sentence(i)]) for i in range(10)]
    sentences = all_sentences()

    def answer(sequence, p, shown):
        chances = np.zeros(3)
        for sentence, probability in sentences.items():
            candidate = (task.bos, *sentence)
            if len(candidate) == len(sequence) and all(candidate[i] == sequence[i] for i in shown):
                chances[candidate[p]] += probability
        return chances / chances.sum()

    pairs = [pair for pair in content["positions"] if pair[0] < 10]
    expected = distances(answer, sequences, pairs, (2, 3))
    np.testing.assert_allclose(values_of(content["bayes_optimal"]), expected, atol=1e-9)
    assert (expected.std(axis=0) > 0.1).all()


def test_bayes_optimal_values_are_of_the_first_sentences_and_can_be_left_out(trained, capsys, monkeypatch):
    content = succeed(capsys, *NGRAMS, trained, "--exact", 0, "--seed", 9)
    assert set(content) == {"argv", "id", "settings", "spacing", "checkpoints"}
    asked = []
    real = optimum.cavities
    monkeypatch.setattr(optimum, "cavities", lambda grammar, rows: asked.extend(rows) or real(grammar, rows))
    content = succeed(capsys, *NGRAMS, trained, "--exact", 2, "--seed", 9)
    assert {len(row) for row in asked} == set(sample(load_grammar("small"), 9, "probe", 0, 2).lengths)
    assert content["bayes_optimal"]["pairs"] == 2
    assert len(asked) == 2 * 9


# Nonterminals


def test_labels_are_the_ancestors_among_the_symbols_of_their_level(trained):
    task = task_of_run(trained, SETTING)
    labelled = labelled_sentences(task, 3, 40, 10, None)
    drawn = sample(task.grammar, 3, "probe", 40, 10, trees=True)
    assert len(labelled.sequences) == len(labelled.labels) == 10
    for i, (sequence, labels) in enumerate(zip(labelled.sequences, labelled.labels, strict=True)):
        assert sequence.tolist() == [task.bos, *drawn.sentence(i)]
        assert labels[0].tolist() == [-1, -1, -1]
        ancestors = drawn.ancestors[drawn.offsets[i] : drawn.offsets[i + 1]]
        for level in (1, 2, 3):
            symbols = task.grammar.levels[level]
            assert [symbols[place] for place in labels[1:, level - 1]] == ancestors[:, level].tolist()


def test_labels_of_a_grammar_without_levels_are_nonterminals(tmp_path):
    (tmp_path / "uneven.cfg").write_text("S -> A S [0.3] | a [0.7]\nA -> b | B b\nB -> a b")
    task = MaskedTask(load_grammar(str(tmp_path / "uneven.cfg")))
    labelled = labelled_sentences(task, 0, 0, 50, 3)
    drawn = sample(task.grammar, 0, "probe", 0, 50, trees=True, levels=3)
    labels = np.concatenate([part[1:] for part in labelled.labels])
    np.testing.assert_array_equal(labels, drawn.ancestors[:, 1:])
    assert set(np.unique(labels)) == {-1, 0, 1, 2}


def test_nonterminals_of_each_checkpoint(trained, capsys, monkeypatch):
    calls = []
    real = probing.probe_nonterminals
    monkeypatch.setattr(
        probing, "probe_nonterminals", lambda *args, **kwargs: calls.append(kwargs) or real(*args, **kwargs)
    )
    content = succeed(capsys, *NONTERMINALS, trained, "--lr", 0.02, "--batch-size", 8)
    assert [entry["step"] for entry in content["checkpoints"]] == [10, 20, 30]
    given = {"heads": 2, "dimension": 8, "lr": 0.02, "epochs": 1, "batch_size": 8, "seed": 0, "device": "cpu"}
    assert calls == [given] * 3
    task = task_of_run(trained, SETTING)
    training, heldout = (
        sample(task.grammar, 0, "probe", first, count, trees=True).ancestors for first, count in ((0, 64), (64, 20))
    )
    for entry in content["checkpoints"]:
        assert [level["level"] for level in entry["levels"]] == [1, 2, 3]
        for level in entry["levels"]:
            majority = np.bincount(training[:, level["level"]]).argmax()
            assert level["tokens"] == len(heldout)
            assert level["majority"] == pytest.approx(np.mean(heldout[:, level["level"]] == majority))
            assert 0.2 < level["accuracy"] < 1
    assert [level["tokens"] for level in content["bayes_optimal"]["levels"]] == [len(heldout)] * 3


def trees_of(symbol, grammar):
    """Every tree of a symbol as tokens, the path of symbols above each of them, and the tree's probability."""
    if symbol in grammar.terminals:
        return [((symbol,), ((),), 1.0)]
    found = []
    for rule in grammar.rules:
        if rule.left == symbol:
            for parts in product(*(trees_of(child, grammar) for child in rule.right)):
                tokens = tuple(token for words, _, _ in parts for token in words)
                paths = tuple((symbol, *path) for _, above, _ in parts for path in above)
                found.append((tokens, paths, rule.probability * np.prod([chance for _, _, chance in parts])))
    return found


def test_the_best_levels_are_those_of_a_list_of_all_trees(tmp_path):
    (tmp_path / "ambiguous.cfg").write_text(AMBIGUOUS)
    task = MaskedTask(load_grammar(str(tmp_path / "ambiguous.cfg")))
    forest = trees_of("S", task.grammar)
    drawn = sample(task.grammar, 0, "probe", 30, 50, trees=True)
    right, expected = np.zeros((2, 2))
    for i in range(50):
        sentence = tuple(task.grammar.terminals[token] for token in drawn.sentence(i))
        parses = [(paths, chance) for tokens, paths, chance in forest if tokens == sentence]
        ancestors = drawn.ancestors[drawn.offsets[i] : drawn.offsets[i + 1]]
        for token, level in product(range(len(sentence)), (1, 2)):
            chances = {
                symbol: sum(chance for paths, chance in parses if paths[token][level] == symbol) for symbol in "ABCD"
            }
            best = max(chances, key=chances.get)
            right[level - 1] += best == task.grammar.nonterminals[ancestors[token, level]]
            expected[level - 1] += chances[best] / sum(chances.values())
    result = bayes_optimal_levels(task, labelled_sentences(task, 0, 30, 50, None))
    tokens = len(drawn.tokens)
    assert [(level["level"], level["tokens"]) for level in result] == [(1, tokens), (2, tokens)]
    assert [level["accuracy"] for level in result] == pytest.approx((right / tokens).tolist(), abs=1e-12)
    assert [level["expected_accuracy"] for level in result] == pytest.approx((expected / tokens).tolist(), abs=1e-12)
    assert (expected < 0.99 * tokens).all()
    assert (right != expected).all()


def test_the_best_levels_are_of_the_first_held_out_sentences_and_can_be_left_out(run, capsys, tmp_path):
    content = succeed(capsys, *NONTERMINALS, run, "--exact", 3, "--levels", 3)
    tokens = len(sample(load_grammar("small"), 0, "probe", 64, 3).tokens)
    one = {"tokens": tokens, "accuracy": pytest.approx(1), "expected_accuracy": pytest.approx(1)}
    assert content["bayes_optimal"]["levels"] == [{"level": 1, **one}, {"level": 2, **one}]
    assert set(succeed(capsys, *NONTERMINALS, run, "--exact", 0)) == {"argv", "id", "settings", "checkpoints"}

    (tmp_path / "uneven.cfg").write_text("S -> A S [0.3] | a [0.7]\nA -> b | B b\nB -> a b")
    uneven = replace(train.PRESETS["smoke"], grammar=str(tmp_path / "uneven.cfg"), out=tmp_path / "uneven")
    train.train(replace(uneven, steps=1, checkpoint_every=0, eval_samples=8))
    assert set(succeed(capsys, *NONTERMINALS, tmp_path / "uneven", "--levels", 2)) == {
        "argv",
        "id",
        "settings",
        "checkpoints",
    }


# Bayes-optimal evaluation


def test_the_best_evaluation_is_on_the_run_s_own_sentences_and_needs_no_checkpoint(tiny, tmp_path, capsys, monkeypatch):
    config = json.loads((tiny / "config.json").read_text())
    config["arguments"]["eval_samples"] = 50
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    content = succeed(capsys, "bayes-optimal", "--run", tmp_path / "run")
    task = MaskedTask(task_of_run(tiny, SETTING).grammar, 0.3, hide_masked=False)
    expected = bayes_optimal(task, evaluation_batches(task, 50, 3))
    assert content.pop("argv") == ["python", "-m", "PCFG_mlm.probe", "bayes-optimal", "--run", str(tmp_path / "run")]
    assert content.pop("eval_samples") == 50
    assert (content.pop("id"), content.pop("settings")) == (config["id"], {"eval_samples": None})
    assert content == pytest.approx(asdict(expected), rel=1e-12)
    assert 0 < content["loss"] < np.log(3)

    before = files(tmp_path)
    monkeypatch.setattr(optimum, "bayes_optimal", None)
    succeed(capsys, "bayes-optimal", "--run", tmp_path / "run")
    assert files(tmp_path) == before
    path = tmp_path / "run" / "probes" / "bayes_optimal.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps({**own, "id": "another"}))
    assert f"{path} holds a probe of another run" in fail_in_one_line(capsys, "bayes-optimal", "--run", path.parents[1])
    path.write_text(json.dumps({key: own[key] for key in own if key not in ("id", "settings")}))  # an earlier version's
    succeed(capsys, "bayes-optimal", "--run", tmp_path / "run")
    cut(path)
    line = fail_in_one_line(capsys, "bayes-optimal", "--run", tmp_path / "run")
    assert line == f"error: {path} is truncated or damaged: remove it, and probe again"


def test_windows_that_are_not_around_a_position_are_refused(run, capsys):
    assert "--sizes must be odd" in fail_in_one_line(capsys, "windows", "--run", run, "--sizes", 1, 2)
    assert not (run / "probes").exists()


def test_the_best_evaluation_of_something_else_is_one_line(tiny, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(tiny / "config.json", tmp_path / "run")
    change_config(tmp_path / "run", setting="PCFG_autoregressive")
    message = fail_in_one_line(capsys, "bayes-optimal", "--run", tmp_path / "run")
    assert "is a run of PCFG_autoregressive, not of PCFG_mlm" in message
    assert "is not a run" in fail_in_one_line(capsys, "bayes-optimal", "--run", tmp_path / "missing")
    assert not (tmp_path / "run" / "probes").exists()


def test_a_grammar_that_has_changed_is_refused(tmp_path, capsys, tiny):
    config = json.loads((tiny / "config.json").read_text())
    changed = tmp_path / "tiny.cfg"
    changed.write_text(TINY.replace("0.3", "0.2"))
    config["arguments"]["grammar"] = str(changed)
    shutil.copytree(tiny, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "has changed since" in fail_in_one_line(capsys, *NGRAMS, tmp_path / "run")
    changed.write_text(TINY)
    succeed(capsys, *NGRAMS, tmp_path / "run", "--exact", 0, "--sizes", 2, 3, "--spacing", 2)
