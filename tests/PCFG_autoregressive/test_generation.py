"""Continuations against a model without a cache and its distribution; acceptance against a list of all sentences."""

import itertools
import math

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.sampler import sample
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_autoregressive.generation import Acceptance, acceptance, beginnings, continuations
from PCFG_autoregressive.models import new_model

TASK = NextTokenTask(load_grammar("small"))
GRAMMAR = parse_grammar("S -> A B [0.4] | B A C [0.6]\nA -> x y | y x x\nB -> z x | y z\nC -> x | y", "tiny")


def model_of(task=TASK, seed=0):
    """With weights that are large enough for its answers to differ."""
    model = new_model(task, 2, 2, 4, 0.1, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def test_continuations_are_those_of_a_model_without_a_cache():
    model, given = model_of(), beginnings(TASK.grammar, 3, 6, 80)
    uniform = np.random.Generator(np.random.Philox(5)).random((80, 9), np.float32)
    written = continuations(model, TASK, given, 9, seed=5, batch_size=16)
    for row, numbers, found in zip(given, uniform, written, strict=True):
        tokens, expected = [TASK.bos, *row], []
        for number in numbers:
            with torch.no_grad():
                chances = model(torch.tensor([tokens])).logits[0, -1].double().softmax(dim=-1).cumsum(0)
            expected.append(int((chances <= float(number) * chances[-1]).sum()))
            tokens.append(expected[-1])
            if expected[-1] >= TASK.terminals:
                break
        assert found.tolist() == expected
    lengths = [len(row) for row in written]
    assert len(set(lengths)) > 3
    assert {row[-1] >= TASK.terminals for row in written if len(row) < 9} == {True}


def test_the_batch_does_not_matter_and_the_seed_does():
    model, given = model_of(), beginnings(TASK.grammar, 0, 4, 30)
    whole = continuations(model, TASK, given, 12, seed=0, batch_size=30)
    for size in (1, 7, 64):
        again = continuations(model, TASK, given, 12, seed=0, batch_size=size)
        assert [row.tolist() for row in again] == [row.tolist() for row in whole]
    other = continuations(model, TASK, given, 12, seed=1, batch_size=30)
    assert [row.tolist() for row in other] != [row.tolist() for row in whole]


def test_tokens_are_drawn_from_the_model_s_distribution():
    model, count = model_of(), 4000
    given = np.repeat(beginnings(TASK.grammar, 0, 5, 1), count, axis=0)
    first = np.array([row[0] for row in continuations(model, TASK, given, 1, seed=2, batch_size=1000)])
    with torch.no_grad():
        chances = model(torch.tensor([[TASK.bos, *given[0]]])).logits[0, -1].softmax(dim=-1).numpy()
    shares = np.bincount(first, minlength=TASK.vocabulary) / count
    assert (np.abs(shares - chances) < 5 * np.sqrt(chances * (1 - chances) / count) + 1e-9).all()
    assert (shares > 0.01).sum() > 3


def test_a_model_stops_where_it_has_no_more_positions():
    model = model_of()
    given = beginnings(TASK.grammar, 0, 30, 5)
    longest = max(len(row) for row in continuations(model, TASK, given, 100, seed=0, batch_size=5))
    assert longest <= TASK.positions - 1 - 30


def test_beginnings_are_of_the_first_sentences_that_are_longer():
    drawn = sample(TASK.grammar, 7, "probe", 0, 400)
    long = [drawn.sentence(i)[:26].tolist() for i in range(400) if drawn.lengths[i] > 26][:20]
    assert beginnings(TASK.grammar, 7, 26, 20).tolist() == long
    assert beginnings(TASK.grammar, 7, 0, 3).shape == (3, 0)
    with pytest.raises(UserError, match=r"^--given must be below 33, the longest sentence of small; got 33$"):
        beginnings(TASK.grammar, 0, 33, 1)


def all_sentences():
    words = {"A": ["xy", "yxx"], "B": ["zx", "yz"], "C": ["x", "y"]}
    joined = ["".join(choice) for sides in ("AB", "BAC") for choice in itertools.product(*(words[s] for s in sides))]
    return {tuple("xyz".index(letter) for letter in sentence) for sentence in joined}


def test_acceptance_against_a_list_of_all_sentences():
    task = NextTokenTask(GRAMMAR)
    sentences = all_sentences()
    prefixes = {sentence[:t] for sentence in sentences for t in range(len(sentence) + 1)}
    generator = np.random.default_rng(0)
    given, written = [], []
    for sentence in [*sentences] * 6:
        cut = int(generator.integers(1, len(sentence) - 1))
        row = list(sentence[2 : 2 + cut])
        if generator.random() < 0.4:
            row[generator.integers(len(row))] = int(generator.integers(3))
        stop = generator.choice([None, task.eos, task.bos, task.mask], p=[0.3, 0.5, 0.1, 0.1])
        given.append(sentence[:2])
        written.append(np.array([*row, *([stop] if stop is not None else [])], np.int64))
    expected = np.zeros((len(written), 4))
    for place, (known, row) in enumerate(zip(given, written, strict=True)):
        tokens = (*known, *(token for token in row.tolist() if token < 3))
        ended, broken = row[-1] == task.eos, row[-1] in (task.bos, task.mask)
        whole = ended and tokens in sentences
        accepted = whole or (not ended and not broken and tokens in prefixes)
        right = max(t for t in range(len(tokens) + 1) if tokens[:t] in prefixes) - 2
        expected[place] = accepted, ended, whole, right
    result = acceptance(task, np.array(given), written)
    assert result == Acceptance(*(pytest.approx(mean) for mean in expected.mean(axis=0)))
    assert 0 < result.sentences < result.accepted < 1
    assert result.sentences < result.ended
    assert math.isfinite(result.correct_tokens)


def test_beginnings_that_hardly_any_sentence_has_are_refused():
    grammar = parse_grammar("S -> a S [0.3] | b [0.7]", "short")
    with pytest.raises(
        UserError, match=r"^--given 500 is too long: none of 131,072 sentences of short has more tokens$"
    ):
        beginnings(grammar, 0, 500, 1)
