"""Exact inference in probabilistic context-free grammars: what the other tokens of a sentence say about each of them.

This is the inside-outside algorithm (Baker 1979, Trainable grammars for speech recognition; Lari and Young 1990,
Computer Speech and Language 4). Evidence is a likelihood for every position and terminal, so that a token may be seen,
masked, or seen through noise, and everything is conditional on the number of tokens.

The chart. A right side of three or more symbols is built up from its left end, X1 X2 X3 -> (X1 X2) X3, and right sides
that begin alike share what they begin with. So a chart has three kinds of nodes: terminals; products X C of a node and
a symbol; and the nonterminals, sums over their weighted right sides. With inside(N, i, j) the probability of the
evidence at positions i .. j - 1, and of this number of tokens, if node N derives exactly these positions,

    inside(X C, i, j) = sum_k inside(X, i, k) inside(C, k, j),     inside(A, i, j) = sum_r p_r inside(N_r, i, j),

and outside(N, i, j) is the derivative of inside(start, 0, length) by it, computed backwards. For a terminal,
outside(a, p, p + 1) is the probability of x_p = a and the evidence at all other positions: the cavity. For a symbol A
that no tree has twice on a path, inside(A, i, j) outside(A, i, j) summed over the spans with i <= p < j is the
probability that A is an ancestor of token p, and of the evidence.

What is left out. Row i of a node is its numbers for all ends j. Three things keep the rows short:

* A node can only derive positions i .. j - 1 if the grammar can put i tokens before it and length - j after it.
  `_contexts` tabulates, from the grammar alone, how few and how many tokens can follow a node with i before it.
* Evidence makes most inside numbers zero. A row is stored from its first to its last number that is not zero, and a
  zero at end k in row i of X skips row k of C.
* An outside number is of use only if its node can become possible by what the cavity leaves out, the evidence at one
  position. So a row also has the range of ends at which inside(N, i, j) can be other than zero if the evidence at one
  position is ignored, and only there are outside numbers computed. These are at least the ends at which it is not zero.

Range of numbers. The likelihood at each position is divided by a factor, which cancels in the end; `_factors` chooses
them so that sentences typical of the grammar have numbers near 1. All numbers of a chart that are not zero are required
to be between 2^-500 and 2^500. Then products of two of them are normal floating-point numbers, so that no zero is due
to underflow, and as all numbers are non-negative, sums and products keep their relative precision. A chart that has
numbers outside this range, or a grammar that has probabilities outside it, is computed with logarithms instead, which
takes some twenty times as long.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from common.arguments import worker_threads
from common.errors import UserError
from common.pcfg.chart import (
    LARGEST,
    UNLIMITED,
    add,
    all_in_range,
    chart_of,
    components,
    dot,
    log_sum,
    token_ids,
)
from common.pcfg.grammar import Grammar

DERIVATION_STEPS = 200
"""Levels of the tree whose symbols are counted for the factors; any number will do."""

FIRST, STOP, BASE, OUTER_FIRST, OUTER_STOP, OUTER_BASE = range(6)
"""Of a row: the inside numbers have the ends FIRST .. STOP - 1, and that of end j is at BASE + j of the array of all
inside numbers; likewise outside. Without any numbers, the first end is after all ends and the stop is 0."""


class Contexts(NamedTuple):
    """How many tokens can follow a node in sentences up to a certain length, both (nodes, tokens before it)."""

    fewest: NDArray[np.int32]
    most: NDArray[np.int32]
    """-1 if no node of the kind has so many tokens before it."""


class Logarithms(NamedTuple):
    """What the passes over a chart give; `cavity` and `ancestors` are zeros where they were not asked for."""

    evidence: float
    """log P(evidence, length)."""
    cavity: NDArray[np.float64]
    """(length, terminals): log P(x_p = a, evidence at all other positions), up to a constant for each row."""
    ancestors: NDArray[np.float64]
    """(length, nonterminals): log P(A is an ancestor of token p, evidence, length)."""


def log_probability(grammar: Grammar, tokens: ArrayLike) -> float:
    """Logarithm of a sentence's probability, -inf if the grammar cannot make it.

    Args:
        grammar: its start derives the sentence.
        tokens: (length,) token ids.

    Raises:
        UserError: a token id that the grammar does not have.
    """
    ids = token_ids(grammar, tokens)
    return _logarithms(grammar, _seen(grammar, ids, np.ones(len(ids), bool)), outside=False).evidence


def cavity(grammar: Grammar, likelihood: ArrayLike) -> tuple[float, NDArray[np.float64]]:
    """What the evidence at all other positions says about each token.

    Args:
        grammar: its start derives the sentence.
        likelihood: (length, terminals), P(evidence at p | x_p = a): one-hot where the token is seen, all ones where
            nothing is; rows may have any scale.

    Returns:
        log P(evidence, length), -inf if the evidence is impossible; and (length, terminals) the probabilities
        P(x_p = a | evidence at all positions but p, length).

    Raises:
        UserError: the likelihood is no such array, or the evidence outside of some position is impossible.
    """
    logarithms = _logarithms(grammar, likelihood)
    return logarithms.evidence, _softmax(logarithms.cavity)


def cavities(grammar: Grammar, likelihoods: Sequence[ArrayLike]) -> list[tuple[float, NDArray[np.float64]]]:
    """`cavity` of each sentence, in as many threads as `worker_threads` says."""
    with ThreadPoolExecutor(worker_threads()) as pool:
        return list(pool.map(lambda likelihood: cavity(grammar, likelihood), likelihoods))


def posterior(grammar: Grammar, likelihood: ArrayLike) -> NDArray[np.float64]:
    """P(x_p = a | evidence at all positions, length), (length, terminals); arguments as for `cavity`.

    Raises:
        UserError: the likelihood is no such array, or the evidence is impossible.
    """
    logarithms = _possible(grammar, _logarithms(grammar, likelihood))
    with np.errstate(divide="ignore"):
        return _softmax(logarithms.cavity + np.log(np.asarray(likelihood, np.float64)))


def ancestor_posteriors(grammar: Grammar, likelihood: ArrayLike) -> NDArray[np.float64]:
    """What the evidence says about the parse tree above each token.

    Args:
        grammar: its start derives the sentence, and all terminals are at one depth, so that each symbol has one level.
        likelihood: as for `cavity`.

    Returns:
        (length, nonterminals), P(the ancestor of token p at the level of A is A | evidence, length). The columns
        `grammar.levels[level]` are the distribution over the symbols of a level.

    Raises:
        UserError: the grammar has no levels, the likelihood is no such array, or the evidence is impossible.
    """
    _ = grammar.levels
    logarithms = _possible(grammar, _logarithms(grammar, likelihood, ancestors=True))
    return np.exp(logarithms.ancestors - logarithms.evidence)


def masked_posteriors(grammar: Grammar, tokens: ArrayLike, visible: ArrayLike) -> NDArray[np.float64]:
    """P(x_p = a | the tokens at all visible positions other than p, length), (length, terminals).

    Args:
        grammar: its start derives the sentence.
        tokens: (length,) token ids; those at positions that are not visible do not matter.
        visible: (length,) of booleans.

    Raises:
        UserError: a token id that the grammar does not have, or the other visible tokens are impossible for some p.
    """
    return cavity(grammar, _seen(grammar, token_ids(grammar, tokens), np.asarray(visible, bool)))[1]


def _seen(grammar: Grammar, ids: NDArray[np.int64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The likelihood of tokens that are seen where `visible`."""
    likelihood = np.ones((len(ids), len(grammar.terminals)))
    likelihood[visible] = 0
    likelihood[np.flatnonzero(visible), ids[visible]] = 1
    return likelihood


def _softmax(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of probabilities from their logarithms, up to a constant for each row."""
    probabilities = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _possible(grammar: Grammar, logarithms: Logarithms) -> Logarithms:
    """The same, if the evidence is not impossible."""
    if logarithms.evidence == -math.inf:
        raise UserError(f"{grammar.name} makes no sentence that agrees with the evidence: there is no posterior")
    return logarithms


def _logarithms(grammar: Grammar, likelihood: ArrayLike, outside: bool = True, ancestors: bool = False) -> Logarithms:
    """The first pass over the chart and, if `outside`, the second; `ancestors` needs both, and no recursion."""
    evidence = _checked_likelihood(grammar, likelihood)
    length = len(evidence)
    longest = grammar.length_ranges[0][1]
    capacity = 1 << length.bit_length()
    if (longest is not None and length > longest) or length == 0:
        if outside:
            raise UserError(f"{grammar.name} makes no sentence of {length} tokens")
        return Logarithms(-math.inf, np.zeros_like(evidence), np.zeros((length, len(grammar.nonterminals))))
    contexts = _contexts(grammar, capacity if longest is None else min(capacity, longest))
    chart = chart_of(grammar, "rows")
    factors = _factors(grammar, evidence)
    scaled = evidence / factors[:, None]
    result = np.zeros_like(evidence)
    joint = np.zeros((length if ancestors else 0, len(grammar.nonterminals)))
    smallest = min(chart.weight.min(), scaled.min(initial=LARGEST, where=evidence > 0))
    value, in_range = 0.0, bool(smallest >= 1 / LARGEST)
    with np.errstate(divide="ignore"):
        if in_range:
            value, in_range = _compute(chart, contexts, scaled, False, outside, result, joint)
            value, result, joint = np.log(value), np.log(result) if outside else result, np.log(joint)
        if not in_range:
            logarithmic = chart._replace(weight=np.log(chart.weight))
            scaled = np.log(evidence) - np.log(factors)[:, None]
            result, joint = np.full_like(evidence, -math.inf), np.full_like(joint, -math.inf)
            value, _ = _compute(logarithmic, contexts, scaled, True, outside, result, joint)
    if outside and (impossible := np.flatnonzero(result.max(axis=1) == -math.inf)).size:
        raise UserError(
            f"{grammar.name} makes no sentence of {length} tokens that agrees with the evidence "
            f"outside of position {impossible[0]}"
        )
    scale = np.log(factors).sum()
    return Logarithms(float(value + scale), result, joint + scale)


def _checked_likelihood(grammar: Grammar, likelihood: ArrayLike) -> NDArray[np.float64]:
    evidence = np.asarray(likelihood, np.float64)
    if evidence.ndim != 2 or evidence.shape[1] != len(grammar.terminals):
        shape = ", ".join(map(str, evidence.shape))
        raise UserError(f"the likelihood has the shape ({shape}): give (length, {len(grammar.terminals)})")
    if not (np.isfinite(evidence) & (evidence >= 0)).all():
        raise UserError("the likelihood has numbers that are negative or not finite")
    return evidence


@lru_cache(maxsize=64)
def _contexts(grammar: Grammar, capacity: int) -> Contexts:
    """The table for sentences of at most `capacity` tokens. A node that can contain itself may stand anywhere."""
    chart = chart_of(grammar, "rows")
    shortest, longest = np.minimum(chart.shortest, capacity), np.minimum(chart.longest, capacity)
    terms = [chart.term[a:b].tolist() for a, b in pairwise(chart.first_term)]
    factors = [pair if pair[0] >= 0 else [] for pair in np.stack([chart.left, chart.right], axis=1).tolist()]
    fewest = np.full((len(terms), capacity + 1), UNLIMITED)
    most = np.full((len(terms), capacity + 1), -UNLIMITED)
    fewest[chart.start, 0] = most[chart.start, 0] = 0
    for component in reversed(components([a + b for a, b in zip(terms, factors, strict=True)])):
        if len(component) > 1:
            fewest[component], most[component] = 0, capacity
        for node in component:
            for child in terms[node]:
                np.minimum(fewest[child], fewest[node], out=fewest[child])
                np.maximum(most[child], most[node], out=most[child])
            if factors[node]:
                left, right = factors[node]
                np.minimum(fewest[left], fewest[node] + shortest[right], out=fewest[left])
                np.maximum(most[left], most[node] + longest[right], out=most[left])
                np.minimum(fewest[right], -_moved(-fewest[node], shortest[left], longest[left]), out=fewest[right])
                np.maximum(most[right], _moved(most[node], shortest[left], longest[left]), out=most[right])
    limits = (np.clip(numbers, -1, capacity + 1).astype(np.int32) for numbers in (fewest, most))
    return Contexts(*limits)


def _moved(numbers: NDArray[np.int64], least: int, most: int) -> NDArray[np.int64]:
    """At each index the largest of the numbers that are from `least` to `most` places before it."""
    padded = np.concatenate([np.full(most, -UNLIMITED), numbers])
    return sliding_window_view(padded, most - least + 1).max(axis=1)[: len(numbers)]


def _factors(grammar: Grammar, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the likelihood at each position is divided by, (length,).

    It is the largest likelihood where nothing is seen. Where a token is seen, log2 of its frequency u is shrunk so that
    it is on average minus the number of bits that the grammar spends on a token.
    """
    frequency, shrinkage = _surprise(grammar)
    largest = evidence.max(axis=1, initial=0)
    largest[largest == 0] = 1
    expected = (evidence / largest[:, None]) @ frequency
    expected[expected == 0] = 1
    return largest * expected**shrinkage


@lru_cache(maxsize=64)
def _surprise(grammar: Grammar) -> tuple[NDArray[np.float64], float]:
    """Frequency of each terminal, and the bits of choices per token as a share of the frequencies' entropy."""
    rules = grammar.compiled()
    left = np.repeat(np.arange(rules.nonterminals), np.diff(rules.first_rule))
    inside_rule = rules.right >= 0
    parent = np.broadcast_to(left[:, None], rules.right.shape)[inside_rule]
    weight = np.broadcast_to(rules.probability[:, None], rules.right.shape)[inside_rule]
    children = np.zeros((rules.nonterminals, rules.nonterminals + rules.terminals))
    np.add.at(children, (parent, rules.right[inside_rule]), weight)
    level = np.zeros(rules.nonterminals)
    level[0] = 1
    counts = np.zeros(rules.nonterminals)
    for _ in range(DERIVATION_STEPS):
        counts += level
        level = level @ children[:, : rules.nonterminals]
    tokens = counts @ children[:, rules.nonterminals :]
    frequency = tokens / tokens.sum()
    choices = -(counts[left] * rules.probability * np.log2(rules.probability)).sum() / tokens.sum()
    entropy = -(frequency * np.log2(frequency, where=frequency > 0, out=np.zeros_like(frequency))).sum()
    return frequency, float(min(1, choices / entropy)) if entropy > 0 else 1.0


@njit(cache=True, nogil=True)
def _compute(chart, contexts, likelihood, logarithmic, outside, result, ancestors):  # type: ignore[no-untyped-def]
    """Both passes over a chart.

    Args:
        likelihood: (length, terminals).
        logarithmic: whether `likelihood`, `chart.weight` and all results are logarithms.
        outside: whether to make the second pass as well.
        result: (length, terminals), filled with zeros or their logarithms, for the outside numbers of the terminals.
        ancestors: (length, nonterminals), filled likewise, for the probability that a nonterminal is above a token, and
            of the evidence; (0, nonterminals) if that is not wanted, as with recursion.

    Returns:
        inside(start, 0, length), and whether all numbers of the chart are in range; always so for logarithms.
    """
    length = len(likelihood)
    zero, one = (-np.inf, 0.0) if logarithmic else (0.0, 1.0)
    rows = np.empty((len(chart.left), length + 1, 6), np.int64)
    numbers = np.empty(_prepare(chart, contexts, rows))
    used = 0
    for i in range(length - 1, -1, -1):
        for group in range(len(chart.recursive)):
            node = chart.group[group]
            if chart.recursive[group]:
                used = _inside_recursive(chart, node, chart.group[group + 1], i, logarithmic, rows, numbers, used)
            elif chart.terminal[node] >= 0:
                used = _inside_terminal(node, i, likelihood[i, chart.terminal[node]], zero, rows, numbers, used)
            elif chart.left[node] >= 0:
                used = _inside_product(chart, node, i, logarithmic, rows, numbers, used)
            else:
                used = _inside_sum(chart, node, i, logarithmic, rows, numbers, used)
    value = _number(rows, numbers, chart.start, 0, length, zero)
    in_range = logarithmic or all_in_range(numbers, used)
    if not (outside and in_range):
        return value, in_range
    outer = np.full(_place_outer_rows(rows), zero)
    if rows[chart.start, 0, OUTER_FIRST] <= length < rows[chart.start, 0, OUTER_STOP]:
        outer[rows[chart.start, 0, OUTER_BASE] + length] = one
    for i in range(length):
        for group in range(len(chart.recursive) - 1, -1, -1):
            node = chart.group[group]
            if chart.recursive[group]:
                _outside_recursive(chart, node, chart.group[group + 1], i, logarithmic, rows, numbers, outer)
                continue
            _trim(rows, outer, node, i, OUTER_FIRST, zero)
            if rows[node, i, OUTER_FIRST] >= rows[node, i, OUTER_STOP]:
                continue
            if chart.terminal[node] >= 0:
                result[i, chart.terminal[node]] = outer[rows[node, i, OUTER_BASE] + i + 1]
            elif chart.left[node] >= 0:
                left = chart.left[node]
                for k in range(rows[left, i, OUTER_FIRST], rows[left, i, OUTER_STOP]):
                    _outside_product(chart, node, i, k, logarithmic, rows, numbers, outer)
            else:
                _outside_sum(chart, node, i, logarithmic, rows, outer)
                if len(ancestors) > 0:
                    above = ancestors[:, chart.nonterminal[node]]
                    _add_spans(node, i, logarithmic, rows, numbers, outer, above)
    return value, logarithmic or all_in_range(outer, len(outer))


@njit(cache=True, nogil=True)
def _prepare(chart, contexts, rows):  # type: ignore[no-untyped-def]
    """Set every row to nothing inside and to all ends that its contexts allow outside; returns their number."""
    length = rows.shape[1] - 1
    ends = 0
    for node in range(len(rows)):
        for i in range(length + 1):
            rows[node, i, FIRST], rows[node, i, STOP] = length + 1, 0
            first = max(i + chart.shortest[node], length - contexts.most[node, i])
            stop = min(i + chart.longest[node], length - contexts.fewest[node, i]) + 1
            if first < stop:
                rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP] = first, stop
                ends += stop - first
            else:
                rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP] = length + 1, 0
    return ends


@njit(cache=True, nogil=True)
def _inside_terminal(node, i, likelihood, zero, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of a terminal; returns how many of the numbers are in use afterwards."""
    if likelihood == zero or rows[node, i, OUTER_FIRST] >= rows[node, i, OUTER_STOP]:
        return used
    numbers[used] = likelihood
    rows[node, i, FIRST], rows[node, i, STOP], rows[node, i, BASE] = i + 1, i + 2, used - (i + 1)
    return used + 1


@njit(cache=True, nogil=True)
def _inside_product(chart, node, i, logarithmic, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of a product; returns how many of the numbers are in use afterwards."""
    zero = -np.inf if logarithmic else 0.0
    left, right = chart.left[node], chart.right[node]
    first = outer_first = rows.shape[1]
    stop = outer_stop = 0
    for k in range(rows[left, i, OUTER_FIRST], rows[left, i, OUTER_STOP]):
        if _number(rows, numbers, left, i, k, zero) == zero:
            outer_first = min(outer_first, rows[right, k, FIRST])
            outer_stop = max(outer_stop, rows[right, k, STOP])
        else:
            first = min(first, rows[right, k, FIRST])
            stop = max(stop, rows[right, k, STOP])
            outer_first = min(outer_first, rows[right, k, OUTER_FIRST])
            outer_stop = max(outer_stop, rows[right, k, OUTER_STOP])
    if not _place_row(rows, numbers, node, i, first, stop, outer_first, outer_stop, used, zero):
        return used
    for k in range(rows[left, i, FIRST], rows[left, i, STOP]):
        _inside_product_at(chart, node, i, k, logarithmic, rows, numbers)
    used += rows[node, i, STOP] - rows[node, i, FIRST]
    _trim(rows, numbers, node, i, FIRST, zero)
    return used


@njit(cache=True, nogil=True)
def _inside_product_at(chart, node, i, k, logarithmic, rows, numbers):  # type: ignore[no-untyped-def]
    """Add to row i of a product X C what it has from X ending at k."""
    zero = -np.inf if logarithmic else 0.0
    right = chart.right[node]
    factor = _number(rows, numbers, chart.left[node], i, k, zero)
    if factor != zero:
        first = max(rows[node, i, FIRST], rows[right, k, FIRST])
        count = min(rows[node, i, STOP], rows[right, k, STOP]) - first
        add(numbers, rows[node, i, BASE] + first, factor, numbers, rows[right, k, BASE] + first, count, logarithmic)


@njit(cache=True, nogil=True)
def _inside_sum(chart, node, i, logarithmic, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of a sum; returns how many of the numbers are in use afterwards."""
    zero = -np.inf if logarithmic else 0.0
    first = outer_first = rows.shape[1]
    stop = outer_stop = 0
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        first, stop = min(first, rows[child, i, FIRST]), max(stop, rows[child, i, STOP])
        outer_first = min(outer_first, rows[child, i, OUTER_FIRST])
        outer_stop = max(outer_stop, rows[child, i, OUTER_STOP])
    if not _place_row(rows, numbers, node, i, first, stop, outer_first, outer_stop, used, zero):
        return used
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        first = max(rows[node, i, FIRST], rows[child, i, FIRST])
        count = min(rows[node, i, STOP], rows[child, i, STOP]) - first
        source = rows[child, i, BASE] + first
        add(numbers, rows[node, i, BASE] + first, chart.weight[term], numbers, source, count, logarithmic)
    used += rows[node, i, STOP] - rows[node, i, FIRST]
    _trim(rows, numbers, node, i, FIRST, zero)
    return used


@njit(cache=True, nogil=True)
def _inside_recursive(chart, begin, end, i, logarithmic, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of nodes begin .. end - 1, end by end; returns how many of the numbers are in use afterwards.

    Outside numbers are computed at all ends that the contexts allow.
    """
    zero = -np.inf if logarithmic else 0.0
    for node in range(begin, end):
        first, stop = rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP]
        if _place_row(rows, numbers, node, i, first, stop, first, stop, used, zero):
            used += stop - first
    for k in range(i + 1, rows.shape[1]):
        for node in range(begin, end):
            if chart.left[node] < 0 and rows[node, i, FIRST] <= k < rows[node, i, STOP]:
                total = rows[node, i, BASE] + k
                for term in range(chart.first_term[node], chart.first_term[node + 1]):
                    child = chart.term[term]
                    if rows[child, i, FIRST] <= k < rows[child, i, STOP]:
                        source = rows[child, i, BASE] + k
                        add(numbers, total, chart.weight[term], numbers, source, 1, logarithmic)
        for node in range(begin, end):
            if chart.left[node] >= 0:
                _inside_product_at(chart, node, i, k, logarithmic, rows, numbers)
    for node in range(begin, end):
        _trim(rows, numbers, node, i, FIRST, zero)
    return used


@njit(cache=True, nogil=True)
def _outside_product(chart, node, i, k, logarithmic, rows, numbers, outer):  # type: ignore[no-untyped-def]
    """What row i of a product X C outside says about X ending at k, and about C that begins there."""
    zero = -np.inf if logarithmic else 0.0
    left, right = chart.left[node], chart.right[node]
    base = rows[node, i, OUTER_BASE]
    first = max(rows[node, i, OUTER_FIRST], rows[right, k, FIRST])
    count = min(rows[node, i, OUTER_STOP], rows[right, k, STOP]) - first
    if count > 0:
        total = dot(outer, base + first, numbers, rows[right, k, BASE] + first, count, logarithmic)
        target = rows[left, i, OUTER_BASE] + k
        outer[target] = log_sum(outer[target], total) if logarithmic else outer[target] + total
    factor = _number(rows, numbers, left, i, k, zero)
    if factor != zero:
        first = max(rows[node, i, OUTER_FIRST], rows[right, k, OUTER_FIRST])
        count = min(rows[node, i, OUTER_STOP], rows[right, k, OUTER_STOP]) - first
        add(outer, rows[right, k, OUTER_BASE] + first, factor, outer, base + first, count, logarithmic)


@njit(cache=True, nogil=True)
def _outside_sum(chart, node, i, logarithmic, rows, outer):  # type: ignore[no-untyped-def]
    """What row i of a sum outside says about its terms."""
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        first = max(rows[node, i, OUTER_FIRST], rows[child, i, OUTER_FIRST])
        count = min(rows[node, i, OUTER_STOP], rows[child, i, OUTER_STOP]) - first
        source = rows[node, i, OUTER_BASE] + first
        add(outer, rows[child, i, OUTER_BASE] + first, chart.weight[term], outer, source, count, logarithmic)


@njit(cache=True, nogil=True)
def _outside_recursive(chart, begin, end, i, logarithmic, rows, numbers, outer):  # type: ignore[no-untyped-def]
    """What row i of nodes begin .. end - 1 outside says about what they consist of, from the last end to the first."""
    for k in range(rows.shape[1] - 1, i, -1):
        for node in range(begin, end):
            left = chart.left[node]
            if left >= 0 and rows[left, i, OUTER_FIRST] <= k < rows[left, i, OUTER_STOP]:
                _outside_product(chart, node, i, k, logarithmic, rows, numbers, outer)
        for node in range(end - 1, begin - 1, -1):
            if chart.left[node] < 0 and rows[node, i, OUTER_FIRST] <= k < rows[node, i, OUTER_STOP]:
                source = rows[node, i, OUTER_BASE] + k
                for term in range(chart.first_term[node], chart.first_term[node + 1]):
                    child = chart.term[term]
                    if rows[child, i, OUTER_FIRST] <= k < rows[child, i, OUTER_STOP]:
                        target = rows[child, i, OUTER_BASE] + k
                        add(outer, target, chart.weight[term], outer, source, 1, logarithmic)


@njit(cache=True, nogil=True)
def _add_spans(node, i, logarithmic, rows, numbers, outer, above):  # type: ignore[no-untyped-def]
    """Add inside times outside of each number in row i of a node to `above`, (length,), at each position it spans."""
    first = max(rows[node, i, FIRST], rows[node, i, OUTER_FIRST])
    stop = min(rows[node, i, STOP], rows[node, i, OUTER_STOP])
    total = -np.inf if logarithmic else 0.0
    for j in range(stop - 1, i, -1):  # position j - 1 is spanned by the numbers with end j or a later one
        if j >= first:
            inside, outside = numbers[rows[node, i, BASE] + j], outer[rows[node, i, OUTER_BASE] + j]
            total = log_sum(total, inside + outside) if logarithmic else total + inside * outside
        above[j - 1] = log_sum(above[j - 1], total) if logarithmic else above[j - 1] + total


@njit(cache=True, nogil=True)
def _number(rows, numbers, node, i, j, zero):  # type: ignore[no-untyped-def]
    """inside(node, i, j)."""
    if rows[node, i, FIRST] <= j < rows[node, i, STOP]:
        return numbers[rows[node, i, BASE] + j]
    return zero


@njit(cache=True, nogil=True)
def _place_row(rows, numbers, node, i, first, stop, outer_first, outer_stop, used, zero):  # type: ignore[no-untyped-def]
    """Set the ends of row i to those given, as far as contexts allow, and its numbers to zero; False without any."""
    low, high = rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP]
    outer_first, outer_stop = max(outer_first, low), min(outer_stop, high)
    if outer_first >= outer_stop:
        outer_first, outer_stop = rows.shape[1], 0
    rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP] = outer_first, outer_stop
    first, stop = max(first, low), min(stop, high)
    if first >= stop:
        return False
    rows[node, i, FIRST], rows[node, i, STOP], rows[node, i, BASE] = first, stop, used - first
    numbers[used : used + stop - first] = zero
    return True


@njit(cache=True, nogil=True)
def _place_outer_rows(rows):  # type: ignore[no-untyped-def]
    """Give each row its place among the outside numbers, and return how many these are."""
    used = 0
    for node in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[node, i, OUTER_BASE] = used - rows[node, i, OUTER_FIRST]
            used += max(rows[node, i, OUTER_STOP] - rows[node, i, OUTER_FIRST], 0)
    return used


@njit(cache=True, nogil=True)
def _trim(rows, numbers, node, i, ends, zero):  # type: ignore[no-untyped-def]
    """Leave out zeros at both ends of row i; `ends` is FIRST or OUTER_FIRST."""
    first, stop, base = rows[node, i, ends], rows[node, i, ends + 1], rows[node, i, ends + 2]
    while first < stop and numbers[base + first] == zero:
        first += 1
    while first < stop and numbers[base + stop - 1] == zero:
        stop -= 1
    if first >= stop:
        first, stop = rows.shape[1], 0
    rows[node, i, ends], rows[node, i, ends + 1] = first, stop
