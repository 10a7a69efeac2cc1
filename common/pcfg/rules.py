"""The rules of a grammar: which nonterminals lead to each other, and how long their strings are."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

CRITICAL = 1e-9
"""A largest eigenvalue this close to 1 counts as 1: rounding moves it by less, and no sample shows the difference."""

MAX_RECURSIVE = 500
"""Nonterminals that lead to each other: eigenvalues of more would take minutes."""


@dataclass(frozen=True)
class Rule:
    left: str
    right: tuple[str, ...]
    probability: float
    """Among the rules of `left`."""


def shortest_of(rules: Sequence[Rule]) -> dict[str, int]:
    """Tokens of the shortest string that a symbol derives; symbols that derive none are absent.

    Found in ascending order (Knuth 1977, Information Processing Letters 6).
    """
    nonterminals = {rule.left for rule in rules}
    uses: dict[str, list[int]] = {}
    for i, rule in enumerate(rules):
        for symbol in rule.right:
            uses.setdefault(symbol, []).append(i)
    unknown = [len(rule.right) for rule in rules]
    lengths = [0] * len(rules)
    shortest: dict[str, int] = {}
    waiting = [(1, symbol) for symbol in sorted(uses.keys() - nonterminals)]
    while waiting:
        length, symbol = heappop(waiting)
        if symbol in shortest:
            continue
        shortest[symbol] = length
        for i in uses.get(symbol, ()):
            unknown[i] -= 1
            lengths[i] += length
            if unknown[i] == 0:
                heappush(waiting, (lengths[i], rules[i].left))
    return shortest


def longest_of(rules: Sequence[Rule]) -> dict[str, int]:
    """Tokens of the longest string that a symbol derives; symbols with strings of any length are absent.

    Those are the symbols that lead to recursion, because each turn adds a token: there are no cycles of unit rules.
    """
    nonterminals = tuple(dict.fromkeys(rule.left for rule in rules))
    sides: dict[str, list[Rule]] = {}
    for rule in rules:
        sides.setdefault(rule.left, []).append(rule)
    longest = {symbol: 1 for rule in rules for symbol in rule.right if symbol not in sides}
    for members, matrix in recursions(expectations(rules, nonterminals)):
        left = nonterminals[members[0]]
        if not matrix.any() and all(symbol in longest for rule in sides[left] for symbol in rule.right):
            longest[left] = max(sum(longest[symbol] for symbol in rule.right) for rule in sides[left])
    return longest


def expected_length_of(rules: Sequence[Rule], nonterminals: Sequence[str]) -> float:
    """Expected tokens of a sentence of the first of the nonterminals; infinite for a critical grammar."""
    index = {symbol: i for i, symbol in enumerate(nonterminals)}
    lengths = np.zeros(len(index))  # of the tokens in right sides, then of all
    for rule in rules:
        lengths[index[rule.left]] += rule.probability * sum(symbol not in index for symbol in rule.right)
    of_pairs = expectations(rules, nonterminals)
    for members, matrix in recursions(of_pairs):
        if growth(matrix) > 1 - CRITICAL:
            return math.inf
        within = set(members)
        for i in members:
            lengths[i] += sum(number * lengths[j] for j, number in of_pairs[i].items() if j not in within)
        lengths[members] = np.linalg.solve(np.eye(len(members)) - matrix, lengths[members])
    return float(lengths[0])


def expectations(rules: Sequence[Rule], nonterminals: Sequence[str]) -> list[dict[int, float]]:
    """M[A][B], the expected number of B in the right side of a rule of A, unless it is zero."""
    index = {symbol: i for i, symbol in enumerate(nonterminals)}
    found: list[dict[int, float]] = [{} for _ in index]
    for rule in rules:
        row = found[index[rule.left]]
        for symbol in rule.right:
            if symbol in index:
                row[index[symbol]] = row.get(index[symbol], 0.0) + rule.probability
    return found


def recursions(expectations: Sequence[Mapping[int, float]]) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
    """The classes of nonterminals that lead to each other, and M within each; those that a class leads to come first.

    Taken class by class, the largest eigenvalue is simple, so that rounding hardly moves it, and exactly 0 without
    recursion.
    """
    for members in _components(expectations):
        place = {i: at for at, i in enumerate(members)}
        matrix = np.zeros((len(members), len(members)) if len(members) <= MAX_RECURSIVE else (0, 0))
        for i in members if len(matrix) else ():
            for j, number in expectations[i].items():
                if j in place:
                    matrix[place[i], place[j]] = number
        yield members, matrix


def growth(matrix: NDArray[np.float64]) -> float:
    """The largest eigenvalue."""
    return float(matrix[0, 0]) if len(matrix) == 1 else float(np.abs(np.linalg.eigvals(matrix)).max())


def _components(below: Sequence[Iterable[int]]) -> list[list[int]]:
    """Strongly connected components, those that a component leads to first (Tarjan 1972, SIAM J. Computing 1)."""
    found: dict[int, int] = {}  # in which order
    lowest: dict[int, int] = {}  # found, of what a number leads back to
    components: list[list[int]] = []
    done: set[int] = set()
    stack: list[int] = []
    for root in range(len(below)):
        path = [] if root in found else [(root, iter(below[root]))]
        while path:
            node, children = path[-1]
            if node not in found:
                found[node] = lowest[node] = len(found)
                stack.append(node)
            for child in children:
                if child not in found:
                    path.append((child, iter(below[child])))
                    break
                if child not in done:
                    lowest[node] = min(lowest[node], lowest[child])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == found[node]:
                    members = [stack.pop()]
                    while members[-1] != node:
                        members.append(stack.pop())
                    done.update(members)
                    components.append(sorted(members))
    return components
