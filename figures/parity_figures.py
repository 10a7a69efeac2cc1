"""Draw the parity figures, of the MLP and of GPT-2, from the data that `parity_data.py` collects.

These are their panels of the overview (figure 1), and the spike of correlations inside the transition (figure 2).
"""

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from common.plotting import (
    GREY,
    METHODS,
    PAGE_WIDTH,
    VERMILLION,
    Line,
    curve,
    legend,
    new_figure,
    panel_title,
    shade_transition,
    step_axis,
)


def overview(data: dict[str, Any]) -> Figure:
    """Figure 1, parity panel: accuracy of the teacher and of its students over training."""
    figure, axes = new_figure()
    curve(axes[0, 0], data["teacher"]["steps"], [data["teacher"]["accuracy"]], METHODS["teacher"])
    for method, runs in data["students"].items():
        curve(axes[0, 0], runs["steps"], runs["accuracy"], METHODS[method])
    arguments = data["teacher"]["arguments"]
    model = ", GPT-2" if _is_gpt2(data) else ""
    _finish_accuracy_axis(axes[0, 0], data, f"({arguments['d']}, {arguments['k']})-parity{model}")
    legend(axes[0, 0], seeds=len(data["students"]["ce"]["accuracy"]))
    return figure


def spike(data: dict[str, Any]) -> Figure:
    """Figure 2: (a) the teacher's candidate checkpoints, (b) correlations of degree 1, (c) two-shot from each.

    GPT-2's transition is so short that (b) shows only the steps around it.
    """
    figure, axes = new_figure(columns=3, width=PAGE_WIDTH, height=2.2)
    curve(axes[0, 0], data["teacher"]["steps"], [data["teacher"]["accuracy"]], METHODS["teacher"])
    beside = {"before": (0, 6, "center"), "inside": (-6, -6, "right"), "after": (0, -20, "center")}
    for place, step in data["candidates"].items():
        line = METHODS[f"two-shot {place}"]
        accuracy = np.interp(step, data["teacher"]["steps"], data["teacher"]["accuracy"])
        axes[0, 0].plot(step, accuracy, line.marker, color=line.colour, markersize=5)
        right, up, side = beside[place]
        axes[0, 0].annotate(
            f"{place}\n{EngFormatter(sep='')(step)}",
            (step, accuracy),
            (right, up),
            textcoords="offset points",
            horizontalalignment=side,
            fontsize=7,
        )
    _finish_accuracy_axis(axes[0, 0], data, "(a) teacher")

    _draw_correlations(axes[0, 1], data, degree=1)
    if _is_gpt2(data):
        _show_transition(axes[0, 1], data)
        axes[0, 1].set_ylim(top=1.4 * axes[0, 1].get_ylim()[1])  # room for the legend
    axes[0, 1].set_ylabel(r"$|\mathrm{E}[x_i\, p(x)]|$")
    panel_title(axes[0, 1], "(b) degree-1 correlation")
    legend(axes[0, 1], seeds=1)

    for place, runs in data["two_shot"].items():
        line = replace(METHODS[f"two-shot {place}"], label=place)
        curve(axes[0, 2], runs["steps"], runs["accuracy"], line)
    axes[0, 2].axvline(data["two_shot"]["inside"]["first_steps"], color=GREY, linewidth=0.8, linestyle=":")
    _finish_accuracy_axis(axes[0, 2], data, "(c) two-shot students")
    legend(axes[0, 2], seeds=len(data["two_shot"]["inside"]["accuracy"]), place="center right")
    return figure


def degrees(data: dict[str, Any]) -> Figure:
    """Correlations with monomials of every degree below k, around the transition."""
    k = data["teacher"]["arguments"]["k"]
    found = [entry["degree"] for entry in data["monomials"]["degrees"] if entry["degree"] < k]
    figure, axes = new_figure(columns=len(found), width=PAGE_WIDTH, height=1.9)
    highest = max(np.max(entry["inside"]) for entry in data["monomials"]["degrees"] if entry["degree"] < k)
    for axis, degree in zip(axes[0], found, strict=True):
        _draw_correlations(axis, data, degree)
        _show_transition(axis, data)
        panel_title(axis, f"degree {degree}")
        axis.set_ylim(0, 1.05 * highest)
        if axis is not axes[0, 0]:
            axis.tick_params(labelleft=False)
    axes[0, 0].set_ylabel(r"$|\mathrm{E}[\chi_A(x)\, p(x)]|$")
    legend(axes[0, 0], seeds=1)
    return figure


FIGURES = {
    "figure1": (overview, ("students",)),
    "figure2": (spike, ("phases", "candidates", "monomials", "two_shot")),
    "figure2_degrees": (degrees, ("phases", "monomials")),
}
"""How each is drawn, and the parts of the data that it needs."""


def _is_gpt2(data: dict[str, Any]) -> bool:
    return data["setting"] == "parity_gpt2"


def _draw_correlations(axis: Axes, data: dict[str, Any], degree: int) -> None:
    """Mean and range over the subsets of the support, median and range over the others, and the transition."""
    monomials = data["monomials"]
    found = next(entry for entry in monomials["degrees"] if entry["degree"] == degree)
    curve(axis, monomials["steps"], np.transpose(found["inside"]), Line("support", VERMILLION))
    outside = np.asarray(found["outside_percentiles"])
    axis.fill_between(monomials["steps"], outside[:, 0], outside[:, 2], color=GREY, alpha=0.25, linewidth=0)
    axis.plot(monomials["steps"], outside[:, 1], color=GREY, linewidth=1.2, label="others")
    shade_transition(axis, data["phases"]["start"], data["phases"]["end"])
    _finish_step_axis(axis, data)
    axis.set_ylim(bottom=0)


def _show_transition(axis: Axes, data: dict[str, Any]) -> None:
    """Show the steps around the transition only."""
    start, end = data["phases"]["start"], data["phases"]["end"]
    axis.set_xlim(max(0, start - 1.5 * (end - start)), end + 1.5 * (end - start))
    axis.xaxis.set_major_locator(MaxNLocator(2))


def _finish_step_axis(axis: Axes, data: dict[str, Any]) -> None:
    batch_size = f" (batch {data['teacher']['arguments']['batch_size']})" if _is_gpt2(data) else ""
    step_axis(axis, f"training steps{batch_size}")


def _finish_accuracy_axis(axis: Axes, data: dict[str, Any], title: str) -> None:
    _finish_step_axis(axis, data)
    axis.set_ylabel("accuracy")
    axis.set_ylim(0.38, 1.03)
    panel_title(axis, title)
