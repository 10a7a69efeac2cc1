"""The exact sign-flip test that compares methods, against all choices of signs one by one."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from paired_tests import FEWEST_PAIRS, compare

from common.errors import UserError

DIFFERENCES = st.lists(st.integers(-20, 20), min_size=1, max_size=9)


def p_value(differences):
    """In exact arithmetic."""
    observed = abs(sum(differences))
    choices = list(itertools.product([1, -1], repeat=len(differences)))
    sums = [abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) for signs in choices]
    return Fraction(sum(value >= observed for value in sums), len(choices))


@settings(deadline=None)
@given(differences=DIFFERENCES)
def test_the_p_value_counts_choices_of_signs(differences):
    found = compare([value / 1000 for value in differences])
    assert found.p == float(p_value(differences))
    assert found.mean == pytest.approx(sum(differences) / 1000 / len(differences), abs=1e-15)
    assert (found.pairs, found.above) == (len(differences), sum(value > 0 for value in differences))


@settings(deadline=None)
@given(differences=st.lists(st.integers(-20, 20), min_size=FEWEST_PAIRS, max_size=7))
def test_the_interval_has_the_differences_that_are_not_rejected(differences):
    found = compare(differences)
    assert found.low <= found.mean <= found.high
    for end, direction in ((found.low, -1), (found.high, 1)):
        beyond = [Fraction(value) - Fraction(end) - direction * Fraction(1, 10**6) for value in differences]
        within = [Fraction(value) - Fraction(end) + direction * Fraction(1, 10**6) for value in differences]
        assert p_value(beyond) <= Fraction(1, 20)
        assert p_value(within) > Fraction(1, 20) or found.low == pytest.approx(found.high, abs=1e-5)


@settings(deadline=None)
@given(differences=st.lists(st.integers(-20, 20), min_size=FEWEST_PAIRS, max_size=9))
def test_test_and_interval_agree(differences):
    found = compare(differences)
    assert (found.p <= 0.05) == (found.low > 1e-6 or found.high < -1e-6)
    assert found.is_above == (found.low > 1e-6)
    mirrored = compare([-value for value in differences])
    assert mirrored.p == found.p
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high), abs=1e-6)


def test_few_pairs_have_no_interval():
    assert str(compare([0.02, 0.03, 0.01])) == "mean difference +0.020; 3 of 3 pairs; p = 0.25"
    assert compare([0.02, 0.03, 0.01]).is_above
    assert not compare([0.02, 0.03, -0.01]).is_above
    assert (
        str(compare([0.5] * 10)) == "mean difference +0.500, 95% interval +0.500 to +0.500; 10 of 10 pairs; p = 0.002"
    )


@pytest.mark.parametrize("differences", [[], [0.1, float("nan")], [float("inf")]])
def test_what_cannot_be_tested_is_refused(differences):
    with pytest.raises(UserError, match="takes finite differences, at least one"):
        compare(differences)


def test_with_many_pairs_random_choices_of_signs_agree_with_the_normal_distribution():
    differences = [0.003 + 0.02 * random for random in np.random.default_rng(0).standard_normal(100)]
    found = compare(differences)
    deviation = math.sqrt(sum(value**2 for value in differences))
    assert found.p == pytest.approx(math.erfc(abs(sum(differences)) / deviation / math.sqrt(2)), abs=2e-3)
    assert found.low < found.mean < found.high
    assert found == compare(differences)
