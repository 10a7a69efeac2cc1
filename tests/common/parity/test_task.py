"""Streams that depend on position alone, unbiased bits, and labels against a naive product and a naive walk."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.errors import UserError
from common.parity.task import MAX_D, WORD, ParityTask, make_task, odd_parity, task_of
from parity_mlp.data import signs

STREAMS = ("train", "evaluation", "probe")
DIMENSIONS = st.one_of(st.integers(1, 200), st.sampled_from([63, 64, 65, 127, 128, 129, 1000, MAX_D]))
SEEDS = st.integers(0, 2**64 - 1)


@given(DIMENSIONS, SEEDS, st.sampled_from(STREAMS), st.integers(0, 10**15), st.integers(1, 50), st.data())
@settings(deadline=None)
def test_a_sample_depends_on_its_place_alone(d, seed, stream, start, count, data):
    task = make_task(d, 1)
    whole = task.sample(seed, stream, start, count)
    cuts = data.draw(st.lists(st.integers(0, count), max_size=4).map(sorted))
    parts = [task.sample(seed, stream, start + a, b - a) for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(DIMENSIONS, SEEDS, st.integers(0, 10**15), st.integers(0, 50))
@settings(deadline=None)
def test_samples_are_packed_and_unused_bits_are_zero(d, seed, start, count):
    bits = make_task(d, 1).sample(seed, "train", start, count)
    assert bits.dtype == np.uint64
    assert bits.shape == (count, math.ceil(d / WORD))
    assert bits.flags["C_CONTIGUOUS"]
    assert not np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, d:].any()


def test_streams_and_seeds_are_different_samples():
    task = make_task(256, 1)
    keys = [(seed, stream) for seed in (0, 1, 2**63) for stream in STREAMS]
    samples = np.concatenate([task.sample(*key, 0, 1000) for key in keys])
    assert len(np.unique(samples)) == samples.size


@pytest.mark.parametrize("d", [100, 128])
def test_bits_are_uniform_and_independent(d):
    """Sums of n signs are normal with variance n; 5.5 sigma leaves a chance of 4e-8 for each of about 10^4 sums."""
    count = 20_000
    for stream in STREAMS:
        x = signs(make_task(d, 1).sample(3, stream, 0, count), d, np.float64)
        bound = 5.5 * math.sqrt(count)
        assert np.abs(x.sum(0)).max() < bound
        assert np.abs(x.T @ x - count * np.eye(d)).max() < bound
        assert np.abs(x[1:].T @ x[:-1]).max() < bound
        chi_square = np.sum(x.sum(0) ** 2) / count  # mean d, variance about 2 d
        assert abs(chi_square - d) < 5 * math.sqrt(2 * d)
        weights = np.bincount((x < 0).sum(1), minlength=d + 1) / count
        assert np.abs(weights - [math.comb(d, i) / 2**d for i in range(d + 1)]).max() < 5.5 * math.sqrt(0.08 / count)


def test_streams_are_independent_of_each_other():
    count, d = 20_000, 64
    a, b, c = (signs(make_task(d, 1).sample(3, stream, 0, count), d, np.float64) for stream in STREAMS)
    for left, right in ((a, b), (a, c), (b, c)):
        assert np.abs(left.T @ right).max() < 5.5 * math.sqrt(count)


@given(DIMENSIONS, SEEDS, st.data())
@settings(deadline=None)
def test_sparse_labels_are_the_product_of_the_support(d, seed, data):
    support = data.draw(st.lists(st.integers(0, d - 1), min_size=1, max_size=10, unique=True))
    task = ParityTask(d, (tuple(support),))
    bits = task.sample(seed, "train", 0, 20)
    product = signs(bits, d, np.int64)[:, support].prod(axis=1)
    labels = task.labels(bits)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, product < 0)
    np.testing.assert_array_equal(odd_parity(bits, tuple(support)), product < 0)


def walk(x, supports, node=0):
    """Class of one input: leaves are numbered from left to right."""
    if node >= len(supports):
        return node - len(supports)
    product = math.prod(x[i] for i in supports[node])
    return walk(x, supports, 2 * node + 1 if product > 0 else 2 * node + 2)


@given(st.sampled_from([2, 4, 8]), st.integers(1, 9), SEEDS)
@settings(deadline=None)
def test_hierarchical_labels_are_a_walk_down_the_tree(labels, k, seed):
    task = make_task(70, k, labels, "random", seed)
    bits = task.sample(seed, "evaluation", 0, 40)
    assert task.classes == labels
    assert task.labels(bits).tolist() == [walk(x, task.supports) for x in signs(bits, 70, np.int64).tolist()]


def test_classes_are_equally_likely():
    task = make_task(64, 6, 8)
    counts = np.bincount(task.labels(task.sample(0, "train", 0, 80_000)), minlength=8)
    assert np.sum((counts - 10_000) ** 2 / 10_000) < 30  # chi-square of 7 degrees of freedom; p = 1e-4


def test_supports_first_and_given():
    assert make_task(10, 2, 4).supports == ((0, 1), (2, 3), (4, 5))
    assert make_task(10, 3, support="7, 0,9").supports == ((7, 0, 9),)
    assert make_task(10, 1, 4, support="5,4,3").supports == ((5,), (4,), (3,))


@given(st.integers(1, 300), st.integers(0, 2**32), st.data())
@settings(deadline=None)
def test_random_supports_are_distinct_and_seeded(d, seed, data):
    labels = data.draw(st.sampled_from([n for n in (2, 4, 8) if n - 1 <= d]))
    k = data.draw(st.integers(1, d // (labels - 1)))
    task = make_task(d, k, labels, "random", seed)
    coordinates = [i for support in task.supports for i in support]
    assert [len(support) for support in task.supports] == [k] * (labels - 1)
    assert len(set(coordinates)) == len(coordinates)
    assert set(coordinates) <= set(range(d))
    assert make_task(d, k, labels, "random", seed) == task


def test_random_supports_depend_on_the_seed_and_reach_every_coordinate():
    supports = [make_task(50, 6, support="random", seed=seed).supports for seed in range(100)]
    assert len(set(supports)) == 100
    assert {i for support in supports for i in support[0]} == set(range(50))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8])
def test_signs_unpack_bit_i_of_the_words(dtype):
    bits = np.array([[0b101, 0], [0, 0b10]], np.uint64)
    x = signs(bits, 66, dtype)
    assert x.dtype == dtype
    assert x.shape == (2, 66)
    expected = np.ones((2, 66))
    expected[0, [0, 2]] = expected[1, 65] = -1
    np.testing.assert_array_equal(x, expected)
    assert signs(bits, 66).dtype == np.float32


def test_the_largest_d():
    task = make_task(MAX_D, 2, support=f"0,{MAX_D - 1}")
    bits = task.sample(0, "probe", 5, 10)
    x = signs(bits, MAX_D)
    assert x.shape == (10, MAX_D)
    np.testing.assert_array_equal(task.labels(bits), x[:, 0] * x[:, -1] < 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 5, "k": 6}, "need 6 coordinates"),
        ({"d": 6, "k": 3, "labels": 4}, "need 9 coordinates"),
        ({"d": 5, "k": 0}, "at least 1"),
        ({"d": 0, "k": 1}, "d = 0"),
        ({"d": MAX_D + 1, "k": 1}, f"^--d must be from 1 to {MAX_D:,}, got 4,097$"),
        ({"d": 5, "k": 2, "support": "1,5"}, "index 5 is out of range"),
        ({"d": 5, "k": 2, "support": "-1,2"}, "index -1 is out of range"),
        ({"d": 5, "k": 2, "support": "3,3"}, "distinct"),
        ({"d": 5, "k": 2, "support": "1,2,3"}, "names 3 coordinates"),
        ({"d": 5, "k": 1, "labels": 4, "support": "1,2"}, "names 2 coordinates"),
        ({"d": 5, "k": 2, "support": "1,x"}, "'1,x'"),
        ({"d": 5, "k": 2, "support": ""}, "first, random or"),
        ({"d": 50, "k": 2, "labels": 3}, "power of two"),
        ({"d": 50, "k": 2, "labels": 6}, "power of two"),
        ({"d": 50, "k": 2, "labels": 1}, "power of two"),
        ({"d": 50, "k": 2, "labels": 0}, "power of two"),
        ({"d": 50, "k": 2, "labels": -2}, "power of two"),
    ],
)
def test_tasks_that_do_not_exist_are_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        make_task(**arguments)


@pytest.mark.parametrize("supports", [((0,), (1,)), ((),)])
def test_trees_that_do_not_exist_are_errors(supports):
    with pytest.raises(UserError):
        ParityTask(5, supports)


@pytest.mark.parametrize(("name", "value"), [("d", "10"), ("k", None), ("labels", [2]), ("support", 3), ("d", 10.0)])
def test_arguments_of_other_types_are_refused(name, value):
    arguments = {"d": 10, "k": 2, "labels": 2, "support": "first", "support_seed": 0}
    assert task_of(arguments) == make_task(10, 2)
    with pytest.raises(UserError, match=rf"^{name} is .*: no parity task has it; restore the run's config.json$"):
        task_of({**arguments, name: value})
