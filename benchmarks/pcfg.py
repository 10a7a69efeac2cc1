"""Speed of sampling from a grammar: tokens per second against plain recursion, in one process.

    python benchmarks/pcfg.py [--out benchmarks/results/NAME.json]

The plain sampler expands NLTK's productions by recursion: it looks up those of a symbol and draws one of them with
`random.choices` by their probabilities. A second one has looked up all productions and cumulated their probabilities
beforehand. All use one core. Each figure is the best of several repetitions, the functions taking turns.
"""

import json
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import tyro
from nltk.grammar import PCFG, Nonterminal, ProbabilisticProduction

from common.pcfg.grammar import Grammar, load_grammar
from common.pcfg.sampler import sample
from common.runs import command


@dataclass(frozen=True)
class Arguments:
    """Arguments of this benchmark."""

    out: Path | None = None
    """JSON file for the results."""
    repetitions: int = 7
    """Each time is the best of so many."""


def main(arguments: Arguments) -> None:
    """Measure, print and, if asked to, write."""
    print(f"{_processor()}, one thread")
    rows = [row for measure in MEASUREMENTS for row in measure(arguments.repetitions)]
    if arguments.out:
        result = {"processor": _processor(), "threads": 1, "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def _sampling(repetitions: int) -> list[dict[str, Any]]:
    """Tokens per second, without trees and with them."""
    rows = []
    for name in ("cfg3b", "cfg3f"):
        grammar = load_grammar(name)
        plain, prepared, engine, trees = _best(
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
            rows.append(_row(what, "tokens_per_second", 1 / slow, 1 / fast, slow / fast))
    return rows


MEASUREMENTS: tuple[Callable[[int], list[dict[str, Any]]], ...] = (_sampling,)
"""Each takes the number of repetitions, prints its rows with `_row` and returns them."""


def _row(name: str, unit: str, plain: float, engine: float, ratio: float) -> dict[str, Any]:
    """Print and return one line; `plain` and `engine` are in `unit`, `ratio` is how many times faster the engine is."""
    print(f"{name:32} {unit.replace('_', ' ')}: plain {plain:.4g}  here {engine:.4g}  ratio {ratio:.1f}", flush=True)
    return {"what": name, f"plain_{unit}": plain, f"engine_{unit}": engine, "ratio": ratio}


def _best(repetitions: int, *functions: Callable[[], float]) -> list[float]:
    """Smallest result of each function; they take turns, after one turn that does not count."""
    times = [[function() for function in functions] for _ in range(repetitions + 1)]
    return [min(column) for column in zip(*times[1:], strict=True)]


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


def _processor() -> str:
    """The processor's name and the number of processors that this process may use."""
    info, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = next(iter(names), name)
    return f"{name}, {os.cpu_count()} processors"


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
