"""Attention with few dimensions per head, on a CPU: no weight leaves the cache, and backpropagation computes it again.

With 8 dimensions per head, a weight takes 16 multiply-adds in the forward pass and 40 in the backward pass, fewer than
the passes over memory of a computation in matrices cost. Here the weights of a few queries are computed at a time, in
vectors of 16 keys; keys that no query of a sample sees, such as padding, take no time. The random numbers of dropout
are a function of a key of theirs and of the weight's place in its head, so that the backward pass repeats them: 16 bits
for each weight, from Philox4x32-10.

All arrays are C-contiguous, tensors of shape (samples, positions, heads, dimensions) in float32. A query that sees no
key has an output of 0.
"""

import numpy as np
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
from common.philox import philox4x32

DIMENSIONS = 8
"""Largest number of dimensions per head; smaller ones are filled up with zeros."""
LEVELS = 2**16
"""Dropout rates are multiples of 1 / `LEVELS`."""
_LANES, _ROWS, _NUMBERS = 16, 4, 8
"""Keys in a vector, queries computed together, and random numbers that Philox gives at once."""


@njit(cache=True, nogil=True)
def forward(  # type: ignore[no-untyped-def]
    query, key, value, seen, causal, scaling, threshold, left, right, first, last, output, normaliser
):
    """Write the output of some samples, and what their weights are computed with again.

    Args:
        query: (samples, queries, heads, dimensions).
        key, value: (samples, keys, heads, dimensions).
        seen: bool, (samples, heads, queries, keys) where the first three may be 1; without samples if all is seen.
        causal: whether a query sees no later keys; then there is no mask.
        scaling: of the products of queries and keys, np.float32.
        threshold: dropout rate of the weights, in units of 1 / `LEVELS`.
        left, right: np.uint64 below 2^32, the key of the random numbers.
        first, last: range of the samples.
        output: like `query`.
        normaliser: (2, samples, heads, queries), the largest score of each query, and 1 divided by the sum of the
            exponentials of all scores less the largest.
    """
    _, queries, heads, dimensions = query.shape
    keys = key.shape[1]
    height, widest = _padded(queries, _ROWS), _padded(keys, _LANES)
    q = np.zeros((height, DIMENSIONS), np.float32)
    k, v = np.zeros((widest, DIMENSIONS), np.float32), np.zeros((widest, DIMENSIONS), np.float32)
    column_buffer, weight_buffer = np.empty(DIMENSIONS * widest, np.float32), np.empty(_ROWS * widest, np.float32)
    flag_buffer, kept_buffer = np.zeros(height * widest, np.uint8), np.ones(height * widest, np.uint8)
    words = np.empty(height * widest // 2, np.uint32)
    result, factors = np.empty((_ROWS, DIMENSIONS), np.float32), np.zeros(_ROWS, np.float32)
    places = np.empty(keys, np.int64)
    factor = np.float32(1) / (np.float32(1) - np.float32(threshold) / np.float32(LEVELS))
    count, alike = 0, True
    for sample in range(first, last):
        for head in range(heads):
            if head == 0 or seen.shape[1] > 1:
                count, alike = _fill_places(places, seen, sample, head)
            width = _padded(count, _LANES)
            flags = flag_buffer[: height * width].reshape(height, width)
            kept = kept_buffer[: height * width].reshape(height, width)
            columns = column_buffer[: DIMENSIONS * width].reshape(DIMENSIONS, width)
            weights = weight_buffer[: _ROWS * width].reshape(_ROWS, width)
            if head == 0 or seen.shape[1] > 1:
                _fill_seen(flags, seen, sample, head, places[:count], alike, causal)
            if threshold > 0:
                _fill_kept(kept, words, sample * heads + head, threshold, left, right)
            _fill(q, query, sample, head, scaling)
            _gather(k, columns, key, sample, head, places[:count])
            _gather(v, columns[:0], value, sample, head, places[:count])
            for i in range(0, queries, _ROWS):
                most = min(_padded(i + _ROWS, _LANES), width) if causal else width
                for r in range(_ROWS):
                    row, place = r * width, (i + r) * width
                    top = splat16(np.float32(-1e30))
                    for j in range(0, most, _LANES):
                        score = where_or_lowest(flags, place + j, _products(q, i + r, columns, width, j))
                        store(weights, row + j, score)
                        top = larger(score, top)
                    peak = largest(top)
                    high, sums = splat16(peak), splat16(np.float32(0))
                    for j in range(0, most, _LANES):
                        weight = exp(load16(weights, row + j) - high)
                        sums = sums + weight
                        store(weights, row + j, where(kept, place + j, weight))
                    whole = total(sums)
                    inverse = np.float32(0) if whole == 0 else np.float32(1) / whole
                    factors[r] = inverse * factor
                    if i + r < queries:
                        normaliser[0, sample, head, i + r], normaliser[1, sample, head, i + r] = peak, inverse
                _weighted_sums(weights, v, most, result)
                for r in range(min(_ROWS, queries - i)):
                    for d in range(dimensions):
                        output[sample, i + r, head, d] = result[r, d] * factors[r]


@njit(cache=True, nogil=True)
def backward(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    seen,
    causal,
    scaling,
    threshold,
    left,
    right,
    first,
    last,
    output,
    normaliser,
    gradient,
    of_query,
    of_key,
    of_value,
):
    """Write the gradients at the inputs of `forward`, given its results and the gradient at its output.

    Those at keys that no query sees are left as they are.
    """
    _, queries, heads, dimensions = query.shape
    keys = key.shape[1]
    height, widest = _padded(queries, _ROWS), _padded(keys, _LANES)
    q, g = np.zeros((height, DIMENSIONS), np.float32), np.zeros((height, DIMENSIONS), np.float32)
    k, v = np.zeros((widest, DIMENSIONS), np.float32), np.zeros((widest, DIMENSIONS), np.float32)
    key_buffer, value_buffer = np.empty(DIMENSIONS * widest, np.float32), np.empty(DIMENSIONS * widest, np.float32)
    slope_buffer = np.zeros(height * widest, np.float32)
    flag_buffer, kept_buffer = np.zeros(height * widest, np.uint8), np.ones(height * widest, np.uint8)
    words = np.empty(height * widest // 2, np.uint32)
    result, offsets = np.empty((_ROWS, DIMENSIONS), np.float32), np.zeros(height, np.float32)
    sums = np.empty((2 * DIMENSIONS, _LANES), np.float32)
    places = np.empty(keys, np.int64)
    factor = np.float32(1) / (np.float32(1) - np.float32(threshold) / np.float32(LEVELS))
    count, alike = 0, True
    for sample in range(first, last):
        for head in range(heads):
            if head == 0 or seen.shape[1] > 1:
                count, alike = _fill_places(places, seen, sample, head)
            width = _padded(count, _LANES)
            flags = flag_buffer[: height * width].reshape(height, width)
            kept = kept_buffer[: height * width].reshape(height, width)
            slopes = slope_buffer[: height * width].reshape(height, width)
            key_columns = key_buffer[: DIMENSIONS * width].reshape(DIMENSIONS, width)
            value_columns = value_buffer[: DIMENSIONS * width].reshape(DIMENSIONS, width)
            if head == 0 or seen.shape[1] > 1:
                _fill_seen(flags, seen, sample, head, places[:count], alike, causal)
            if threshold > 0:
                _fill_kept(kept, words, sample * heads + head, threshold, left, right)
            _fill(q, query, sample, head, scaling)
            _fill(g, gradient, sample, head, factor)
            _gather(k, key_columns, key, sample, head, places[:count])
            _gather(v, value_columns, value, sample, head, places[:count])
            for i in range(queries):
                offset = np.float32(0)
                for d in range(dimensions):
                    offset += gradient[sample, i, head, d] * output[sample, i, head, d]
                offsets[i] = offset
            peaks, inverses = normaliser[0, sample, head], normaliser[1, sample, head]
            for j in range(0, width, _LANES):
                start = j if causal else 0
                _backward_of_keys(
                    q, g, key_columns, value_columns, flags, kept, peaks, inverses, offsets, slopes, sums, j, start
                )
                for n in range(min(_LANES, count - j)):
                    for d in range(dimensions):
                        of_key[sample, places[j + n], head, d] = sums[d, n]
                        of_value[sample, places[j + n], head, d] = sums[DIMENSIONS + d, n]
            for i in range(0, queries, _ROWS):
                most = min(_padded(i + _ROWS, _LANES), width) if causal else width
                _weighted_sums(slopes[i : i + _ROWS], k, most, result)
                for r in range(min(_ROWS, queries - i)):
                    for d in range(dimensions):
                        of_query[sample, i + r, head, d] = result[r, d] * scaling


@njit(inline="always")
def _padded(count, multiple):  # type: ignore[no-untyped-def]
    return (count + multiple - 1) // multiple * multiple


@njit(cache=True, nogil=True)
def _fill(rows, source, sample, head, factor):  # type: ignore[no-untyped-def]
    """Copy the vectors of a head, times a factor, to rows of `DIMENSIONS` numbers."""
    for i in range(source.shape[1]):
        for d in range(source.shape[3]):
            rows[i, d] = source[sample, i, head, d] * factor


@njit(cache=True, nogil=True)
def _gather(rows, columns, source, sample, head, places):  # type: ignore[no-untyped-def]
    """Copy the vectors of a head at some places to rows and, if there are any, to columns; the others are zero."""
    for n in range(len(places)):
        for d in range(source.shape[3]):
            rows[n, d] = source[sample, places[n], head, d]
    rows[len(places) :] = 0
    for d in range(len(columns)):
        for n in range(columns.shape[1]):
            columns[d, n] = rows[n, d]


@njit(cache=True, nogil=True)
def _fill_places(places, seen, sample, head):  # type: ignore[no-untyped-def]
    """Write the keys that any query of a head sees, in order; return their number, and whether all queries see them."""
    keys, unmasked = len(places), len(seen) == 0
    anyone, everyone = np.full(keys, unmasked), np.full(keys, True)
    if not unmasked:
        rows = seen[sample % len(seen), head % seen.shape[1]]
        for i in range(len(rows)):
            row = rows[i]
            for j in range(keys):
                anyone[j] |= row[j]
                everyone[j] &= row[j]
    count, alike = 0, True
    for j in range(keys):
        places[count] = j
        count += anyone[j]
        alike &= anyone[j] == everyone[j]
    return count, alike


@njit(cache=True, nogil=True)
def _fill_seen(flags, seen, sample, head, places, alike, causal):  # type: ignore[no-untyped-def]
    """Write which of the keys at some places each query sees; `alike` if all see them, or all but later ones."""
    count = len(places)
    for i in range(len(flags)):
        most = min(i + 1, count) if causal else count
        flags[i, :most] = 1
        flags[i, most:] = 0
        if not alike:
            row = seen[sample % len(seen), head % seen.shape[1], i % seen.shape[2]]
            for n in range(count):
                flags[i, n] = row[places[n]]


@njit(cache=True, nogil=True)
def _fill_kept(flags, words, head, threshold, left, right):  # type: ignore[no-untyped-def]
    """Write which weights of a head dropout keeps, from the halves of words of 32 random bits."""
    blocks = flags.size // _NUMBERS
    first, second, third, fourth = (
        words[:blocks],
        words[blocks : 2 * blocks],
        words[2 * blocks : 3 * blocks],
        words[3 * blocks : 4 * blocks],
    )
    for block in range(blocks):
        a, b, c, d = philox4x32(np.uint64(block), np.uint64(head), np.uint64(0), np.uint64(0), left, right)
        first[block], second[block], third[block], fourth[block] = (
            np.uint32(a),
            np.uint32(b),
            np.uint32(c),
            np.uint32(d),
        )
    numbers, flat = words.view(np.uint16), flags.reshape(flags.size)
    for i in range(len(flat)):
        flat[i] = numbers[i] >= threshold


@njit(inline="always")
def _products(rows, i, columns, width, j):  # type: ignore[no-untyped-def]
    """Products of row i with 16 columns, from column j on."""
    result = splat16(rows[i, 0]) * load16(columns, j)
    for d in range(1, DIMENSIONS):
        result = multiply_add(splat16(rows[i, d]), load16(columns, d * width + j), result)
    return result


@njit(inline="always")
def _weighted_sums(weights, rows, count, result):  # type: ignore[no-untyped-def]
    """Write sums of `count` rows, an even number, with the weights of four queries."""
    zero = splat8(np.float32(0))
    a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
    for j in range(0, count, 2):
        one, other = load8(rows, j * DIMENSIONS), load8(rows, (j + 1) * DIMENSIONS)
        a0 = multiply_add(splat8(weights[0, j]), one, a0)
        a1 = multiply_add(splat8(weights[1, j]), one, a1)
        a2 = multiply_add(splat8(weights[2, j]), one, a2)
        a3 = multiply_add(splat8(weights[3, j]), one, a3)
        b0 = multiply_add(splat8(weights[0, j + 1]), other, b0)
        b1 = multiply_add(splat8(weights[1, j + 1]), other, b1)
        b2 = multiply_add(splat8(weights[2, j + 1]), other, b2)
        b3 = multiply_add(splat8(weights[3, j + 1]), other, b3)
    store(result, 0, a0 + b0)
    store(result, DIMENSIONS, a1 + b1)
    store(result, 2 * DIMENSIONS, a2 + b2)
    store(result, 3 * DIMENSIONS, a3 + b3)


@njit(inline="always")
def _backward_of_keys(  # type: ignore[no-untyped-def]
    q, g, key_columns, value_columns, flags, kept, peaks, inverses, offsets, slopes, sums, j, start
):
    """Write the derivatives at the scores of 16 keys, from key j on, and the gradients at these keys and values.

    Queries before `start` see none of them.
    """
    zero = splat16(np.float32(0))
    k0, k1, k2, k3, k4, k5, k6, k7 = zero, zero, zero, zero, zero, zero, zero, zero
    v0, v1, v2, v3, v4, v5, v6, v7 = zero, zero, zero, zero, zero, zero, zero, zero
    width = slopes.shape[1]
    for i in range(start, len(peaks)):
        place = i * width + j
        score = where_or_lowest(flags, place, _products(q, i, key_columns, width, j))
        weight = exp(score - splat16(peaks[i])) * splat16(inverses[i])
        dropped = where(kept, place, weight)
        slope = dropped * _products(g, i, value_columns, width, j) - weight * splat16(offsets[i])
        store(slopes, place, slope)
        k0 = multiply_add(slope, splat16(q[i, 0]), k0)
        k1 = multiply_add(slope, splat16(q[i, 1]), k1)
        k2 = multiply_add(slope, splat16(q[i, 2]), k2)
        k3 = multiply_add(slope, splat16(q[i, 3]), k3)
        k4 = multiply_add(slope, splat16(q[i, 4]), k4)
        k5 = multiply_add(slope, splat16(q[i, 5]), k5)
        k6 = multiply_add(slope, splat16(q[i, 6]), k6)
        k7 = multiply_add(slope, splat16(q[i, 7]), k7)
        v0 = multiply_add(dropped, splat16(g[i, 0]), v0)
        v1 = multiply_add(dropped, splat16(g[i, 1]), v1)
        v2 = multiply_add(dropped, splat16(g[i, 2]), v2)
        v3 = multiply_add(dropped, splat16(g[i, 3]), v3)
        v4 = multiply_add(dropped, splat16(g[i, 4]), v4)
        v5 = multiply_add(dropped, splat16(g[i, 5]), v5)
        v6 = multiply_add(dropped, splat16(g[i, 6]), v6)
        v7 = multiply_add(dropped, splat16(g[i, 7]), v7)
    store(sums, 0, k0)
    store(sums, _LANES, k1)
    store(sums, 2 * _LANES, k2)
    store(sums, 3 * _LANES, k3)
    store(sums, 4 * _LANES, k4)
    store(sums, 5 * _LANES, k5)
    store(sums, 6 * _LANES, k6)
    store(sums, 7 * _LANES, k7)
    store(sums, 8 * _LANES, v0)
    store(sums, 9 * _LANES, v1)
    store(sums, 10 * _LANES, v2)
    store(sums, 11 * _LANES, v3)
    store(sums, 12 * _LANES, v4)
    store(sums, 13 * _LANES, v5)
    store(sums, 14 * _LANES, v6)
    store(sums, 15 * _LANES, v7)
