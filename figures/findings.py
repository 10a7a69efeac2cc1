"""What the figures show, in numbers: for each figure the claim that it tests, what these runs say to it, and tables.

Every statement is computed from the data that `make_figures.py` collects, and holds or does not. Accuracies are of
held-out samples. With a few seeds, students of the same seed are compared with each other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter
from parity_figures import PLACES, TRANSITION_ACCURACY, passed_at
from pcfg_figures import predicted

from common.plotting import METHODS


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
    """What is to be said of one figure."""

    title: str
    claim: str
    """That is tested."""
    alt: str
    """What the picture shows, for those who do not see it."""
    verdicts: Sequence[Verdict]
    tables: Sequence[Table]


def steps_text(step: float | None) -> str:
    """A number of steps, such as 445k; a dash for none."""
    return "–" if step is None else EngFormatter(sep="")(step)


def mean_and_range(values: Sequence[float]) -> str:
    """Accuracies of several seeds: 0.665 (0.663 to 0.666)."""
    low, high = min(values), max(values)
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})" if len(values) > 1 else f"{values[0]:.3f}"


def parity_overview(data: Mapping[str, Any]) -> Finding:
    """Figure 1 of parity: when the teacher and its students pass their transition."""
    students = data["students"]
    passed = {
        method: [passed_at(runs["steps"], accuracy) for accuracy in runs["accuracy"]]
        for method, runs in students.items()
    }
    teacher = data["teacher"]
    rows = [
        [
            "teacher",
            str(teacher["arguments"]["seed"]),
            steps_text(passed_at(teacher["steps"], teacher["accuracy"])),
            f"{teacher['accuracy'][-1]:.3f}",
            steps_text(teacher["steps"][-1]),
        ]
    ]
    for method, runs in students.items():
        rows.append(
            [
                METHODS[method].label,
                _listed(runs["seeds"]),
                _listed([steps_text(step) for step in passed[method]]),
                mean_and_range([accuracy[-1] for accuracy in runs["accuracy"]]),
                steps_text(runs["steps"][-1]),
            ]
        )
    rows.append(["best possible", "", "", "1.000", ""])
    return Finding(
        title="Who passes the transition, and when",
        claim="A small student that follows the checkpoints of a teacher passes the transition soon after the teacher. "
        "Of the same size and trained as long, students of the final teacher and of the labels stay at chance.",
        alt="Held-out accuracy over training of the teacher and of students taught by three methods.",
        verdicts=[
            _passes_first("progressive", other, students, passed) for other in ("one-shot", "ce") if other in students
        ],
        tables=[
            Table(
                f"Step at which held-out accuracy passes {TRANSITION_ACCURACY:.0%}, one entry per seed (–: never)",
                ["method", "seeds", "passed at", "final accuracy: mean (range)", "steps"],
                rows,
            )
        ],
    )


def spike(data: Mapping[str, Any]) -> Finding:
    """Figure 2: which checkpoint helps as the first of two, and what the teacher leaks there."""
    two_shot = data["two_shot"]
    final = {place: _by_seed(two_shot[place], -1) for place in PLACES}
    monomials = data["monomials"]
    (degree_one,) = (entry for entry in monomials["degrees"] if entry["degree"] == 1)
    correlation = {}
    for place, step in data["candidates"].items():
        at = _nearest(monomials["steps"], step)
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
        title="What a checkpoint inside the transition leaks",
        claim="Inside the transition the teacher's output correlates with single coordinates of the hidden support. "
        "Two checkpoints are enough, the first from inside the transition and the final one; one from before or after "
        "the transition does not help.",
        alt="Three panels: the teacher's accuracy with three candidate checkpoints, correlations with single "
        "coordinates, and accuracy of students that start from each candidate.",
        verdicts=[
            *(_above("inside", other, final, "two-shot students from") for other in ("before", "after")),
            Verdict(
                "At the checkpoint inside, the mean correlation of the support is above the largest of the others",
                bool(inside[0] > inside[1][2]),
                f"{inside[0]:.4f} and {inside[1][2]:.4f}",
            ),
            Verdict(
                "The mean correlation of the support is larger inside the transition than before and after it",
                bool(inside[0] > max(correlation["before"][0], correlation["after"][0])),
                ", ".join(f"{place} {correlation[place][0]:.4f}" for place in PLACES),
            ),
        ],
        tables=[
            Table(
                f"Candidates, correlations of degree 1 ({monomials['samples']:,} samples), and two-shot students with "
                f"seeds {_listed(two_shot['inside']['seeds'])}: accuracy, mean (range)",
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
    outside = [degree for degree, step in peaks.items() if not phases["start"] <= step <= phases["end"]]
    return Finding(
        title="Correlations of every degree",
        claim="Monomials on a part of the hidden support are what the checkpoints of the transition leak: "
        "correlations of low degree peak there.",
        alt="One panel per degree: correlations of the teacher's output with monomials inside and outside the support.",
        verdicts=[
            Verdict(
                "The mean correlation with the support's monomials of every degree below k peaks inside the transition",
                not outside,
                f"{_stretch(phases)}, peaks at "
                + ", ".join(f"{steps_text(step)} (degree {degree})" for degree, step in peaks.items()),
            )
        ],
        tables=[
            Table(
                "Largest mean over the monomials of the support, and the others at that step",
                ["degree", "at step", "support, mean", "others, median"],
                rows,
            )
        ],
    )


def pcfg_overview(data: Mapping[str, Any]) -> Finding:
    """Figure 1 of a grammar: final accuracy by the student's budget of steps."""
    panels = [data, *data.get("other_tasks", ())]
    verdicts, tables = [], []
    for panel in panels:
        asked = predicted(panel)
        students, budgets = panel["students"], panel["students"]["ce"]["steps"]
        where = f" ({asked})" if len(panels) > 1 else ""
        for upper, lower in (("progressive", "one-shot"), ("progressive", "ce"), ("one-shot", "ce")):
            verdicts.append(_above_at_every_budget(upper, lower, students, where))
        rows = [
            [METHODS[method].label, _listed(runs["seeds"])]
            + [mean_and_range([row[at] for row in runs["accuracy"]]) for at in range(len(budgets))]
            for method, runs in students.items()
        ]
        teacher = panel["teacher"]
        final = f"{teacher['accuracy'][-1]:.3f}, {steps_text(teacher['steps'][-1])} steps"
        rows.append(["teacher", str(teacher["arguments"]["seed"]), final] + [""] * (len(budgets) - 1))
        best = f"{panel['bayes_optimal']['accuracy']:.3f}"
        rows.append(["best possible (Bayes)", "", best] + [""] * (len(budgets) - 1))
        tables.append(
            Table(
                f"Final accuracy, {asked} of {teacher['arguments']['grammar']}: mean (range)",
                ["method", "seeds", *(f"{steps_text(steps)} steps" for steps in budgets)],
                rows,
            )
        )
    return Finding(
        title="Accuracy by the student's steps",
        claim="At every budget of steps, students that follow the teacher's checkpoints end above those of the final "
        "teacher, and these above those of the labels alone.",
        alt="Final accuracy of students against their training steps for three methods, the teacher's accuracy, and "
        "the best possible.",
        verdicts=verdicts,
        tables=tables,
    )


def curriculum(data: Mapping[str, Any]) -> Finding:
    """Figure 3: where M_robust peaks, and which checkpoint helps as the first of two."""
    two_shot, ngrams, phases = data["two_shot"], data["ngrams"], data["phases"]
    steps = two_shot["checkpoints"]
    accuracy = np.asarray(two_shot["accuracy"])
    best = int(np.argmax(accuracy.mean(axis=0)))
    medians = [median for _, median, _ in ngrams["percentiles"]]
    peak = ngrams["steps"][int(np.argmax(medians))]
    rows = [
        [steps_text(step), _place(step, phases), mean_and_range(accuracy[:, i].tolist())]
        for i, step in enumerate(steps)
    ]
    verdicts = [
        Verdict(
            f"The dependence on {ngrams['n']}-grams (median M_robust) is largest inside the teacher's transition",
            _inside(peak, phases),
            f"largest at step {steps_text(peak)}: {max(medians):.3f}; {_stretch(phases)}",
        ),
        Verdict(
            "The first checkpoint with the best two-shot students (by their mean) is inside the transition",
            _inside(steps[best], phases),
            f"step {steps_text(steps[best])}; {_stretch(phases)}",
        ),
    ]
    for method, runs in data["students"].items():
        if two_shot["steps"] not in runs["steps"]:
            continue
        at = runs["steps"].index(two_shot["steps"])
        rows.append([METHODS[method].label, "", mean_and_range([row[at] for row in runs["accuracy"]])])
        if method != "progressive":
            final = {"two-shot": _by_seed(two_shot, best), method: _by_seed(runs, at)}
            verdicts.append(_above("two-shot", method, final, f"from checkpoint {steps_text(steps[best])}"))
    return Finding(
        title="The curriculum in a teacher's checkpoints",
        claim="The teacher's loss falls in three phases. Inside the second one, the transition, its predictions depend "
        "most on short n-grams, and a checkpoint from there is the best first one of two.",
        alt="Three panels over the teacher's training steps: its loss, its dependence on n-grams, and final accuracy "
        "of two-shot students by their first checkpoint.",
        verdicts=verdicts,
        tables=[
            Table(
                f"Accuracy after {steps_text(two_shot['steps'])} steps, of these {steps_text(two_shot['first_steps'])} "
                f"with the first checkpoint; seeds {_listed(two_shot['seeds'])}",
                ["first checkpoint or method", "place", "final accuracy: mean (range)"],
                rows,
            )
        ],
    )


def nonterminals(data: Mapping[str, Any]) -> Finding:
    """What a probe reads of the parse tree from the teacher's hidden states."""
    found = data["nonterminals"]
    first, last = found["steps"][0], found["steps"][-1]
    rows = [
        [
            str(entry["level"]),
            f"{entry['majority']:.3f}",
            f"{entry['accuracy'][0]:.3f}",
            f"{entry['accuracy'][-1]:.3f}",
            "–" if entry["bayes_optimal"] is None else f"{entry['bayes_optimal']:.3f}",
        ]
        for entry in found["levels"]
    ]
    return Finding(
        title="What the hidden states tell of the parse tree",
        claim="In training, the teacher's hidden states come to tell the nonterminals above each token.",
        alt="Accuracy of a probe for nonterminals over the teacher's training, one line per level of the tree.",
        verdicts=[
            Verdict(
                "The probe is better on the last checkpoint than on the first, at every level",
                all(entry["accuracy"][-1] > entry["accuracy"][0] for entry in found["levels"]),
                ", ".join(
                    f"level {entry['level']}: {entry['accuracy'][0]:.3f} and {entry['accuracy'][-1]:.3f}"
                    for entry in found["levels"]
                ),
            )
        ],
        tables=[
            Table(
                "Accuracy of the probe on held-out tokens",
                [
                    "level below the root",
                    "majority",
                    f"at step {steps_text(first)}",
                    f"at step {steps_text(last)}",
                    "best possible (Bayes)",
                ],
                rows,
            )
        ],
    )


def generation(data: Mapping[str, Any]) -> Finding:
    """Whether the grammar accepts what the teacher writes."""
    found, phases = data["generation"], data["generation"]["phases"]
    accepted = found["accepted"]
    shown = {0: "first checkpoint", len(accepted) - 1: "last checkpoint"}
    if phases is not None:
        shown |= {_nearest(found["steps"], phases[name]): f"{name} of the transition" for name in ("start", "end")}
    return Finding(
        title="What the teacher writes",
        claim="In training, a teacher of all tokens learns to go on with a sentence as the grammar does.",
        alt="Share of the teacher's continuations that the grammar accepts, over its training.",
        verdicts=[
            Verdict(
                "The grammar accepts more continuations of the last checkpoint than of the first",
                accepted[-1] > accepted[0],
                f"{accepted[0]:.3f} and {accepted[-1]:.3f}",
            )
        ],
        tables=[
            Table(
                f"Share of {found['continuations']:,} continuations that the grammar accepts, {found['given']} tokens "
                f"given and up to {found['tokens']} written",
                ["checkpoint", "step", "accepted"],
                [[shown[i], steps_text(found["steps"][i]), f"{accepted[i]:.3f}"] for i in sorted(shown)],
            )
        ],
    )


Describe = Callable[[Mapping[str, Any]], Finding]
PARITY_FINDINGS: dict[str, Describe] = {"figure1": parity_overview, "figure2": spike, "figure2_degrees": degrees}
FINDINGS: dict[str, dict[str, Describe]] = {
    "parity_mlp": PARITY_FINDINGS,
    "parity_gpt2": PARITY_FINDINGS,
    "PCFG_mlm": {"figure1": pcfg_overview, "figure3": curriculum, "figure_nonterminals": nonterminals},
    "PCFG_autoregressive": {"figure1": pcfg_overview, "figure3": curriculum, "figure_generation": generation},
}
"""By setting and figure."""


def _passes_first(
    upper: str, lower: str, students: Mapping[str, Any], passed: Mapping[str, Sequence[int | None]]
) -> Verdict:
    """Whether students of a method pass the transition before those of another, seed by seed."""
    never = float("inf")
    one, other = (
        {
            seed: never if step is None else step
            for seed, step in zip(students[name]["seeds"], passed[name], strict=True)
        }
        for name in (upper, lower)
    )
    common = sorted(one.keys() & other.keys())
    before = sum(one[seed] < other[seed] for seed in common)
    return Verdict(
        f"{METHODS[upper].label.capitalize()} passes {TRANSITION_ACCURACY:.0%} before {METHODS[lower].label} "
        "with every seed",
        bool(common) and before == len(common),
        f"{before} of {len(common)} seeds",
    )


def _above(upper: str, lower: str, final: Mapping[str, Mapping[int, float]], words: str) -> Verdict:
    """Whether one group of students ends above another, seed by seed."""
    common = sorted(final[upper].keys() & final[lower].keys())
    above = sum(final[upper][seed] > final[lower][seed] for seed in common)
    means = [float(np.mean(list(final[name].values()))) for name in (upper, lower)]
    first, second = (METHODS[name].label if name in METHODS else name for name in (upper, lower))
    statement = (
        f"{words.capitalize()} {first} end above those from {second} with every seed"
        if lower in PLACES
        else f"{first.capitalize()} students {words} end above {second} with every seed"
    )
    return Verdict(
        statement,
        bool(common) and above == len(common),
        f"{above} of {len(common)} seeds; means {means[0]:.3f} and {means[1]:.3f}",
    )


def _above_at_every_budget(upper: str, lower: str, students: Mapping[str, Any], where: str) -> Verdict:
    """Whether a method ends above another at every budget with every seed."""
    one, other = students[upper], students[lower]
    budgets = range(len(one["steps"]))
    pairs = [
        (one["accuracy"][one["seeds"].index(seed)][at], other["accuracy"][other["seeds"].index(seed)][at])
        for seed, at in product(sorted(set(one["seeds"]) & set(other["seeds"])), budgets)
    ]
    above = sum(first > second for first, second in pairs)
    return Verdict(
        f"{METHODS[upper].label.capitalize()} ends above {METHODS[lower].label} at every budget with every seed{where}",
        bool(pairs) and above == len(pairs),
        f"{above} of {len(pairs)} pairs of students with the same seed and budget",
    )


def _by_seed(runs: Mapping[str, Any], at: int) -> dict[int, float]:
    return {seed: accuracy[at] for seed, accuracy in zip(runs["seeds"], runs["accuracy"], strict=True)}


def _nearest(steps: Sequence[int], step: float) -> int:
    return int(np.argmin(np.abs(np.asarray(steps) - step)))


def _inside(step: float, phases: Mapping[str, float] | None) -> bool:
    return phases is not None and phases["start"] <= step <= phases["end"]


def _place(step: float, phases: Mapping[str, float] | None) -> str:
    if phases is None:
        return "–"
    if _inside(step, phases):
        return "inside the transition"
    return "before it" if step < phases["start"] else "after it"


def _stretch(phases: Mapping[str, float] | None) -> str:
    if phases is None:
        return "no transition found"
    start, end = (steps_text(float(f"{phases[name]:.3g}")) for name in ("start", "end"))
    return f"transition {start} to {end}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
