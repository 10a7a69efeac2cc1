"""Products of signs without multiplications, by tables of signed sums.

For each four coordinates of the inputs the 16 signed sums of the four columns of W are tabulated once per block, and a
sample picks one per group by four of its bits (the method of the four Russians): d/4 additions per neuron instead of d
multiply-adds. The update sum_t D_t x_t^T is the same computation with samples and coordinates exchanged.
"""

import numpy as np
from numba import njit

from parity_mlp.sgd.simd import load, store, zeros

TABLES = 4
"""Tables of 16 rows in use at a time: 16 kB in float32, half of a small first-level cache."""


@njit(inline="always")
def add_entries(row, tables, codes, count):  # type: ignore[no-untyped-def]
    """`row` plus one entry of each of the first `count` tables, picked by four bits of `codes` each."""
    for i in range(count):
        row = row + load(tables, 16 * i + np.int64(codes & np.uint64(15)))
        codes >>= np.uint64(4)
    return row


@njit(cache=True, nogil=True)
def tabulate(tables, i, rows, first):  # type: ignore[no-untyped-def]
    """Fill table i with the 16 signed sums of four rows from `first` on; bit j of an entry's number means minus."""
    a, b, c, d = load(rows, first), load(rows, first + 1), load(rows, first + 2), load(rows, first + 3)
    low, low_difference, high, high_difference = a + b, a - b, c + d, c - d
    _store_pair(tables, i, 0, high + low)
    _store_pair(tables, i, 1, high - low_difference)
    _store_pair(tables, i, 2, high + low_difference)
    _store_pair(tables, i, 3, high - low)
    _store_pair(tables, i, 8, high_difference + low)
    _store_pair(tables, i, 9, high_difference - low_difference)
    _store_pair(tables, i, 10, high_difference + low_difference)
    _store_pair(tables, i, 11, high_difference - low)


@njit(inline="always")
def _store_pair(tables, i, entry, value):  # type: ignore[no-untyped-def]
    """Write an entry and the one with all signs turned."""
    store(tables, 16 * i + entry, value)
    store(tables, 16 * i + 15 - entry, zeros(tables) - value)
