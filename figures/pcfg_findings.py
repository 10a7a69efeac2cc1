"""What the figures of BERT and GPT-2 on grammars show, in numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import paired_students
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
from language_model_findings import budgets_table, differences_by_seed, students_end_above
from pcfg_figures import SHARE, peak_and_fall, predicted

from common.plotting import METHODS


def overview(data: Mapping[str, Any]) -> Finding:
    """Figure 1 of a grammar: final accuracy by the student's budget of steps."""
    panels = [data, *data.get("other_tasks", ())]
    verdicts, tables = [], []
    for panel in panels:
        target = predicted(panel)
        students = panel["students"]
        where = f" ({target})" if len(panels) > 1 else ""
        for upper, lower in (("progressive", "one-shot"), ("progressive", "ce"), ("one-shot", "ce")):
            differences = differences_by_seed(students[upper], students[lower])
            verdicts.append(students_end_above(upper, lower, differences, where))
        teacher, best = panel["teacher"], panel["bayes_optimal"]["accuracy"]
        caption = f"Final accuracy, {target} of {teacher['arguments']['grammar']}: mean (range)"
        tables.append(budgets_table(caption, students, teacher, best))
    return Finding(
        title="Final accuracy by training steps",
        claim="For every budget of steps, students that learn from the teacher's checkpoints, one after another, end "
        "above students that learn from the final teacher, and these end above students that learn from the labels "
        "alone.",
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
        [steps_text(step), _position(step, phases), mean_and_range(accuracy[:, i].tolist())]
        for i, step in enumerate(steps)
    ]
    verdicts = [
        Verdict(
            f"The dependence on {ngrams['n']}-grams (median M_robust) is largest inside the teacher's transition",
            is_inside(peak, phases),
            f"largest at step {steps_text(peak)}: {max(medians):.3f}; {transition_text(phases)}",
        ),
        Verdict(
            "The first checkpoint that gives two-shot students the highest mean accuracy is inside the transition",
            is_inside(steps[best], phases),
            f"step {steps_text(steps[best])}; {transition_text(phases)}",
        ),
    ]
    for method, runs in data["students"].items():
        if two_shot["steps"] not in runs["steps"]:
            continue
        at = runs["steps"].index(two_shot["steps"])
        rows.append([METHODS[method].label, "", mean_and_range([row[at] for row in runs["accuracy"]])])
        if method != "progressive":
            statement = (
                f"Two-shot students of checkpoint {steps_text(steps[best])} end above {METHODS[method].label} students"
            )
            upper, lower = accuracy_by_seed(two_shot, best), accuracy_by_seed(runs, at)
            verdicts.append(ends_above(statement, upper, lower))
    return Finding(
        title="The curriculum in a teacher's checkpoints",
        claim="The teacher's loss falls in three phases. In the second, the transition, its predictions depend most on "
        "short n-grams, and two-shot students do best with a first checkpoint from there.",
        alt="Three panels over the teacher's training steps: its loss, its dependence on n-grams, and final accuracy "
        "of two-shot students by their first checkpoint.",
        verdicts=verdicts,
        tables=[
            Table(
                f"Accuracy after {steps_text(two_shot['steps'])} steps, "
                f"{steps_text(two_shot['first_steps'])} of them with the first checkpoint; "
                f"seeds {comma_separated(two_shot['seeds'])}",
                ["first checkpoint or method", "position", "final accuracy: mean (range)"],
                rows,
            )
        ],
    )


def windows(data: Mapping[str, Any]) -> Finding:
    """Which n-gram model the teacher is nearest to, and when its dependence on n-grams peaks and falls."""
    found, ngrams = data["windows"], data["ngrams"]
    lowest = [int(np.argmin(kl)) for kl in found["kl"]]
    rows = [
        [
            "the whole input" if tokens is None else str(tokens),
            f"{entropy:.3f}",
            f"{accuracy:.3f}",
            steps_text(found["steps"][at]),
            f"{kl[at]:.3f}",
            f"{kl[-1]:.3f}",
        ]
        for tokens, entropy, accuracy, at, kl in zip(
            found["tokens"], found["entropy"], found["accuracy"], lowest, found["kl"], strict=True
        )
    ]
    peaks = [peak_and_fall(medians) for medians in ngrams["medians"]]
    steps = ngrams["steps"]
    falls = [len(steps) if fall is None else fall for _, fall in peaks]
    dependence = [
        [
            str(n),
            f"{medians[peak]:.3f}",
            steps_text(steps[peak]),
            steps_text(None if fall is None else steps[fall]),
            f"{medians[-1]:.3f}",
        ]
        for n, medians, (peak, fall) in zip(ngrams["sizes"], ngrams["medians"], peaks, strict=True)
    ]
    return Finding(
        title="The n-gram models that a teacher passes through",
        claim="A teacher first predicts as n-gram models of few tokens do, then of more and more: the longer the "
        "window, the later it is nearest to the best prediction from that window, and its dependence on short n-grams "
        "peaks and then falls.",
        alt="Two panels over the teacher's training steps: its divergence from the exact posteriors given windows of "
        "several lengths, and its dependence on n-grams relative to the peak.",
        verdicts=[
            Verdict(
                "The longer the window, the later the teacher is nearest to its posterior (or at the same checkpoint)",
                lowest == sorted(lowest) and lowest[0] < lowest[-1],
                "nearest at steps " + comma_separated([steps_text(found["steps"][at]) for at in lowest]),
            ),
            Verdict(
                f"The longer the n-grams, the later the dependence on them falls to {SHARE:.0%} of its peak (or at the "
                "same checkpoint, or not yet)",
                falls == sorted(falls) and falls[0] < falls[-1],
                f"{SHARE:.0%} at steps " + comma_separated([row[3] for row in dependence]),
            ),
            *(
                Verdict(
                    f"The dependence on {row[0]}-grams (median M_robust) falls to {SHARE:.0%} of its peak",
                    fall is not None,
                    f"{row[1]} at step {row[2]}, {row[4]} at the end",
                )
                for row, (_, fall) in zip(dependence, peaks, strict=True)
            ),
        ],
        tables=[
            Table(
                f"Divergence of the teacher from posteriors given windows, {found['positions']} positions, in nats",
                ["tokens", "entropy", "expected accuracy", "nearest at step", "divergence there", "at the end"],
                rows,
            ),
            Table(
                f"Median M_robust of {ngrams['pairs']} positions",
                ["n", "peak", "at step", f"{SHARE:.0%} of it at step", "at the end"],
                dependence,
            ),
        ],
    )


def nonterminals(data: Mapping[str, Any]) -> Finding:
    """How well a probe predicts the parse tree from the teacher's hidden states."""
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
        title="What the hidden states encode about the parse tree",
        claim="Over training, the teacher's hidden states come to encode the nonterminals above each token.",
        alt="Accuracy of a probe for nonterminals over the teacher's training, one line per level of the tree.",
        verdicts=[
            Verdict(
                "The probe is more accurate on the last checkpoint than on the first, at every level",
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
    """Whether the grammar accepts the teacher's continuations."""
    found, phases = data["generation"], data["generation"]["phases"]
    accepted = found["accepted"]
    shown = {0: "first checkpoint", len(accepted) - 1: "last checkpoint"}
    if phases is not None:
        shown |= {nearest(found["steps"], phases[name]): f"{name} of the transition" for name in ("start", "end")}
    return Finding(
        title="What the teacher generates",
        claim="Over training, a teacher that predicts all tokens learns to continue sentences as the grammar would.",
        alt="Fraction of the teacher's continuations that the grammar accepts, over its training.",
        verdicts=[
            Verdict(
                "The grammar accepts more continuations from the last checkpoint than from the first",
                accepted[-1] > accepted[0],
                f"{accepted[0]:.3f} and {accepted[-1]:.3f}",
            )
        ],
        tables=[
            Table(
                f"Fraction of {found['continuations']:,} continuations that the grammar accepts, with {found['given']} "
                f"tokens given and up to {found['tokens']} generated",
                ["checkpoint", "step", "accepted"],
                [[shown[i], steps_text(found["steps"][i]), f"{accepted[i]:.3f}"] for i in sorted(shown)],
            )
        ],
    )


FINDINGS: dict[str, dict[str, Describe]] = {
    "PCFG_mlm": {
        "figure1": overview,
        "figure3": curriculum,
        "figure3_windows": windows,
        "figure_nonterminals": nonterminals,
        "figure_pairs": paired_students.describe,
    },
    "PCFG_autoregressive": {
        "figure1": overview,
        "figure3": curriculum,
        "figure3_windows": windows,
        "figure_generation": generation,
        "figure_pairs": paired_students.describe,
    },
}
"""By setting and figure."""


def _position(step: float, phases: Mapping[str, float] | None) -> str:
    if phases is None:
        return "–"
    if is_inside(step, phases):
        return "inside the transition"
    return "before it" if step < phases["start"] else "after it"
