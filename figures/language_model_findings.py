"""Statements and tables about the students of all settings with language models."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from findings import Table, Verdict, comma_separated, mean_and_range, steps_text

from common.plotting import METHODS


def ends_above_at_every_budget(upper: str, lower: str, students: Mapping[str, Any], where: str = "") -> Verdict:
    """Whether a method ends above another at every budget for every seed."""
    first, second = students[upper], students[lower]
    pairs = [
        (first["accuracy"][first["seeds"].index(seed)][i], second["accuracy"][second["seeds"].index(seed)][i])
        for seed, i in product(sorted(set(first["seeds"]) & set(second["seeds"])), range(len(first["steps"])))
    ]
    above = sum(one > other for one, other in pairs)
    return Verdict(
        f"{METHODS[upper].label.capitalize()} ends above {METHODS[lower].label} at every budget, for every seed{where}",
        bool(pairs) and above == len(pairs),
        f"{above} of {len(pairs)} pairs of students with the same seed and budget",
    )


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
