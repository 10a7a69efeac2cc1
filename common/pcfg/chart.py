"""A grammar as the nodes of a chart, and sums of its numbers, as shared by the exact inference in prefix.py and
inside_outside.py.

A right side of three or more symbols is built up from its left end, X1 X2 X3 -> (X1 X2) X3, and right sides with the
same beginning share its nodes. So a chart has three kinds of nodes: terminals; products X C of a node and a symbol; and
the nonterminals, sums over their weighted right sides.

Numbers are taken as they are or as logarithms. Products of two numbers between 1 / LARGEST and LARGEST are normal
floating-point numbers, so that no zero is due to underflow.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from graphlib import TopologicalSorter
from typing import Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from common.errors import UserError
from common.pcfg.grammar import Grammar

LARGEST = 2.0**500
"""Numbers of a chart are at most this and, unless zero, at least its reciprocal."""

UNLIMITED = 2**30
"""Tokens; more than any sentence has."""

SUMMATION = {"reassoc", "contract"}
"""What the compiler may do to sums: reorder them, and fuse them with products."""


class Chart(NamedTuple):
    """A grammar's nodes in groups.

    With inside(N, i, j) for a node N and the positions i .. j - 1, row i of a node is its numbers for all ends j, and
    column j those for all beginnings i. The row, or the column, of a node depends on that of nodes in earlier groups
    and in its own.
    """

    start: int
    left: NDArray[np.int32]
    """(nodes,): X of a product X C; -1 for other nodes."""
    right: NDArray[np.int32]
    """(nodes,): C of a product X C; -1 for other nodes."""
    terminal: NDArray[np.int32]
    """(nodes,): token id of a terminal; -1 for other nodes."""
    nonterminal: NDArray[np.int32]
    """(nodes,): id of a nonterminal; -1 for other nodes."""
    first_term: NDArray[np.int32]
    """(nodes + 1,): a sum has the terms first_term[node] to first_term[node + 1] - 1; other nodes have none."""
    term: NDArray[np.int32]
    """(terms,): the node in this term."""
    weight: NDArray[np.float64]
    """(terms,): its probability, or the logarithm of it."""
    group: NDArray[np.int32]
    """(groups + 1,): group g is the nodes group[g] to group[g + 1] - 1, products before sums."""
    recursive: NDArray[np.bool_]
    """(groups,): whether a row of a node depends on itself, at earlier ends, or a column, at later beginnings."""
    shortest: NDArray[np.int32]
    """(nodes,): fewest tokens that a node derives."""
    longest: NDArray[np.int32]
    """(nodes,): most tokens that a node derives, or `UNLIMITED`."""


@lru_cache(maxsize=64)
def chart_of(grammar: Grammar, by: Literal["rows", "columns"]) -> Chart:
    """The nodes of a grammar, in groups that are made for rows or for columns.

    A row of a product X C depends on the same row of X and on later ones of C, a column on the same column of C and on
    earlier ones of X.
    """
    rules = grammar.compiled()
    symbols = rules.nonterminals + rules.terminals
    products: dict[tuple[int, int], int] = {}
    terms: list[list[tuple[int, float]]] = [[] for _ in range(rules.nonterminals)]
    for left in range(rules.nonterminals):
        for rule in range(*rules.first_rule[left : left + 2]):
            node, *others = rules.right[rule, : rules.right_length[rule]].tolist()
            for symbol in others:
                node = products.setdefault((node, symbol), symbols + len(products))
            terms[left].append((node, rules.probability[rule]))
    ranges = [(least, UNLIMITED if most is None else min(most, UNLIMITED)) for least, most in grammar.length_ranges]
    ranges += [(1, 1)] * rules.terminals
    for node, symbol in products:
        sums = (a + b for a, b in zip(ranges[node], ranges[symbol], strict=True))
        ranges.append((next(sums), min(next(sums), UNLIMITED)))
    edges = [[node for node, _ in side] for side in terms]
    edges += [[] for _ in range(rules.terminals)] + [[pair[by == "columns"]] for pair in products]
    groups = [_in_order(component, edges, rules.nonterminals) for component in components(edges)]
    old = [node for group in groups for node in group]
    new = np.empty(len(old), np.int32)
    new[old] = np.arange(len(old))
    pairs = np.full((len(old), 2), -1, np.int32)
    if products:
        pairs[new[symbols:]] = new[list(products)]
    terminal = np.full(len(old), -1, np.int32)
    terminal[new[rules.nonterminals : symbols]] = np.arange(rules.terminals)
    nonterminal = np.full(len(old), -1, np.int32)
    nonterminal[new[: rules.nonterminals]] = np.arange(rules.nonterminals)
    flat = [terms[node] if node < rules.nonterminals else [] for node in old]
    return Chart(
        start=int(new[0]),
        left=pairs[:, 0].copy(),
        right=pairs[:, 1].copy(),
        terminal=terminal,
        nonterminal=nonterminal,
        first_term=np.cumsum([0, *map(len, flat)], dtype=np.int32),
        term=new[[node for side in flat for node, _ in side]],
        weight=np.array([weight for side in flat for _, weight in side]),
        group=np.cumsum([0, *map(len, groups)], dtype=np.int32),
        recursive=np.array([len(group) > 1 for group in groups]),
        shortest=np.array(ranges, np.int32)[old, 0],
        longest=np.array(ranges, np.int32)[old, 1],
    )


def _in_order(component: Sequence[int], edges: Sequence[Sequence[int]], nonterminals: int) -> list[int]:
    """Products, then sums after those that are terms of theirs: the order in which numbers at one end are found."""
    units = {
        node: [child for child in edges[node] if child < nonterminals and child in component]
        for node in component
        if node < nonterminals
    }
    return [node for node in component if node not in units] + list(TopologicalSorter(units).static_order())


def components(edges: Sequence[Iterable[int]]) -> list[list[int]]:
    """Strongly connected components of a graph, each after those to which its edges lead (Kosaraju's algorithm)."""
    backwards: list[list[int]] = [[] for _ in edges]
    for node, children in enumerate(edges):
        for child in children:
            backwards[child].append(node)
    finished = [node for tree in _search(range(len(edges)), edges) for node in tree]
    return list(reversed(_search(reversed(finished), backwards)))


def _search(roots: Iterable[int], edges: Sequence[Iterable[int]]) -> list[list[int]]:
    """Depth-first: the nodes that are newly found from each root, in the order in which the search leaves them."""
    found: set[int] = set()
    trees = []
    for root in roots:
        if root in found:
            continue
        found.add(root)
        tree, path = [], [(root, iter(edges[root]))]
        while path:
            node, children = path[-1]
            child = next((child for child in children if child not in found), None)
            if child is None:
                tree.append(node)
                path.pop()
            else:
                found.add(child)
                path.append((child, iter(edges[child])))
        trees.append(tree)
    return trees


def token_ids(grammar: Grammar, tokens: ArrayLike) -> NDArray[np.int64]:
    ids = np.asarray(tokens, np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(grammar.terminals):
        raise UserError(f"token ids of {grammar.name} are 0 to {len(grammar.terminals) - 1}, got {ids.tolist()}")
    return ids


@njit(cache=True, nogil=True, fastmath=SUMMATION)
def add(target, first, factor, source, start, count, logarithmic):  # type: ignore[no-untyped-def]
    """Add `factor` times numbers of `source` from `start` on to those of `target` from `first` on."""
    if logarithmic:
        for j in range(count):
            target[first + j] = log_sum(target[first + j], factor + source[start + j])
    else:
        for j in range(count):  # unsigned indices need no test for negative ones
            target[np.uint64(first + j)] += factor * source[np.uint64(start + j)]


@njit(cache=True, nogil=True, fastmath=SUMMATION)
def dot(a, first, b, start, count, logarithmic):  # type: ignore[no-untyped-def]
    """Sum of the products of numbers of `a` from `first` on with those of `b` from `start` on."""
    if logarithmic:
        total = -np.inf
        for j in range(count):
            total = log_sum(total, a[first + j] + b[start + j])
    else:
        total = 0.0
        for j in range(count):
            total += a[np.uint64(first + j)] * b[np.uint64(start + j)]
    return total


@njit(cache=True, nogil=True)
def log_sum(a, b):  # type: ignore[no-untyped-def]
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -np.inf else a + np.log1p(np.exp(b - a))


@njit(cache=True, nogil=True)
def all_in_range(numbers, count):  # type: ignore[no-untyped-def]
    """Whether the first `count` numbers are zero or between 1 / LARGEST and LARGEST."""
    outside = 0
    for i in range(count):
        outside += numbers[i] != 0 and not 1 / LARGEST <= numbers[i] <= LARGEST
    return outside == 0
