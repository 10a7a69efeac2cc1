"""The Bayes-optimal predictor against Bayes' rule over all sentences and all that chance may do."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from common.pcfg.grammar import load_grammar, parse_grammar
from PCFG_mlm.bayes_optimal import bayes_optimal, posteriors
from PCFG_mlm.data import IGNORED, Batch, MaskedTask, evaluation_batches

GRAMMAR = parse_grammar("S -> A B [2] | B A [1] | A A A [1]\nA -> 1 2 | 2 1 | 3 1\nB -> 3 | 2 2", "test")


def sentences():
    """Every sentence with its probability."""

    def expand(symbol):
        if symbol in GRAMMAR.terminals:
            return [((GRAMMAR.terminals.index(symbol),), 1.0)]
        found = []
        for rule in GRAMMAR.rules:
            if rule.left == symbol:
                for parts in itertools.product(*map(expand, rule.right)):
                    words = tuple(itertools.chain.from_iterable(words for words, _ in parts))
                    found.append((words, rule.probability * math.prod(p for _, p in parts)))
        return found

    total = {}
    for words, probability in expand(GRAMMAR.start):
        total[words] = total.get(words, 0.0) + probability
    return total


SENTENCES = sentences()


def chance(task, true, shown, chosen):
    """P(shown | true) for a position that is chosen, is not chosen, or (None) may be either."""
    if chosen is None:
        rate = task.mask_rate
        return rate * chance(task, true, shown, True) + (1 - rate) * chance(task, true, shown, False)
    if not chosen:
        return float(shown == true)
    return 0.8 if shown == task.mask else 0.1 * (shown == true) + 0.1 / task.terminals


def enumerated(task, shown, asked, position):
    """P(x_position | input), by Bayes' rule."""
    result = np.zeros(task.terminals)
    for words, probability in SENTENCES.items():
        if len(words) != len(shown):
            continue
        for i, (true, seen) in enumerate(zip(words, shown, strict=True)):
            if i == position:
                probability *= chance(task, true, seen, True)
            elif task.hide_masked:
                probability *= 1.0 if asked[i] else chance(task, true, seen, False)
            else:
                probability *= chance(task, true, seen, None)
        result[words[position]] += probability
    return result / result.sum()


@settings(deadline=None)
@given(st.sampled_from(sorted(SENTENCES)), st.booleans(), st.sampled_from([0.15, 0.3, 0.6]), st.data())
def test_posteriors_are_bayes_rule_over_all_sentences(words, hide_masked, mask_rate, data):
    task = MaskedTask(GRAMMAR, mask_rate, hide_masked)
    asked = np.array(data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words))))
    shown = np.array(words)
    for position in np.flatnonzero(asked):
        shown[position] = data.draw(st.sampled_from([0, 1, 2, task.mask]))
    (result,) = posteriors(task, [shown], [asked])
    for position in np.flatnonzero(asked):
        np.testing.assert_allclose(result[position], enumerated(task, shown, asked, position), atol=1e-12)


def test_the_means_are_over_all_labels_and_bos_is_certain():
    task = MaskedTask(GRAMMAR)
    shown = [[task.mask, 0, task.mask, 1, 1], [task.bos, task.mask, task.mask, task.mask, task.pad]]
    labels = [[task.bos, IGNORED, 1, IGNORED, IGNORED], [IGNORED, 2, 0, 2, IGNORED]]
    batch = Batch(torch.tensor(shown), torch.ones(2, 5, dtype=torch.int64), torch.tensor(labels))
    first = enumerated(task, (0, task.mask, 1, 1), (False, True, False, False), 1)
    rest = [enumerated(task, (task.mask,) * 3, (True,) * 3, i) for i in range(3)]
    answers, truth = [first, *rest], [1, 2, 0, 2]
    result = bayes_optimal(task, [batch])
    assert result.loss == pytest.approx(-sum(math.log(p[y]) for p, y in zip(answers, truth, strict=True)) / 5)
    right = sum(p.argmax() == y for p, y in zip(answers, truth, strict=True))
    assert result.accuracy == pytest.approx((right + 1) / 5)
    assert result.expected_accuracy == pytest.approx((sum(p.max() for p in answers) + 1) / 5)


@pytest.mark.parametrize("hide_masked", [True, False])
def test_accuracy_and_loss_are_those_expected_within_the_error_of_the_sample(hide_masked):
    task = MaskedTask(load_grammar("small"), 0.3, hide_masked)
    batches = evaluation_batches(task, 2000, 100)
    result = bayes_optimal(task, batches)
    labels = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    error = math.sqrt(result.accuracy * (1 - result.accuracy) / labels)
    assert abs(result.accuracy - result.expected_accuracy) < 4 * error
    assert 0.4 < result.expected_accuracy < 1
    assert 0 < result.loss < math.log(3)
