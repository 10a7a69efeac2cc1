"""The style of all figures: widths of a column and of a page, small type, and a fixed line style for every method.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which colour-blind readers can tell apart; markers and
dashes distinguish the lines in greyscale. Figures are made without pyplot, so that a notebook keeps its backend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

COLUMN_WIDTH = 3.3
"""Inches."""
PAGE_WIDTH = 6.75
"""Inches."""

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#555555"


@dataclass(frozen=True)
class Line:
    """The style of a curve."""

    label: str
    colour: str
    dashes: str = "-"
    marker: str = ""


METHODS = {
    "teacher": Line("teacher", GREY, "--"),
    "ce": Line("cross entropy", BLACK, ":", "s"),
    "one-shot": Line("one-shot", BLUE, "-", "v"),
    "progressive": Line("progressive", VERMILLION, "-", "o"),
    "two-shot": Line("two-shot", GREEN, "-", "D"),
    "two-shot before": Line("two-shot, before", SKY, "-", "<"),
    "two-shot inside": Line("two-shot, inside", GREEN, "-", "d"),
    "two-shot after": Line("two-shot, after", PURPLE, "-", ">"),
    "until-saturation": Line("until saturation", ORANGE, "-", "^"),
    "auto": Line("auto", PURPLE, "-", "P"),
    "bayes-optimal": Line("Bayes-optimal", BLACK, "-."),
}

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
}


def new_figure(
    columns: int = 1, rows: int = 1, width: float = COLUMN_WIDTH, height: float = 2.2
) -> tuple[Figure, NDArray[np.object_]]:
    """An empty figure in the common style.

    Args:
        width, height: of the figure, in inches.

    Returns:
        The figure and its axes, of shape (rows, columns).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def curve(axis: Axes, steps: ArrayLike, values_per_seed: ArrayLike, line: Line, mark_every_point: bool = False) -> None:
    """Draw the mean over seeds and a band over their range, which `legend` explains.

    With few seeds the range is what was observed, while a standard deviation is a poor estimate.

    Args:
        steps: of shape (evaluations,), common to all seeds.
        values_per_seed: of shape (seeds, evaluations).
        line: such as `METHODS["progressive"]`.
        mark_every_point: put a marker at every point, for curves with few points.
    """
    values = np.asarray(values_per_seed, dtype=np.float64)
    axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.colour, alpha=0.2, linewidth=0)
    axis.plot(
        steps,
        values.mean(axis=0),
        color=line.colour,
        linestyle=line.dashes,
        linewidth=1.2,
        marker=line.marker,
        markersize=3.5,
        # spaced in fractions of the axes' diagonal; curves that coincide take turns
        markevery=None if mark_every_point else (0.03 * (len(axis.lines) % 5), 0.15),
        label=line.label,
    )


def level(axis: Axes, values: Sequence[float], line: Line) -> None:
    """Draw a horizontal line at the mean over seeds, and a band over their range.

    Args:
        values: one for each seed.
        line: such as `METHODS["one-shot"]`.
    """
    axis.axhspan(min(values), max(values), color=line.colour, alpha=0.2, linewidth=0)
    axis.axhline(float(np.mean(values)), color=line.colour, linestyle=line.dashes, linewidth=1.2, label=line.label)


def shade_transition(axis: Axes, start: float, end: float) -> None:
    """Shade the steps from `start` to `end`."""
    axis.axvspan(start, end, color=BLUE, alpha=0.1, linewidth=0, label="transition")


def step_axis(axis: Axes, label: str = "training steps") -> None:
    """Label the horizontal axis 0, 200k, 1M, and leave no margin beside the curves."""
    axis.set_xlabel(label)
    axis.margins(x=0)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def logarithmic_step_axis(axis: Axes, label: str, first: float, last: float) -> None:
    """A logarithmic step axis from `first` to `last`, labelled 50, 100, 200, 500, 1k."""
    axis.set_xlabel(label)
    axis.set_xscale("log")
    axis.set_xlim(first, last)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def legend(axis: Axes, seeds: int, place: Literal["best", "center right"] = "best") -> None:
    """A legend without a frame, whose title explains line and band."""
    axis.legend(
        loc=place,
        title=f"mean and range\nof {seeds} seeds" if seeds > 1 else None,
        alignment="left",
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        handlelength=2.2,
        labelspacing=0.3,
    )


def legend_below(figure: Figure, columns: int, title: str | None = None) -> None:
    """One legend for all axes, below them, with each label once."""
    pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    handles = {label: handle for axis in pairs for handle, label in axis}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=columns,
        title=title,
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        handlelength=2.2,
        labelspacing=0.3,
        columnspacing=1.2,
    )


def panel_title(axis: Axes, text: str) -> None:
    """A title at the left, such as "(a) teacher"."""
    axis.set_title(text, fontsize=8, loc="left")


def save(figure: Figure, path: Path | str, dots_per_inch: int = 300) -> None:
    """Write a PNG; equal figures give equal bytes. A screen needs half the resolution of print."""
    figure.savefig(path, format="png", dpi=dots_per_inch, metadata={"Software": None})
