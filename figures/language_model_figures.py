"""Panels that the figures of all settings with language models share."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from common.plotting import METHODS, PURPLE, Line, curve, level, logarithmic_step_axis, shade_transition


def draw_students(axis: Axes, panel: Mapping[str, Any]) -> None:
    """Final accuracies of students against their budget of steps, by method, and that of their teacher."""
    for method, runs in panel["students"].items():
        curve(axis, runs["steps"], runs["accuracy"], METHODS[method], mark_every_point=True)
    teacher = panel["teacher"]
    steps = EngFormatter(sep="")(teacher["steps"][-1])
    reference_level(axis, teacher["accuracy"][-1], METHODS["teacher"], f"teacher, {steps} steps", above=False)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(panel["students"]["ce"]["steps"]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("student's training steps")


def reference_level(axis: Axes, value: float, line: Line, label: str, above: bool) -> None:
    """A horizontal line with its label beside it, above or below."""
    level(axis, [value], replace(line, label=""))
    axis.annotate(
        label,
        (0.01, value),
        (0, 2 if above else -3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        verticalalignment="bottom" if above else "top",
        fontsize=7,
    )


def draw_quartiles(axis: Axes, ngrams: Mapping[str, Any]) -> None:
    """The median of M_robust and the band from the 25th to the 75th percentile, on a logarithmic axis."""
    quartiles = np.asarray(ngrams["percentiles"])
    axis.fill_between(ngrams["steps"], quartiles[:, 0], quartiles[:, 2], color=PURPLE, alpha=0.2, linewidth=0)
    axis.plot(ngrams["steps"], quartiles[:, 1], color=PURPLE, linewidth=1.2, label="median and 25% to 75%")
    axis.set_yscale("log")
    axis.set_ylabel(rf"$M_\mathrm{{robust}}$, {ngrams['n']}-grams")


def finish_teacher_axis(axis: Axes, phases: Mapping[str, float] | None, first: float, last: float) -> None:
    """Shade the transition, and show the teacher's steps from `first` to `last`."""
    if phases is not None:
        shade_transition(axis, phases["start"], phases["end"])
    logarithmic_step_axis(axis, "teacher's training steps", first, last)
