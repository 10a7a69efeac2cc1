"""Speed of sampling from a grammar and of exact inference in it, against plain ways in one process and on one core.

    python benchmarks/pcfg.py [--out benchmarks/results/NAME.json]

Sampling: the plain sampler expands NLTK's productions by recursion: it looks up those of a symbol and draws one of them
with `random.choices` by their probabilities. A second one has looked up all productions and cumulated their
probabilities beforehand.

Inference: the probabilities of the tokens at all masked positions of a sentence at once, given all others, where 30% of
the positions are masked and where all are. The plain way is the textbook's inside-outside algorithm for a grammar with
two symbols on every right side, in NumPy: a loop over spans, with array operations over all rules and split points of
a span. It and `masked_posteriors` get the same sentence, that of the first `SENTENCES` whose length is nearest to their
mean, and must give the same numbers; beside them is the mean time of `masked_posteriors` over all of these sentences.

Next tokens: the probabilities of the next token after every beginning of the same sentence. The plain way is that of
Jelinek and Lafferty (1991), Computational Linguistics 17(3), for the same grammar with two symbols on every right side,
in NumPy: a loop over beginnings and over where a symbol begins, with array operations over all rules, split points and
next tokens. It is compared with `next_token_posteriors` as above.

Each figure is the best of several repetitions, the functions taking turns.
"""

import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import tyro
from measuring import Arguments, best, processor, row, seconds, write
from nltk.grammar import PCFG, Nonterminal, ProbabilisticProduction
from numpy.typing import NDArray

from common.cli import command
from common.pcfg.grammar import Grammar
from common.pcfg.grammar_files import load_grammar
from common.pcfg.inside_outside import masked_posteriors
from common.pcfg.prefix import next_token_posteriors
from common.pcfg.sampler import sample

SENTENCES = 16
"""Inference is timed on so many sentences of a grammar."""
SHARES = {"30% masked": 0.3, "all masked": 1.0}
TOLERANCE = 1e-8
"""Largest difference of the probabilities that both ways of inference may give."""


Sentence = tuple[NDArray[Any], ...]
"""Its tokens and, for masked ones, which of them are visible."""
Inference = Callable[..., NDArray[np.float64]]
"""From a grammar and what a `Sentence` has."""


def main(arguments: Arguments) -> None:
    """Measure, print and, if asked to, write."""
    print(f"{processor()}, one thread")
    rows = [line for measure in MEASUREMENTS for line in measure(arguments.repetitions)]
    write(arguments.out, 1, rows)


def _sampling(repetitions: int) -> list[dict[str, Any]]:
    """Tokens per second, without trees and with them."""
    rows = []
    for name in ("cfg3b", "cfg3f"):
        grammar = load_grammar(name)
        plain, prepared, engine, trees = best(
            repetitions,
            _plain_sampling(grammar, 50, prepared=False),
            _plain_sampling(grammar, 50, prepared=True),
            _engine_sampling(grammar, 20_000, trees=False),
            _engine_sampling(grammar, 4_000, trees=True),
        )
        for what, slow, fast in (
            (f"sample {name}", plain, engine),
            (f"sample {name}, plain one prepared", prepared, engine),
            (f"sample {name} with trees", plain, trees),
        ):
            rows.append(row(what, "tokens_per_second", 1 / slow, 1 / fast, slow / fast))
    return rows


def _inference(repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds per sentence, of masked and of next tokens.

    Raises:
        RuntimeError: both ways give different probabilities.
    """
    rows = []
    for name in ("cfg3b", "cfg3f"):
        grammar = load_grammar(name)
        sampled = sample(grammar, 0, "train", 0, SENTENCES)
        sentences = np.split(sampled.tokens, sampled.offsets[1:-1])
        lengths = sampled.lengths
        for what, share in SHARES.items():
            visible = [np.random.default_rng(i).random(length) >= share for i, length in enumerate(lengths)]
            masked = list(zip(sentences, visible, strict=True))
            what = f"posteriors {name}, {what}"
            rows.append(_compared(what, repetitions, grammar, _plain_posteriors, masked_posteriors, masked))
        what, begun = f"next tokens {name}", [(tokens,) for tokens in sentences]
        rows.append(_compared(what, repetitions, grammar, _plain_next_tokens, next_token_posteriors, begun))
    return rows


def _compared(
    what: str, repetitions: int, grammar: Grammar, plain: Inference, engine: Inference, sentences: Sequence[Sentence]
) -> dict[str, Any]:
    """Row of both ways on the sentence whose length is nearest to the mean, and of the second on all of them."""
    lengths = np.array([len(tokens) for tokens, *_ in sentences])
    nearest = sentences[int(np.abs(lengths - lengths.mean()).argmin())]
    difference = np.abs(plain(grammar, *nearest) - engine(grammar, *nearest)).max()
    if not difference < TOLERANCE:
        raise RuntimeError(f"{what}: the probabilities of both ways differ by {difference}")
    slow, one, several = best(
        repetitions,
        _inference_of(plain, grammar, [nearest]),
        _inference_of(engine, grammar, [nearest]),
        _inference_of(engine, grammar, sentences),
    )
    more = {"tokens": len(nearest[0]), "mean_ms": 1e3 * several, "mean_tokens": float(lengths.mean())}
    return row(what, "ms", 1e3 * slow, 1e3 * one, slow / one, **more)


MEASUREMENTS: tuple[Callable[[int], list[dict[str, Any]]], ...] = (_sampling, _inference)
"""Each takes the number of repetitions, prints its rows with `row` and returns them."""


def _plain_sampling(grammar: Grammar, sentences: int, prepared: bool) -> Callable[[], float]:
    """Seconds per token of the recursive sampler."""
    nonterminals = {symbol: Nonterminal(symbol) for symbol in grammar.nonterminals}
    productions = [
        ProbabilisticProduction(nonterminals[r.left], [nonterminals.get(s, s) for s in r.right], prob=r.probability)
        for r in grammar.rules
    ]
    pcfg, generator = PCFG(nonterminals[grammar.start], productions), random.Random(0)
    sides = {symbol: pcfg.productions(lhs=symbol) for symbol in nonterminals.values()}
    weights = {symbol: list(accumulate(production.prob() for production in side)) for symbol, side in sides.items()}

    def draw(symbol: Nonterminal) -> ProbabilisticProduction:
        if prepared:
            return generator.choices(sides[symbol], cum_weights=weights[symbol])[0]
        side = pcfg.productions(lhs=symbol)
        return generator.choices(side, [production.prob() for production in side])[0]

    def expand(symbol: Nonterminal | str, tokens: list[str]) -> None:
        if isinstance(symbol, str):
            tokens.append(symbol)
            return
        for child in draw(symbol).rhs():
            expand(child, tokens)

    def run() -> float:
        tokens: list[str] = []
        begin = time.perf_counter()
        for _ in range(sentences):
            expand(pcfg.start(), tokens)
        return (time.perf_counter() - begin) / len(tokens)

    return run


def _engine_sampling(grammar: Grammar, sentences: int, trees: bool) -> Callable[[], float]:
    """Seconds per token of `sample`."""

    def run() -> float:
        begin = time.perf_counter()
        sampled = sample(grammar, 0, "train", 0, sentences, trees)
        return (time.perf_counter() - begin) / len(sampled.tokens)

    return run


class BinaryRules(NamedTuple):
    """Rules A -> B C, sorted by B; the symbols are the nonterminals, the terminals, and pairs of symbols."""

    symbols: int
    start: int
    first_terminal: int
    head: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    weight: NDArray[np.float64]


def _binary_rules(grammar: Grammar) -> BinaryRules:
    """A -> B C D becomes A -> (B C) D and (B C) -> B C; a grammar has no right side of one symbol."""
    names: list[Any] = [*grammar.nonterminals, *grammar.terminals]
    rules: dict[tuple[Any, Any, Any], float] = {}
    for rule in grammar.rules:
        pair: Any = rule.right[0]
        for symbol in rule.right[1:-1]:
            rules[(pair, symbol), pair, symbol] = 1.0
            pair = (pair, symbol)
        rules[rule.left, pair, rule.right[-1]] = rule.probability
    names += dict.fromkeys(head for head, _, _ in rules if head not in names)
    numbers = np.array([[names.index(symbol) for symbol in rule] for rule in rules])
    order = np.argsort(numbers[:, 1], kind="stable")
    head, left, right = numbers[order].T
    weight = np.array(list(rules.values()))[order]
    return BinaryRules(len(names), names.index(grammar.start), len(grammar.nonterminals), head, left, right, weight)


def _plain_inside(rules: BinaryRules, likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that a symbol derives x_i .. x_{j-1}, (length + 1, length + 1, symbols), of beginnings and ends.

    Args:
        rules: of the grammar.
        likelihood: (length, terminals), by which each terminal is weighted.
    """
    length, terminals = likelihood.shape
    inside = np.zeros((length + 1, length + 1, rules.symbols))
    for i in range(length):
        inside[i, i + 1, rules.first_terminal : rules.first_terminal + terminals] = likelihood[i]
    for width in range(2, length + 1):
        for i in range(length + 1 - width):
            j = i + width
            products = (inside[i, i + 1 : j][:, rules.left] * inside[i + 1 : j, j][:, rules.right]).sum(0)
            inside[i, j] = np.bincount(rules.head, products * rules.weight, rules.symbols)
    return inside


def _plain_posteriors(grammar: Grammar, tokens: NDArray[np.uint8], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What `masked_posteriors` computes."""
    rules, length, terminals = _binary_rules(grammar), len(tokens), len(grammar.terminals)
    leaves = slice(rules.first_terminal, rules.first_terminal + terminals)
    inside = _plain_inside(rules, np.where(visible[:, None], np.eye(terminals)[tokens], 1.0))
    outside = np.zeros_like(inside)
    outside[0, length, rules.start] = 1.0
    by_right = np.argsort(rules.right, kind="stable")
    lefts, first_left = np.unique(rules.left, return_index=True)
    rights, first_right = np.unique(rules.right[by_right], return_index=True)
    for width in range(length, 1, -1):
        for i in range(length + 1 - width):
            j = i + width
            factor = outside[i, j, rules.head] * rules.weight
            if factor.any():
                to_left = factor * inside[i + 1 : j, j][:, rules.right]
                to_right = (factor * inside[i, i + 1 : j][:, rules.left])[:, by_right]
                outside[i, i + 1 : j][:, lefts] += np.add.reduceat(to_left, first_left, axis=1)
                outside[i + 1 : j, j][:, rights] += np.add.reduceat(to_right, first_right, axis=1)
    cavity = np.stack([outside[i, i + 1, leaves] for i in range(length)])
    return cavity / cavity.sum(axis=1, keepdims=True)


def _plain_next_tokens(grammar: Grammar, tokens: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What `next_token_posteriors` computes."""
    rules, length, terminals = _binary_rules(grammar), len(tokens), len(grammar.terminals)
    inside = _plain_inside(rules, np.eye(terminals)[tokens])
    first_part = np.zeros((rules.symbols, rules.symbols))
    np.add.at(first_part, (rules.head, rules.left), rules.weight)
    corner = np.linalg.inv(np.eye(rules.symbols) - first_part)
    rewrite = np.zeros((rules.symbols, len(rules.head)))
    rewrite[rules.head, np.arange(len(rules.head))] = rules.weight
    rewrite = corner @ rewrite
    joint = np.zeros((length + 1, terminals + 1))
    for t in range(length + 1):
        begun = np.zeros((t + 1, rules.symbols, terminals))  # of x_i .. x_{t-1} and each next token
        begun[t] = corner[:, rules.first_terminal : rules.first_terminal + terminals]
        for i in range(t - 1, -1, -1):
            products = np.einsum("kr,kra->ra", inside[i, i + 1 : t + 1][:, rules.left], begun[i + 1 :][:, rules.right])
            begun[i] = rewrite @ products
        joint[t] = [*begun[0, rules.start], inside[0, t, rules.start]]
    return joint / joint.sum(axis=1, keepdims=True)


def _inference_of(inference: Inference, grammar: Grammar, sentences: Sequence[Sentence]) -> Callable[[], float]:
    """Seconds per sentence."""

    def run() -> None:
        for sentence in sentences:
            inference(grammar, *sentence)

    return lambda: seconds(run) / len(sentences)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
