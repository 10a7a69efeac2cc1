"""Masks against their definition and their distribution, batches that depend on the step alone, datasets on disk."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.pcfg import dataset as module
from common.pcfg.batches import GROUP_BATCHES, TrainingBatches, evaluation_batches
from common.pcfg.dataset import open_dataset
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.sampler import Sentences, sample
from PCFG_mlm.batches import MaskedTask, mask_batch

SMALL = load_grammar("small")
LETTERS = parse_grammar("S -> S S [0.4] | a [0.2] | b [0.2] | c [0.1] | d [0.1]", "letters")
"""Sentences of any length, many of them of one token."""
RATES = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**63 - 1)


def sentences_of(lengths, terminals, seed=0):
    tokens = np.random.default_rng(seed).integers(0, terminals, sum(lengths)).astype(np.uint8)
    return Sentences(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def task_with(terminals, mask_rate=0.3, hide_masked=True):
    text = "S -> " + " | ".join(map(str, range(terminals)))
    return MaskedTask(parse_grammar(text, "flat"), mask_rate, hide_masked)


def equal(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("input_ids", "attention_mask", "labels"))


def true_rows(batch, task):
    """The sentences of a batch before they were masked, where 10% of the chosen positions need not show it."""
    tokens = torch.where(batch.labels == IGNORED_LABEL, batch.input_ids, batch.labels)
    return [tuple(row[row != task.pad].tolist()) for row in tokens]


# Tokens


def test_token_ids_are_the_published_ones():
    task = MaskedTask(load_grammar("cfg3b"))
    assert (task.terminals, task.bos, task.eos, task.pad, task.mask, task.vocabulary) == (3, 3, 4, 5, 6, 8)
    assert (task.mask_rate, task.hide_masked) == (0.3, True)
    task = MaskedTask(LETTERS)
    assert (task.terminals, task.bos, task.eos, task.pad, task.mask, task.vocabulary) == (4, 4, 5, 6, 7, 9)


@pytest.mark.parametrize("rate", [0, -0.1, 0.991, 1, math.nan, math.inf])
def test_rates_that_mask_nothing_or_all_are_refused(rate):
    with pytest.raises(UserError, match=r"--mask-rate must be above 0 and at most 0\.99"):
        MaskedTask(SMALL, rate)


# Masks


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 250), RATES, SEEDS, st.booleans())
@settings(deadline=None)
def test_a_batch_is_what_its_definition_says(lengths, terminals, rate, seed, hide):
    task = task_with(terminals, rate, hide)
    sentences = sentences_of(lengths, terminals)
    batch = mask_batch(task, seed, "train", sentences, 1000, np.arange(len(lengths)))
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape == (len(lengths), 1 + max(lengths))
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}
    for i, length in enumerate(lengths):
        ids, attention, labels = (t[i].numpy() for t in (batch.input_ids, batch.attention_mask, batch.labels))
        assert np.all(ids[1 + length :] == task.pad)
        assert not attention[1 + length :].any()
        assert np.all(labels[1 + length :] == IGNORED_LABEL)
        true = np.concatenate([[task.bos], sentences.sentence(i)])
        ids, attention, labels = (array[: 1 + length] for array in (ids, attention, labels))
        chosen = labels != IGNORED_LABEL
        assert not chosen.all()
        np.testing.assert_array_equal(labels[chosen], true[chosen])
        np.testing.assert_array_equal(ids[~chosen], true[~chosen])
        assert all(shown in (task.mask, was) or shown < terminals for shown, was in zip(ids, true, strict=True))
        np.testing.assert_array_equal(attention, ~chosen if hide else np.ones(1 + length))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), RATES, SEEDS, st.integers(0, 2**40), st.data())
@settings(deadline=None)
def test_masks_depend_on_the_place_in_the_stream_alone(lengths, rate, seed, first, data):
    task = task_with(3, rate)
    sentences = sentences_of(lengths, 3)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8)))
    batch = mask_batch(task, seed, "train", sentences, first, rows)
    for place, row in enumerate(rows):
        alone = Sentences(sentences.sentence(row), np.array([0, lengths[row]]))
        expected = mask_batch(task, seed, "train", alone, first + int(row), np.array([0]))
        width = 1 + lengths[row]
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(getattr(batch, name)[place, :width], getattr(expected, name)[0])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), RATES, SEEDS)
@settings(deadline=None)
def test_hiding_changes_the_attention_and_nothing_else(lengths, rate, seed):
    sentences, rows = sentences_of(lengths, 3), np.arange(len(lengths))
    hidden, visible = (
        mask_batch(task_with(3, rate, hide), seed, "probe", sentences, 0, rows) for hide in (True, False)
    )
    assert torch.equal(hidden.input_ids, visible.input_ids)
    assert torch.equal(hidden.labels, visible.labels)
    assert torch.equal(hidden.attention_mask, visible.attention_mask * (visible.labels == IGNORED_LABEL))


def chi_square(counts, probabilities):
    """Distance from the expected counts in standard deviations of a chi-square variable, about normal."""
    counts, probabilities = np.asarray(counts, float).ravel(), np.asarray(probabilities, float).ravel()
    expected = counts.sum() * probabilities / probabilities.sum()
    degrees = len(counts) - 1
    return (np.sum((counts - expected) ** 2 / expected) - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_eighty_ten_ten(rate):
    """MASK, each terminal, and the true token: a terminal that is drawn may be the true one."""
    terminals, length, count = 4, 99, 4000
    task = task_with(terminals, rate)
    sentences = sentences_of([length] * count, terminals)
    batch = mask_batch(task, 5, "train", sentences, 0, np.arange(count))
    true = torch.where(batch.labels == IGNORED_LABEL, batch.input_ids, batch.labels)
    chosen = batch.labels != IGNORED_LABEL
    for token in (*range(terminals), task.bos):
        shown = batch.input_ids[chosen & (true == token)]
        counts = np.bincount(shown.numpy(), minlength=task.mask + 1)
        expected = np.zeros(task.mask + 1)
        expected[:terminals] = 0.1 / terminals
        expected[task.mask] = 0.8
        expected[token] += 0.1
        assert not counts[expected == 0].any()
        assert abs(chi_square(counts[expected > 0], expected[expected > 0])) < 5
    # every position, BOS too, is chosen with the rate; 4000 draws each, 6 sigma at 100 positions
    share = chosen.double().mean(dim=0)
    assert (share - rate).abs().max() < 6 * math.sqrt(rate * (1 - rate) / count)
    by_sentence = chosen.sum(dim=1).double()
    spread = rate * (1 - rate) * (1 + length)
    assert abs(by_sentence.mean() - rate * (1 + length)) < 5 * math.sqrt(spread / count)
    assert abs(by_sentence.var() / spread - 1) < 5 * math.sqrt(2 / count)
    centred = chosen.double() - rate
    correlations = centred.T @ centred / (rate * (1 - rate) * count) - torch.eye(1 + length)
    assert correlations.fill_diagonal_(0).abs().max() < 5.5 / math.sqrt(count)
    neighbours = centred[1:].flatten() @ centred[:-1].flatten() / (rate * (1 - rate))
    assert abs(neighbours) < 5 * math.sqrt((count - 1) * (1 + length))


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_short_sentences_are_chosen_from_as_if_until_one_position_is_left(length, rate):
    count = 20_000
    sentences = sentences_of([length] * count, 3)
    chosen = mask_batch(task_with(3, rate), 0, "train", sentences, 0, np.arange(count)).labels.numpy() != IGNORED_LABEL
    patterns = list(product([False, True], repeat=1 + length))[:-1]
    counts = [np.all(chosen == pattern, axis=1).sum() for pattern in patterns]
    assert sum(counts) == count
    assert abs(chi_square(counts, [rate ** sum(p) * (1 - rate) ** (1 + length - sum(p)) for p in patterns])) < 5


def test_seeds_streams_and_sentences_have_masks_of_their_own():
    sentences = sentences_of([400] * 2, 3)
    keys = [(seed, stream) for seed in (0, 1, 2**62) for stream in ("train", "evaluation", "probe")]
    chosen = torch.stack(
        [
            labels != IGNORED_LABEL
            for seed, stream in keys
            for first in (0, 2, 2**33)
            for labels in mask_batch(task_with(3, 0.5), seed, stream, sentences, first, np.arange(2)).labels
        ]
    ).double()
    agreement = (2 * chosen - 1) @ (2 * chosen - 1).T / 401
    assert agreement.fill_diagonal_(0).abs().max() < 6 / math.sqrt(401)


# Training batches


@pytest.mark.parametrize("grammar", [SMALL, LETTERS])
def test_a_batch_depends_on_the_seed_and_the_step_alone(grammar):
    task = MaskedTask(grammar)
    in_order = TrainingBatches(task, 7, 5)
    batches = [in_order.batch(step) for step in range(3 * GROUP_BATCHES)]
    jumping = TrainingBatches(task, 7, 5)
    for step in np.random.default_rng(0).permutation(3 * GROUP_BATCHES):
        assert equal(jumping.batch(int(step)), batches[step])
        assert equal(TrainingBatches(task, 7, 5).batch(int(step)), batches[step])
    other = TrainingBatches(task, 8, 5)
    assert not any(equal(other.batch(step), batch) for step, batch in enumerate(batches))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_group_holds_each_sentence_of_the_stream_once(batch_size):
    task = MaskedTask(SMALL)
    batches = TrainingBatches(task, 2, batch_size)
    size = GROUP_BATCHES * batch_size
    for group in (0, 1, 5):
        drawn = sample(SMALL, 2, "train", group * size, size)
        rows = [
            row
            for step in range(group * GROUP_BATCHES, (group + 1) * GROUP_BATCHES)
            for row in true_rows(batches.batch(step), task)
        ]
        assert sorted(rows) == sorted((task.bos, *drawn.sentence(i)) for i in range(size))


def test_batches_are_of_like_length_and_come_in_no_order():
    task = MaskedTask(LETTERS)
    batches = TrainingBatches(task, 0, 8)
    orders = []
    for group in range(6):
        lengths = [
            (batches.batch(step).input_ids != task.pad).sum(dim=1).numpy()
            for step in range(group * GROUP_BATCHES, (group + 1) * GROUP_BATCHES)
        ]
        places = np.argsort([part.mean() for part in lengths], kind="stable")
        in_order = np.concatenate([lengths[i] for i in places])
        np.testing.assert_array_equal(in_order, np.sort(in_order))
        widths = [batches.batch(step).input_ids.shape[1] for step in range(group * 16, group * 16 + 16)]
        assert widths == [part.max() for part in lengths]
        orders.append(tuple(places))
    assert len(set(orders)) == 6


def test_padding_is_a_few_percent():
    for name, most in (("small", 0.03), ("cfg3f", 0.06)):
        task = MaskedTask(load_grammar(name))
        batches = TrainingBatches(task, 0, 64)
        padding = torch.cat([(batches.batch(step).input_ids == task.pad).flatten() for step in range(32)])
        assert padding.double().mean() < most


# Evaluation


@pytest.mark.parametrize("grammar", [SMALL, LETTERS])
def test_evaluation_sentences_are_held_out_and_the_same_in_any_batches(grammar):
    task = MaskedTask(grammar)
    whole = evaluation_batches(task, 50, 50)[0]
    drawn = sample(grammar, 0, "evaluation", 0, 50)
    assert sorted(true_rows(whole, task)) == sorted((task.bos, *drawn.sentence(i)) for i in range(50))
    for size in (1, 7, 64):
        batches = evaluation_batches(task, 50, size)
        assert [len(batch.labels) for batch in batches] == [size] * (50 // size) + [50 % size] * (50 % size > 0)
        start = 0
        for batch in batches:
            stop, width = start + len(batch.labels), batch.labels.shape[1]
            assert torch.equal(batch.labels, whole.labels[start:stop, :width])
            assert torch.equal(batch.input_ids, whole.input_ids[start:stop, :width])
            start = stop


def test_sentences_of_training_are_not_those_of_evaluation():
    task = MaskedTask(load_grammar("cfg3b"))
    training = {row for step in range(16) for row in true_rows(TrainingBatches(task, 0, 8).batch(step), task)}
    assert training.isdisjoint(row for batch in evaluation_batches(task, 64, 64) for row in true_rows(batch, task))


# Datasets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """250 sentences in files of 70 and row groups of 16, which no batch size of the tests divides."""
    path = tmp_path_factory.mktemp("datasets") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROW_GROUP", 16)
        module.export(module.ExportArguments(sentences=250, out=path, grammar="small", seed=4, shard=70))
    return path


@pytest.mark.parametrize("batch_size", [1, 7, 12, 125, 250])
def test_a_run_on_a_dataset_of_its_seed_is_the_run_without(dataset, batch_size):
    task = MaskedTask(SMALL)
    from_disk = TrainingBatches(task, 4, batch_size, open_dataset(dataset, SMALL, 250 - 250 % batch_size))
    sampled = TrainingBatches(task, 4, batch_size)
    steps = 250 // batch_size
    whole_groups = steps // GROUP_BATCHES * GROUP_BATCHES
    for step in range(whole_groups):
        assert equal(from_disk.batch(step), sampled.batch(step))
    # the last group is shorter, so that its order is another one, but has the sentences that are left
    drawn = sample(SMALL, 4, "train", whole_groups * batch_size, (steps - whole_groups) * batch_size)
    rows = [row for step in range(whole_groups, steps) for row in true_rows(from_disk.batch(step), task)]
    assert sorted(rows) == sorted((task.bos, *drawn.sentence(i)) for i in range(len(drawn)))
    with pytest.raises(UserError, match=f"has 250 sentences and the run needs {(steps + 1) * batch_size}"):
        from_disk.batch(steps)
