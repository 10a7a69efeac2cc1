"""Designed targets: sums of monomials of chosen degrees, which a student learns from in place of an early checkpoint.

A teacher's checkpoint inside its transition correlates with monomials of low degree on the hidden support, among much
else. A designed target has these correlations and nothing else: the log odds of class 0 are

    sum over degrees m of weight_m e_m(x_A),    e_m(x_A) = sum of the products of m of the coordinates A.

With A the support, degree 1 says which coordinates matter; degree k is the answer itself. With other coordinates, the
target is as informative about itself, but says nothing about the support.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.parity.arguments import StudentArguments
from common.parity.task import WORD, ParityTask

MOST_WEIGHT = 1000
OTHERS_STREAM = 0x6F746872
"""Differs from the numbers of other streams, so that the choice of other coordinates reuses none of their bits."""


@dataclass(frozen=True)
class Monomials:
    """A designed target."""

    weights: tuple[tuple[int, float], ...]
    """Degrees, ascending, and the weight of all monomials of each."""
    coordinates: tuple[int, ...]
    """The coordinates A."""

    @cached_property
    def log_odds(self) -> NDArray[np.float64]:
        """Of class 0, (coordinates + 1,), by the number of coordinates in A that are -1.

        With j of n coordinates at -1, e_m is the Krawtchouk polynomial sum_i (-1)^i C(j, i) C(n - j, m - i).
        """
        n = len(self.coordinates)
        return np.array(
            [sum(weight * krawtchouk(n, degree, j) for degree, weight in self.weights) for j in range(n + 1)]
        )

    def logits(self, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Logits (samples, 2) for packed bits (samples, words)."""
        mask = np.zeros(bits.shape[1], np.uint64)
        for i in self.coordinates:
            mask[i // WORD] |= np.uint64(1 << i % WORD)
        negative = np.bitwise_count(bits & mask).sum(axis=1, dtype=np.int64)
        return np.stack([self.log_odds[negative], np.zeros(len(bits))], axis=1)


def designs_of(student: StudentArguments, task: ParityTask) -> list[Monomials]:
    """The designed targets of a student's run, from its arguments; each seed has other coordinates of its own.

    Raises:
        UserError: as for `monomials_of`.
    """
    if student.monomials is None or student.coordinates is None:
        return []
    return [monomials_of(text, student.coordinates, task, student.seeds[0]) for text in student.monomials]


def krawtchouk(n: int, degree: int, j: int) -> int:
    """The sum of all monomials of a degree in n signs of which j are -1."""
    return sum((-1) ** i * comb(j, i) * comb(n - j, degree - i) for i in range(degree + 1))


def monomials_of(text: str, coordinates: str, task: ParityTask, seed: int) -> Monomials:
    """The designed target that the arguments describe.

    Args:
        text: degree:weight, several of them joined by +.
        coordinates: support; others, which draws as many outside the support by `seed`; or comma-separated coordinates.
        task: with two classes.
        seed: below 2^64.

    Raises:
        UserError: an argument has another form, a degree or a coordinate does not fit, or the task has more classes.
    """
    if task.classes > 2:
        raise UserError(f"designed targets are for two labels, not {task.classes}: leave out --methods designed")
    chosen = _coordinates(coordinates, task, seed)
    form = f"--monomials are degree:weight, such as 1:0.16 or 1:0.16+2:0.1, got {text!r}"
    weights: list[tuple[int, float]] = []
    for term in text.split("+"):
        degree, _, weight = term.partition(":")
        if not re.fullmatch("[0-9]|[1-9][0-9]{1,3}", degree):
            raise UserError(form)
        try:
            weights.append((int(degree), float(weight)))
        except ValueError:
            raise UserError(form) from None
        if not 1 <= weights[-1][0] <= len(chosen):
            raise UserError(f"--monomials has degree {degree}, but the --coordinates are {len(chosen)}")
        if not 0 < abs(weights[-1][1]) <= MOST_WEIGHT:
            raise UserError(f"--monomials needs weights that are not 0 and at most {MOST_WEIGHT:,}, got {weight}")
    if any(degree >= after for (degree, _), (after, _) in pairwise(weights)):
        raise UserError(f"{form}: give each degree once, in ascending order")
    return Monomials(tuple(weights), chosen)


def _coordinates(text: str, task: ParityTask, seed: int) -> tuple[int, ...]:
    (support,) = task.supports
    if text == "support":
        return support
    if text == "others":
        others = [i for i in range(task.d) if i not in support]
        if len(others) < len(support):
            raise UserError(
                f"--coordinates others needs {len(support)} coordinates outside the support; there are {len(others)}"
            )
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, OTHERS_STREAM], np.uint64)))
        return tuple(sorted(generator.choice(others, len(support), replace=False).tolist()))
    try:
        chosen = tuple(int(i) for i in text.split(","))
    except ValueError:
        raise UserError(f"--coordinates is support, others or comma-separated coordinates; got {text!r}") from None
    return ParityTask(task.d, (chosen,)).supports[0]
