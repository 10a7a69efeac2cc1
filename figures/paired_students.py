"""Students of several teachers, streams and seeds, compared pair by pair: figure, statements and tables.

Two students are a pair if they have the same seed, and so the same initial weights, and see the same stream. Their
accuracies are means over the teachers. The test and the intervals take pairs as independent of each other: what they
say is about other seeds and streams with these teachers, not about other teachers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from findings import Finding, Table, steps_text
from language_model_findings import students_end_above
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray
from paired_tests import FEWEST_PAIRS, Comparison, compare

from common.plotting import BLACK, METHODS, ORANGE, PAGE_WIDTH, SKY, Line, curve, legend_below, new_figure, panel_title

COMPARED = {
    ("progressive", "one-shot"): Line("progressive − one-shot", METHODS["progressive"].colour, "-", "o"),
    ("progressive", "ce"): Line("progressive − cross entropy", ORANGE, "-", "^"),
    ("one-shot", "ce"): Line("one-shot − cross entropy", SKY, "-", "v"),
}
"""Pairs of methods whose difference is drawn."""
RESAMPLES = 2000
"""Of the pairs, for intervals of numbers of steps."""


def accuracies(paired: Mapping[str, Any], method: str) -> NDArray[np.float64]:
    """Final accuracies, means over the teachers, of shape (pairs, budgets)."""
    return np.asarray(paired["accuracy"][method], dtype=np.float64).mean(axis=1)


def draw(data: Mapping[str, Any]) -> Figure:
    """(a) Final accuracy by budget and method, (b) mean differences of pairs and, with enough pairs, 95% intervals."""
    paired = data["paired"]
    steps = paired["steps"]
    figure, axes = new_figure(columns=2, width=PAGE_WIDTH, height=2.7)
    for method in ("ce", "one-shot", "progressive"):
        curve(axes[0, 0], steps, accuracies(paired, method), METHODS[method], mark_every_point=True)
    axes[0, 0].set_ylabel("accuracy")
    panel_title(axes[0, 0], f"(a) {_described(paired)}")

    difference, intervals = axes[0, 1], len(paired["pairs"]) >= FEWEST_PAIRS
    for place, ((upper, lower), line) in enumerate(COMPARED.items()):
        found = [compare(column) for column in (accuracies(paired, upper) - accuracies(paired, lower)).T]
        means = np.asarray([each.mean for each in found])
        errors = [means - [each.low for each in found], [each.high for each in found] - means] if intervals else None
        beside = np.asarray(steps) * 1.04 ** (place - 1)
        difference.errorbar(
            beside, means, errors, color=line.colour, marker=line.marker, markersize=3.5, linewidth=1, label=line.label
        )
    difference.axhline(0, color=BLACK, linewidth=0.6)
    difference.set_ylabel("difference in accuracy")
    panel_title(difference, "(b) paired differences" + (", 95% intervals" if intervals else ""))
    for axis in axes[0]:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator(steps))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_xlabel("student's training steps")
    legend_below(figure, 3, "(a): mean and range of the pairs")
    return figure


def describe(data: Mapping[str, Any]) -> Finding:
    """Whether the methods differ, by how much, and how many steps that is worth."""
    paired = data["paired"]
    verdicts, rows = [], []
    for upper, lower in COMPARED:
        differences = accuracies(paired, upper) - accuracies(paired, lower)
        verdicts.append(students_end_above(upper, lower, differences))
        by_budget = [compare(column.tolist()) for column in differences.T]
        names = METHODS[upper].label.capitalize(), METHODS[lower].label
        rows.append([f"{names[0]} - {names[1]}", *map(_difference_text, by_budget)])
    budgets = [f"{steps_text(steps)} steps" for steps in paired["steps"]]
    interval = " (95% interval)" if len(paired["pairs"]) >= FEWEST_PAIRS else ""
    return Finding(
        title="Students compared in pairs",
        claim="Progressive distillation is faster than one-shot distillation, which in turn is faster than training on "
        "the labels: students end with a higher accuracy, and reach the same accuracy in fewer steps.",
        alt="Left, final accuracy by training steps for three methods; right, the differences between methods.",
        verdicts=verdicts,
        tables=[
            Table(f"Mean difference in accuracy{interval}, p; {_described(paired)}", ["methods", *budgets], rows),
            Table(
                "Steps that students trained on the labels need to reach the accuracy of distilled ones of a budget"
                f"{interval}, interpolated in the logarithm of the steps",
                ["method", *budgets],
                [[METHODS[method].label, *_steps_of_labels(paired, method)] for method in ("one-shot", "progressive")],
            ),
        ],
    )


def _described(paired: Mapping[str, Any]) -> str:
    streams, seeds = ({pair[i] for pair in paired["pairs"]} for i in (0, 1))
    numbers = {"seed": len(seeds), "stream": len(streams), "teacher": len(paired["teacher_seeds"])}
    return ", ".join(f"{number} {name}{'s' if number > 1 else ''}" for name, number in numbers.items())


def _difference_text(found: Comparison) -> str:
    interval = f" ({found.low:+.3f} to {found.high:+.3f})" if found.pairs >= FEWEST_PAIRS else ""
    return f"{found.mean:+.3f}{interval}, {found.p:.2g}"


def _steps_of_labels(paired: Mapping[str, Any], method: str) -> list[str]:
    """By budget, with intervals from resampled pairs if there are enough."""
    steps = paired["steps"]
    labels, students = accuracies(paired, "ce"), accuracies(paired, method)
    middle = steps_to_reach(steps, labels.mean(axis=0), students.mean(axis=0))

    def text(number: float) -> str:
        if number == 0:
            return f"below {steps[0]:,}"
        return f"above {steps[-1]:,}" if number == np.inf else f"{number:,.0f}"

    if len(labels) < FEWEST_PAIRS:
        return [text(at) for at in middle]
    generator = np.random.Generator(np.random.Philox(0))
    drawn = generator.integers(len(labels), size=(RESAMPLES, len(labels)))
    resampled = [steps_to_reach(steps, labels[rows].mean(axis=0), students[rows].mean(axis=0)) for rows in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0, method="inverted_cdf")
    return [f"{text(at)} ({text(left)} to {text(right)})" for at, left, right in zip(middle, low, high, strict=True)]


def steps_to_reach(
    steps: Sequence[int], accuracy: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where a learning curve first reaches accuracies, linear in the logarithm of the steps between its points.

    Args:
        steps: of the curve, increasing.
        accuracy: of the curve; where it falls, the largest value before counts.
        wanted: accuracies.

    Returns:
        Steps; 0 below the first point, infinity above the last.
    """
    rising, first = np.unique(np.maximum.accumulate(accuracy), return_index=True)
    reached = np.exp(np.interp(wanted, rising, np.log(steps)[first]))
    return np.where(wanted < rising[0], 0, np.where(wanted > rising[-1], np.inf, reached))
