"""One table of all methods: how many steps students need, how well they end, and what it takes of a teacher.

    python figures/methods.py parity_mlp --runs runs
    python figures/methods.py parity_mlp

The first command collects the runs of `scripts/sweep_methods.sh`, of a directory at any depth, the second reads the
data in figures/data/methods/. On parity a student is measured by the step at which it passes 95%, on grammars by its
final accuracy. `--changed d=50 k=5` is for sweeps with arguments after `--`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from designed import DESIGN_ARGUMENTS, REFERENCES, by_pair, draw, is_better, is_parity, merit, with_what_follows
from finding_runs import FoundRun
from findings import Finding, Table, Verdict, mean_and_range, steps_text
from method_data import SettingName, collect
from studies import StudyArguments, present

from common.cli import command
from common.errors import UserError
from common.plotting import METHODS

SEEDS = range(50, 55)
"""Of the students of `scripts/sweep_methods.sh`."""
COMPARED = "auto"
"""The method that is compared with all others."""


@dataclass(frozen=True, kw_only=True)
class Arguments(StudyArguments):
    """Arguments of `methods.py`."""

    setting: Annotated[SettingName, tyro.conf.Positional]
    """Setting of the students."""
    changed: tuple[str, ...] = ()
    """Arguments in which all runs differ from the preset, such as d=50 k=5."""


def main(arguments: Arguments) -> None:
    """Collect data, if runs are given, draw, and print the table.

    Raises:
        UserError: there are no data, or runs are missing or ambiguous.
    """
    setting, preset, changed = arguments.setting, arguments.preset, parse(arguments.changed)
    key = "_".join([setting, preset, *(f"{name}{value}" for name, value in changed.items())])
    command = f"scripts/sweep_methods.sh {setting} {preset}"

    def data_of(found: Sequence[FoundRun]) -> dict[str, Any]:
        return collect(found, setting, preset, command, SEEDS, changed)

    present("methods", key, arguments, data_of, draw, describe)


def parse(texts: Sequence[str]) -> dict[str, int | float | str]:
    """Arguments by name, from name=value.

    Raises:
        UserError: a text has another form.
    """
    found: dict[str, int | float | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--changed takes name=value, such as d=50; got {text!r}")
        for kind in (int, float, str):
            try:
                found[name] = kind(value)
                break
            except ValueError:
                continue
    return found


def describe(data: Mapping[str, Any]) -> Finding:
    """A row for each method, and whether the automatic schedule is better than each of them."""
    order = [*REFERENCES, "designed"]
    usual = {"temperature", *DESIGN_ARGUMENTS}  # the sweep gives it to auto
    shown = [group for group in data["groups"] if group["method"] in order and group["arguments"].keys() <= usual]
    groups = sorted(shown, key=lambda group: order.index(group["method"]))
    header = ["method", "students", "passes 95% at: mean (range)"] if is_parity(data) else ["method", "students"]
    header += ["final accuracy: mean (range)", "steps", "checkpoints used", "steps with a teacher"]
    teachers = {run["teacher"] for group in groups for run in group["runs"] if run["teacher"] is not None}
    auto = next((group for group in groups if group["method"] == COMPARED), None)
    verdicts: list[Verdict] = []
    for group in groups if auto is not None else ():
        if group is not auto and group["steps"] == auto["steps"]:
            verdicts.append(is_better(data, auto, group, "the automatic schedule", f"those of {name_of(group)}"))
            if is_parity(data):
                verdicts[-1] = _with_ratio(verdicts[-1], data, auto, group)
    return Finding(
        title="All methods",
        claim="The automatic schedule, for which nothing is chosen by hand, is better than other methods. (With five "
        "seeds, whose accuracies are means over the teachers, all must agree, and p is 0.06 at least.)",
        alt="Students by their method, and how well they learn the task.",
        verdicts=verdicts,
        tables=[
            Table(
                f"{data['setting']} {data['preset']}, {len(teachers)} teachers; auto compares all checkpoints first",
                header,
                [_row(group, is_parity(data)) for group in groups],
            )
        ],
    )


def name_of(group: Mapping[str, Any]) -> str:
    """A method within a sentence or a table."""
    if group["method"] != "designed":
        return METHODS[group["method"]].label
    return with_what_follows(group)


def _with_ratio(
    verdict: Verdict, data: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]
) -> Verdict:
    """The same, with the ratio of the mean steps to 95%, if all students of both pass."""
    means = [-np.mean(list(by_pair(group, lambda run: merit(data, run)).values())) for group in (first, second)]
    ratio = f"{means[0] / means[1]:.2f} times the steps" if np.isfinite(means).all() else "not all students pass"
    return Verdict(verdict.statement, verdict.holds, f"{ratio}; {verdict.numbers}")


def _row(group: Mapping[str, Any], shows_steps: bool) -> list[str]:
    runs = group["runs"]
    passed = [run["passed"] for run in runs if run["passed"] is not None]
    row = [name_of(group), str(len(runs))]
    if shows_steps:
        numbers = (float(np.mean(passed)), min(passed), max(passed)) if passed else ()
        times = "{} ({} to {})".format(*(steps_text(float(f"{step:.3g}")) for step in numbers)) if passed else "never"
        row.append(times if len(passed) in (0, len(runs)) else f"{times}, {len(passed)} of them")
    row.append(mean_and_range([run["accuracy"] for run in runs]))
    used = str(group["checkpoints"] or "–")
    return [*row, steps_text(group["steps"]), used, steps_text(group["teacher_steps"] or None)]


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
