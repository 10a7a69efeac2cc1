"""Orders, masks and shares of corpora against plain Python; any step without its predecessors."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from common.distillation.batches import SourceLoader, batch_tensors, is_source
from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.text import batches as module
from common.text.batches import (
    CausalText,
    MaskedText,
    Selection,
    TextBatches,
    evaluation_batches,
    held_out_rows,
    rows_at_equal_distances,
    shares_of,
)

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=3)
MASK, SPECIAL = 4, (0, 1, 2, 3, 4)


class StandIn(SimpleNamespace):
    """Blocks in memory."""

    def samples(self, split, rows):
        return getattr(self, split)[rows].astype(np.int64)


def blocks_of(train, held_out=(9,), length=12, vocabulary=50, special_rate=0.1, mask=MASK):
    """Random blocks, as if they were stored."""
    generator = np.random.default_rng(0)

    def tokens(rows):
        found = generator.integers(5, vocabulary, (rows, length))
        return np.where(generator.random((rows, length)) < special_rate, 3, found).astype(np.uint16)

    def ranges(split):
        ends = np.cumsum([0, *(train if split == "train" else held_out)]).tolist()
        return [range(start, stop) for start, stop in pairwise(ends)]

    return StandIn(
        train=tokens(sum(train)),
        held_out=tokens(sum(held_out)),
        corpora=[
            SimpleNamespace(name=f"corpus{i}", train=n, held_out=m)
            for i, (n, m) in enumerate(zip(train, held_out, strict=False))
        ],
        ranges=ranges,
        length=length,
        vocabulary=vocabulary,
        special=SPECIAL,
        is_special=np.isin(np.arange(vocabulary), SPECIAL),
        ordinary=np.setdiff1d(np.arange(vocabulary), SPECIAL),
        mask=mask,
        separator=SPECIAL[0],
    )


def held_out_like(train):
    return [20] * len(train)


# Order


@given(SIZES, SEEDS, st.integers(1, 40), st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_an_epoch_visits_every_block_once(train, seed, batch_size, epoch):
    """Of each corpus, whatever the batches, in several groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP", 300)
        batches = TextBatches(blocks_of(train, held_out_like(train)), CausalText(), seed, batch_size)
        rows, epochs = batches.rows(0, 1000)
    for corpus in batches._ranges:
        own = (rows >= corpus.start) & (rows < corpus.stop)
        assert np.array_equal(epochs[own], np.arange(own.sum()) // len(corpus))
        visited = rows[own][epochs[own] == epoch]
        assert sorted(visited) == list(corpus)


@given(SIZES, SEEDS, st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 4))
@settings(deadline=None)
def test_any_stretch_is_that_of_the_whole_sequence(train, seed, batch_size, first, count):
    blocks = blocks_of(train, held_out_like(train))
    batches = TextBatches(blocks, CausalText(), seed, batch_size)
    together = batches.rows(first, count * batch_size)
    fresh = TextBatches(blocks, CausalText(), seed, batch_size)
    one_by_one = [fresh.rows(first + i, 1) for i in reversed(range(count * batch_size))][::-1]
    for joined, parts in zip(together, zip(*one_by_one, strict=True), strict=True):
        assert joined.tolist() == np.concatenate(parts).tolist()


@given(SEEDS, st.integers(0, 300))
@settings(deadline=None, max_examples=30)
def test_a_run_resumes_at_any_step(seed, step):
    blocks = blocks_of([7, 11], [9, 9])
    for task in (CausalText(), MaskedText()):
        running, resumed = (TextBatches(blocks, task, seed, 5, [0.3, 0.7]) for _ in range(2))
        for i in range(max(step - 2, 0), step + 1):
            expected = batch_tensors(running.batch(i))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in vars(resumed.batch(step)).items())


def test_orders_differ_between_seeds_epochs_and_corpora():
    batches = [TextBatches(blocks_of([30, 30], [9, 9]), CausalText(), seed, 1) for seed in (0, 1)]
    orders = [tuple(batch._order(corpus, epoch)) for batch in batches for corpus in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 8


def test_every_order_is_equally_likely():
    counts = {}
    for seed in range(6000):
        order = tuple(TextBatches(blocks_of([3]), CausalText(), seed, 1).rows(0, 3)[0].tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 5 * math.sqrt(1000)


def test_only_the_latest_orders_are_kept():
    batches = TextBatches(blocks_of([5, 7], [9, 9]), CausalText(), 0, 50)
    for step in range(20):
        batches.batch(step)
    assert len(batches._orders) == 2
    assert len(batches._groups) <= 2


def shards(source, processes, accumulate, size, steps):
    """What each process's loader gives at each step: micro-batches of row numbers."""
    found = []
    for process in range(processes):
        args = SimpleNamespace(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            world_size=processes,
            process_index=process,
            device=torch.device("cpu"),
        )
        trainer = SimpleNamespace(
            args=args,
            state=SimpleNamespace(global_step=steps.start, max_steps=steps.stop),
            get_total_train_batch_size=lambda args: processes * accumulate * size,
        )
        parts = [part["labels"][:, 0].tolist() for part in SourceLoader(source, trainer)]
        found.append([parts[i : i + accumulate] for i in range(0, len(parts), accumulate)])
    return found


@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_processes_share_every_batch_wherever_they_begin(seed, processes, accumulate, size, first, count):
    """Of each batch, each process gets other blocks, and together they get all of them, in any number of processes."""
    blocks = blocks_of([70, 50], [9, 9])
    blocks.train = np.repeat(np.arange(120), 12).reshape(120, 12)  # each block is its number
    batch_size = processes * accumulate * size
    source = TextBatches(blocks, CausalText(), seed, batch_size, [1, 1])
    assert is_source(source)
    whole = [source.batch(step).labels[:, 0].tolist() for step in range(first + count)]
    found = shards(source, processes, accumulate, size, range(first, first + count))
    for step, parts in enumerate(zip(*found, strict=True), first):
        of_batch = [row for micro_batch in zip(*parts, strict=True) for part in micro_batch for row in part]
        assert of_batch == whole[step]
    rows, epochs = source.rows(0, batch_size * (first + count))
    assert len(set(zip(rows.tolist(), epochs.tolist(), strict=True))) == len(rows)


# Corpora


@given(
    st.integers(0, 500), st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda weights: sum(weights) > 0.1)
)
def test_shares_add_up_and_are_nearest(count, weights):
    shares = shares_of(count, weights)
    assert sum(shares) == count
    assert all(abs(share - count * weight / sum(weights)) < 1 for share, weight in zip(shares, weights, strict=True))


def test_corpora_have_their_weights():
    batches = TextBatches(blocks_of([10, 1000], [9, 9]), CausalText(), 0, 64, [3, 1])
    rows, _ = batches.rows(0, 10 * module.GROUP)
    first = rows < 10
    assert first.sum() == 7.5 * module.GROUP
    runs = np.abs(np.diff(first.astype(int))).mean()
    assert abs(runs - 2 * 0.75 * 0.25) < 0.02
    by_size = TextBatches(blocks_of([10, 1000], [9, 9]), CausalText(), 0, 64)
    assert by_size._shares == shares_of(module.GROUP, [10, 1000])


@pytest.mark.parametrize(
    ("train", "weights", "message"),
    [
        ([5, 5], [1], "--weights has 1 numbers for 2 corpora: give one for each"),
        ([5, 5], [1, -1], "--weights must be at least 0 and not all 0, got 1 -1"),
        ([5, 5], [0, 0], "--weights must be at least 0 and not all 0"),
        ([5, 5], [1e308, 1e308], "--weights must be at least 0 and not all 0"),
        ([5, 5], [math.nan, 1], "--weights must be at least 0 and not all 0"),
        ([5, 5], [math.inf, 1], "--weights must be at least 0 and not all 0"),
        ([5, 5], [1e-6, 1], "corpus0 has less than 1/4096 of the weight"),
        ([5, 0], [1, 1], "corpus1 has too few documents for a block"),
    ],
)
def test_wrong_weights_are_one_line(train, weights, message):
    with pytest.raises(UserError, match=message):
        TextBatches(blocks_of(train, [9, 9]), CausalText(), 0, 4, weights)


# Evaluation


def test_evaluation_takes_blocks_at_equal_distances_of_each_corpus():
    blocks = blocks_of([5, 5], [10, 30])
    assert held_out_rows(blocks, 8).tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert held_out_rows(blocks, 8, [1, 1]).tolist() == [0, 2, 5, 7, 10, 17, 25, 32]
    assert held_out_rows(blocks, 40).tolist() == list(range(40))
    assert rows_at_equal_distances(blocks, "held_out", 30, [1, 0]).tolist() == list(range(10))
    assert rows_at_equal_distances(blocks, "train", 4, [0, 1]).tolist() == [5, 6, 7, 8]
    for task in (CausalText(), MaskedText()):
        whole, parts = (evaluation_batches(blocks, task, 8, size) for size in (8, 3))
        assert [len(part.labels) for part in parts] == [3, 3, 2]
        assert torch.equal(torch.cat([part.labels for part in parts]), whole[0].labels)
    with pytest.raises(
        UserError, match=r"corpus0 has 10 held-out blocks, but 15 are needed: give fewer --eval-samples"
    ):
        held_out_rows(blocks, 30, [1, 1])


# Tasks


@given(st.integers(1, 6), st.integers(2, 30), st.floats(0.001, 0.99), SEEDS, st.booleans(), st.floats(0, 1))
@settings(deadline=None)
def test_masked_batches_are_what_the_definition_says(samples, length, rate, seed, hide, special_rate):
    blocks = blocks_of([samples], length=length, special_rate=special_rate)
    tokens = blocks.train.astype(np.int64)
    selection = Selection(tokens, seed, "train", np.arange(samples), np.zeros(samples, int))
    batch = MaskedText(rate, hide).batch(blocks, selection)
    assert {tensor.dtype for tensor in vars(batch).values()} == {torch.int64}
    for true, ids, attention, labels in zip(blocks.train, *map(np.asarray, vars(batch).values()), strict=True):
        chosen = labels != IGNORED_LABEL
        is_special = np.isin(true, SPECIAL)
        assert not (chosen & is_special).any()
        assert chosen.any() or is_special.all()
        assert not chosen.all()
        np.testing.assert_array_equal(labels[chosen], true[chosen])
        np.testing.assert_array_equal(ids[~chosen], true[~chosen])
        assert all(shown == MASK or shown not in SPECIAL for shown in ids[chosen])
        np.testing.assert_array_equal(attention, np.where(chosen & hide, 0, 1))


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_rates(rate):
    blocks = blocks_of([3000], length=64)
    tokens = blocks.train.astype(np.int64)
    batch = MaskedText(rate).batch(blocks, Selection(tokens, 1, "train", np.arange(3000), np.zeros(3000, int)))
    ids, labels = batch.input_ids.numpy(), batch.labels.numpy()
    chosen, ordinary = labels != IGNORED_LABEL, tokens >= 5

    def near(hits, total, probability):
        assert abs(hits - total * probability) < 5 * math.sqrt(total * probability * (1 - probability))

    near(chosen.sum(), ordinary.sum(), rate)
    near((ids[chosen] == MASK).sum(), chosen.sum(), 0.8)
    near((ids == tokens)[chosen].sum(), chosen.sum(), 0.1 + 0.1 / 45)
    shown = np.bincount(ids[chosen & (ids != MASK) & (ids != tokens)], minlength=50)
    assert not shown[:5].any()
    for count in shown[5:]:
        near(count, shown.sum(), 1 / 45)


@given(SEEDS, st.integers(0, 2**32 - 1), st.integers(0, 2**31), st.sampled_from(["train", "evaluation", "probe"]))
@settings(deadline=None)
def test_masks_depend_on_seed_stream_block_and_epoch_alone(seed, row, epoch, stream):
    blocks = blocks_of([3], length=80, special_rate=0)
    tokens = blocks.train.astype(np.int64)

    def labels(tokens, seed, stream, rows, epochs):
        return MaskedText().batch(blocks, Selection(tokens, seed, stream, np.array(rows), np.array(epochs))).labels

    alone = labels(tokens[:1], seed, stream, [row], [epoch])
    among = labels(tokens[[1, 0, 2]], seed, stream, [5, row, 6], [1, epoch, 2])
    assert torch.equal(alone[0], among[1])
    other = "probe" if stream == "train" else "train"
    changes = [
        labels(tokens[:1], seed ^ 1, stream, [row], [epoch]),
        labels(tokens[:1], seed, other, [row], [epoch]),
        labels(tokens[:1], seed, stream, [row ^ 1], [epoch]),
        labels(tokens[:1], seed, stream, [row], [epoch + 1]),
    ]
    assert not any(torch.equal(alone, changed) for changed in changes)


def test_hiding_changes_the_attention_alone():
    hidden, visible = (TextBatches(blocks_of([20]), MaskedText(0.3, hide), 1, 20).batch(0) for hide in (True, False))
    assert torch.equal(hidden.input_ids, visible.input_ids)
    assert torch.equal(hidden.labels, visible.labels)
    assert visible.attention_mask.all()
    assert torch.equal(hidden.attention_mask == 0, hidden.labels != IGNORED_LABEL)


def test_causal_batches_are_the_blocks():
    blocks = blocks_of([20])
    source = TextBatches(blocks, CausalText(), 1, 6)
    batch = source.batch(2)
    np.testing.assert_array_equal(batch.input_ids, blocks.train[source.rows(12, 6)[0]])
    assert torch.equal(batch.input_ids, batch.labels)
    assert batch.labels.dtype == torch.int64


def test_weights_may_be_large():
    assert shares_of(10, [1e308]) == [10]
    assert shares_of(10, [1e308, 5e307]) == [7, 3]


@pytest.mark.parametrize("rate", [0, 0.0001, 0.991, math.nan])
def test_a_wrong_mask_rate_is_one_line(rate):
    with pytest.raises(UserError, match=r"--mask-rate must be from 0\.001 to 0\.99"):
        MaskedText(rate)


def test_a_tokenizer_without_a_mask_is_refused():
    for use in (
        lambda blocks: TextBatches(blocks, MaskedText(), 0, 1),
        lambda blocks: evaluation_batches(blocks, MaskedText(), 1, 1),
    ):
        with pytest.raises(UserError, match="the tokenizer has no mask token: give --tokenizer wordpiece"):
            use(blocks_of([3], mask=None))
