"""Spearman's rank correlation against its definition in exact arithmetic, with all orders one by one."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import rank_correlation as module
from hypothesis import given, settings, strategies as st
from rank_correlation import rank_correlation

from common.errors import UserError

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=6)


def ranks(values):
    """Twice the ranks minus their mean: of two equal values, each is half below the other."""
    below = [sum((other < value) + (other <= value) for other in values) for value in values]
    return [Fraction(number) - Fraction(sum(below), len(below)) for number in below]


def product_sum(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


@settings(deadline=None)
@given(PAIRS)
def test_it_is_the_correlation_of_the_ranks_and_p_counts_orders(pairs):
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        with pytest.raises(UserError, match="at least two different values"):
            rank_correlation(first, second)
        return
    found, x, y = rank_correlation(first, second), ranks(first), ranks(second)
    observed = product_sum(x, y)
    assert found.rho == pytest.approx(observed / math.sqrt(product_sum(x, x) * product_sum(y, y)))
    orders = [abs(product_sum(x, order)) >= abs(observed) for order in itertools.permutations(y)]
    assert found.p == pytest.approx(Fraction(sum(orders), len(orders)))
    assert found.pairs == len(pairs)


def test_a_case_from_the_tables():
    """Of 120 orders of five values, 8 have a rho of at least 0.8."""
    found = rank_correlation([10, 20, 30, 40, 50], [0.2, 0.1, 0.4, 0.3, math.inf])
    assert (found.rho, found.p) == pytest.approx((0.8, 16 / 120))
    assert str(found) == "Spearman's rho = +0.80, p = 0.13, n = 5"
    assert rank_correlation([1, 2, 3, 4], [9, 8, 7, 0]).p == pytest.approx(2 / 24)


def test_random_orders_agree_with_all_orders(monkeypatch):
    first, second = [1, 2, 3, 4, 5, 6, 7], [2, 1, 4, 3, 3, 7, 5]
    exact = rank_correlation(first, second)
    monkeypatch.setattr(module, "MOST_ORDERS", 4096)
    monkeypatch.setattr(module, "ORDERS_AT_ONCE", 1024)
    drawn = rank_correlation(first, second)
    assert drawn.rho == exact.rho
    assert drawn.p == pytest.approx(exact.p, abs=5 * math.sqrt(exact.p / 4096))
    assert drawn.p != exact.p
    assert drawn == rank_correlation(first, second)
    monkeypatch.undo()
    many = rank_correlation(np.arange(12.0).tolist(), np.arange(12.0).tolist())
    assert (many.rho, many.p) == pytest.approx((1, 2**-20))


@pytest.mark.parametrize(("first", "second"), [([1, 2], [1]), ([1, 2], [1, math.nan])])
def test_what_has_no_ranks_is_refused(first, second):
    with pytest.raises(UserError, match="as many numbers of both"):
        rank_correlation(first, second)


def test_too_few_pairs_are_refused():
    with pytest.raises(UserError, match="at least two different values"):
        rank_correlation([], [])
