"""Monomial correlations against brute force over subsets and against known Fourier expansions."""

import json
from dataclasses import asdict
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.errors import UserError
from common.probes.monomials import (
    by_degree,
    monomial_correlations,
    probe_monomials,
    random_subsets,
    support_correlations,
    walsh_hadamard,
)


def pack(x):
    """(samples, d) of -1 and +1 to (samples, words), one bit at a time."""
    bits = np.zeros((len(x), -(-x.shape[1] // 64)), dtype=np.uint64)
    for i in range(x.shape[1]):
        bits[x[:, i] == -1, i // 64] |= np.uint64(1 << i % 64)
    return bits


def random_inputs(samples, d, seed=0):
    return np.random.default_rng(seed).choice([-1, 1], (samples, d))


def cube(d):
    return np.array(list(product([1, -1], repeat=d)))


def brute_force(x, values, subset):
    return np.tensordot(x[:, list(subset)].prod(axis=1).astype(float), values, axes=1) / len(x)


def subset_of(mask, support):
    return [i for j, i in enumerate(support) if mask >> j & 1]


@st.composite
def problems(draw):
    d = draw(st.integers(1, 140))
    support = draw(st.lists(st.integers(0, d - 1), max_size=6, unique=True))
    samples = draw(st.integers(1, 40))
    shape = (samples, *draw(st.sampled_from([(), (1,), (3,)])))
    seed = draw(st.integers(0, 1000))
    return random_inputs(samples, d, seed), np.random.default_rng(seed).normal(size=shape), support


@given(problems())
def test_both_routes_equal_brute_force_on_every_subset_of_the_support(problem):
    x, values, support = problem
    subsets = [subset_of(mask, support) for mask in range(2 ** len(support))]
    expected = np.array([brute_force(x, values, subset) for subset in subsets])
    np.testing.assert_allclose(support_correlations(pack(x), values, support), expected, atol=1e-12)
    np.testing.assert_allclose(monomial_correlations(pack(x), values, subsets), expected, atol=1e-12)


@given(st.integers(0, 8), st.integers(0, 1000))
def test_walsh_hadamard_is_the_hadamard_matrix_and_its_own_inverse(k, seed):
    matrix = np.ones((1, 1))
    for _ in range(k):
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    values = np.random.default_rng(seed).normal(size=(2**k, 2))
    before = values.copy()
    np.testing.assert_allclose(walsh_hadamard(values), matrix @ values, atol=1e-12)
    np.testing.assert_allclose(walsh_hadamard(walsh_hadamard(values)) / 2**k, values, atol=1e-12)
    np.testing.assert_array_equal(values, before)


def test_a_parity_has_one_coefficient():
    x = cube(6)
    support = [4, 0, 2]
    expected = np.zeros(8)
    expected[0b111] = 1
    np.testing.assert_array_equal(support_correlations(pack(x), x[:, support].prod(axis=1), support), expected)


def test_majority_of_three():
    """(x_0 + x_1 + x_2 - x_0 x_1 x_2) / 2."""
    x = cube(3)
    found = support_correlations(pack(x), np.sign(x.sum(axis=1)), [0, 1, 2])
    np.testing.assert_allclose(found, [0, 0.5, 0.5, 0, 0.5, 0, 0, -0.5])


@given(st.integers(1, 8), st.integers(0, 1000))
def test_parseval(d, seed):
    values = np.random.default_rng(seed).normal(size=2**d)
    coefficients = support_correlations(pack(cube(d)), values, range(d))
    assert (coefficients**2).sum() == pytest.approx((values**2).mean())


def test_by_degree_follows_combinations():
    found = by_degree(-np.arange(8.0), 3)
    assert {degree: values.tolist() for degree, values in found.items()} == {1: [1, 2, 4], 2: [3, 5, 6], 3: [7]}


@settings(deadline=None)
@given(st.data())
def test_random_subsets(data):
    d = data.draw(st.integers(1, 12))
    degree = data.draw(st.integers(1, d))
    support = data.draw(st.lists(st.integers(0, d - 1), unique=True))
    count = data.draw(st.integers(0, 60))
    seed = data.draw(st.integers(0, 2**63))
    subsets = random_subsets(d, degree, count, support, seed)
    assert len(subsets) == len(set(subsets)) == min(count, comb(d, degree) - comb(len(support), degree))
    for subset in subsets:
        assert list(subset) == sorted(set(subset))
        assert len(subset) == degree
        assert set(subset) <= set(range(d))
        assert not set(subset) <= set(support)
    assert subsets == random_subsets(d, degree, count, support, seed)


def test_random_subsets_are_uniform_and_depend_on_the_seed():
    draws = [random_subsets(6, 2, 1, [0, 1], seed)[0] for seed in range(2800)]
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert len(counts) == 14
    assert ((counts - 200) ** 2 / 200).sum() < 34.5  # chi-squared, 13 degrees of freedom, p = 0.001


def test_the_probe_finds_the_support_of_a_noisy_output():
    x = random_inputs(20_000, 100)
    support = [70, 3, 64]
    values = 0.5 + 0.1 * x[:, 70] - 0.2 * x[:, [3, 64]].prod(axis=1)
    probe = probe_monomials(pack(x), values, support, d=100)
    assert [result.degree for result in probe.degrees] == [1, 2, 3, 4, 5]
    assert [len(result.inside) for result in probe.degrees] == [3, 3, 1, 0, 0]
    assert [len(result.outside) for result in probe.degrees] == [97, 100, 100, 100, 100]
    assert probe.standard_error == pytest.approx(values.std() / 20_000**0.5)
    one, two = probe.degrees[:2]
    assert dict(zip(one.inside_subsets, one.inside, strict=True))[(70,)] == pytest.approx(0.1, abs=0.01)
    assert dict(zip(two.inside_subsets, two.inside, strict=True))[(3, 64)] == pytest.approx(0.2, abs=0.01)
    outside = np.array([value for result in probe.degrees for value in result.outside])
    assert outside.max() < 5 * probe.standard_error
    assert np.sqrt((outside**2).mean()) == pytest.approx(probe.standard_error, rel=0.1)


def test_the_probe_equals_brute_force_on_centred_values_and_survives_json():
    x = random_inputs(500, 8)
    values = np.random.default_rng(1).random(500).astype(np.float32)
    probe = probe_monomials(pack(x), values, [1, 5, 6], d=8, degrees=(2, 4), outside=7, seed=3)
    centred = values - values.mean(dtype=np.float64)
    for result in probe.degrees:
        assert result.inside_subsets == list(combinations([1, 5, 6], result.degree))
        for subsets, found in ((result.inside_subsets, result.inside), (result.outside_subsets, result.outside)):
            expected = [abs(brute_force(x, centred, subset)) for subset in subsets]
            assert found == pytest.approx(expected, abs=1e-12)
    stored = json.loads(json.dumps(asdict(probe)))
    assert stored["degrees"][0]["inside_subsets"] == [[1, 5], [1, 6], [5, 6]]


def test_a_constant_output_correlates_with_nothing():
    probe = probe_monomials(pack(random_inputs(101, 10)), np.full(101, 0.25), [0, 1], d=10, degrees=(1,))
    assert max(probe.degrees[0].inside + probe.degrees[0].outside) == pytest.approx(0, abs=1e-15)
    assert probe.standard_error == pytest.approx(0, abs=1e-15)


BITS = pack(random_inputs(10, 70))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probe_monomials(BITS, np.ones(9), [0], d=70), "one value"),
        (lambda: probe_monomials(BITS[:0], np.ones(0), [0], d=70), "at least one"),
        (lambda: probe_monomials(BITS, np.ones(10), [70], d=70), "0 to 69"),
        (lambda: probe_monomials(BITS, np.ones(10), [0, 0], d=70), "distinct"),
        (lambda: probe_monomials(BITS, np.ones(10), [0], d=70, degrees=(71,)), "1 to 70, got 71"),
        (lambda: random_subsets(5, 0, 1, [0], 0), "1 to 5, got 0"),
        (lambda: random_subsets(5, 1, 1, [5], 0), "0 to 4"),
        (lambda: support_correlations(BITS, np.ones(10), range(25)), "at most 24"),
        (lambda: support_correlations(BITS, np.ones(10), [128]), "0 to 127"),
        (lambda: monomial_correlations(BITS, np.ones(10), [[3, 3]]), "distinct"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_walsh_hadamard_needs_a_power_of_two():
    with pytest.raises(ValueError, match="power of two"):
        walsh_hadamard(np.ones(6))
