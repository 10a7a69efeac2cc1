"""Draw what students learn that had a designed target first, and say which structure it is that helps.

    python figures/designed.py parity_mlp
    python figures/designed.py parity_mlp --runs runs

The first command draws the data in figures/data/designed/; the second collects them from the runs of
`scripts/sweep_designed.sh` in a directory, at any depth. Both print statements, the numbers that decide them, and a
table. On parity a student is measured by the step at which it passes 95%, on grammars by its final accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from finding_runs import FoundRun, MissingError
from findings import Finding, Table, Verdict, comma_separated, mean_and_range, steps_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from method_data import SettingName, collect
from paired_tests import compare
from studies import StudyArguments, present

from common.cli import command
from common.plotting import BLACK, GREY, METHODS, PAGE_WIDTH, VERMILLION, legend_below, new_figure, panel_title

REFERENCES = ("ce", "one-shot", "progressive", "two-shot", "until-saturation", "auto")
"""Methods that designed targets are compared with, as far as there are such students."""
WEIGHT = "0.16"
"""Of monomials that differ in their degrees only."""
DESIGN_ARGUMENTS = {"monomials", "coordinates", "windows", "windows_of", "windows_with", "then"}
NEVER = "never"
SEEDS = range(40, 46)
"""Of the students of `scripts/sweep_designed.sh`."""


@dataclass(frozen=True, kw_only=True)
class Arguments(StudyArguments):
    """Arguments of `designed.py`."""

    setting: Annotated[SettingName, tyro.conf.Positional]
    """Setting of the students."""


def main(arguments: Arguments) -> None:
    """Collect data, if runs are given, draw, and print what the figure shows.

    Raises:
        UserError: there are no data, or runs are missing or ambiguous.
    """
    setting, preset = arguments.setting, arguments.preset

    def data_of(found: Sequence[FoundRun]) -> dict[str, Any]:
        return collect_designed(found, setting, preset)

    present("designed", f"{setting}_{preset}", arguments, data_of, draw, describe)


def collect_designed(found: Sequence[FoundRun], setting: SettingName, preset: str) -> dict[str, Any]:
    """The students of the sweep, as `collect` groups them.

    Raises:
        MissingError: there is none, or its teacher is missing.
        UserError: two runs are the same student.
    """
    command = f"scripts/sweep_designed.sh {setting} {preset}"
    data = collect(found, setting, preset, command, SEEDS)
    if not any(group["method"] == "designed" for group in data["groups"]):
        raise MissingError(f"no designed students of {setting} {preset}; create them with {command}")
    return data


def is_control(group: Mapping[str, Any]) -> bool:
    """Whether the first target lacks the structure of the task."""
    arguments = group["arguments"]
    return arguments.get("coordinates", "support") != "support" or arguments.get("windows_of", "grammar") != "grammar"


def target_of(group: Mapping[str, Any]) -> str:
    """What a group learns from first, or its method: degrees 1, 2; windows of 3, 5; one-shot."""
    arguments = group["arguments"]
    if group["method"] != "designed":
        return METHODS[group["method"]].label
    if "monomials" in arguments:
        terms = [term.split(":") for term in arguments["monomials"][0].split("+")]
        name = f"degree{'s' * (len(terms) > 1)} {comma_separated([degree for degree, _ in terms])}"
        weights = [weight for _, weight in terms]
        return name if set(weights) == {WEIGHT} else f"{name}, weight {comma_separated(weights)}"
    sizes = arguments["windows"][0].split("+")
    name = f"window{'s' * (len(sizes) > 1)} of {comma_separated(sizes)}"
    known = arguments["windows_with"]
    return name if known == ["position"] else f"{name} with {' and '.join(known) or 'neither'}"


def control_of(group: Mapping[str, Any]) -> str:
    """What the control is made of, such as others; empty for a target with the structure of the task."""
    arguments = group["arguments"]
    return str(arguments.get("coordinates") or arguments["windows_of"]) if is_control(group) else ""


def described(group: Mapping[str, Any]) -> str:
    """A first target within a sentence: degree 1 on the support; a window of 5 of cfg3f:18."""
    arguments, target = group["arguments"], target_of(group)
    if "monomials" in arguments:
        coordinates = {"support": "the support", "others": "other coordinates"}
        return f"{target} on {coordinates.get(arguments['coordinates'], arguments['coordinates'])}"
    return f"{target} of the {arguments['windows_of']}" if not is_control(group) else f"{control_of(group)}: {target}"


def label_of(group: Mapping[str, Any]) -> str:
    """A group in a figure: others: degree 3."""
    return ": ".join(filter(None, [control_of(group), target_of(group)]))


def with_what_follows(group: Mapping[str, Any]) -> str:
    """A designed target and what students learn from after it, within a sentence."""
    return f"{described(group)}, then the {'labels' if group['arguments']['then'] == 'labels' else 'final teacher'}"


def is_parity(data: Mapping[str, Any]) -> bool:
    """Whether students are judged by the step at which they pass 95%."""
    return str(data["setting"]).startswith("parity")


def by_pair(group: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float]) -> dict[tuple[int, int], float]:
    """A number of each student, by its stream and its seed: a mean over teachers, if there are several."""
    found: dict[tuple[int, int], list[float]] = {}
    for run in group["runs"]:
        found.setdefault((run["stream"], run["seed"]), []).append(value(run))
    return {pair: float(np.mean(values)) for pair, values in found.items()}


def merit(data: Mapping[str, Any], run: Mapping[str, Any]) -> float:
    """What a student is judged by, larger being better.

    On parity it is minus the step at which it passes 95%, minus infinity if it never does; on grammars the final
    accuracy.
    """
    if not is_parity(data):
        return float(run["accuracy"])
    return -np.inf if run["passed"] is None else -float(run["passed"])


def main_groups(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """References and designs with the preset's steps and weights: references, designs, controls."""
    steps = max((group["steps"] for group in data["groups"] if group["method"] == "designed"), default=0)

    def is_shown(group: Mapping[str, Any]) -> bool:
        if group["method"] != "designed":
            return group["method"] in REFERENCES and not group["arguments"]
        if not group["arguments"].keys() <= DESIGN_ARGUMENTS:
            return False
        return group["first_steps"] == data["first_steps"] and ", weight" not in target_of(group)

    shown = [group for group in data["groups"] if group["steps"] == steps and is_shown(group)]
    return sorted(
        shown,
        key=lambda group: (
            REFERENCES.index(group["method"]) if group["method"] in REFERENCES else len(REFERENCES),
            control_of(group),
            " with " in target_of(group),
            target_of(group).count(","),
            target_of(group),
        ),
    )


def duration_groups(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Designs of degree 1 on the support with labels after them, of all weights and numbers of first steps."""
    return [
        group
        for group in data["groups"]
        if group["method"] == "designed"
        and target_of(group).partition(",")[0] == "degree 1"
        and not is_control(group)
        and group["arguments"]["then"] == "labels"
    ]


def draw(data: Mapping[str, Any]) -> Figure:
    """Every student by its first target; on parity, beside it, how strong and how long a target of degree 1 must be."""
    groups = main_groups(data)
    if not groups:
        raise MissingError(
            f"there are no designed students with the {data['first_steps']:,} first steps and the other arguments of "
            f"{data['setting']} {data['preset']}"
        )
    rows = list(dict.fromkeys(map(label_of, groups)))
    durations = _durations(data)
    columns = 2 if durations is not None else 1
    figure, axes = new_figure(columns=columns, width=PAGE_WIDTH, height=0.9 + 0.17 * len(rows))
    _draw_students(axes[0, 0], data, groups, rows)
    if durations is not None:
        panel_title(axes[0, 0], "(a) students by their first target")
        _draw_durations(axes[0, 1], *durations)
        panel_title(axes[0, 1], f"(b) of {durations[-1]} students, how many pass")
    legend_below(figure, 2)
    return figure


def _draw_students(
    axis: Axes, data: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], rows: Sequence[str]
) -> None:
    """A point for each student, in the row of its first target; filled if the final teacher follows."""
    never = 1.08 * max(group["steps"] for group in groups)
    for group in groups:
        colour = GREY if is_control(group) else VERMILLION
        if group["method"] != "designed":
            colour = METHODS[group["method"]].colour
        has_teacher = group["method"] != "ce" and group["arguments"].get("then") != "labels"
        values = np.array([merit(data, run) for run in group["runs"]])
        x = np.where(np.isinf(values), never, -values) if is_parity(data) else values
        spread = np.linspace(-0.16, 0.16, len(x)) + (0.1 if has_teacher else -0.1) * (group["method"] == "designed")
        y = rows.index(label_of(group)) + spread
        axis.plot(
            x,
            y,
            "o",
            color=colour,
            markersize=2.8,
            markerfacecolor=colour if has_teacher else "white",
            markeredgewidth=0.7,
        )
        if not is_parity(data):
            axis.plot([values.mean()] * 2, y.mean() + np.array([-0.3, 0.3]), color=colour)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    for handle, face in (("then the final teacher", BLACK), ("then the labels", "white")):
        axis.plot([], [], "o", color=BLACK, markerfacecolor=face, markersize=2.8, markeredgewidth=0.7, label=handle)
    if not is_parity(data):
        axis.set_xlabel("final accuracy")
    else:
        axis.axvline(max(group["steps"] for group in groups), color=GREY, linewidth=0.6)
        axis.set_xlabel("step at which a student passes 95%")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        ticks = [tick for tick in axis.get_xticks() if 0 <= tick < 0.85 * never]
        axis.set_xticks([*ticks, never], [*map(EngFormatter(sep=""), ticks), NEVER])
        axis.set_xlim(0, 1.04 * never)


def _durations(data: Mapping[str, Any]) -> tuple[list[float], list[int], Any, int] | None:
    """Weights, first steps, and how many students pass by both, of how many; None if there are not several of each."""
    cells: dict[tuple[float, int], list[bool]] = {}
    for group in duration_groups(data):
        weight = float(group["arguments"]["monomials"][0].partition(":")[2])
        passed = [run["passed"] is not None for run in group["runs"]]
        cells.setdefault((weight, group["first_steps"]), []).extend(passed)
    weights, durations = sorted({key[0] for key in cells}), sorted({key[1] for key in cells})
    if len(weights) < 2 or len(durations) < 2:
        return None
    shown = np.full((len(weights), len(durations)), np.nan)
    for (weight, steps), passed in cells.items():
        shown[weights.index(weight), durations.index(steps)] = sum(passed)
    return weights, durations, shown, max(map(len, cells.values()))


def _draw_durations(axis: Axes, weights: Sequence[float], durations: Sequence[int], passed: Any, most: int) -> None:
    """How many students pass for each weight and number of first steps."""
    axis.imshow(passed, cmap="Blues", vmin=0, vmax=1.4 * most, origin="lower", aspect="auto")
    for (row, column), number in np.ndenumerate(passed):
        if np.isfinite(number):
            text = f"{number:.0f}"
            axis.text(column, row, text, fontsize=7, horizontalalignment="center", verticalalignment="center")
    axis.grid(visible=False)
    axis.set_xticks(range(len(durations)), [steps_text(steps) for steps in durations])
    axis.set_yticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    axis.set_xlabel("steps with the first target")
    axis.set_ylabel("weight of each coordinate")


def describe(data: Mapping[str, Any]) -> Finding:
    """Which first targets are better than their controls, and than the labels alone."""
    groups = main_groups(data)
    designs = [group for group in groups if group["method"] == "designed"]
    labels = next((group for group in groups if group["method"] == "ce"), None)
    verdicts = []
    for group in designs:
        if is_control(group):
            continue
        after = group["arguments"]["then"]
        what = f"{with_what_follows(group)},"
        controls = [
            other
            for other in designs
            if is_control(other) and target_of(other) == target_of(group) and other["arguments"]["then"] == after
        ]
        for other in controls:
            verdicts.append(is_better(data, group, other, what, f"those of {described(other)}"))
        if labels is not None:
            verdicts.append(is_better(data, group, labels, what, "those of the labels alone"))
    header = ["first target", "control", "then", "steps of it", "at the switch", "final accuracy"]
    header += ["passed at"] if is_parity(data) else []
    return Finding(
        title="What a first target must have",
        claim="Checkpoints inside the transition help because they have easy structure of the task: a target that has "
        "this structure and nothing else helps as well, and one with another structure of the same kind does not.",
        alt="Students by what they learned from first, and how well they learn the task.",
        verdicts=verdicts,
        tables=[
            Table(
                f"{data['setting']} {data['preset']}, {steps_text(groups[0]['steps'])} steps: mean (range) of seeds "
                f"{comma_separated(sorted({run['seed'] for run in groups[0]['runs']}))}",
                header,
                [_row(group, is_parity(data)) for group in groups],
            )
        ],
    )


def is_better(
    data: Mapping[str, Any], group: Mapping[str, Any], other: Mapping[str, Any], what: str, than: str
) -> Verdict:
    """Whether students of a group do better than others of the same stream and seed."""
    first, second = (by_pair(each, lambda run: merit(data, run)) for each in (group, other))
    pairs = sorted(first.keys() & second.keys())
    statement = f"Students of {what} {'pass 95% before' if is_parity(data) else 'end above'} {than}"
    if not pairs:
        return Verdict(statement, False, "no seed in common")
    if not is_parity(data):
        found = compare([first[pair] - second[pair] for pair in pairs])
        return Verdict(statement, found.is_above, str(found))
    found = compare([float(first[pair] > second[pair]) - float(first[pair] < second[pair]) for pair in pairs])
    final = [by_pair(each, lambda run: run["accuracy"]) for each in (group, other)]
    of_accuracy = compare([final[0][pair] - final[1][pair] for pair in pairs])
    numbers = f"{found.above} of {found.pairs} seeds; p = {found.p:.2g}; final accuracy: {of_accuracy}"
    return Verdict(statement, found.is_above, numbers)


def _row(group: Mapping[str, Any], shows_steps: bool) -> list[str]:
    """The row of a group in the table."""
    switch = [run["at_switch"] for run in group["runs"] if run["at_switch"] is not None]
    after = group["arguments"].get("then", "")
    row = [target_of(group), control_of(group), after, steps_text(group["first_steps"])]
    row += [mean_and_range(switch) if switch else "", mean_and_range([run["accuracy"] for run in group["runs"]])]
    return row + ([comma_separated([steps_text(run["passed"]) for run in group["runs"]])] if shows_steps else [])


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
