"""Draw the figures of language models on text from the data that `text_data.py` collects.

Figure 4 is that of Panigrahi et al. (2025): the teacher's loss, its dependence on 3-grams, and the students' accuracy.
The other one follows the dependence on n-grams of several lengths, of tokens and of words, and how near the teacher is
to n-gram models, over its training.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from language_model_figures import draw_quartiles, draw_students, finish_teacher_axis
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from common.plotting import (
    METHODS,
    PAGE_WIDTH,
    Line,
    curve,
    legend_below,
    new_figure,
    panel_title,
)

MARKERS = {1: "x", 2: "o", 3: "s", 4: "v", 5: "D"}
"""By length of the n-grams."""


def curriculum(data: dict[str, Any]) -> Figure:
    """Figure 4: (a) the teacher's loss, (b) its M_robust, (c) the accuracy of students against their steps."""
    figure, axes = new_figure(columns=3, width=PAGE_WIDTH, height=2.5)
    loss, robust, students = axes[0]
    teacher, ngrams = data["teacher"], data["ngrams"]

    trained = [(step, value) for step, value in zip(teacher["steps"], teacher["loss"], strict=True) if step > 0]
    steps, losses = zip(*trained, strict=True)
    curve(loss, steps, [losses], replace(METHODS["teacher"], dashes="-"))
    loss.set_ylabel("held-out loss (nats)")
    panel_title(loss, "(a) teacher")

    draw_quartiles(robust, ngrams)
    panel_title(robust, f"(b) {ngrams['n']}-gram dependence")

    draw_students(students, data)
    students.set_ylabel("accuracy")
    panel_title(students, "(c) students")

    for axis in (loss, robust):
        finish_teacher_axis(axis, data["phases"], steps[0], steps[-1])
    legend_below(figure, 4, f"students: mean and range of {len(data['students']['ce']['seeds'])} seeds")
    return figure


def contexts(data: dict[str, Any]) -> Figure:
    """(a) The divergence from n-gram models of tokens; M_robust of n-grams (b) of tokens and (c) of words."""
    figure, axes = new_figure(columns=3, width=PAGE_WIDTH, height=2.5)
    divergence, tokens, words = axes[0]
    for axis, part, title in ((tokens, "ngrams", "(b) tokens"), (words, "word_ngrams", "(c) words")):
        found = data[part]
        _draw_orders(axis, found["steps"], found["sizes"], found["medians"])
        axis.set_ylabel(r"median $M_\mathrm{robust}$")
        panel_title(axis, title)
    found = data["kneser_ney"]
    _draw_orders(divergence, found["steps"], found["orders"], found["kl"])
    divergence.set_ylabel("KL(teacher || n-gram), nats")
    panel_title(divergence, "(a) n-gram models of tokens")
    for axis in axes[0]:
        axis.set_ylim(0)
        finish_teacher_axis(axis, data["phases"], found["steps"][0], found["steps"][-1])
    legend_below(figure, 6)
    return figure


def _draw_orders(axis: Axes, steps: Sequence[int], orders: Sequence[int], values: Sequence[Sequence[float]]) -> None:
    """A line for each length of n-grams."""
    for n, of_steps in zip(orders, values, strict=True):
        colour = to_hex(colormaps["viridis"]((n - 1) / 4.7))
        curve(axis, steps, [of_steps], Line(f"n = {n}", colour, "-", MARKERS.get(n, "")))


FIGURES = {
    "figure4": (curriculum, ("ngrams", "students")),
    "figure_contexts": (contexts, ("ngrams", "word_ngrams", "kneser_ney")),
}
"""How each is drawn, and the parts of the data that it needs."""
