"""Operations on vectors, against NumPy."""

import numpy as np
import pytest
from numba import njit

from common.kernels.lanes import (
    exp,
    larger,
    largest,
    load8,
    load16,
    multiply_add,
    splat8,
    splat16,
    store,
    total,
    where,
    where_or_lowest,
)

NUMBERS = np.random.default_rng(0).standard_normal((3, 40), dtype=np.float32)


@njit
def exponentials(numbers, results):
    for offset in range(0, len(numbers), 16):
        store(results, offset, exp(load16(numbers, offset)))


def test_exp():
    numbers = np.linspace(-86.99, 88, 16 * 10_000, dtype=np.float32)
    results = np.empty_like(numbers)
    exponentials(numbers, results)
    np.testing.assert_allclose(results, np.exp(numbers.astype(np.float64)), rtol=2e-7)


def test_exp_of_special_numbers():
    numbers = np.array([0, -0.0, -87.01, -1e30, -np.inf, np.nan, 1, -1] * 2, np.float32)
    results = np.empty_like(numbers)
    exponentials(numbers, results)
    np.testing.assert_allclose(results, [1, 1, 0, 0, 0, np.nan, np.e, 1 / np.e] * 2, rtol=2e-7)


@njit
def arithmetic8(a, b, c, flags, number, results):
    x, y, z = load8(a, 3), load8(b, 5), load8(c, 7)
    store(results, 0, x + y * z - splat8(number))
    store(results, 8, multiply_add(x, y, z))
    store(results, 16, larger(x, y))
    store(results, 24, where(flags, 4, x))
    store(results, 32, where_or_lowest(flags, 4, x))
    return total(x), largest(x)


@njit
def arithmetic16(a, b, c, flags, number, results):
    x, y, z = load16(a, 3), load16(b, 5), load16(c, 7)
    store(results, 0, x + y * z - splat16(number))
    store(results, 16, multiply_add(x, y, z))
    store(results, 32, larger(x, y))
    store(results, 48, where(flags, 4, x))
    store(results, 64, where_or_lowest(flags, 4, x))
    return total(x), largest(x)


@pytest.mark.parametrize(("count", "compute"), [(8, arithmetic8), (16, arithmetic16)])
def test_arithmetic(count, compute):
    flags = (np.arange(40) % 3).astype(np.uint8)
    results = np.empty(5 * count, np.float32)
    sums = compute(*NUMBERS, flags, np.float32(2.5), results)
    x, y, z = (row[first : first + count].astype(np.float64) for row, first in zip(NUMBERS, (3, 5, 7), strict=True))
    seen = flags[4 : 4 + count] != 0
    expected = [x + y * z - 2.5, x * y + z, np.maximum(x, y), np.where(seen, x, 0), np.where(seen, x, -np.inf)]
    np.testing.assert_allclose(results, np.concatenate(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums, [x.sum(), x.max()], rtol=1e-5, atol=1e-6)


def test_the_product_of_a_multiply_add_is_not_rounded():
    small = np.float32(2**-13)
    a, flags, results = np.full(40, 1 + small), np.zeros(40, np.uint8), np.empty(80, np.float32)
    arithmetic16(a, a, np.full(40, -(1 + 2 * small), np.float32), flags, np.float32(0), results)
    assert (results[16:32] == small**2).all()
