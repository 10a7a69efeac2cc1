"""The Bayes-optimal predictor against Bayes' rule over all derivations, and trained models."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from common.distillation.losses import IGNORED_LABEL
from common.pcfg.batches import evaluation_batches
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from PCFG_autoregressive.batches import Batch, NextTokenTask, sentences_of
from PCFG_autoregressive.bayes_optimal import bayes_optimal, posteriors, window_posteriors
from tests.pcfg import AUTOREGRESSIVE, train_long

GRAMMAR = parse_grammar("S -> A B [2] | B A [1] | A A A [1]\nA -> C D | D C | C\nB -> D [3] | C C [1]\n"
                        "C -> 1 2 | 2 [3]\nD -> 3 | 2 2".replace("1 2 | 2 [3]", "1 2 [1] | 2 [3]"), "test")  # fmt: skip


def derivations(symbol, depth=0):
    """Every derivation as tokens, the depths at which spans end with each, and its probability."""
    if symbol in GRAMMAR.terminals:
        return [((GRAMMAR.terminals.index(symbol),), (frozenset(),), 1.0)]
    found = []
    for rule in GRAMMAR.rules:
        if rule.left == symbol:
            for parts in itertools.product(*(derivations(child, depth + 1) for child in rule.right)):
                tokens = tuple(token for part in parts for token in part[0])
                ends = [depths for part in parts for depths in part[1]]
                ends[-1] |= {depth}
                found.append((tokens, tuple(ends), rule.probability * math.prod(part[2] for part in parts)))
    return found


DERIVATIONS = derivations("S")


def enumerated(tokens, t, level, unseen=0):
    """p(x_t | x_unseen .. x_{t-1}, and that a span ends at x_t if `level` is one), by Bayes' rule; EOS is token 3."""
    result = np.zeros(4)
    for other, ends, probability in DERIVATIONS:
        if len(other) >= t and other[unseen:t] == tuple(tokens[unseen:t]):
            if t == len(other):
                result[3] += probability * (level == "all")
            elif level == "all" or level in ends[t]:
                result[other[t]] += probability
    return result / result.sum()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("level", [1, 2, "all"])
def test_answers_and_means_are_bayes_rule_over_all_derivations(level, known):
    task = NextTokenTask(GRAMMAR, level)
    batches = evaluation_batches(task, 40, 7)
    answers, truth = [], []
    for tokens, labelled in sentences_of(task, batches):
        given = level if known else "all"
        expected = np.array([enumerated(tokens, t, given) for t in np.flatnonzero(labelled)])
        found = posteriors(task, tokens, labelled, known and level != "all")
        np.testing.assert_allclose(found, expected, atol=1e-12)
        answers.append(expected)
        truth += [*np.append(tokens, 3)[labelled]]
    answers = np.concatenate(answers)
    assert len(truth) == sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    result = bayes_optimal(task, batches, known)
    assert result.loss == pytest.approx(-np.log(answers[np.arange(len(truth)), truth]).mean())
    assert result.accuracy == pytest.approx((answers.argmax(axis=1) == truth).mean())
    assert result.expected_accuracy == pytest.approx(answers.max(axis=1).mean())


@pytest.mark.parametrize("level", [1, 2, "all"])
def test_windows_are_bayes_rule_over_all_derivations(level):
    task = NextTokenTask(GRAMMAR, level)
    for tokens, labelled in sentences_of(task, evaluation_batches(task, 40, 7)):
        for t in np.flatnonzero(labelled):
            rows = window_posteriors(task, tokens, t, [1, 2, 3, 5, 99])
            expected = [enumerated(tokens, t, level, max(t + 1 - size, 0)) for size in (1, 2, 3, 5, 99, 99)]
            np.testing.assert_allclose(rows, expected, atol=1e-12)


def test_to_know_that_a_span_ends_helps():
    task = NextTokenTask(load_grammar("small"), 2)
    batches = evaluation_batches(task, 200, 50)
    told, untold = bayes_optimal(task, batches), bayes_optimal(task, batches, label_is_known=False)
    assert told.loss < 0.5 * untold.loss
    assert told.expected_accuracy > untold.expected_accuracy + 0.05


def differences(directory, task, batches):
    """For each sentence the model's loss and right answers less the Bayes-optimal ones: (sentences, 2)."""
    model = GPT2LMHeadModel.from_pretrained(find_checkpoints(directory)[-1].location).eval()
    rows = []
    for batch in batches:
        with torch.no_grad():
            answers = model(input_ids=batch.input_ids).logits.double().log_softmax(dim=-1).numpy()
        single = [Batch(batch.input_ids[i : i + 1], batch.labels[i : i + 1]) for i in range(len(answers))]
        for (tokens, labelled), mine in zip(sentences_of(task, single), answers, strict=True):
            best = posteriors(task, tokens, labelled, task.label_level != "all")
            mine = mine[: len(labelled)][labelled]
            truth, places = np.append(tokens, task.terminals)[labelled], np.arange(labelled.sum())
            shown = np.where(truth == task.terminals, task.eos, truth)
            right = np.sum(mine.argmax(axis=1) == shown) - np.sum(best.argmax(axis=1) == truth)
            rows.append([-mine[places, shown].sum() + np.log(best[places, truth]).sum(), right])
    return np.array(rows)


@pytest.mark.parametrize("level", [1, "all"])
def test_a_long_trained_model_comes_within_2_percent_and_not_above(tmp_path, level):
    """On a sample a model may be luckier than the best one: what it gains is compared with the standard error of a sum
    over sentences, which are independent of each other.
    """
    rights = "A A A [0.4] | A A [0.1] | B B B [0.1] | B B [0.4]"
    task, batches = train_long(AUTOREGRESSIVE, tmp_path, rights, label_level=level, steps=300, eval_samples=2500)
    best, trained = bayes_optimal(task, batches), Run(tmp_path / "run").records()[-1]
    assert best.accuracy < 0.95
    assert trained["loss"] < 1.02 * best.loss
    assert trained["accuracy"] > 0.98 * best.accuracy
    found = differences(tmp_path / "run", task, batches)
    labels = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    gaps = (trained["loss"] - best.loss, trained["accuracy"] - best.accuracy)
    assert (found.sum(axis=0) / labels).tolist() == pytest.approx(gaps, abs=1e-5)
    for gap in (found[:, 0], -found[:, 1]):
        assert gap.sum() > -3 * math.sqrt(len(gap)) * gap.std()
