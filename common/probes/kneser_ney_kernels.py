"""Kneser-Ney probabilities from a trie of n-grams, compiled by numba; `kneser_ney.py` has the formulas.

N-grams are nodes in breadth-first order: node 0 is the empty n-gram, node 1 + t the token t (seen or not), and the
children of a node are consecutive and sorted by token.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

RAW, CONTINUATION = 0, 1
"""The kinds of counts."""


class Trie(NamedTuple):
    """Arrays over nodes in breadth-first order; pairs of arrays are for raw and continuation counts."""

    token: NDArray[np.int32]
    """(nodes,): the last token of the n-gram."""
    first_child: NDArray[np.int32]
    """(contexts + 1,): contexts are the nodes below the highest order."""
    counts: tuple[NDArray[np.int32], NDArray[np.int32]]
    """(nodes,) and (contexts,)"""
    totals: tuple[NDArray[np.int32], NDArray[np.int32]]
    """(contexts,) and fewer by one order: the sum of the children's counts."""
    backoffs: tuple[NDArray[np.float64], NDArray[np.float64]]
    """As `totals`: gamma."""
    discounts: NDArray[np.float64]
    """(2, order + 1, 4): by kind of count, order and min(count, 3)."""


@njit(cache=True, nogil=True)
def discount(bounds, counts, discounts, totals, backoffs):  # type: ignore[no-untyped-def]
    """Totals and gammas of contexts, whose children are those between consecutive bounds."""
    for context in range(len(totals)):
        total, mass = 0, 0.0
        for child in range(bounds[context], bounds[context + 1]):
            total += counts[child]
            mass += discounts[min(counts[child], 3)]
        totals[context] = total
        backoffs[context] = mass / total if total > 0 else 1.0


@njit(cache=True, nogil=True)
def _descend(trie, node, tokens):  # type: ignore[no-untyped-def]
    """The node `tokens` below `node`, -1 without one."""
    for token in tokens:
        if node == 0:
            node = 1 + token
            continue
        low, stop = trie.first_child[node], trie.first_child[node + 1]
        high = stop
        while low < high:
            middle = (low + high) // 2
            if trie.token[middle] < token:
                low = middle + 1
            else:
                high = middle
        if low == stop or trie.token[low] != token:
            return -1
        node = low
    return node


@njit(cache=True, nogil=True)
def _own_part(trie, kind, level, context, child):  # type: ignore[no-untyped-def]
    """The first term of P_level: what the context itself says of its child."""
    count = trie.counts[kind][child]
    return (count - trie.discounts[kind, level, min(count, 3)]) / trie.totals[kind][context]


@njit(cache=True, nogil=True)
def _interpolate(trie, kind, level, context, result):  # type: ignore[no-untyped-def]
    """From P_{level - 1}, (vocabulary,), to P_level, in place."""
    result *= trie.backoffs[kind][context]
    for child in range(trie.first_child[context], trie.first_child[context + 1]):
        result[trie.token[child]] += _own_part(trie, kind, level, context, child)


@njit(cache=True, nogil=True)
def _unigrams(trie, n, vocabulary):  # type: ignore[no-untyped-def]
    """P_1 in the model of order n."""
    result = np.full(vocabulary, 1 / vocabulary)
    kind = RAW if n == 1 else CONTINUATION
    if trie.totals[kind][0] > 0:
        _interpolate(trie, kind, 1, 0, result)
    return result


@njit(cache=True, nogil=True)
def _distribution(trie, unigrams, tokens, n, result):  # type: ignore[no-untyped-def]
    result[:] = unigrams
    for level in range(2, min(n - 1, len(tokens)) + 2):
        kind = RAW if level == n else CONTINUATION
        context = _descend(trie, 0, tokens[len(tokens) - level + 1 :])
        if context < 0 or trie.totals[kind][context] == 0:
            break  # no longer context is followed by a token either
        _interpolate(trie, kind, level, context, result)


@njit(cache=True, nogil=True)
def _lower_probability(trie, unigrams, tokens):  # type: ignore[no-untyped-def]
    """P_k of the last token given those before it, with k the number of tokens, of continuation counts."""
    result = unigrams[tokens[-1]]
    for level in range(2, len(tokens) + 1):
        context = _descend(trie, 0, tokens[len(tokens) - level : -1])
        if context < 0 or trie.totals[CONTINUATION][context] == 0:
            break
        result *= trie.backoffs[CONTINUATION][context]
        child = _descend(trie, context, tokens[-1:])
        if child >= 0:
            result += _own_part(trie, CONTINUATION, level, context, child)
    return result


@njit(cache=True, nogil=True)
def _window_distribution(trie, unigrams, left, right, n, result, factor):  # type: ignore[no-untyped-def]
    _distribution(trie, unigrams, left, n, result)
    for i in range(min(n - 1, len(right))):
        # P(right[i] | ..., x, right[:i]): orders up to i + 1 do not reach x; order i + 2 + j sees j tokens of the left
        factor[:] = _lower_probability(trie, unigrams, right[: i + 1])
        for j in range(min(n - 2 - i, len(left)) + 1):
            level = i + 2 + j
            kind = RAW if level == n else CONTINUATION
            before = _descend(trie, 0, left[len(left) - j :])
            if before < 0:
                break
            for node in range(trie.first_child[before], trie.first_child[before + 1]):
                context = _descend(trie, node, right[:i])
                if context < 0 or trie.totals[kind][context] == 0:
                    continue
                x = trie.token[node]
                factor[x] *= trie.backoffs[kind][context]
                child = _descend(trie, context, right[i : i + 1])
                if child >= 0:
                    factor[x] += _own_part(trie, kind, level, context, child)
        result *= factor
    result /= result.sum()


@njit(cache=True, nogil=True)
def distributions(trie, contexts, n, results):  # type: ignore[no-untyped-def]
    unigrams = _unigrams(trie, n, results.shape[1])
    for row in range(len(results)):
        _distribution(trie, unigrams, contexts[row], n, results[row])


@njit(cache=True, nogil=True)
def window_distributions(trie, left, right, n, results):  # type: ignore[no-untyped-def]
    unigrams, factor = _unigrams(trie, n, results.shape[1]), np.empty(results.shape[1])
    for row in range(len(results)):
        _window_distribution(trie, unigrams, left[row], right[row], n, results[row], factor)
