"""Draw the figures of BERT and GPT-2 on grammars from the data that `pcfg_data.py` collects.

These are their panels of the overview (figure 1), the curriculum (figure 3), how near the teacher is to n-gram models,
and what the probes of nonterminals (BERT) or of generation (GPT-2) find over the teacher's training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import paired_students
from language_model_figures import draw_quartiles, draw_students, finish_teacher_axis, reference_level
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

from common.plotting import (
    BLACK,
    COLUMN_WIDTH,
    METHODS,
    PAGE_WIDTH,
    Line,
    curve,
    legend_below,
    level,
    new_figure,
    panel_title,
)

MARKERS = "osv^D<>P"
DASHES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))
SHARE = 0.1
"""Of its peak, at which the dependence on n-grams counts as gone."""
GAP = 0.075
"""Least distance between the labels of curves, as a fraction of the height of the axes."""
REFERENCES = {"majority": (":", "majority"), "bayes_optimal": ("-.", "Bayes-optimal")}
"""Dashes and label of what the accuracy of the probe is compared with."""


def overview(data: dict[str, Any]) -> Figure:
    """Figure 1, PCFG panels: final accuracy of students against their steps, the teacher's, and the best possible."""
    panels = [data, *data.get("other_tasks", ())]
    panels.sort(key=lambda panel: str(panel.get("label_level")))
    width = COLUMN_WIDTH if len(panels) == 1 else PAGE_WIDTH
    figure, axes = new_figure(columns=len(panels), width=width, height=2.5)
    for axis, panel in zip(axes[0], panels, strict=True):
        _draw_panel(axis, panel)
    axes[0, 0].set_ylabel("accuracy")
    columns = 3 if len(panels) == 1 else 5
    legend_below(figure, columns, f"mean and range of {len(data['students']['ce']['seeds'])} seeds")
    return figure


def _draw_panel(axis: Axes, panel: dict[str, Any]) -> None:
    """The accuracies at one label level."""
    draw_students(axis, panel)
    reference_level(axis, panel["bayes_optimal"]["accuracy"], METHODS["bayes-optimal"], "Bayes-optimal", above=True)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.08 * (high - low))  # for the label above the line
    panel_title(axis, f"{panel['teacher']['arguments']['grammar']}, {predicted(panel)}")


def predicted(panel: Mapping[str, Any]) -> str:
    """What models are asked for at a panel's label level."""
    match panel.get("label_level"):
        case None:
            return "masked tokens"
        case "all":
            return "next tokens"
        case depth:
            return f"ends at depth {depth}"


def curriculum(data: dict[str, Any]) -> Figure:
    """Figure 3: (a) the teacher's loss, (b) its M_robust, (c) two-shot students of each checkpoint."""
    figure, axes = new_figure(columns=3, width=PAGE_WIDTH, height=2.5)
    loss, robust, students = axes[0]
    teacher, ngrams, two_shot = data["teacher"], data["ngrams"], data["two_shot"]

    steps, losses = np.asarray(teacher["steps"]), np.asarray(teacher["loss"])
    shown = steps >= ngrams["steps"][0]
    curve(loss, steps[shown], [losses[shown]], replace(METHODS["teacher"], dashes="-"))
    level(loss, [data["bayes_optimal"]["loss"]], METHODS["bayes-optimal"])
    loss.set_ylim(0)
    loss.set_ylabel("loss")
    panel_title(loss, "(a) teacher")

    draw_quartiles(robust, ngrams)
    if ngrams["bayes_optimal"] is not None:
        _bayes_optimal_robust(robust, ngrams["bayes_optimal"][1])
    panel_title(robust, f"(b) {ngrams['n']}-gram dependence")

    for method, runs in data["students"].items():
        if two_shot["steps"] in runs["steps"]:
            at = runs["steps"].index(two_shot["steps"])
            level(students, [accuracy[at] for accuracy in runs["accuracy"]], METHODS[method])
    curve(students, two_shot["checkpoints"], two_shot["accuracy"], METHODS["two-shot"], mark_every_point=True)
    students.set_ylabel("accuracy")
    panel_title(students, f"(c) students, {EngFormatter(sep='')(two_shot['steps'])} steps")

    for axis in axes[0]:
        finish_teacher_axis(axis, data["phases"], ngrams["steps"][0], teacher["steps"][-1])
    students.set_xlabel("first checkpoint (step)")
    number, others = len(two_shot["seeds"]), len(data["students"]["ce"]["seeds"])
    seeds = f"{number} seeds" if number == others else f"{number} seeds (two-shot) and {others} seeds (others)"
    legend_below(figure, 4, f"students: mean and range of {seeds}")
    return figure


def windows(data: dict[str, Any]) -> Figure:
    """(a) The teacher's divergence from the best n-gram models, (b) its M_robust relative to its peak, by n."""
    figure, axes = new_figure(rows=2, height=4.6)
    divergence, robust = axes[:, 0]
    found, ngrams = data["windows"], data["ngrams"]
    sizes = [*sorted({n for n in (*found["tokens"], *ngrams["sizes"]) if n is not None}), None]
    shades = colormaps["viridis"](0.92 * np.linspace(0, 1, len(sizes)) ** 0.7)
    colours = {n: to_hex(shade) for n, shade in zip(sizes, shades, strict=True)}

    steps = found["steps"]
    for n, kl in zip(found["tokens"], found["kl"], strict=True):
        divergence.plot(steps, kl, color=colours[n], linewidth=1.2)
        lowest = int(np.argmin(kl))
        divergence.plot(steps[lowest], kl[lowest], color=colours[n], marker="o", markersize=4, clip_on=False)
    divergence.plot([], [], color=BLACK, linestyle="", marker="o", markersize=4, label="minimum")
    divergence.set_yscale("log")
    divergence.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    divergence.yaxis.set_minor_locator(NullLocator())
    divergence.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    divergence.set_ylabel("KL(posterior || teacher), nats")
    _label_ends(divergence, [kl[-1] for kl in found["kl"]], found["tokens"], [colours[n] for n in found["tokens"]])
    panel_title(divergence, "(a) posteriors given a window of n tokens")

    for n, medians, marker, dashes in zip(ngrams["sizes"], ngrams["medians"], cycle(MARKERS), cycle(DASHES)):
        peak, fall = peak_and_fall(medians)
        relative = np.asarray(medians) / (medians[peak] or 1)
        style: dict[str, Any] = {"color": colours[n], "marker": marker, "markersize": 4}
        line = {"linestyle": dashes, "linewidth": 1.2, "label": f"n = {n}"}
        robust.plot(ngrams["steps"], relative, **style, **line, markevery=[peak])
        if fall is not None:
            robust.plot(ngrams["steps"][fall], relative[fall], linestyle="", **style, fillstyle="none")
    robust.plot([], [], color=BLACK, linestyle="", marker="o", markersize=4, label="peak")
    robust.plot([], [], color=BLACK, linestyle="", marker="o", markersize=4, fillstyle="none", label="a tenth of it")
    robust.axhline(SHARE, color=BLACK, linestyle=":", linewidth=0.8)
    robust.set_ylim(0, 1.08)
    robust.set_ylabel(r"median $M_\mathrm{robust}$ / its peak")
    panel_title(robust, "(b) dependence on n-grams")

    for axis in (divergence, robust):
        finish_teacher_axis(axis, data["phases"], max(steps[0], 1), steps[-1])
    legend_below(figure, 4)
    return figure


def peak_and_fall(values: Sequence[float]) -> tuple[int, int | None]:
    """Index of the largest value, and of the first one after it that is at most `SHARE` of it, if there is any."""
    peak = int(np.argmax(values))
    fallen = np.flatnonzero(np.asarray(values[peak:]) <= SHARE * values[peak])
    return peak, peak + int(fallen[0]) if len(fallen) else None


def _label_ends(axis: Axes, values: Sequence[float], tokens: Sequence[int | None], colours: Sequence[str]) -> None:
    """The n of each curve beside its last value on a logarithmic axis, moved up where two would overlap."""
    low, high = np.log(axis.get_ylim())
    axis.set_ylim(axis.get_ylim())
    places = (np.log(values) - low) / (high - low)
    order = np.argsort(places)
    axis.annotate("n", (1.07, 1 + GAP), xycoords="axes fraction", fontsize=7, verticalalignment="center")
    free = -np.inf
    for rank, i in enumerate(order):
        place = min(max(places[i], free), 1 - GAP * (len(order) - 1 - rank))
        free = place + GAP
        axis.annotate(
            "all" if tokens[i] is None else str(tokens[i]),
            (1, values[i]),
            (1.07, place),
            xycoords=("axes fraction", "data"),
            textcoords="axes fraction",
            color=colours[i],
            fontsize=7,
            verticalalignment="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colours[i],
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def nonterminals(data: dict[str, Any]) -> Figure:
    """Accuracy of the probe for nonterminals, one line per level of the tree, over the teacher's training."""
    figure, axes = new_figure(height=2.7)
    axis, found = axes[0, 0], data["nonterminals"]
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(found["levels"])))
    for entry, colour, marker in zip(found["levels"], colours, cycle(MARKERS)):
        line = Line(f"level {entry['level']}", to_hex(colour), "-", marker)
        curve(axis, found["steps"], [entry["accuracy"]], line)
        for name, (dashes, _) in REFERENCES.items():
            if entry[name] is not None:
                level(axis, [entry[name]], Line("", line.colour, dashes))
    for name, (dashes, label) in REFERENCES.items():
        if found["levels"][0][name] is not None:
            axis.plot([], [], color=BLACK, linestyle=dashes, linewidth=1.2, label=label)
    finish_teacher_axis(axis, data["phases"], found["steps"][0], data["teacher"]["steps"][-1])
    axis.set_ylabel("accuracy of the probe")
    panel_title(axis, "nonterminals")
    legend_below(figure, 3)
    return figure


def generation(data: dict[str, Any]) -> Figure:
    """Fraction of the teacher's continuations that the grammar accepts, over its training."""
    figure, axes = new_figure(height=2.5)
    axis, found = axes[0, 0], data["generation"]
    curve(axis, found["steps"], [found["accepted"]], replace(METHODS["teacher"], dashes="-"))
    finish_teacher_axis(axis, found["phases"], found["steps"][0], found["steps"][-1])
    axis.set_ylim(0, 1)
    axis.set_ylabel("share that the grammar accepts")
    panel_title(axis, f"{found['grammar']}, {found['given']} tokens given, {found['tokens']} written")
    legend_below(figure, 2)
    return figure


OVERVIEW = ("bayes_optimal", "students")
CURRICULUM = ("bayes_optimal", "ngrams", "students", "two_shot")
WINDOWS = ("ngrams", "windows")
FIGURES = {
    "PCFG_mlm": {
        "figure1": (overview, OVERVIEW),
        "figure3": (curriculum, CURRICULUM),
        "figure3_windows": (windows, WINDOWS),
        "figure_nonterminals": (nonterminals, ("nonterminals",)),
    },
    "PCFG_autoregressive": {
        "figure1": (overview, (*OVERVIEW, "other_tasks")),
        "figure3": (curriculum, CURRICULUM),
        "figure3_windows": (windows, WINDOWS),
        "figure_generation": (generation, ("generation",)),
    },
}
"""How each is drawn, and the parts of the data that it needs."""
WORKSTATION = {
    "figure1": (overview, OVERVIEW),
    "figure3": (curriculum, CURRICULUM),
    "figure3_windows": (windows, WINDOWS),
    "figure_pairs": (paired_students.draw, ("paired",)),
}
"""Those of the preset `workstation`, which has fewer probes, and students of several teachers and streams."""


def _bayes_optimal_robust(axis: Axes, value: float) -> None:
    """A line, or words at the bottom if the value lies below a logarithmic axis."""
    if value > axis.get_ylim()[0]:
        level(axis, [value], METHODS["bayes-optimal"])
    else:
        axis.text(
            0.97,
            0.03,
            f"Bayes-optimal: {value:.2g} ↓",
            transform=axis.transAxes,
            horizontalalignment="right",
            fontsize=7,
        )
