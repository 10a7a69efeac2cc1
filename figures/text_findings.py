"""What the figures of language models on text show, in numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from findings import Describe, Finding, Table, Verdict, comma_separated, is_inside, steps_text, transition_text
from language_model_findings import budgets_table, differences_by_seed, students_end_above

PREDICTED = {"text_mlm": "masked tokens", "text_autoregressive": "next tokens"}
"""What models are asked for, by setting."""


def curriculum(data: Mapping[str, Any]) -> Finding:
    """Figure 4: the phases of the loss, where M_robust peaks, and the students' final accuracy."""
    ngrams, phases, students = data["ngrams"], data["phases"], data["students"]
    medians = [median for _, median, _ in ngrams["percentiles"]]
    peak = int(np.argmax(medians))
    largest = f"largest at step {steps_text(ngrams['steps'][peak])}: {max(medians):.3f}"
    return Finding(
        title="The curriculum on natural language",
        claim="The teacher's loss falls in three phases. In the second, the transition, its predictions depend most on "
        "short n-grams. For every budget of steps, students that learn from its checkpoints, one after another, end "
        "above students that learn from the final teacher, and these end above students that learn from the labels "
        "alone.",
        alt="Three panels: the teacher's loss and its dependence on n-grams over its training steps, and the final "
        "accuracy of students against theirs for three methods.",
        verdicts=[
            Verdict(
                "The teacher's loss falls in three phases (flat, drop, slow tail)",
                phases is not None and data["phases_in"].startswith("the loss"),
                transition_text(phases) + ("" if phases is None else f" in {data['phases_in']}"),
            ),
            Verdict(
                f"The dependence on {ngrams['n']}-grams (median M_robust) is largest inside the teacher's transition",
                is_inside(ngrams["steps"][peak], phases),
                f"{largest}; {transition_text(phases)}",
            ),
            Verdict(
                f"The dependence on {ngrams['n']}-grams falls again before the end of training",
                peak < len(medians) - 1,
                f"{largest}; {medians[-1]:.3f} at the end",
            ),
            *(
                students_end_above(upper, lower, differences_by_seed(students[upper], students[lower]))
                for upper, lower in (("progressive", "one-shot"), ("progressive", "ce"), ("one-shot", "ce"))
            ),
        ],
        tables=[
            budgets_table(
                f"Final accuracy, {PREDICTED[data['setting']]} of {comma_separated(data['corpus'])}: mean (range)",
                students,
                data["teacher"],
            )
        ],
    )


def contexts(data: Mapping[str, Any]) -> Finding:
    """When the teacher is nearest to each n-gram model, and how much it depends on n-grams in the end."""
    found = data["kneser_ney"]
    nearest = [int(np.argmin(of_steps)) for of_steps in found["kl"]]
    nearest_steps = [found["steps"][i] for i in nearest]
    closest = [found["orders"][i] for i in np.argmin(found["kl"], axis=0)]
    rows = [
        [
            str(n),
            f"{loss:.3f}",
            f"{accuracy:.3f}",
            steps_text(step),
            f"{min(of_steps):.3f}",
            f"{of_steps[-1]:.3f}",
        ]
        for n, loss, accuracy, step, of_steps in zip(
            found["orders"], found["loss"], found["accuracy"], nearest_steps, found["kl"], strict=True
        )
    ]
    units = [("tokens", data["ngrams"]), ("words", data["word_ngrams"])]
    return Finding(
        title="How far the teacher's context reaches",
        claim="Over training, the teacher's predictions first resemble those of a unigram model, then those of n-gram "
        "models of rising order.",
        alt="Three panels over the teacher's training steps: the divergence of its predictions from those of n-gram "
        "models, and its dependence on n-grams of tokens and of words.",
        verdicts=[
            Verdict(
                "The order of the n-gram model that the teacher is nearest to rises over training, and never falls",
                closest == sorted(closest) and closest[0] < closest[-1],
                ", ".join(
                    f"n = {n} from step {steps_text(found['steps'][closest.index(n)])}" for n in dict.fromkeys(closest)
                ),
            )
        ],
        tables=[
            Table(
                f"Modified Kneser-Ney models at {found['positions']:,} held-out positions, and KL(teacher || model) in "
                "nats",
                ["n", "loss of the model", "accuracy of the model", "teacher nearest at", "KL there", "KL at the end"],
                rows,
            ),
            Table(
                "Median M_robust: largest, and at the end",
                ["n-grams of", *(f"n = {n}" for n in data["ngrams"]["sizes"])],
                [
                    [unit, *(f"{max(of_steps):.3f}, {of_steps[-1]:.3f}" for of_steps in part["medians"])]
                    for unit, part in units
                ],
            ),
        ],
    )


FINDINGS: dict[str, dict[str, Describe]] = {
    setting: {"figure4": curriculum, "figure_contexts": contexts} for setting in PREDICTED
}
"""By setting and figure."""
