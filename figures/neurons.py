"""Draw which coordinates the neurons of an MLP hold over training, of a teacher and of its students on parity.

    python figures/neurons.py
    python figures/neurons.py --runs runs

The first command draws the data in figures/data/neurons/; the second collects them from runs with checkpoints in a
directory, at any depth: the teacher of the preset, and students that saved checkpoints (`--checkpoint-every`), one
panel for each method. Both print statements, the numbers that decide them, and a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import parity_data
import tyro
from finding_runs import FoundRun, MissingError, only_run, runs_by_seed, students_of, with_arguments
from findings import Finding, Table, Verdict, mean_and_range, steps_text
from matplotlib.figure import Figure
from studies import StudyArguments, present

from common.cli import command
from common.parity.networks import read_arrays
from common.parity.task import task_of
from common.plotting import (
    GREEN,
    GREY,
    METHODS,
    PAGE_WIDTH,
    VERMILLION,
    Line,
    curve,
    legend_below,
    new_figure,
    panel_title,
    step_axis,
)
from common.probes.neurons import probe_neurons
from common.runs.finding import TRANSITION_ACCURACY
from common.teachers.discovery import find_checkpoints, local_path

ORDER = ("ce", "one-shot", "progressive", "two-shot", "until-saturation", "auto", "designed")
"""Of the methods."""
CURVES = {
    "accuracy": Line("accuracy", METHODS["ce"].colour, ":"),
    "support": Line("neurons that hold a coordinate of the support", VERMILLION),
    "others": Line("neurons that hold another coordinate", GREY),
    "share": Line("output of neurons that hold all of the support", GREEN, "--"),
}


def main(arguments: StudyArguments) -> None:
    """Collect data, if runs are given, draw, and print what the figure shows.

    Raises:
        UserError: there are no data, or runs are missing or ambiguous.
    """
    preset = arguments.preset
    present("neurons", preset, arguments, lambda runs: collect(runs, preset), draw, describe)


def collect(found: Sequence[FoundRun], preset: str) -> dict[str, Any]:
    """What neurons hold at each checkpoint, of the preset's teacher and of its students that saved checkpoints.

    Args:
        found: runs of any setting.
        preset: its name.

    Returns:
        `setting`, `preset`, `commits`, and `networks`: by `teacher` or method its `width`, `seeds`, the `steps` of its
        checkpoints, and of shape (seeds, checkpoints) the `accuracy` and what `probe_neurons` returns.

    Raises:
        MissingError: there is no teacher, or no such student.
        UserError: two runs are the same, or checkpoints are damaged.
    """
    package = parity_data.PACKAGES["parity_mlp"]
    runs = [run for run in found if run.setting == "parity_mlp"]
    teachers = with_arguments([run for run in runs if not run.is_student], asdict(package.teachers[preset]))
    teacher = only_run(teachers, f"the teacher of parity_mlp {preset}", f"python -m parity_mlp.train {preset}")
    usual = asdict(package.students[preset])
    saved = [run for run in students_of(teacher, runs) if run.arguments["checkpoint_every"] > 0]
    command = f"python -m parity_mlp.distill {preset} --checkpoint-every N --methods METHODS"
    networks = {"teacher": _network([teacher])}
    for method in ORDER:
        wanted = {**usual, "methods": [method], "widths": usual["widths"][:1], "lr": usual["lr"][:1]}
        wanted |= {} if method == "two-shot" else {"checkpoint": []}
        wanted |= package.students[preset].design_defaults if method == "designed" else {}
        some = with_arguments(saved, wanted, free=("seeds", "teacher", "checkpoint_every"))
        if some:
            networks[method] = _network(list(runs_by_seed(some, f"{method} students", command).values()))
    if len(networks) == 1:
        raise MissingError(f"no students of {teacher.directory} saved checkpoints; create them with {command}")
    used = {run.config.get("commit") for run in [teacher, *saved]}
    commits = sorted(commit for commit in used if commit)
    return {"setting": "parity_mlp", "preset": preset, "commits": commits, "networks": networks}


def _network(runs: Sequence[FoundRun]) -> dict[str, Any]:
    """The data of runs that differ in their seeds."""
    rows: list[dict[int, dict[str, float]]] = []
    for run in runs:
        accuracy = {record["step"]: record["accuracy"] for record in run.records()}
        (support,) = task_of(run.arguments).supports
        row = {}
        for checkpoint in find_checkpoints(run.directory):
            if checkpoint.step in accuracy:
                tensors = read_arrays(local_path(checkpoint))
                found = probe_neurons(tensors["hidden.0.weight"], tensors["output.weight"], support)
                row[checkpoint.step] = {"accuracy": accuracy[checkpoint.step], **asdict(found)}
        rows.append(row)
    steps = sorted(set(rows[0]).intersection(*rows))
    return {
        "width": len(tensors["output.weight"][0]),
        "seeds": [run.arguments["seeds"][0] if run.is_student else run.arguments["seed"] for run in runs],
        "steps": steps,
        **{
            name: [[round(row[step][name], 4) for step in steps] for row in rows]
            for name in ("accuracy", "support", "others", "whole_support", "share")
        },
    }


def draw(data: Mapping[str, Any]) -> Figure:
    """A panel for the teacher and for each method."""
    networks = data["networks"]
    columns = 3 if len(networks) > 2 else len(networks)
    rows = -(-len(networks) // columns)
    figure, axes = new_figure(columns=columns, rows=rows, width=PAGE_WIDTH, height=0.5 + 1.6 * rows)
    for axis, (name, network) in zip(axes.flat, networks.items(), strict=False):
        for key, line in CURVES.items():
            curve(axis, network["steps"], network[key], line)
        panel_title(axis, f"{title_of(name)}, {network['width']:,} neurons")
        step_axis(axis, "training steps" if axis in axes[-1] else "")
        axis.set_ylim(-0.03, 1.03)
    for axis in axes.flat[len(networks) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("fraction")
    seeds = max(len(network["seeds"]) for network in networks.values())
    legend_below(figure, 2, f"mean and range of {seeds} students" if seeds > 1 else None)
    return figure


def title_of(name: str) -> str:
    """Of a panel."""
    return {"designed": "designed: degree 1"}.get(name) or METHODS[name].label


def describe(data: Mapping[str, Any]) -> Finding:
    """Whether networks that learn the task hold the support, and whether they hold it before they are accurate."""
    rows, learned, failed, before = [], [], [], []
    for name, network in data["networks"].items():
        for accuracy, share, support in zip(network["accuracy"], network["share"], network["support"], strict=True):
            passes = [at for at, value in enumerate(accuracy) if value > TRANSITION_ACCURACY]
            (learned if passes else failed).append(share[-1])
            if passes:
                held_at = next((at for at, value in enumerate(support) if value >= support[-1] / 4), len(support))
                before.append((held_at, passes[0]))
        rows.append(
            [
                title_of(name),
                f"{network['width']:,}",
                *(mean_and_range([row[-1] for row in network[key]]) for key in ("support", "others", "share")),
                mean_and_range([row[-1] for row in network["accuracy"]]),
            ]
        )
    return Finding(
        title="Which coordinates the neurons hold",
        claim="A network passes the transition when neurons come to hold the hidden support. The final teacher and the "
        "labels do not make a small student's neurons hold it; checkpoints from inside the transition, and a designed "
        "target of degree 1, do so long before the student is accurate.",
        alt="Fraction of neurons that hold coordinates of the support and others over training, one panel per network.",
        verdicts=[
            Verdict(
                "In every network that learns the task, neurons that hold the whole support make most of the output; "
                "in the others they make less than a tenth",
                min(learned, default=0.0) > 0.5 and max(failed, default=0.0) < 0.1,
                f"share of the output {min(learned, default=0):.2f} and more in {len(learned)} networks that learn it, "
                f"at most {max(failed, default=0):.2f} in {len(failed)} others",
            ),
            Verdict(
                "A quarter of the neurons that finally hold a coordinate of the support do so before the network "
                f"passes {TRANSITION_ACCURACY:.0%}",
                bool(before) and all(held_at < passed for held_at, passed in before),
                f"in {sum(held_at < passed for held_at, passed in before)} of {len(before)} networks",
            ),
        ],
        tables=[
            Table(
                f"parity_mlp {data['preset']}, after {steps_text(data['networks']['teacher']['steps'][-1])} steps: "
                "mean (range) of the seeds",
                ["network", "neurons", "hold one of the support", "hold another", "share of the output", "accuracy"],
                rows,
            )
        ],
    )


if __name__ == "__main__":
    command(lambda: main(tyro.cli(StudyArguments, description=__doc__)))
