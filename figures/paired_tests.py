"""Compare two methods by students that differ in nothing else: the mean difference, its interval, and a p-value.

If the methods were equally good, each difference would be as likely to have the other sign. The test compares the mean
difference with those of all 2^n choices of signs (of 2^20 random ones if there are more), without any assumption on
their distribution (Fisher 1935). The interval consists of the values that would not be rejected as the true difference,
by the same test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

LEVEL = 0.05
"""Differences are significant if p is at most this; the intervals cover the true one in 95% of all cases."""
MOST_CHOICES = 2**20
"""Of signs, which take a second."""
FEWEST_PAIRS = 6
"""With 5 pairs, p is at least 2 / 2^5 = 0.0625."""
BISECTIONS = 40


@dataclass(frozen=True)
class Comparison:
    """Paired differences of a measurement, such as final accuracies."""

    pairs: int
    above: int
    """Pairs with a positive difference."""
    mean: float
    low: float
    """Lower end of the 95% interval of the mean; -inf with fewer than 6 pairs."""
    high: float
    """Upper end of the interval; inf with fewer than 6 pairs."""
    p: float
    """Two-sided p-value of the exact sign-flip permutation test."""

    @property
    def is_above(self) -> bool:
        """Whether the mean is significantly positive or, with too few pairs for that, every difference is positive."""
        return self.mean > 0 and (self.p <= LEVEL if self.pairs >= FEWEST_PAIRS else self.above == self.pairs)

    def __str__(self) -> str:
        interval = f", 95% interval {self.low:+.3f} to {self.high:+.3f}" if self.pairs >= FEWEST_PAIRS else ""
        return f"mean difference {self.mean:+.3f}{interval}; {self.above} of {self.pairs} pairs; p = {self.p:.2g}"


def compare(differences: Sequence[float]) -> Comparison:
    """Test whether the mean of paired differences is zero.

    Args:
        differences: one for each pair.

    Raises:
        UserError: there are none, or one is not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not (values.size and np.isfinite(values).all()):
        raise UserError(f"the test takes finite differences, at least one; got {list(differences)}")
    n = len(values)
    sums, signs = _choices_of_signs(values)
    mean = float(values.mean())

    def end_of_interval(rejected: float) -> float:
        accepted = mean
        for _ in range(BISECTIONS):
            middle = (accepted + rejected) / 2
            if _p_value(values.sum(), sums, signs, n, middle) > LEVEL:
                accepted = middle
            else:
                rejected = middle
        return accepted

    low, high = -np.inf, np.inf
    if n >= FEWEST_PAIRS:
        low, high = end_of_interval(float(values.min()) - 1e-9), end_of_interval(float(values.max()) + 1e-9)
    p = _p_value(values.sum(), sums, signs, n, 0.0)
    return Comparison(n, int((values > 0).sum()), mean, low, high, p)


def _choices_of_signs(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each choice of signs the sum of the values with these signs, and the sum of the signs."""
    if 2 ** len(values) > MOST_CHOICES:
        generator = np.random.Generator(np.random.Philox(0))
        sums, signs = np.zeros(MOST_CHOICES), np.zeros(MOST_CHOICES)
        for value in values:
            sign = generator.choice([-1.0, 1.0], MOST_CHOICES)
            sign[0] = 1.0  # the first choice is the one observed
            sums += sign * value
            signs += sign
        return sums, signs
    sums, signs = np.zeros(1), np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
        signs = np.concatenate([signs + 1, signs - 1])
    return sums, signs


def _p_value(
    observed: float, sums: NDArray[np.float64], signs: NDArray[np.float64], n: int, difference: float
) -> float:
    """How many choices of signs move the sum at least as far from that of n times `difference` as the observed one."""
    distance = abs(observed - n * difference)
    slack = 1e-9 * np.abs(sums).max()  # sums in another order are rounded differently
    return float((np.abs(sums - difference * signs) >= distance - slack).mean())
