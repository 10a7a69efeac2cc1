"""Exact inference in probabilistic context-free grammars: what the other tokens of a sentence say about each of them.

This is the inside-outside algorithm (Baker 1979, Trainable grammars for speech recognition; Lari and Young 1990,
Computer Speech and Language 4). Evidence is a likelihood for every position and terminal, so that a token may be seen,
masked, or seen through noise, and everything is conditional on the number of tokens.

The chart. With the nodes of chart.py, and inside(N, i, j) the probability of the evidence at positions i .. j - 1, and
of this number of tokens, if node N derives exactly these positions,

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
them so that sentences typical of the grammar have numbers near 1. A chart with numbers outside 2^-500 to 2^500 (see
chart.py), or a grammar with such probabilities, is computed with logarithms instead, which takes about twenty times as
long. All numbers are non-negative, so sums and products keep their relative precision.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from common.arguments import worker_threads
from common.errors import UserError
from common.pcfg.chart import LARGEST, UNLIMITED, chart_of, components, token_ids
from common.pcfg.grammar import Grammar
from common.pcfg.inside_outside_kernels import passes

DERIVATION_STEPS = 200
"""Levels of the tree whose symbols are counted for the factors; any number will do."""


class Contexts(NamedTuple):
    """How many tokens can follow a node in sentences up to a certain length, both (nodes, tokens before it)."""

    fewest: NDArray[np.int32]
    most: NDArray[np.int32]
    """-1 if no node of the kind has so many tokens before it."""


class Logarithms(NamedTuple):
    """Results of the passes over a chart; `cavity` and `ancestors` are zeros unless requested."""

    evidence: float
    """log P(evidence, length)."""
    cavity: NDArray[np.float64]
    """(length, terminals): log P(x_p = a, evidence at all other positions), up to a constant for each row."""
    ancestors: NDArray[np.float64]
    """(length, nonterminals): log P(A is an ancestor of token p, evidence, length)."""


def log_probability(grammar: Grammar, tokens: ArrayLike) -> float:
    """Logarithm of the probability of a sentence, (length,) token ids; -inf if the grammar cannot make it.

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


def cavity_at(grammar: Grammar, likelihood: ArrayLike, position: int) -> NDArray[np.float64]:
    """P(x_p = a | evidence at all positions but p, length) at one position p, (terminals,).

    This is a row of `cavity`, with outside numbers only of the spans that have p.

    Args:
        grammar: as for `cavity`.
        likelihood: as for `cavity`.
        position: p, from 0 to length - 1.

    Raises:
        UserError: the likelihood is no array as for `cavity`, or the evidence outside of p is impossible.
    """
    return _softmax(_logarithms(grammar, likelihood, position=position).cavity[position : position + 1])[0]


def cavities(grammar: Grammar, likelihoods: Sequence[ArrayLike]) -> list[tuple[float, NDArray[np.float64]]]:
    """`cavity` of each sentence, in parallel, see `worker_threads`."""
    with ThreadPoolExecutor(worker_threads()) as pool:
        return list(pool.map(lambda likelihood: cavity(grammar, likelihood), likelihoods))


def posterior(grammar: Grammar, likelihood: ArrayLike) -> NDArray[np.float64]:
    """P(x_p = a | evidence at all positions, length).

    The likelihood is that of `cavity`, and the result has the same shape, (length, terminals).

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
        likelihood: (length, terminals), P(evidence at p | x_p = a); rows may have any scale.

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


def _logarithms(
    grammar: Grammar, likelihood: ArrayLike, outside: bool = True, ancestors: bool = False, position: int = -1
) -> Logarithms:
    """The first pass over the chart and, if `outside`, the second; `ancestors` needs both, and no recursion.

    Only the row of the cavity at `position` is computed, unless that is -1.
    """
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
            value, in_range = passes(chart, contexts, scaled, False, outside, result, joint, position)
            value, result, joint = np.log(value), np.log(result) if outside else result, np.log(joint)
        if not in_range:
            logarithmic = chart._replace(weight=np.log(chart.weight))
            scaled = np.log(evidence) - np.log(factors)[:, None]
            result, joint = np.full_like(evidence, -math.inf), np.full_like(joint, -math.inf)
            value, _ = passes(logarithmic, contexts, scaled, True, outside, result, joint, position)
    impossible = np.flatnonzero(result.max(axis=1) == -math.inf)
    if position >= 0:
        impossible = impossible[impossible == position]
    if outside and impossible.size:
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
                np.minimum(fewest[right], -_window_max(-fewest[node], shortest[left], longest[left]), out=fewest[right])
                np.maximum(most[right], _window_max(most[node], shortest[left], longest[left]), out=most[right])
    limits = (np.clip(numbers, -1, capacity + 1).astype(np.int32) for numbers in (fewest, most))
    return Contexts(*limits)


def _window_max(numbers: NDArray[np.int64], least: int, most: int) -> NDArray[np.int64]:
    """At each index the largest of the numbers that are from `least` to `most` places before it."""
    padded = np.concatenate([np.full(most, -UNLIMITED), numbers])
    return sliding_window_view(padded, most - least + 1).max(axis=1)[: len(numbers)]


def _factors(grammar: Grammar, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the likelihood at each position is divided by, (length,).

    It is the largest likelihood where nothing is seen. Where a token is seen, log2 of its frequency u is shrunk so that
    it is on average minus the number of bits that the grammar spends on a token.
    """
    frequency, shrinkage = _frequency_and_shrinkage(grammar)
    largest = evidence.max(axis=1, initial=0)
    largest[largest == 0] = 1
    expected = (evidence / largest[:, None]) @ frequency
    expected[expected == 0] = 1
    return largest * expected**shrinkage


@lru_cache(maxsize=64)
def _frequency_and_shrinkage(grammar: Grammar) -> tuple[NDArray[np.float64], float]:
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
