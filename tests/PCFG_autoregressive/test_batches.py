"""Labels against NLTK's trees, batches that depend on the step alone, held-out sentences, datasets with trees."""

import itertools

import nltk
import numpy as np
import pytest
import torch

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.pcfg import dataset as module
from common.pcfg.batches import GROUP_BATCHES, TrainingBatches, evaluation_batches
from common.pcfg.dataset import open_dataset
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.sampler import sample
from PCFG_autoregressive.batches import NextTokenTask, sentences_of

SMALL = load_grammar("small")
UNEVEN = parse_grammar("S -> A S [0.4] | a [0.6]\nA -> b | B b\nB -> a b", "uneven")
LEVELS = (1, 2, 3, "all")


def equal(a, b):
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.labels, b.labels)


def rows_of(batch, task):
    """The sentences of a batch with BOS and EOS."""
    return [tuple(row[row != task.pad].tolist()) for row in batch.input_ids]


def test_token_ids_are_those_of_the_other_settings():
    task = NextTokenTask(load_grammar("cfg3f"))
    assert (task.terminals, task.bos, task.eos, task.pad, task.vocabulary) == (3, 3, 4, 5, 8)
    assert task.label_level == "all"
    assert task.positions == 2 + task.grammar.length_ranges[0][1]


def test_a_batch_has_bos_eos_and_a_label_on_every_token():
    task = NextTokenTask(SMALL)
    drawn = sample(SMALL, 0, "evaluation", 0, 20)
    (batch,) = evaluation_batches(task, 20, 20)
    width = 2 + drawn.lengths.max()
    assert batch.input_ids.shape == batch.labels.shape == (20, width)
    assert {batch.input_ids.dtype, batch.labels.dtype} == {torch.int64}
    for place, row in enumerate(np.argsort(drawn.lengths, kind="stable")):
        tokens = drawn.sentence(row).tolist()
        padding = width - 2 - len(tokens)
        assert batch.input_ids[place].tolist() == [task.bos, *tokens, task.eos] + [task.pad] * padding
        assert batch.labels[place].tolist() == [IGNORED_LABEL, *tokens, task.eos] + [IGNORED_LABEL] * padding


def spans_of(tree, depth):
    """Number of tokens of each nonterminal at a depth of an NLTK tree, from left to right."""
    if depth == 0:
        return [len(tree.leaves())]
    return [length for child in tree if isinstance(child, nltk.Tree) for length in spans_of(child, depth - 1)]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_labels_at_a_depth_are_on_the_last_tokens_of_the_spans_in_nltk_s_tree(level):
    """The sentences of this grammar have one tree."""
    task = NextTokenTask(SMALL, level)
    symbols = {symbol: nltk.Nonterminal(symbol) for symbol in SMALL.nonterminals}
    rules = [nltk.Production(symbols[r.left], [symbols.get(s, s) for s in r.right]) for r in SMALL.rules]
    parser = nltk.ChartParser(nltk.CFG(symbols[SMALL.start], rules))
    batches = evaluation_batches(task, 30, 7)
    compared = 0
    for batch in batches:
        for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            tokens = [SMALL.terminals[token] for token in ids if token < task.terminals]
            (tree,) = parser.parse(tokens)
            closing = list(itertools.accumulate(spans_of(tree, level)))  # BOS is at 0, so that token n is at n
            assert [i for i, label in enumerate(labels) if label != IGNORED_LABEL] == closing
            assert all(labels[i] == ids[i] for i in closing)
            compared += 1
    assert compared == 30


def test_labels_of_a_grammar_without_levels():
    """A S at depth 1 and so on: what has no ancestor at the depth has no label."""
    task = NextTokenTask(UNEVEN, 2)
    drawn = sample(UNEVEN, 0, "evaluation", 0, 200, trees=True, levels=3)
    for (tokens, labelled), i in zip(
        sentences_of(task, evaluation_batches(task, 200, 64)), np.argsort(drawn.lengths, kind="stable"), strict=True
    ):
        assert tokens.tolist() == drawn.sentence(i).tolist()
        ends = drawn.span_ends[drawn.offsets[i] : drawn.offsets[i + 1], 2]
        assert labelled.tolist() == [*ends, False]
        if len(tokens) == 1:
            assert not labelled.any()


def test_a_depth_that_the_grammar_does_not_have_is_refused():
    assert NextTokenTask(load_grammar("small", "7"), 1).label_level == 1
    with pytest.raises(UserError, match=r"^--label-level 2 has no tokens: below 7, small has nonterminals at depths"):
        NextTokenTask(load_grammar("small", "7"), 2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("grammar", [SMALL, UNEVEN], ids=lambda grammar: grammar.name)
def test_a_batch_depends_on_the_seed_and_the_step_alone(grammar, level):
    task = NextTokenTask(grammar, level)
    in_order = TrainingBatches(task, 7, 5)
    batches = [in_order.batch(step) for step in range(2 * GROUP_BATCHES)]
    jumping = TrainingBatches(task, 7, 5)
    for step in np.random.default_rng(0).permutation(2 * GROUP_BATCHES):
        assert equal(jumping.batch(int(step)), batches[step])
    other = TrainingBatches(task, 8, 5)
    assert not all(equal(other.batch(step), batch) for step, batch in enumerate(batches))
    drawn = sample(grammar, 7, "train", 0, 10 * GROUP_BATCHES)
    rows = [row for batch in batches for row in rows_of(batch, task)]
    assert sorted(rows) == sorted((task.bos, *drawn.sentence(i), task.eos) for i in range(len(drawn)))


def test_evaluation_does_not_depend_on_the_batches():
    task = NextTokenTask(SMALL, 2)
    whole = evaluation_batches(task, 50, 50)[0]
    for size in (1, 7, 64):
        batches = evaluation_batches(task, 50, size)
        assert [len(batch.labels) for batch in batches] == [size] * (50 // size) + [50 % size] * (50 % size > 0)
        start = 0
        for batch in batches:
            stop, width = start + len(batch.labels), batch.labels.shape[1]
            assert torch.equal(batch.labels, whole.labels[start:stop, :width])
            assert torch.equal(batch.input_ids, whole.input_ids[start:stop, :width])
            start = stop


@pytest.mark.parametrize("level", [2, "all"])
def test_training_on_a_dataset_of_its_seed_is_training_from_the_sampler(tmp_path, monkeypatch, level):
    monkeypatch.setattr(module, "ROW_GROUP", 16)
    module.export(
        module.ExportArguments(sentences=160, out=tmp_path / "small", grammar="small", seed=4, shard=70, trees=True)
    )
    task = NextTokenTask(SMALL, level)
    from_disk = TrainingBatches(task, 4, 5, open_dataset(tmp_path / "small", SMALL, 160, trees=level != "all"))
    sampled = TrainingBatches(task, 4, 5)
    for step in range(32):
        assert equal(from_disk.batch(step), sampled.batch(step))
