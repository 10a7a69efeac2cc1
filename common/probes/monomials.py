"""How strongly a model's output correlates with monomials: E[chi_A(x) p(x)], chi_A(x) = product of x_i over i in A.

The inputs x are uniform on {-1, +1}^d and packed: bit i % 64 of word i // 64 is 1 where x_i = -1, so chi_A(x) is -1 to
the number of bits set in A. Inside a teacher's transition the monomials on the hidden support S stand out from the
others: figure 2 of Panigrahi et al. (2025), arXiv:2410.05464.

The correlations with all 2^k subsets of S take one pass over the samples: p is summed by the pattern of x on S, and the
Walsh-Hadamard transform of the 2^k sums gives every subset at once, in k 2^k additions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

MAX_SUPPORT = 24
"""Coordinates of the support; the cube of 2^24 subsets takes 128 MiB."""


@dataclass(frozen=True)
class DegreeCorrelations:
    """|E[chi_A p]| for monomials of one degree."""

    degree: int
    inside_subsets: list[tuple[int, ...]]
    """All subsets of the support of this size; none if the support is smaller."""
    inside: list[float]
    outside_subsets: list[tuple[int, ...]]
    """Random subsets of this size that are not contained in the support."""
    outside: list[float]


@dataclass(frozen=True)
class MonomialProbe:
    """Correlations of one output; `dataclasses.asdict` of it can be stored as JSON."""

    samples: int
    support: list[int]
    standard_error: float
    """Of a correlation whose true value is 0: std(p) / sqrt(samples)."""
    degrees: list[DegreeCorrelations]


def probe_monomials(
    bits: NDArray[np.uint64],
    values: NDArray[np.floating],
    support: Sequence[int],
    d: int,
    degrees: Sequence[int] = (1, 2, 3, 4, 5),
    outside: int = 100,
    seed: int = 0,
) -> MonomialProbe:
    """Correlations of a model's output with all monomials on the support and with random ones that are not inside it.

    The mean of `values` is subtracted first: as E[chi_A] = 0, this changes no expectation and only reduces sampling
    noise.

    Args:
        bits: packed inputs of shape (samples, words).
        values: one output for each input, of shape (samples,).
        support: coordinates of the hidden support.
        d: number of coordinates.
        degrees: degrees of the monomials.
        outside: number of random monomials per degree; all that exist where there are fewer.
        seed: of the random monomials.

    Raises:
        UserError: no samples, values of another shape, a coordinate that is repeated or not in 0 to d - 1, a degree
            that is not in 1 to d, more than 24 coordinates in the support.
    """
    if values.shape != (len(bits),) or len(bits) == 0:
        raise UserError(f"need one value for each of {len(bits)} inputs, at least one, got shape {values.shape}")
    _check_coordinates(support, d)
    centred = values - values.mean(dtype=np.float64)
    inside = by_degree(support_correlations(bits, centred, support), len(support))
    results = []
    for degree in degrees:
        subsets = random_subsets(d, degree, outside, support, seed)
        results.append(
            DegreeCorrelations(
                degree=degree,
                inside_subsets=list(combinations(support, degree)),
                inside=inside[degree].tolist() if degree in inside else [],
                outside_subsets=subsets,
                outside=np.abs(monomial_correlations(bits, centred, subsets)).tolist(),
            )
        )
    return MonomialProbe(
        samples=len(bits),
        support=list(support),
        standard_error=float(centred.std()) / len(bits) ** 0.5,
        degrees=results,
    )


def support_correlations(
    bits: NDArray[np.uint64], values: NDArray[np.floating], support: Sequence[int]
) -> NDArray[np.float64]:
    """E[chi_A(x) p(x)], signed, for every subset A of the support.

    Args:
        bits: packed inputs of shape (samples, words).
        values: p of shape (samples,) or (samples, outputs).
        support: k coordinates.

    Returns:
        Shape (2^k,) or (2^k, outputs). Bit j of the index is 1 where support[j] is in A.

    Raises:
        UserError: a coordinate that is repeated or that the words do not hold, more than 24 of them.
    """
    _check_coordinates(support, 64 * bits.shape[1])
    if len(support) > MAX_SUPPORT:
        raise UserError(f"the support has {len(support)} coordinates; at most {MAX_SUPPORT} can be probed")
    patterns = np.zeros(len(bits), dtype=np.int64)
    for j, i in enumerate(support):
        patterns |= ((bits[:, i // 64] >> np.uint64(i % 64)) & np.uint64(1)).astype(np.int64) << j
    sums = [np.bincount(patterns, p, minlength=2 ** len(support)) for p in values.reshape(len(bits), -1).T]
    return walsh_hadamard(np.stack(sums, axis=1)).reshape(-1, *values.shape[1:]) / len(bits)


def monomial_correlations(
    bits: NDArray[np.uint64], values: NDArray[np.floating], subsets: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """E[chi_A(x) p(x)], signed, for each given subset A; needs memory for only one subset at a time.

    Args:
        bits: packed inputs of shape (samples, words).
        values: p of shape (samples,) or (samples, outputs).
        subsets: coordinates of each monomial.

    Returns:
        Shape (subsets,) or (subsets, outputs).

    Raises:
        UserError: a coordinate that is repeated or that the words do not hold.
    """
    words = np.ascontiguousarray(bits.T)
    values = values.astype(np.float64)
    total = values.sum(axis=0)
    correlations = np.empty((len(subsets), *values.shape[1:]))
    for row, subset in enumerate(subsets):
        _check_coordinates(subset, 64 * len(words))
        chosen = np.zeros(len(bits), dtype=np.uint64)
        for word in {i // 64 for i in subset}:
            chosen ^= words[word] & np.uint64(sum(1 << i % 64 for i in subset if i // 64 == word))
        odd = (np.bitwise_count(chosen) & 1).astype(bool)
        correlations[row] = (total - 2 * values[odd].sum(axis=0)) / len(bits)
    return correlations


def walsh_hadamard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """out[A] = sum over B of (-1)^|A & B| values[B], over the first axis, whose length is a power of two."""
    if len(values).bit_count() != 1:
        raise ValueError(f"the length must be a power of two, got {len(values)}")
    out = values.astype(np.float64)
    half = 1
    while half < len(out):
        pairs = out.reshape(-1, 2, half, *out.shape[1:])
        pairs[:, 0], pairs[:, 1] = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        half *= 2
    return out


def by_degree(correlations: NDArray[np.float64], k: int) -> dict[int, NDArray[np.float64]]:
    """|correlations| of the subsets of k coordinates by size, 1 to k; a size's in the order of `combinations`."""
    return {
        degree: np.abs(correlations[[sum(1 << j for j in subset) for subset in combinations(range(k), degree)]])
        for degree in range(1, k + 1)
    }


def random_subsets(d: int, degree: int, count: int, support: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Distinct random subsets of 0 to d - 1 of one size, none inside the support; all of them if at most `count` exist.

    Raises:
        UserError: a degree that is not in 1 to d, or a support coordinate that is repeated or not in 0 to d - 1.
    """
    if not 1 <= degree <= d:
        raise UserError(f"the degree of a monomial in {d} coordinates must be 1 to {d}, got {degree}")
    _check_coordinates(support, d)
    hidden = set(support)
    if comb(d, degree) - comb(len(hidden), degree) <= count:
        return [subset for subset in combinations(range(d), degree) if not hidden.issuperset(subset)]
    generator = np.random.Generator(np.random.Philox(key=[seed, degree]))
    subsets: dict[tuple[int, ...], None] = {}  # keeps the order, unlike a set
    while len(subsets) < count:
        subset = tuple(sorted(generator.choice(d, degree, replace=False).tolist()))
        if not hidden.issuperset(subset):
            subsets[subset] = None
    return list(subsets)


def _check_coordinates(coordinates: Sequence[int], d: int) -> None:
    if len(set(coordinates)) < len(coordinates) or not all(0 <= i < d for i in coordinates):
        raise UserError(f"coordinates must be distinct and in 0 to {d - 1}, got {list(coordinates)}")
