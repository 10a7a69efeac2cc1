"""Draw what distillation is worth on grammars, task by task, against the plateau in the teacher's training.

    python figures/plateaus.py
    python figures/plateaus.py --runs runs

The first command draws the data in figures/data/plateaus/; the second collects them from the runs of
`scripts/sweep_plateaus.sh` in a directory, at any depth, whose teachers were probed for the Bayes-optimal accuracy.
Both print what the figure shows: statements, the numbers that decide them, and a table.

The value of distillation on a task is the number of steps that students of the labels need to reach the accuracy of
distilled ones, divided by the steps of these. The plateau ends where the transition of the teacher's loss starts
(`find_phases`). A teacher without a transition never had a plateau, or has never left it. Which of them is decided by
its final accuracy: if it has come at least half of the way from its first evaluation to the best possible, it had none,
and its plateau has length 0. Other tasks, and those whose teacher ends inside its transition, are only in the table.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import tyro
from findings import Finding, Table, Verdict, mean_and_range, steps_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator, StrMethodFormatter
from paired_students import steps_to_reach
from paired_tests import LEVEL
from pcfg_figures import MARKERS, predicted
from plateau_data import collect
from rank_correlation import rank_correlation
from studies import StudyArguments, present

from common.cli import command
from common.distillation.phases import NoTransitionError, find_phases
from common.errors import UserError
from common.plotting import (
    BLACK,
    BLUE,
    COLUMN_WIDTH,
    GREEN,
    GREY,
    METHODS,
    ORANGE,
    PAGE_WIDTH,
    VERMILLION,
    legend_below,
    new_figure,
    panel_title,
)

DISTILLED = ("progressive", "one-shot")
COLOURS = {1: VERMILLION, 2: ORANGE, 3: GREEN, "all": BLUE, None: BLACK}
"""By label level; None for masked tokens."""
BESIDE = 0.03
"""Distance between the points of tasks without a plateau, as a fraction of the longest one."""


def main(arguments: StudyArguments) -> None:
    """Collect data, if runs are given, draw, and print what the figure shows.

    Raises:
        UserError: there are no data, or runs are missing or ambiguous.
    """
    preset = arguments.preset
    present("plateaus", preset, arguments, lambda runs: collect(runs, preset), draw, describe)


def plateau_of(task: Mapping[str, Any]) -> float | None:
    """Teacher steps before the transition; 0 without a plateau, None if it has not ended: see above."""
    teacher = task["teacher"]
    try:
        return find_phases(teacher["steps"], teacher["loss"]).start
    except NoTransitionError:
        first, last = teacher["accuracy"][0], teacher["accuracy"][-1]
        return 0.0 if last - first >= (task["best"] - first) / 2 else None
    except UserError:
        return None


def steps_saved(found: Mapping[str, Any], task: Mapping[str, Any], method: str) -> tuple[float, list[float]]:
    """Steps that students of the labels need for the accuracy of a method's, divided by the steps of these.

    Args:
        found: the data of a setting.
        task: one of its tasks.
        method: of the distilled students.

    Returns:
        That of the mean accuracies, and that of each seed. 0 if even the smallest budget of labels gives more, infinity
        if the largest gives less.
    """
    labels, (students,) = np.asarray(task["accuracy"]["ce"]), np.asarray(task["accuracy"][method]).T

    def ratio(curve: Any, accuracy: float) -> float:
        return float(steps_to_reach(found["budgets"], curve, np.asarray(accuracy))) / found["budget"]

    by_seed = [ratio(curve, accuracy) for curve, accuracy in zip(labels, students, strict=True)]
    return ratio(labels.mean(axis=0), students.mean()), by_seed


def draw(data: Mapping[str, Any]) -> Figure:
    """Steps saved by progressive (above) and one-shot students (below) against the plateau, a column per setting."""
    settings = data["settings"]
    width = COLUMN_WIDTH if len(settings) == 1 else PAGE_WIDTH
    figure, axes = new_figure(columns=len(settings), rows=len(DISTILLED), width=width, height=4.8)
    everything = [task for found in settings.values() for task in found["tasks"]]
    grammars = sorted({task["teacher"]["arguments"]["grammar"] for task in everything})
    markers = dict(zip(grammars, cycle(MARKERS)))
    for column, (setting, found) in zip(axes.T, settings.items(), strict=True):
        for axis, method in zip(column, DISTILLED, strict=True):
            _draw_panel(axis, found, method, markers)
            panel_title(axis, f"{setting}: {METHODS[method].label}")
        column[-1].set_xlabel("plateau of the teacher (steps)")
    for axis in axes[:, 0]:
        axis.set_ylabel("CE steps for equal accuracy\n/ steps of the student")
    for grammar, marker in markers.items():
        axes[0, 0].plot([], [], color=BLACK, linestyle="", marker=marker, markersize=4.5, label=grammar)
    levels = dict.fromkeys(task["teacher"]["arguments"].get("label_level") for task in everything)
    for label_level in sorted(levels, key=str):
        label = predicted({"label_level": label_level})
        axes[0, 0].plot([], [], color=COLOURS[label_level], linewidth=3, label=label)
    legend_below(figure, 3 if len(settings) == 1 else 5, "mean and range of the seeds; arrow: beyond the budgets of CE")
    return figure


def _draw_panel(axis: Axes, found: Mapping[str, Any], method: str, markers: Mapping[str, str]) -> None:
    """A point for each task, with the range of its seeds, cut where no budget of labels reaches.

    Those of tasks without a plateau are side by side in a strip left of 0.
    """
    ratios = np.asarray(found["budgets"]) / found["budget"]
    lowest, highest = ratios[0], ratios[-1]
    drawn = [(plateau, task) for task in found["tasks"] if (plateau := plateau_of(task)) is not None]
    longest = max((plateau for plateau, _ in drawn), default=0) or 1
    without = [task for plateau, task in drawn if not plateau]
    for plateau, task in drawn:
        x = plateau or -(1 + without[::-1].index(task)) * BESIDE * longest
        about = task["teacher"]["arguments"]
        middle, by_seed = steps_saved(found, task, method)
        y, low, high = np.clip([middle, min(by_seed), max(by_seed)], lowest, highest)
        colour = COLOURS[about.get("label_level")]
        axis.plot([x, x], [low, high], color=colour, linewidth=1)
        axis.plot([x], [y], color=colour, linestyle="", marker=markers[about["grammar"]], markersize=4.5)
        if not lowest <= middle <= highest:
            points = 11 if middle > highest else -11
            axis.annotate(
                "", (x, y), (0, points), textcoords="offset points", arrowprops={"arrowstyle": "<-", "color": colour}
            )
    if without:
        left = -(1 + len(without)) * BESIDE * longest
        axis.axvspan(left, 0, color=GREY, alpha=0.12, linewidth=0)
        axis.set_xlim(left=left)
        axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= axis.get_xlim()[1]])
        axis.text(left / 2, highest * 1.25, "none", fontsize=7, horizontalalignment="center", verticalalignment="top")
    axis.axhline(1, color=BLACK, linewidth=0.6)
    axis.set_yscale("log")
    axis.set_ylim(lowest / 1.3, highest * 1.3)
    axis.yaxis.set_major_locator(FixedLocator(ratios))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def describe(data: Mapping[str, Any]) -> Finding:
    """Whether distillation saves more steps the longer the teacher's plateau is, and whether it saves any without."""
    verdicts, tables = [], []
    for setting, found in data["settings"].items():
        plateaus = [plateau_of(task) for task in found["tasks"]]
        verdicts += _verdicts(found, f" ({setting})")
        order = sorted(range(len(plateaus)), key=lambda i: (plateaus[i] is None, plateaus[i]))
        rows = [_row(found, found["tasks"][i], plateaus[i]) for i in order]
        budget = steps_text(found["budget"])
        header = ["grammar", "start", "labels", "plateau", "teacher", "best possible"]
        header += [f"{METHODS[method].label}, {budget} steps" for method in ("ce", *DISTILLED)]
        header += [f"{METHODS[method].label}: steps of CE / {budget}" for method in DISTILLED]
        seeds = len(found["tasks"][0]["seeds"])
        caption = f"{setting} {data['preset']}, final accuracy: mean (range) of {seeds} seeds; {_schedule_text(found)}"
        tables.append(Table(caption, header, rows))
    return Finding(
        title="What distillation is worth by the length of the teacher's plateau",
        claim="Progressive distillation helps where the teacher's training has a plateau, and the more the longer it "
        "is. (The test takes tasks as independent, though those on one grammar share its rules.)",
        alt="Steps that cross entropy needs to reach the accuracy of distilled students, as a multiple of the steps of "
        "these, against the length of the teacher's plateau, one point per task.",
        verdicts=verdicts,
        tables=tables,
    )


def _schedule_text(found: Mapping[str, Any]) -> str:
    """progressive: checkpoints 1 to 650, 12 steps each, then the final one"""
    checkpoints = "all checkpoints"
    if found["teacher_range"] is not None:
        checkpoints = "checkpoints {:,} to {:,}".format(*found["teacher_range"])
    each = "equal numbers of steps" if found["teacher_every"] is None else f"{found['teacher_every']} steps each"
    return f"progressive: {checkpoints}, {each}, then the final one"


def _verdicts(found: Mapping[str, Any], where: str) -> list[Verdict]:
    """Statements about the tasks of a setting whose plateau is known; `where` is added to each."""
    known = [(plateau, task) for task in found["tasks"] if (plateau := plateau_of(task)) is not None]
    plateaus = [plateau for plateau, _ in known]
    verdicts = []
    for method in DISTILLED:
        name = METHODS[method].label
        saved = [steps_saved(found, task, method)[0] for _, task in known]
        statement = f"The longer the teacher's plateau, the more steps {name} students save{where}"
        verdicts.append(_correlated(statement, plateaus, saved))
        pairs = list(zip(plateaus, saved, strict=True))
        groups = [[ratio for plateau, ratio in pairs if (plateau > 0) is has_one] for has_one in (True, False)]
        counts = [f"{sum(ratio > 1 for ratio in group)} of {len(group)} tasks" for group in groups]
        verdicts.append(
            Verdict(
                f"{name.capitalize()} students save steps on every task with a plateau{where}",
                min(groups[0], default=0) > 1,
                f"on {counts[0]} with a plateau, {counts[1]} without",
            )
        )
    first, second = (
        np.asarray([np.mean(task["accuracy"][method]) for _, task in known], dtype=np.float64) for method in DISTILLED
    )
    statement = f"The longer the teacher's plateau, the further {' students end above '.join(DISTILLED)} ones{where}"
    verdicts.append(_correlated(statement, plateaus, (first - second).tolist()))
    return verdicts


def _correlated(statement: str, plateaus: Sequence[float], values: Sequence[float]) -> Verdict:
    """Whether values significantly rise with the plateau."""
    try:
        found = rank_correlation(plateaus, values)
    except UserError as error:
        return Verdict(statement, False, f"not tested: {error}")
    return Verdict(statement, found.rho > 0 and found.p <= LEVEL, str(found))


def _row(found: Mapping[str, Any], task: Mapping[str, Any], plateau: float | None) -> list[str]:
    """The row of a task in the table."""
    about, accuracy = task["teacher"]["arguments"], task["accuracy"]
    at = found["budgets"].index(found["budget"])
    return [
        about["grammar"],
        about["start"],
        predicted(about),
        "not over" if plateau is None else f"{plateau:,.0f}",
        f"{task['teacher']['accuracy'][-1]:.3f}",
        f"{task['best']:.3f}",
        mean_and_range([row[at] for row in accuracy["ce"]]),
        *(mean_and_range([final for (final,) in accuracy[method]]) for method in DISTILLED),
        *(_ratio_text(found, *steps_saved(found, task, method)) for method in DISTILLED),
    ]


def _ratio_text(found: Mapping[str, Any], middle: float, by_seed: Sequence[float]) -> str:
    """1.27 (0.98 to above 4)"""

    def text(ratio: float) -> str:
        lowest, highest = (found["budgets"][i] / found["budget"] for i in (0, -1))
        if ratio < lowest:
            return f"below {lowest:g}"
        return f"above {highest:g}" if ratio > highest else f"{ratio:.2f}"

    return f"{text(middle)} ({text(min(by_seed))} to {text(max(by_seed))})"


if __name__ == "__main__":
    command(lambda: main(tyro.cli(StudyArguments, description=__doc__)))
