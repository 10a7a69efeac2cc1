"""What the parity figures show, in numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from findings import (
    Describe,
    Finding,
    Table,
    Verdict,
    accuracy_by_seed,
    comma_separated,
    ends_above,
    is_inside,
    mean_and_range,
    nearest,
    steps_text,
    transition_text,
)
from paired_tests import compare
from parity_data import PLACES

from common.plotting import METHODS
from common.runs.finding import TRANSITION_ACCURACY, passed_at


def transition_steps(steps: Sequence[int], accuracies: Sequence[Sequence[float]]) -> list[int | None]:
    """First evaluated step with accuracy above `TRANSITION_ACCURACY`, or None, of each seed.

    Args:
        steps: (evaluations,).
        accuracies: (seeds, evaluations).
    """
    curves = [zip(steps, accuracy, strict=True) for accuracy in accuracies]
    return [passed_at({"step": step, "accuracy": value} for step, value in curve) for curve in curves]


def overview(data: Mapping[str, Any]) -> Finding:
    """Figure 1 of parity: when the teacher and its students pass their transition."""
    students = data["students"]
    passed = {method: transition_steps(runs["steps"], runs["accuracy"]) for method, runs in students.items()}
    teacher = data["teacher"]
    rows = [
        [
            "teacher",
            str(teacher["arguments"]["seed"]),
            *map(steps_text, transition_steps(teacher["steps"], [teacher["accuracy"]])),
            f"{teacher['accuracy'][-1]:.3f}",
            steps_text(teacher["steps"][-1]),
        ]
    ]
    for method, runs in students.items():
        rows.append(
            [
                METHODS[method].label,
                comma_separated(runs["seeds"]),
                comma_separated([steps_text(step) for step in passed[method]]),
                mean_and_range([accuracy[-1] for accuracy in runs["accuracy"]]),
                steps_text(runs["steps"][-1]),
            ]
        )
    rows.append(["best possible", "", "", "1.000", ""])
    return Finding(
        title="Which students pass the transition, and when",
        claim="A small student that learns from a teacher's checkpoints, one after another, passes the transition soon "
        "after the teacher. Students of the same size that learn from the final teacher or from the labels for the "
        "same number of steps stay at chance.",
        alt="Held-out accuracy over training, of the teacher and of students trained by three methods.",
        verdicts=[
            _passes_first("progressive", other, students, passed) for other in ("one-shot", "ce") if other in students
        ],
        tables=[
            Table(
                f"Step at which held-out accuracy passes {TRANSITION_ACCURACY:.0%}, for each seed (–: never)",
                ["method", "seeds", "passed at", "final accuracy: mean (range)", "steps"],
                rows,
            )
        ],
    )


def spike(data: Mapping[str, Any]) -> Finding:
    """Figure 2: which checkpoint helps as the first of two, and what the teacher reveals there."""
    two_shot = data["two_shot"]
    final = {place: accuracy_by_seed(two_shot[place], -1) for place in PLACES}
    monomials = data["monomials"]
    (degree_one,) = (entry for entry in monomials["degrees"] if entry["degree"] == 1)
    correlation = {}
    for place, step in data["candidates"].items():
        at = nearest(monomials["steps"], step)
        correlation[place] = (np.mean(degree_one["inside"][at]), degree_one["outside_percentiles"][at])
    inside = correlation["inside"]
    rows = []
    for place in PLACES:
        switch = two_shot[place]["steps"].index(two_shot[place]["first_steps"])
        support, others = correlation[place]
        rows.append(
            [
                place,
                steps_text(data["candidates"][place]),
                f"{support:.4f}",
                f"{others[1]:.4f} (to {others[2]:.4f})",
                mean_and_range([accuracy[switch] for accuracy in two_shot[place]["accuracy"]]),
                mean_and_range(list(final[place].values())),
            ]
        )
    return Finding(
        title="What a checkpoint inside the transition reveals",
        claim="Inside the transition the teacher's output correlates with single coordinates of the hidden support. "
        "Two checkpoints are enough: one from inside the transition, then the final one. A first checkpoint from "
        "before or after the transition does not help.",
        alt="Three panels: the teacher's accuracy with three candidate checkpoints, correlations with single "
        "coordinates, and accuracy of students that learn from each candidate first.",
        verdicts=[
            *(
                ends_above(
                    "Two-shot students that learn first from the checkpoint inside the transition end above those that "
                    f"learn first from the one {other} it",
                    final["inside"],
                    final[other],
                )
                for other in ("before", "after")
            ),
            Verdict(
                "At the checkpoint inside the transition, the mean correlation with the support exceeds the largest of "
                "the others",
                bool(inside[0] > inside[1][2]),
                f"{inside[0]:.4f} and {inside[1][2]:.4f}",
            ),
            Verdict(
                "The mean correlation with the support is larger inside the transition than before and after it",
                bool(inside[0] > max(correlation["before"][0], correlation["after"][0])),
                ", ".join(f"{place} {correlation[place][0]:.4f}" for place in PLACES),
            ),
        ],
        tables=[
            Table(
                f"Candidates, degree-1 correlations ({monomials['samples']:,} samples), and accuracy of two-shot "
                f"students with seeds {comma_separated(two_shot['inside']['seeds'])}: mean (range)",
                ["first checkpoint", "step", "support, mean", "others, median", "at the switch", "final"],
                rows,
            )
        ],
    )


def degrees(data: Mapping[str, Any]) -> Finding:
    """Correlations with monomials of every degree below k."""
    monomials, phases = data["monomials"], data["phases"]
    k = data["teacher"]["arguments"]["k"]
    rows, peaks = [], {}
    for entry in monomials["degrees"]:
        if entry["degree"] >= k:
            continue
        means = [float(np.mean(inside)) for inside in entry["inside"]]
        at = int(np.argmax(means))
        peaks[entry["degree"]] = monomials["steps"][at]
        others = entry["outside_percentiles"][at]
        rows.append(
            [
                str(entry["degree"]),
                steps_text(monomials["steps"][at]),
                f"{means[at]:.4f}",
                f"{others[1]:.4f} (to {others[2]:.4f})",
            ]
        )
    peaks_inside = all(is_inside(step, phases) for step in peaks.values())
    return Finding(
        title="Correlations of every degree",
        claim="Checkpoints inside the transition reveal monomials on subsets of the hidden support: correlations of "
        "low degree peak there.",
        alt="One panel per degree: correlations of the teacher's output with monomials inside and outside the support.",
        verdicts=[
            Verdict(
                "For every degree below k, the mean correlation with the support peaks inside the transition",
                peaks_inside,
                f"{transition_text(phases)}, peaks at "
                + ", ".join(f"{steps_text(step)} (degree {degree})" for degree, step in peaks.items()),
            )
        ],
        tables=[
            Table(
                "Largest mean over the monomials inside the support, and the others at that step",
                ["degree", "at step", "support, mean", "others, median"],
                rows,
            )
        ],
    )


FINDINGS: dict[str, Describe] = {"figure1": overview, "figure2": spike, "figure2_degrees": degrees}
"""By figure."""


def _passes_first(
    upper: str, lower: str, students: Mapping[str, Any], passed: Mapping[str, Sequence[int | None]]
) -> Verdict:
    """Whether students of a method pass the transition before those of another with the same seed, by a sign test."""
    never = float("inf")
    first, second = (
        {
            seed: never if step is None else step
            for seed, step in zip(students[method]["seeds"], passed[method], strict=True)
        }
        for method in (upper, lower)
    )
    seeds = sorted(first.keys() & second.keys())
    statement = (
        f"{METHODS[upper].label.capitalize()} students pass {TRANSITION_ACCURACY:.0%} before {METHODS[lower].label} "
        "students"
    )
    if not seeds:
        return Verdict(statement, False, "no seed in common")
    found = compare([float(first[seed] < second[seed]) - float(first[seed] > second[seed]) for seed in seeds])
    return Verdict(statement, found.is_above, f"{found.above} of {found.pairs} seeds; p = {found.p:.2g}")
