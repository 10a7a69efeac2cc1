"""Spearman's rank correlation and its p-value: whether one measurement rises with another, on any scales of both.

If the two had nothing to do with each other, every order of the second would be as likely. The test compares the
correlation with those of all n! orders (of 2^20 random ones if there are more), so ties need no correction.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

MOST_ORDERS = 2**20
"""Of which those of 9 values are fewer."""
ORDERS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Correlation:
    """How far two measurements rise together."""

    pairs: int
    rho: float
    """From -1 to 1."""
    p: float
    """Two-sided p-value of the permutation test."""

    def __str__(self) -> str:
        return f"Spearman's rho = {self.rho:+.2f}, p = {self.p:.2g}, n = {self.pairs}"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Spearman's rank correlation; equal values have the mean of their ranks.

    Args:
        first, second: one value of each for every pair; infinity is larger than any number.

    Raises:
        UserError: there are fewer than two pairs, all values of one measurement are equal, or a value is no number.
    """
    if len(first) != len(second) or np.isnan([*first, *second]).any():
        raise UserError(f"ranks need as many numbers of both measurements, got {list(first)} and {list(second)}")
    x, y = _centred_ranks(first), _centred_ranks(second)
    scale = math.sqrt((x @ x) * (y @ y))
    if not scale:
        raise UserError("a rank correlation needs at least two different values of both measurements")
    observed = x @ y
    sums = _sums_of_orders(x, y)
    return Correlation(len(x), float(observed / scale), float((np.abs(sums) >= abs(observed) - 1e-9 * scale).mean()))


def _centred_ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks minus their mean."""
    _, group, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group] - (len(values) + 1) / 2


def _sums_of_orders(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of the products of x and y for each order of y, of which the given one is the first."""
    if math.factorial(len(y)) <= MOST_ORDERS:
        return y[np.array(list(itertools.permutations(range(len(y)))))] @ x
    generator = np.random.Generator(np.random.Philox(0))
    orders = np.tile(y, (ORDERS_AT_ONCE, 1))
    sums = np.concatenate([generator.permuted(orders, axis=1) @ x for _ in range(MOST_ORDERS // ORDERS_AT_ONCE)])
    sums[0] = x @ y
    return sums
