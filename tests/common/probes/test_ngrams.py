"""M_robust and M_close against their definition, one sentence at a time, and on predictors with known values."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import BertConfig, BertForMaskedLM

from common.errors import UserError
from common.probes.ngrams import NgramVariants, bert_predictor, ngram, probe_ngrams

TERMINALS, BOS, MASK, VOCABULARY = 3, 3, 6, 8
SIZES = (2, 3, 4, 5)


def sentences(lengths, seed=0):
    """Token ids with BOS; `lengths` count it."""
    generator = np.random.default_rng(seed)
    return [np.concatenate([[BOS], generator.integers(0, TERMINALS, length - 1)]) for length in lengths]


def shown_positions(length, p, variant, sizes=SIZES):
    """Positions that are not masked: by definition, token by token."""
    if variant == 0:
        return set(range(length)) - {p}
    robust = variant <= len(sizes)
    n = sizes[(variant - 1) % len(sizes)]
    window = {2: {p - 1, p}, 3: {p - 1, p, p + 1}, 4: {p - 2, p - 1, p, p + 1}, 5: set(range(p - 2, p + 3))}[n]
    return set(range(length)) - window if robust else window - {p}


@pytest.fixture(scope="module")
def bert():
    """Weights so large that every token matters."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.6,
    )
    return BertForMaskedLM(config).double()


# N-grams


@pytest.mark.parametrize(("n", "around_ten"), [(2, (9, 10)), (3, (9, 11)), (4, (8, 11)), (5, (8, 12))])
def test_the_published_ngrams(n, around_ten):
    assert ngram(10, n) == around_ten


@given(st.integers(0, 1000), st.integers(1, 50))
def test_ngrams_have_n_tokens_around_their_position(p, n):
    first, last = ngram(p, n)
    assert last - first + 1 == n
    assert 0 <= (p - first) - (last - p) <= 1


# Questions


@st.composite
def cases(draw):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    lengths.append(draw(st.integers(20, 40)))
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4, unique=True))
    return lengths, draw(st.sampled_from([2, 3, 5, 12])), draw(st.integers(12, 50)), tuple(sizes)


@given(cases(), st.booleans(), st.booleans(), st.integers(1, 500))
@settings(deadline=None, max_examples=40)
def test_each_question_shows_what_its_definition_says(case, hide_masked, shorten, columns):
    lengths, spacing, limit, sizes = case
    sequences = sentences(lengths)
    variants = NgramVariants(sequences, MASK, hide_masked, spacing, limit, sizes=sizes, shorten=shorten)
    seen = []
    for places, questions in variants.batches(columns):
        rows, width = questions.input_ids.shape
        assert rows == 1 or rows * width <= columns
        assert questions.attention_mask.shape == questions.position_ids.shape == (rows, width)
        for row, place in enumerate(places):
            pair, variant = divmod(int(place), variants.variants)
            seen.append((pair, variant))
            sequence, p = variants.pairs[pair]
            shown = shown_positions(lengths[sequence], p, variant, sizes)
            columns_by_position = {}
            for column in range(width):
                position = int(questions.position_ids[row, column])
                if questions.attention_mask[row, column] or column == questions.columns[row]:
                    assert position not in columns_by_position
                    columns_by_position[position] = column
            there = shown | {int(p)} if hide_masked else set(range(lengths[sequence]))
            assert set(columns_by_position) == there
            assert columns_by_position[p] == questions.columns[row]
            assert bool(questions.attention_mask[row, columns_by_position[p]]) is not hide_masked
            for position, column in columns_by_position.items():
                expected = sequences[sequence][position] if position in shown else MASK
                assert questions.input_ids[row, column] == expected
    assert sorted(seen) == [(i, v) for i in range(len(variants.pairs)) for v in range(1 + 2 * len(sizes))]


@given(cases(), st.integers(1, 3), st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_positions_are_multiples_around_which_the_longest_ngram_is_whole(case, positions, seed):
    lengths, spacing, limit, sizes = case
    sequences = sentences(lengths)
    whole = NgramVariants(sequences, MASK, True, spacing, limit, sizes=sizes)
    left, right = ngram(0, max(sizes))
    expected = [
        (i, p)
        for i, length in enumerate(lengths)
        for p in range(length)
        if p % spacing == 0 and p <= limit and p + left >= 1 and p + right <= length - 1
    ]
    assert [tuple(pair) for pair in whole.pairs] == expected
    drawn = NgramVariants(sequences, MASK, True, spacing, limit, positions, sizes, seed)
    assert {tuple(pair) for pair in drawn.pairs} <= set(expected)
    for i in range(len(lengths)):
        assert sum(drawn.pairs[:, 0] == i) == min(positions, sum(whole.pairs[:, 0] == i))
        assert np.all(np.diff(drawn.pairs[drawn.pairs[:, 0] == i, 1]) > 0)
    first = NgramVariants(sequences[-1:], MASK, True, spacing, limit, sizes=sizes)
    assert len(first.pairs) == sum(whole.pairs[:, 0] == len(lengths) - 1)


def test_drawn_positions_are_uniform_and_those_of_a_part_of_the_sentences_are_the_same():
    sequences = sentences([41] * 3000)
    drawn = NgramVariants(sequences, MASK, True, 5, positions=1, seed=3)
    counts = np.bincount(drawn.pairs[:, 1], minlength=41)
    assert set(np.flatnonzero(counts)) == {5, 10, 15, 20, 25, 30, 35}
    assert np.abs(counts[counts > 0] - 3000 / 7).max() < 5 * np.sqrt(3000 / 7)
    part = NgramVariants(sequences[:20], MASK, False, 5, positions=1, seed=3)
    np.testing.assert_array_equal(part.pairs, drawn.pairs[:20])
    other = NgramVariants(sequences[:20], MASK, True, 5, positions=1, seed=4)
    assert not np.array_equal(other.pairs, part.pairs)


def test_the_default_positions_are_the_published_ones():
    variants = NgramVariants(sentences([500]), MASK, True)
    assert variants.pairs[:, 1].tolist() == list(range(30, 421, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spacing": 0}, "positions are at least 1 apart"),
        ({"sizes": (1, 2)}, "n-grams have at least 2 tokens"),
        ({"sizes": ()}, "n-grams have at least 2 tokens"),
        ({"spacing": 30}, "no sequence has a whole 5-gram around a multiple of 30: give a smaller --spacing"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        NgramVariants(sentences([32, 10]), MASK, True, **arguments)


# Measures


def naive(model, sequences, spacing, hide_masked):
    """M_robust and M_close, one full sentence at a time: (pairs, 2 len(SIZES))."""
    distances = []
    for sequence in sequences:
        for p in range(spacing, len(sequence) - 2, spacing):
            answers = []
            for variant in range(1 + 2 * len(SIZES)):
                shown = shown_positions(len(sequence), p, variant)
                masked = [i for i in range(len(sequence)) if i not in shown]
                input_ids = torch.tensor(np.array([sequence]))
                input_ids[0, masked] = MASK
                attention_mask = torch.ones_like(input_ids)
                if hide_masked:
                    attention_mask[0, masked] = 0
                with torch.no_grad():
                    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
                answers.append(logits[0, p].softmax(dim=-1).numpy())
            distances.append([np.abs(answer - answers[0]).sum() for answer in answers[1:]])
    return np.array(distances)


@pytest.mark.parametrize("hide_masked", [True, False])
@pytest.mark.parametrize("shorten", [True, False])
@pytest.mark.parametrize("columns", [1, 300, 10_000])
def test_bert_is_measured_as_if_one_full_sentence_at_a_time(bert, hide_masked, shorten, columns):
    sequences = sentences([30, 17, 30, 41, 9])
    bert.train()  # the predictor must see to it that no dropout is on
    variants = NgramVariants(sequences, MASK, hide_masked, spacing=6, shorten=shorten)
    result = probe_ngrams(variants, bert_predictor(bert), columns, values=True)
    values = np.array([statistics.values for statistics in (*result.robust, *result.close)]).T
    bert.eval()
    expected = naive(bert, sequences, 6, hide_masked)
    assert expected.min() > 5e-5
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert result.pairs == len(expected)


def test_hidden_positions_that_are_left_out_make_short_questions():
    sequences = sentences([40] * 4)
    numbers = [
        sum(questions.input_ids.numel() for _, questions in variants.batches(1000))
        for variants in (
            NgramVariants(sequences, MASK, True, 10),
            NgramVariants(sequences, MASK, True, 10, shorten=False),
        )
    ]
    pairs = 4 * 3
    assert numbers[1] == pairs * 9 * 40
    assert numbers[0] <= pairs * (40 + 4 * 39 + 4 * 5)


def neighbour_predictor(offset):
    """Knows the token from the one at p + offset: certain where that is shown, uniform where it is masked."""

    def predict(questions):
        answers = torch.full((len(questions.columns), TERMINALS), 1 / TERMINALS)
        for row, column in enumerate(questions.columns):
            p = questions.position_ids[row, column]
            (found,) = torch.nonzero(
                (questions.position_ids[row] == p + offset) & (questions.input_ids[row] != MASK), as_tuple=True
            )
            if len(found):
                answers[row] = torch.eye(TERMINALS)[questions.input_ids[row, found[0]]]
        return answers

    return predict


@pytest.mark.parametrize(("offset", "needed"), [(-1, (2, 3, 4, 5)), (1, (3, 4, 5)), (-2, (4, 5)), (2, (5,)), (3, ())])
def test_a_predictor_that_needs_one_neighbour(offset, needed):
    """Masking an n-gram with that neighbour loses all, and showing it is enough; otherwise the reverse."""
    variants = NgramVariants(sentences([30] * 5), MASK, False, spacing=6)
    result = probe_ngrams(variants, neighbour_predictor(offset))
    lost = 2 * (1 - 1 / TERMINALS)
    for robust, close in zip(result.robust, result.close, strict=True):
        assert robust.n == close.n
        assert (robust.median, robust.std) == pytest.approx((lost if robust.n in needed else 0, 0), abs=1e-6)
        assert (close.median, close.std) == pytest.approx((0 if close.n in needed else lost, 0), abs=1e-6)


def test_statistics_are_those_of_the_values(bert):
    variants = NgramVariants(sentences([30] * 5), MASK, True, spacing=6)
    full = probe_ngrams(variants, bert_predictor(bert), values=True)
    brief = probe_ngrams(variants, bert_predictor(bert))
    for statistics, without in zip((*full.robust, *full.close), (*brief.robust, *brief.close), strict=True):
        values = np.array(statistics.values)
        assert values.shape == (20,)
        assert without.values is None
        assert asdict(without) == {**asdict(statistics), "values": None}
        assert statistics.median == pytest.approx(np.sort(values)[9:11].mean())
        assert statistics.mean == pytest.approx(values.sum() / 20)
        assert statistics.std == pytest.approx(np.sqrt(((values - values.sum() / 20) ** 2).sum() / 20))
        assert {int(q): value for q, value in statistics.percentiles.items()} == {
            q: pytest.approx(np.percentile(values, q)) for q in (25, 50, 75, 90)
        }
    assert [statistics.n for statistics in full.robust] == [statistics.n for statistics in full.close] == [2, 3, 4, 5]
    assert json.loads(json.dumps(asdict(full))) == asdict(full)
