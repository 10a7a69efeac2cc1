"""Probabilistic context-free grammars: checked, and laid out as arrays; `grammar_files.py` reads them from files.

A grammar is accepted only if its derivations end with probability one (it is tight). Let M[A, B] be the expected
number of B in the right side of a rule of A. Every accepted symbol derives some sentence, and then the grammar is
tight exactly if no eigenvalue of M exceeds 1 (Booth and Thompson 1973, IEEE Trans. Computers C-22; for the critical
case, Harris 1963, The Theory of Branching Processes, section II.7). Where the largest eigenvalue is 1, sentences are
finite but their expected length is not; such a grammar is accepted, with the expected length infinite.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError, listed
from common.pcfg.rules import (
    CRITICAL,
    MAX_RECURSIVE,
    Rule,
    expectations,
    expected_length_of,
    growth,
    longest_of,
    recursions,
    shortest_of,
)

MAX_TOKENS = 10_000_000
"""Tokens of a sentence. A grammar whose sentences are longer is refused, unless only recursion makes them so."""

MAX_SYMBOLS = 2**24
"""Symbols of all right sides, if all were as long as the longest."""


class CompiledRules(NamedTuple):
    """A grammar as arrays. In right sides nonterminal n is n, and terminal t is `nonterminals` + t."""

    nonterminals: int
    terminals: int
    first_rule: NDArray[np.int32]
    """(nonterminals + 1,): the rules of nonterminal n are first_rule[n] to first_rule[n + 1] - 1."""
    right: NDArray[np.int32]
    """(rules, longest right side), filled up with -1."""
    right_length: NDArray[np.int32]
    """(rules,)"""
    cumulative: NDArray[np.float64]
    """(rules,): probabilities summed over the rules of a left side up to and with this one; the last is exactly 1."""
    probability: NDArray[np.float64]
    """(rules,)"""


@dataclass(frozen=True)
class Grammar:
    """A checked grammar, as `make_grammar` makes it; all its symbols can be reached."""

    name: str
    start: str
    rules: tuple[Rule, ...]
    """In the order of `nonterminals`, so that the rules of one left side are adjacent."""
    terminals: tuple[str, ...]
    """In ascending order, as numbers if all are integers; the token id of a terminal is its index."""

    @cached_property
    def nonterminals(self) -> tuple[str, ...]:
        """The start first, then in order of first appearance on a left side; the id of a nonterminal is its index."""
        return tuple(dict.fromkeys(rule.left for rule in self.rules))

    @cached_property
    def depth(self) -> int | None:
        """Rule applications from the start to a terminal, if all terminals of all sentences have the same number."""
        heights = self._heights
        return None if heights is None else heights[self.start]

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the nonterminals at each level of the tree, from the root, level 0, to level depth - 1.

        Raises:
            UserError: the grammar has no depth.
        """
        heights = self._heights
        if heights is None:
            raise UserError(f"the sentences of {self.name} have terminals at different depths: it has no levels")
        depth = heights[self.start]
        levels: list[list[int]] = [[] for _ in range(depth)]
        for i, symbol in enumerate(self.nonterminals):
            levels[depth - heights[symbol]].append(i)
        return tuple(map(tuple, levels))

    @cached_property
    def length_ranges(self) -> tuple[tuple[int, int | None], ...]:
        """Tokens of the shortest and of the longest string of each nonterminal; None where there is no longest."""
        shortest, longest = shortest_of(self.rules), longest_of(self.rules)
        return tuple((shortest[symbol], longest.get(symbol)) for symbol in self.nonterminals)

    @cached_property
    def expected_length(self) -> float:
        """Expected tokens of a sentence; infinite for a critical grammar."""
        return expected_length_of(self.rules, self.nonterminals)

    def with_start(self, start: str) -> "Grammar":
        """The grammar of what `start` derives: other symbols are left out, but terminals keep their token ids.

        Raises:
            UserError: `start` has no rules.
        """
        return Grammar(self.name, start, _reachable(self.name, self.rules, start), self.terminals)

    def compiled(self) -> CompiledRules:
        """The grammar as arrays, made once."""
        return self._compiled

    @cached_property
    def _compiled(self) -> CompiledRules:
        symbols = {symbol: i for i, symbol in enumerate(self.nonterminals + self.terminals)}
        lengths = np.array([len(rule.right) for rule in self.rules], np.int32)
        right = np.full((len(self.rules), lengths.max()), -1, np.int32)
        probability = np.array([rule.probability for rule in self.rules])
        for row, rule in zip(right, self.rules, strict=True):
            row[: len(rule.right)] = [symbols[symbol] for symbol in rule.right]
        rules_of = Counter(rule.left for rule in self.rules)
        first = np.cumsum([0, *(rules_of[symbol] for symbol in self.nonterminals)], dtype=np.int32)
        cumulative = np.concatenate([np.cumsum(probability[a:b]) for a, b in pairwise(first)])
        cumulative[first[1:] - 1] = 1
        return CompiledRules(
            len(self.nonterminals), len(self.terminals), first, right, lengths, cumulative, probability
        )

    @cached_property
    def _heights(self) -> dict[str, int] | None:
        """Rule applications from each symbol to its terminals, or None if they are not the same on all paths."""
        below = _symbols_below(self.rules)
        heights: dict[str, int] = {}
        try:
            for symbol in TopologicalSorter(below).static_order():
                different = {heights[child] for child in below.get(symbol, ())}
                if len(different) > 1:
                    return None
                heights[symbol] = 1 + different.pop() if different else 0
        except CycleError:
            return None
        return heights


@dataclass(frozen=True)
class Alternative:
    """A rule as it was written, before its weight is normalised."""

    left: str
    right: tuple[str, ...]
    weight: float | None
    """Relative to the other alternatives of `left`; None for equally likely ones."""
    where: str
    """File and line, for messages."""


def make_grammar(name: str, alternatives: Sequence[Alternative], start: str | None) -> Grammar:
    """The grammar of these alternatives, checked.

    Args:
        name: of the grammar, for messages.
        alternatives: at least one; the first left side is the default start.
        start: the start symbol; symbols that it does not reach are left out. Without it, they are an error.

    Raises:
        UserError: names the place of the first alternative that is repeated, has a wrong weight, cannot be reached,
            derives no sentence, closes a cycle of unit rules, or makes derivations that may never end or sentences
            that are too long; or says that the grammar is too large.
    """
    _check_size(name, alternatives)
    where: dict[str, str] = {}
    for alternative in alternatives:
        where.setdefault(alternative.left, alternative.where)
    rules = _normalised(alternatives, where)
    used = {symbol for rule in rules for symbol in rule.right}
    terminals = _ordered(used - set(where))
    reached = _reachable(name, rules, alternatives[0].left if start is None else start)
    if start is None:
        used_sides = {rule.left for rule in reached}
        for symbol in where:
            if symbol not in used_sides:
                raise UserError(
                    f"{where[symbol]}: {symbol} cannot be reached from the start, {alternatives[0].left}: "
                    "use it in a right side or remove it"
                )
    if cycle := _cycle(_symbols_below([rule for rule in rules if len(rule.right) == 1])):
        raise UserError(f"{where[cycle[0]]}: the rules {_arrows(cycle)} lead back to {cycle[0]}: remove one of them")
    finite = shortest_of(rules)
    if cycle := _cycle(
        {left: {s for s in symbols if s not in finite} for left, symbols in _symbols_below(rules).items()}
    ):
        first = next(symbol for symbol in where if symbol in cycle)
        raise UserError(f"{where[first]}: {first} derives no finite sentence: give it a non-recursive alternative")
    nonterminals = tuple(where)
    for members, matrix in sorted(recursions(expectations(rules, nonterminals)), key=lambda recursion: recursion[0]):
        if len(members) > MAX_RECURSIVE:
            raise UserError(f"{name} has {len(members):,} nonterminals that lead to each other: {MAX_RECURSIVE:,} may")
        if (factor := growth(matrix)) > 1 + CRITICAL:
            first, names = nonterminals[members[0]], listed(nonterminals[i] for i in members)
            raise UserError(
                f"{where[first]}: derivations from {first} may never end (the expected number of {names} grows "
                f"{factor:.10g} times with each rule): give less weight to recursive alternatives"
            )
    grammar = Grammar(name, reached[0].left, reached, terminals)
    shortest, longest = grammar.length_ranges[0]
    if max(shortest, longest or 0) > MAX_TOKENS or MAX_TOKENS < grammar.expected_length < math.inf:
        raise UserError(
            f"{where[grammar.start]}: sentences from {grammar.start} may have more than {MAX_TOKENS:,} tokens: give "
            "fewer or shorter alternatives"
        )
    return grammar


def _check_size(name: str, alternatives: Sequence[Alternative]) -> None:
    longest = max(len(alternative.right) for alternative in alternatives)
    if len(alternatives) * longest > MAX_SYMBOLS:
        raise UserError(
            f"{name} is too large, with {len(alternatives):,} alternatives of up to {longest:,} symbols: give fewer or "
            "shorter ones"
        )


def _normalised(alternatives: Sequence[Alternative], where: dict[str, str]) -> tuple[Rule, ...]:
    """Rules, those of a left side adjacent, with probabilities that sum to one."""
    sides: dict[str, dict[tuple[str, ...], Alternative]] = {symbol: {} for symbol in where}
    for alternative in alternatives:
        side = sides[alternative.left]
        if other := side.get(alternative.right):
            text = f"{alternative.left} -> {listed(alternative.right)}"
            raise UserError(f"{alternative.where}: {text} is repeated (first in {other.where}): remove one of them")
        side[alternative.right] = alternative
        first = next(iter(side.values()))
        if (first.weight is None) != (alternative.weight is None):
            raise UserError(
                f"{alternative.where}: give all alternatives of {alternative.left} a weight, or none "
                f"(the first is in {first.where})"
            )
    rules = []
    for side in sides.values():
        weights = [1.0 if alternative.weight is None else alternative.weight for alternative in side.values()]
        largest = max(weights)
        scaled = [weight / largest for weight in weights]
        total = math.fsum(scaled)
        for alternative, weight in zip(side.values(), scaled, strict=True):
            probability = weight / total
            if probability == 0:
                raise UserError(
                    f"{alternative.where}: the weights of {alternative.left} are too far apart: "
                    "give weights of similar size"
                )
            rules.append(Rule(alternative.left, alternative.right, probability))
    return tuple(rules)


def _ordered(terminals: Iterable[str]) -> tuple[str, ...]:
    """Ascending: as numbers if all are integers, otherwise as text."""
    by_text = sorted(terminals)
    try:
        return tuple(sorted(by_text, key=int))
    except ValueError:
        return tuple(by_text)


def _reachable(name: str, rules: Sequence[Rule], start: str) -> tuple[Rule, ...]:
    """The rules that derivations from `start` use, those of `start` first."""
    below = _symbols_below(rules)
    if start not in below:
        raise UserError(f"{start or repr(start)} has no rules in {name}: choose one of {listed(below)}")
    reached, waiting = {start}, [start]
    while waiting:
        new = {symbol for symbol in below[waiting.pop()] if symbol in below} - reached
        reached |= new
        waiting += new
    sides: dict[str, list[Rule]] = {start: []}
    for rule in rules:
        if rule.left in reached:
            sides.setdefault(rule.left, []).append(rule)
    return tuple(rule for side in sides.values() for rule in side)


def _symbols_below(rules: Sequence[Rule]) -> dict[str, set[str]]:
    """The symbols in the right sides of each nonterminal."""
    below: dict[str, set[str]] = {}
    for rule in rules:
        below.setdefault(rule.left, set()).update(rule.right)
    return below


def _cycle(below: Mapping[str, set[str]]) -> list[str] | None:
    """Symbols each of which is below the one before it, the last being the first again; None if there are none."""
    try:
        TopologicalSorter({symbol: sorted(symbols) for symbol, symbols in below.items()}).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None


def _arrows(symbols: Sequence[str]) -> str:
    shown = symbols if len(symbols) <= 10 else [*symbols[:5], "...", *symbols[-4:]]
    return " -> ".join(shown)
