"""Statements and tables about the students of all settings with language models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from findings import Table, Verdict, comma_separated, mean_and_range, steps_text
from numpy.typing import NDArray
from paired_tests import compare

from common.plotting import METHODS


def students_end_above(upper: str, lower: str, differences: NDArray[np.float64], where: str = "") -> Verdict:
    """Whether one method's students end above another's on average over the budgets: `Comparison.is_above`.

    Args:
        upper, lower: the methods.
        differences: in final accuracy, of shape (pairs, budgets).
        where: these students are, if there are others.
    """
    first, second = METHODS[upper].label.capitalize(), METHODS[lower].label
    statement = f"{first} students end above {second} students, on average over the budgets{where}"
    if not differences.size:
        return Verdict(statement, False, "no seed in common")
    found = compare(differences.mean(axis=1).tolist())
    return Verdict(statement, found.is_above, str(found))


def differences_by_seed(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> NDArray[np.float64]:
    """Differences in final accuracy between students with the same seed, of shape (seeds, budgets)."""
    seeds = sorted(set(upper["seeds"]) & set(lower["seeds"]))
    first, second = (
        np.asarray([runs["accuracy"][runs["seeds"].index(seed)] for seed in seeds]) for runs in (upper, lower)
    )
    return first - second


def budgets_table(
    caption: str, students: Mapping[str, Any], teacher: Mapping[str, Any], best: float | None = None
) -> Table:
    """Final accuracies by method and budget, with the teacher's and, where it is known, the best possible."""
    budgets = students["ce"]["steps"]

    def accuracies(runs: Mapping[str, Any], at: int) -> Sequence[float]:
        return [row[at] for row in runs["accuracy"]]

    rows = [
        [METHODS[method].label, comma_separated(runs["seeds"])]
        + [mean_and_range(accuracies(runs, at)) for at in range(len(budgets))]
        for method, runs in students.items()
    ]
    final = f"{teacher['accuracy'][-1]:.3f}, {steps_text(teacher['steps'][-1])} steps"
    rest = [""] * (len(budgets) - 1)
    rows.append(["teacher", str(teacher["arguments"]["seed"]), final, *rest])
    if best is not None:
        rows.append(["best possible (Bayes)", "", f"{best:.3f}", *rest])
    return Table(caption, ["method", "seeds", *(f"{steps_text(steps)} steps" for steps in budgets)], rows)
