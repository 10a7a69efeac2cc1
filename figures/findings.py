"""Statements and tables about the figures; the other files named so derive them from the data.

Whether a statement holds is computed from the data that `make_figures.py` collects. Accuracies are on
held-out samples. As there are only a few seeds, students are compared with students of the same seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter
from paired_tests import compare


@dataclass(frozen=True)
class Verdict:
    """A statement, whether it holds for these runs, and the numbers that decide it."""

    statement: str
    holds: bool
    numbers: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """What the report says about a figure."""

    title: str
    claim: str
    """The claim under test."""
    alt: str
    """The alternative text of the picture."""
    verdicts: Sequence[Verdict]
    tables: Sequence[Table]


Describe = Callable[[Mapping[str, Any]], Finding]


def steps_text(step: float | None) -> str:
    """A number of steps, such as 445k; a dash for none."""
    return "–" if step is None else EngFormatter(sep="")(step)


def mean_and_range(values: Sequence[float]) -> str:
    """Accuracies of several seeds: 0.665 (0.663 to 0.666)."""
    low, high = min(values), max(values)
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})" if len(values) > 1 else f"{values[0]:.3f}"


def comma_separated(values: Sequence[object]) -> str:
    """1, 2, 3"""
    return ", ".join(map(str, values))


def transition_text(phases: Mapping[str, float] | None) -> str:
    """Where the transition is: transition 411k to 443k."""
    if phases is None:
        return "no transition found"
    start, end = (steps_text(float(f"{phases[name]:.3g}")) for name in ("start", "end"))
    return f"transition {start} to {end}"


def is_inside(step: float, phases: Mapping[str, float] | None) -> bool:
    """Whether a step is inside the transition."""
    return phases is not None and phases["start"] <= step <= phases["end"]


def nearest(steps: Sequence[int], step: float) -> int:
    """Index of the step nearest to `step`."""
    return int(np.argmin(np.abs(np.asarray(steps) - step)))


def accuracy_by_seed(runs: Mapping[str, Any], index: int) -> dict[int, float]:
    """Accuracy at one evaluation, by seed."""
    return {seed: accuracy[index] for seed, accuracy in zip(runs["seeds"], runs["accuracy"], strict=True)}


def ends_above(statement: str, upper: Mapping[int, float], lower: Mapping[int, float]) -> Verdict:
    """Whether students of one group end above those of another group with the same seeds: `Comparison.is_above`.

    Args:
        statement: that says so.
        upper, lower: final accuracies by seed.
    """
    seeds = sorted(upper.keys() & lower.keys())
    if not seeds:
        return Verdict(statement, False, "no seed in common")
    found = compare([upper[seed] - lower[seed] for seed in seeds])
    return Verdict(statement, found.is_above, str(found))
