"""Small grammars, drawn at random or with every kind of recursion, and all their sentences."""

import itertools
from fractions import Fraction
from functools import cache

from hypothesis import reject, strategies as st

from common.errors import UserError
from common.pcfg.grammar_files import parse_grammar

RECURSIONS = {
    "right": "S -> a S [0.7] | b [0.3]",
    "left": "S -> S a [0.7] | b [0.3]",
    "both": "S -> S S [0.4] | a [0.3] | b [0.3]",
    "centre": "S -> a S b [0.5] | a b [0.25] | A [0.25]\nA -> b a",
    "indirect": "S -> A b [0.5] | B [0.5]\nA -> S a [0.5] | B [0.5]\nB -> a [0.5] | S b S S [0.1] | b [0.4]",
    "mixed": "S -> A B A a [0.25] | B [0.5] | A A [0.25]\nA -> a [0.5] | b A a [0.5]\nB -> A | b",
}


def strings(grammar, length):
    """Every sentence of this length, as token ids, with its exact probability among all sentences."""
    terminals = {symbol: i for i, symbol in enumerate(grammar.terminals)}

    @cache
    def of(symbols, length):
        if len(symbols) > length:
            return {}
        first, *others = symbols
        if others:
            found = {}
            for split in range(1, length):
                pairs = itertools.product(of((first,), split).items(), of(tuple(others), length - split).items())
                for (head, p), (tail, q) in pairs:
                    found[head + tail] = found.get(head + tail, 0) + p * q
            return found
        if first in terminals:
            return {(terminals[first],): Fraction(1)} if length == 1 else {}
        found = {}
        for rule in grammar.rules:
            if rule.left == first:
                for string, p in of(rule.right, length).items():
                    found[string] = found.get(string, 0) + p * Fraction(rule.probability)
        return found

    return of((grammar.start,), length)


@st.composite
def grammars(draw):
    """Up to four nonterminals, right sides of up to four symbols of any kind, recursion, unit rules, ambiguity."""
    names = [f"A{i}" for i in range(draw(st.integers(1, 4)))]
    terminals = ["a", "b", "c"][: draw(st.integers(1, 3))]
    lines = []
    for i, name in enumerate(names):
        below = st.sampled_from([*names[i + 1 :], *terminals])
        anything = st.sampled_from([*names, *terminals])
        finite = st.lists(below, min_size=1, max_size=4)
        any_right = st.one_of(finite, st.lists(anything, min_size=2, max_size=4))
        rights = [draw(finite), *draw(st.lists(any_right, max_size=3))]
        weights = [3.0, *draw(st.lists(st.floats(0.01, 1), min_size=len(rights) - 1, max_size=len(rights) - 1))]
        alternatives = {" ".join(right): weight for right, weight in zip(rights, weights, strict=True)}
        lines.append(f"{name} -> " + " | ".join(f"{right} [{weight!r}]" for right, weight in alternatives.items()))
    try:
        return parse_grammar("\n".join(lines), "drawn", start="A0")
    except UserError:
        reject()
