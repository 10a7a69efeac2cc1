"""The Bayes-optimal predictor against Bayes' rule over all sentences and all that chance may do, and trained models."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import BertForMaskedLM

from common.distillation.losses import IGNORED_LABEL
from common.pcfg.batches import evaluation_batches
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from PCFG_mlm.batches import Batch, MaskedTask
from PCFG_mlm.bayes_optimal import bayes_optimal, posteriors, window_posteriors
from tests.pcfg import MLM, train_long

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


def enumerated(task, shown, asked, position, radius=math.inf):
    """P(x_position | input up to some distance, length), by Bayes' rule."""
    result = np.zeros(task.terminals)
    for words, probability in SENTENCES.items():
        if len(words) != len(shown):
            continue
        for i, (true, seen) in enumerate(zip(words, shown, strict=True)):
            if i == position:
                probability *= chance(task, true, seen, True)
            elif abs(i - position) > radius:
                continue
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
        windows = window_posteriors(task, shown, asked, position, [1, 3, 5, 99])
        for row, radius in zip(windows, (0, 1, 2, math.inf, math.inf), strict=True):
            np.testing.assert_allclose(row, enumerated(task, shown, asked, position, radius), atol=1e-12)


@pytest.mark.parametrize("hide_masked", [True, False])
def test_the_largest_window_is_the_whole_input_of_a_sentence_of_full_length(hide_masked):
    task = MaskedTask(load_grammar("cfg3b", "19"), 0.3, hide_masked)
    (batch,) = evaluation_batches(task, 2, 2)
    differences = []
    for ids, labels in zip(batch.input_ids.numpy(), batch.labels.numpy(), strict=True):
        shown = ids[1 : (ids != task.pad).sum()]
        asked = labels[1 : 1 + len(shown)] != IGNORED_LABEL
        (expected,) = posteriors(task, [shown], [asked])
        for position in np.flatnonzero(asked)[::7]:
            windows = window_posteriors(task, shown, asked, position, [3, 2 * len(shown) - 1])
            np.testing.assert_allclose(windows[1:], [expected[position]] * 2, rtol=1e-10)
            differences.append(abs(windows[0] - windows[1]).max())
    assert max(differences) > 0.1


def test_the_means_are_over_all_labels_and_bos_is_certain():
    task = MaskedTask(GRAMMAR)
    shown = [[task.mask, 0, task.mask, 1, 1], [task.bos, task.mask, task.mask, task.mask, task.pad]]
    labels = [[task.bos, IGNORED_LABEL, 1, IGNORED_LABEL, IGNORED_LABEL], [IGNORED_LABEL, 2, 0, 2, IGNORED_LABEL]]
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
    labels = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    error = math.sqrt(result.accuracy * (1 - result.accuracy) / labels)
    assert abs(result.accuracy - result.expected_accuracy) < 4 * error
    assert 0.4 < result.expected_accuracy < 1
    assert 0 < result.loss < math.log(3)


ONE_LENGTH, TWO_LENGTHS = "A A A | B B B", "A A A [0.4] | A A [0.1] | B B B [0.1] | B B [0.4]"


def model_and_bayes(directory, task, batches):
    """For each sentence the model's and the Bayes-optimal loss, then their numbers of right answers: (sentences, 4)."""
    model = BertForMaskedLM.from_pretrained(find_checkpoints(directory)[-1].location).eval()
    answers, shown, truth = [], [], []
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double()
        lengths = (batch.input_ids != task.pad).sum(dim=1).tolist()
        for row, length in enumerate(lengths):
            answers.append(logits[row, :length].log_softmax(dim=-1).numpy())
            shown.append(batch.input_ids[row, 1:length].numpy())
            truth.append(batch.labels[row, :length].numpy())
    rows = []
    exact = posteriors(task, shown, [labels[1:] != IGNORED_LABEL for labels in truth])
    for model_answers, best, labels in zip(answers, exact, truth, strict=True):
        asked = np.flatnonzero(labels != IGNORED_LABEL)
        best = np.pad(best, ((1, 0), (0, task.vocabulary - task.terminals)))
        best[0, task.bos] = 1
        rows.append(
            [
                -model_answers[asked, labels[asked]].sum(),
                -np.log(best[asked, labels[asked]]).sum(),
                (model_answers.argmax(axis=1) == labels).sum(),
                (best.argmax(axis=1) == labels).sum(),
            ]
        )
    return np.array(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("rights", "hide_masked"), [(ONE_LENGTH, True), (TWO_LENGTHS, False)], ids=["hidden", "shown"])
def test_a_long_trained_model_comes_within_1_percent_and_not_above(tmp_path, rights, hide_masked):
    """No answers have a lower expected loss or a higher expected accuracy than the Bayes-optimal ones, but on a sample
    they may be luckier. So the differences on the same tokens are compared with their standard error; they are added up
    within sentences, which are independent of each other, while the tokens of one are not.

    A model from which positions are hidden is not told the length, so that sentences have the same one there.
    """
    sizes = {"steps": 300 if hide_masked else 500, "eval_samples": 4000}
    task, batches = train_long(MLM, tmp_path, rights, hide_masked=hide_masked, **sizes)
    best, trained = bayes_optimal(task, batches), Run(tmp_path / "run").records()[-1]
    assert best.accuracy < 0.85
    assert trained["loss"] < 1.01 * best.loss
    assert trained["accuracy"] > 0.99 * best.accuracy

    found = model_and_bayes(tmp_path / "run", task, batches)
    tokens = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    means = (trained["loss"], best.loss, trained["accuracy"], best.accuracy)
    assert (found.sum(axis=0) / tokens).tolist() == pytest.approx(means, abs=1e-5)
    for model, optimal in ((found[:, 0], found[:, 1]), (-found[:, 2], -found[:, 3])):
        error = math.sqrt(len(found)) * (model - optimal).std()
        assert (model - optimal).sum() > -3 * error
