"""Kneser-Ney models against the formulas in plain Python, NLTK, examples by hand and brute force over sequences."""

import itertools
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from nltk.lm.models import KneserNeyInterpolated
from nltk.lm.vocabulary import Vocabulary

from common.errors import UserError
from common.probes.kneser_ney import KneserNey, closed_form_discounts, divergence_statistics, divergences

ORDER = 5


class Oracle:
    """The formulas of Chen & Goodman (1999), with dictionaries."""

    def __init__(self, blocks, vocabulary, n, discounts=None):
        self.vocabulary, self.n = vocabulary, n
        counts = {k: Counter() for k in range(1, n + 1)}
        for block in np.asarray(blocks).tolist():
            for k, i in itertools.product(counts, range(len(block))):
                if i + k <= len(block):
                    counts[k][tuple(block[i : i + k])] += 1
        self.counts = {k: counts[k] if k == n else Counter(gram[1:] for gram in counts[k + 1]) for k in counts}
        self.discounts = {k: self.closed_form(k) if discounts is None else discounts[k - 1] for k in counts}

    def closed_form(self, k):
        n1, n2, n3, n4 = (sum(count == i for count in self.counts[k].values()) for i in (1, 2, 3, 4))
        if 0 in (n1, n2, n3):
            return 0.5, 1, 1.5
        y = n1 / (n1 + 2 * n2)
        estimates = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        return estimates if min(estimates) > 0 else (0.5, 1, 1.5)

    def probability(self, token, context, k=None):
        k = self.n if k is None else k
        if k == 0:
            return 1 / self.vocabulary
        lower = self.probability(token, context, k - 1)
        if len(context) < k - 1:
            return lower
        h = tuple(context[len(context) - k + 1 :])
        following = {v: self.counts[k][(*h, v)] for v in range(self.vocabulary)}
        total = sum(following.values())
        if total == 0:
            return lower
        discount = {v: self.discounts[k][min(count, 3) - 1] if count else 0 for v, count in following.items()}
        own = (following[token] - discount[token]) / total
        return own + sum(discount.values()) / total * lower

    def distribution(self, context):
        return [self.probability(token, context) for token in range(self.vocabulary)]

    def sequence(self, tokens):
        """The joint probability of a sequence; of its first tokens, given what there is."""
        return np.prod([self.probability(token, tokens[:i]) for i, token in enumerate(tokens)])


@st.composite
def corpora(draw):
    """Blocks, the vocabulary, n, and a generator; repeated tokens are common, so that high counts occur."""
    vocabulary = draw(st.integers(1, 6))
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 30)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = np.arange(1, vocabulary + 1.0) ** -draw(st.sampled_from([0, 1, 2]))
    blocks = generator.choice(vocabulary, shape, p=weights / weights.sum())
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64, np.int64]))
    return blocks.astype(dtype), vocabulary, draw(st.integers(1, ORDER)), generator


# Distributions


@given(corpora())
@settings(deadline=None, max_examples=150)
def test_distributions_are_those_of_the_formulas(case):
    blocks, vocabulary, n, generator = case
    oracle = Oracle(blocks, vocabulary, n)
    model = KneserNey.fit(blocks, generator.integers(n, ORDER + 1), vocabulary)
    for columns in range(ORDER + 2):
        contexts = generator.integers(0, vocabulary, (6, columns), np.uint16)
        expected = [oracle.distribution(context) for context in contexts.tolist()]
        np.testing.assert_allclose(model.distributions(contexts, n), expected, rtol=1e-12)


@given(corpora())
@settings(deadline=None)
def test_distributions_are_positive_and_sum_to_one(case):
    blocks, vocabulary, n, generator = case
    model = KneserNey.fit(blocks, n, vocabulary + 3)
    contexts = generator.integers(0, vocabulary + 3, (20, 4))
    for probabilities in (
        model.distributions(contexts, n),
        model.window_distributions(contexts, contexts[::-1], n),
    ):
        assert probabilities.min() > 0
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


@given(corpora())
@settings(deadline=None)
def test_the_order_of_blocks_and_the_highest_order_do_not_matter(case):
    blocks, vocabulary, n, generator = case
    contexts = generator.integers(0, vocabulary, (20, 4))
    one = KneserNey.fit(blocks, n, vocabulary)
    other = KneserNey.fit(generator.permutation(blocks), ORDER, vocabulary)
    np.testing.assert_array_equal(one.distributions(contexts, n), other.distributions(contexts, n))
    np.testing.assert_array_equal(one.discounts[0, n - 1], other.discounts[0, n - 1])


def test_a_memory_map(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 50, (30, 20), np.uint16)
    blocks.tofile(tmp_path / "blocks")
    mapped = np.memmap(tmp_path / "blocks", np.uint16, mode="r", shape=blocks.shape)
    contexts = blocks[:5, :4]
    expected = KneserNey.fit(blocks, 5, 50).distributions(contexts, 5)
    np.testing.assert_array_equal(KneserNey.fit(mapped, 5, 50).distributions(contexts, 5), expected)


def test_a_bigram_model_by_hand():
    """Of a b a b a c: bigrams ab 2, ba 2, ac 1; a, b and c follow one token each."""
    a, b, c = range(3)
    model = KneserNey.fit(np.array([[a, b, a, b, a, c]], np.uint8), 2, 3)
    # no bigram occurs 3 times, and no token follows 2: fallback; P_1 = (1 - 0.5) / 3 + 0.5 / 3
    np.testing.assert_allclose(model.discounts[0, 1], [0.5, 1, 1.5])
    np.testing.assert_allclose(model.discounts[1, 0], [0.5, 1, 1.5])
    after_a = [1.5 / 9, 1 / 3 + 1.5 / 9, 0.5 / 3 + 1.5 / 9]
    after_b = [1 / 2 + 1 / 6, 1 / 6, 1 / 6]
    after_c = [1 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(model.distributions(np.array([[a], [b], [c]]), 2), [after_a, after_b, after_c])
    # unigrams: a 3, b 2, c 1: n_1 = n_2 = n_3 = 1, Y = 1/3, D1 = 1/3, D2 = 1, D3+ = 3; gamma = (13/3) / 6
    np.testing.assert_allclose(model.discounts[0, 0], [1 / 3, 1, 3])
    shared = 13 / 3 / 6 / 3
    np.testing.assert_allclose(model.distributions(np.array([[a]]), 1), [[shared, 1 / 6 + shared, 2 / 18 + shared]])


def test_a_token_that_follows_one_other_only_is_rare_elsewhere():
    """What Kneser-Ney is for: "Francisco" is frequent, but only after "San"."""
    san, francisco, new, common = range(4)
    blocks = np.array([[san, francisco]] * 20 + [[new, common], [common, common], [san, common]] * 3, np.uint8)
    model = KneserNey.fit(blocks, 2, 5)
    unseen = model.distributions(np.array([[4]]), 2)[0]
    assert unseen[francisco] < unseen[common]
    unigrams = model.distributions(np.zeros((1, 0), int), 1)[0]
    assert unigrams[francisco] > unigrams[common]


def test_contexts_never_seen_back_off_wholly():
    blocks = np.random.default_rng(1).integers(0, 4, (5, 30))
    model = KneserNey.fit(blocks, 5, 6)
    for n in range(2, 6):
        contexts = np.array([[5] * 4, [5, 5, 5, 0], [0, 5, 0, 1]])
        found = model.distributions(contexts, n)
        for row, known in enumerate([[], [0], [0, 1]]):
            expected = model.distributions(np.array([known], int).reshape(1, -1), n)
            if n > 1 + len(known):
                np.testing.assert_array_equal(found[row], expected[0])


@pytest.mark.parametrize("order", range(1, 6))
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 2), (2, 3)])
def test_tiny_corpora(order, shape):
    blocks = np.zeros(shape, np.uint16)
    contexts = np.zeros((1, 4), int)
    for n in range(1, order + 1):
        expected = Oracle(blocks, 2, n).distribution([0] * 4)
        np.testing.assert_allclose(KneserNey.fit(blocks, order, 2).distributions(contexts, n), [expected])


@given(st.integers(2, 4), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_nltk_agrees_with_fixed_discounts(n, discount, seed):
    """NLTK has one discount and none for unigrams. A repeated text gives every n-gram a token before it, without which
    NLTK takes gamma of all tokens that follow a context, even those of continuation count 0.
    """
    vocabulary = 4
    generator = np.random.default_rng(seed)
    text = np.tile(np.concatenate([np.arange(vocabulary), generator.integers(0, vocabulary, 12)]), 2)
    names = [str(token) for token in text]
    nltk = KneserNeyInterpolated(n, discount, vocabulary=Vocabulary(names))
    nltk.fit([[tuple(names[i : i + k]) for k in range(1, n + 1) for i in range(len(names) - k + 1)]])
    discounts = np.full((n, 3), discount)
    discounts[0] = 0
    model = KneserNey.fit(text[None].astype(np.uint16), n, vocabulary, discounts)
    contexts = generator.integers(0, vocabulary, (10, n - 1))
    expected = [
        [nltk.score(str(token), [str(h) for h in context]) for token in range(vocabulary)] for context in contexts
    ]
    np.testing.assert_allclose(model.distributions(contexts, n), expected, rtol=1e-12)


# Windows


@given(corpora(), st.integers(0, 6), st.integers(0, 6))
@settings(deadline=None, max_examples=80)
def test_windows_are_conditionals_of_the_joint_probability(case, before, after):
    blocks, vocabulary, n, generator = case
    oracle = Oracle(blocks, vocabulary, n)
    left, right = (generator.integers(0, vocabulary, (2, columns)) for columns in (before, after))
    model = KneserNey.fit(blocks, ORDER, vocabulary)
    found = model.window_distributions(left.astype(np.uint16), right, n)
    for row, first, last in zip(found, left.tolist(), right.tolist(), strict=True):
        joint = np.array([oracle.sequence([*first, x, *last]) for x in range(vocabulary)])
        np.testing.assert_allclose(row, joint / joint.sum(), rtol=1e-9)


def test_windows_of_a_large_vocabulary():
    """Products of `distributions`, with contexts from the corpus, so that the longest are seen."""
    vocabulary = 300
    weights = 1 / np.arange(1, vocabulary + 1)
    blocks = np.random.default_rng(2).choice(vocabulary, (200, 64), p=weights / weights.sum()).astype(np.uint16)
    model = KneserNey.fit(blocks, 5, vocabulary)
    for n, block in itertools.product(range(1, 6), blocks[:3]):
        left, right = block[:4].astype(int), block[5:9].astype(int)
        expected = model.distributions(left[None], n)[0]
        sequences = np.column_stack([np.tile(left, (vocabulary, 1)), np.arange(vocabulary), np.tile(right, (300, 1))])
        for i in range(5, 4 + n):
            expected = expected * model.distributions(sequences[:, :i], n)[:, sequences[0, i]]
        found = model.window_distributions(left[None], right[None], n)
        np.testing.assert_allclose(found[0], expected / expected.sum(), rtol=1e-10)


# Discounts


@given(st.lists(st.integers(0, 7), max_size=60))
def test_discounts_are_in_range(counts):
    discounts = closed_form_discounts(np.array(counts, int))
    assert (discounts > 0).all()
    assert (discounts <= [1, 2, 3]).all()


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((100, 40, 20, 12), (1 - 2 / 1.8 * 0.4, 2 - 3 / 1.8 * 0.5, 3 - 4 / 1.8 * 0.6)),
        ((10, 5, 2, 0), (0.5, 2 - 1.5 * 0.4, 3)),
        ((0, 5, 5, 5), (0.5, 1, 1.5)),
        ((5, 0, 5, 5), (0.5, 1, 1.5)),
        ((10, 5, 0, 5), (0.5, 1, 1.5)),
        ((100, 5, 40, 1), (0.5, 1, 1.5)),  # D2 is negative
        ((0, 0, 0, 0), (0.5, 1, 1.5)),
    ],
)
def test_the_closed_form_and_its_fallback(numbers, expected):
    counts = np.repeat([1, 2, 3, 4, 9], (*numbers, 3))
    np.testing.assert_allclose(closed_form_discounts(counts), expected)


# Divergences


def test_divergences_by_hand():
    log_p = np.log([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    q = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    p = np.exp(log_p)
    expected = [(p * np.log(p / q)).sum(axis=1), (q * np.log(q / p)).sum(axis=1)]
    found = divergences(log_p, q)
    np.testing.assert_allclose(found, expected, atol=1e-15)
    np.testing.assert_allclose(divergences(log_p.astype(np.float32), q.astype(np.float32)), expected, atol=1e-6)
    summary = divergence_statistics(found)
    assert summary.positions == 3
    assert summary.model_to_ngram.mean == pytest.approx(np.mean(expected[0]))
    assert summary.ngram_to_model.percentiles["50"] == pytest.approx(np.median(expected[1]))
    assert summary.ngram_to_model.mean == pytest.approx(np.mean(expected[1]))
    assert json.loads(json.dumps(asdict(summary))) == asdict(summary)


def test_probabilities_of_zero():
    with np.errstate(divide="ignore"):
        log_p = np.log([[1, 0, 0], [0.5, 0.5, 0]])
    q = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(divergences(log_p, q), [[np.log(2), np.inf], [np.inf, np.inf]])
    np.testing.assert_array_equal(divergences(log_p, np.exp(log_p)), 0)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 6}, "order of 1 to 5; got 6"),
        ({"order": 0}, "order of 1 to 5; got 0"),
        ({"blocks": np.zeros(4, np.uint16)}, "matrix of token ids"),
        ({"blocks": np.zeros((0, 4), np.uint16)}, "matrix of token ids"),
        ({"blocks": np.zeros((1, 4))}, "matrix of token ids"),
        ({"vocabulary": 2}, "token ids are 0 to 1; got 0 to 2"),
        ({"blocks": np.array([[-1, 0]])}, "token ids are 0 to 2; got -1 to 0"),
        ({"discounts": np.full((1, 3), 0.5)}, r"shape \(2, 3\)"),
        ({"discounts": np.full((2, 3), 1.1)}, "0 <= D_k <= k"),
        ({"blocks": np.broadcast_to(np.uint8(0), (2**16, 2**15))}, "too many for order 2"),
    ],
)
def test_corpora_that_cannot_be_counted(arguments, message):
    with pytest.raises(UserError, match=message):
        KneserNey.fit(**{"blocks": np.array([[0, 1, 2]]), "order": 2, "vocabulary": 3, **arguments})


def test_queries_that_make_no_sense():
    model = KneserNey.fit(np.array([[0, 1, 2]]), 2, 3)
    one = np.array([[0]])
    for n in (0, 3):
        with pytest.raises(UserError, match=f"orders 1 to 2; got {n}"):
            model.distributions(one, n)
    for contexts in (np.array([0]), np.array([[3]]), np.array([[-1]])):
        with pytest.raises(UserError, match="token ids below 3"):
            model.window_distributions(one, contexts, 2)
    with pytest.raises(UserError, match="same number of rows; got 1 and 2"):
        model.window_distributions(one, np.array([[0], [1]]), 2)
    with pytest.raises(UserError, match="sum to 1"):
        divergences(np.zeros((2, 3)), np.full((2, 3), 1 / 3))
    with pytest.raises(UserError, match=r"shape \(2, 3\)"):
        divergences(np.zeros((2, 3)), np.full((2, 4), 1 / 4))
    with pytest.raises(UserError, match="at least one row"):
        divergence_statistics(np.zeros((2, 0)))
