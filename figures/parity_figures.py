"""The parity figures, for the MLP and for GPT-2: a panel of the overview (figure 1) and the spike (figure 2).

`collect` reads runs and returns what is behind the pictures, small enough to be committed; the functions of `FIGURES`
draw it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from finding_runs import (
    Collected,
    FoundRun,
    belongs_to,
    by_seed,
    collect_parts,
    commits_of,
    made_with,
    only_one,
    probe_file,
    probe_result,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from common.distillation.phases import Phases, choose_checkpoints, find_phases
from common.parity.arguments import Model
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
from common.runs.names import EXECUTION_ARGUMENTS
from common.teachers.discovery import find_checkpoints
from parity_mlp.distill import PRESETS as STUDENTS
from parity_mlp.probe import ProbeArguments
from parity_mlp.train import PRESETS as TEACHERS

Draw = Callable[[dict[str, Any]], Figure]
PLACES = ("before", "inside", "after")
OVERVIEW_METHODS = ("ce", "one-shot", "progressive")
TRANSITION_ACCURACY = 0.95
"""Accuracy at which a network counts as having passed its transition."""
SIZES = {"mlp": ("width", "widths"), "gpt2": ("heads", "student_heads")}
"""How the size of a network is called as a teacher's argument, and as a student's."""
SHOWN_ARGUMENTS = {
    "mlp": ("d", "k", "width", "lr", "steps", "seed"),
    "gpt2": ("d", "k", "layers", "heads", "head_dim", "batch_size", "lr", "steps", "seed"),
}


def collect(found: Sequence[FoundRun], preset: str, model: Model = "mlp") -> Collected:
    """Curves, candidate checkpoints and correlations of a preset's runs, such as `scripts/reproduce.sh` makes.

    Args:
        found: runs of any setting.
        preset: the preset's name; only runs made with it as it is are used, and only students of its teacher.
        model: whose runs.

    Returns:
        What is always there: `preset`, `commands`, `versions`, `commits` and `teacher`. By part: `phases` of the
        teacher's accuracy, `candidates` for the first of two checkpoints, `students`, `two_shot`, `monomials`.

    Raises:
        MissingError: there is no teacher; the message names the command that makes it.
        UserError: there are two.
    """
    runs = [run for run in found if {"d", "k"} <= run.arguments.keys() and run.arguments.get("model", "mlp") == model]
    words = preset if model == "mlp" else f"{preset} --model {model}"
    train, distill = f"python -m parity_mlp.train {words}", f"python -m parity_mlp.distill {words}"
    two_shot = f"{distill} --methods two-shot --checkpoint before inside after"
    trained = [run for run in runs if not run.is_student]
    teacher = only_one(made_with(trained, asdict(TEACHERS[model][preset])), f"the teacher of {words}", train)
    records = teacher.records()
    steps = [record["step"] for record in records]
    taught = [run for run in runs if run.is_student and belongs_to(run, teacher)]

    def students(method: str, made_by: str, checkpoint: Sequence[str] = ()) -> dict[str, Any]:
        own = STUDENTS[model][preset]
        sizes = SIZES[model][1]
        one = {"methods": [method], sizes: getattr(own, sizes)[:1], "lr": own.lr[:1], "checkpoint": checkpoint}
        some = made_with(taught, {**asdict(own), **one}, free=("seeds", "teacher"))
        what = " ".join([method, "students", *(f"from {place}" for place in checkpoint), f"of {teacher.directory}"])
        return _students(list(by_seed(some, what, made_by).values()), model)

    def phases() -> Phases:
        return find_phases(steps, [1 - record["accuracy"] for record in records])

    def candidates() -> dict[str, int]:
        saved = [checkpoint.step for checkpoint in find_checkpoints(teacher.directory)]
        return dict(zip(PLACES, choose_checkpoints(phases(), saved), strict=True))

    parts = collect_parts(
        {
            "phases": lambda: {name: getattr(phases(), name) for name in ("start", "steepest", "end")},
            "candidates": candidates,
            "students": lambda: {method: students(method, distill) for method in OVERVIEW_METHODS},
            "two_shot": lambda: {place: students("two-shot", two_shot, [place]) for place in PLACES},
            "monomials": lambda: _monomials(teacher, trained),
        }
    )
    commands = {
        "teacher": train,
        "monomials": _probe_command(teacher, parts.data),
        "students": distill,
        "two_shot": two_shot,
    }
    data = {
        "preset": preset,
        "commands": [command for part, command in commands.items() if part == "teacher" or part in parts.data],
        "versions": teacher.config["versions"],
        "commits": commits_of([teacher, *taught]),
        "teacher": {
            "arguments": {argument: teacher.arguments[argument] for argument in SHOWN_ARGUMENTS[model]},
            "steps": steps,
            "accuracy": [record["accuracy"] for record in records],
            "loss": [round(record["loss"], 6) for record in records],
        },
        **parts.data,
    }
    return Collected(data, parts.errors)


def passed_at(steps: list[int], accuracy: list[float]) -> int | None:
    """First evaluated step with accuracy above `TRANSITION_ACCURACY`."""
    return next((step for step, value in zip(steps, accuracy, strict=True) if value > TRANSITION_ACCURACY), None)


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


FIGURES: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "figure1": (overview, ("students",)),
    "figure2": (spike, ("phases", "candidates", "monomials", "two_shot")),
    "figure2_degrees": (degrees, ("phases", "monomials")),
}
"""How each is drawn, and the parts of the data that it needs."""


def _is_gpt2(data: dict[str, Any]) -> bool:
    return "heads" in data["teacher"]["arguments"]


def _students(runs: Sequence[FoundRun], model: Model) -> dict[str, Any]:
    """The runs of all seeds of one method."""
    records = [run.records() for run in runs]
    arguments = runs[0].arguments
    size, sizes = SIZES[model]
    return {
        size: arguments[sizes][0],
        "lr": arguments["lr"][0],
        "first_steps": arguments["first_steps"],
        "seeds": [run.arguments["seeds"][0] for run in runs],
        "steps": [record["step"] for record in records[0]],
        "accuracy": [[record["accuracy"] for record in run] for run in records],
    }


def _monomials(teacher: FoundRun, trained: Sequence[FoundRun]) -> dict[str, Any]:
    """Correlations per degree and checkpoint: of every subset of the support, and percentiles 0, 50, 100 of the others.

    Beside the teacher's own checkpoints, those of runs that follow the same path and were probed with the same settings
    are taken in: they differ only in where they saved and, if nothing depends on it, in their last step.
    """
    own = probe_result(teacher, "monomials", f"python -m parity_mlp.probe --run {teacher.directory}")
    entries = {entry["step"]: entry for entry in own["checkpoints"]}
    for run in trained:
        if run is teacher or _path(run) != _path(teacher) or (path := probe_file(run, "monomials")) is None:
            continue
        probe = json.loads(path.read_bytes())
        if probe["settings"] == own["settings"]:
            entries |= {entry["step"]: entry for entry in probe["checkpoints"]}
    in_order = [entries[step] for step in sorted(entries)]
    return {
        "samples": own["settings"]["samples"],
        "steps": sorted(entries),
        "degrees": [
            {
                "degree": degree,
                "inside": [np.round(entry["degrees"][i]["inside"], 5).tolist() for entry in in_order],
                "outside_percentiles": [
                    np.percentile(entry["degrees"][i]["outside"], (0, 50, 100)).round(5).tolist() for entry in in_order
                ],
            }
            for i, degree in enumerate(own["settings"]["degrees"])
            if in_order[0]["degrees"][i]["inside"]  # none of a degree above k
        ],
    }


def _probe_command(teacher: FoundRun, data: Mapping[str, Any]) -> str:
    samples = data["monomials"]["samples"] if "monomials" in data else ProbeArguments.samples
    flags = [] if samples == ProbeArguments.samples else ["--samples", str(samples)]
    return " ".join(["python -m parity_mlp.probe --run", teacher.shown, *flags])


def _path(run: FoundRun) -> dict[str, Any]:
    """The arguments that decide where a run is at a step; those that are None do nothing."""
    arguments = run.arguments
    elsewhere = [*EXECUTION_ARGUMENTS, "checkpoint_every", "checkpoint_from", "adaptive_checkpoints"]
    annealed = arguments["end_label_temperature"] is not None
    if arguments["lr_schedule"] == "constant" and arguments["warmup"] == 0 and not annealed:
        elsewhere.append("steps")
    return {name: value for name, value in arguments.items() if name not in elsewhere and value is not None}


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
