"""The figures of BERT on PCFG: its panel of the overview (figure 1), the curriculum (figure 3), and nonterminals.

`collect` reads runs and returns what is behind the pictures, small enough to be committed; the other functions draw it.
"""

import re
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from finding_runs import complete_run, final_accuracies, probe_result
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from common.checkpoints import find_checkpoints
from common.distillation import first_checkpoint
from common.errors import UserError
from common.pcfg.probing import NonterminalArguments
from common.phases import find_phases
from common.plotting import (
    BLACK,
    METHODS,
    PAGE_WIDTH,
    PURPLE,
    Line,
    curve,
    legend_below,
    level,
    logarithmic_step_axis,
    new_figure,
    panel_title,
    shade_transition,
)
from common.runs import Run
from PCFG_mlm.distill import PRESETS
from PCFG_mlm.probe import NgramArguments

STUDENTS = ("ce", "one-shot", "progressive")
NGRAM = 3
MARKERS = "osv^D<>P"
BESIDE_THE_PROBE = {"majority": (":", "majority"), "bayes_optimal": ("-.", "Bayes-optimal")}
"""Dashes and label of what the probe's accuracy is compared with."""


def collect(runs: Path, preset: str) -> dict[str, Any]:
    """Curves, final accuracies and probes of a preset's runs, as made by `scripts/reproduce.sh`.

    Args:
        runs: directory that holds PCFG_mlm/.
        preset: the preset's name; only runs made with it as it is are used.

    Raises:
        UserError: a run or a probe is missing or incomplete; the message names the command that makes it.
    """
    root = runs / "PCFG_mlm"
    train, distill = f"python -m PCFG_mlm.train {preset}", f"python -m PCFG_mlm.distill {preset}"
    teacher = complete_run(root / preset, train)
    probe = "python -m PCFG_mlm.probe {} --run " + str(teacher.directory)
    bayes_optimal = probe_result(teacher, "bayes_optimal", probe.format("bayes-optimal"))
    ngrams = probe_result(teacher, "ngrams", probe.format("ngrams"))
    nonterminals = probe_result(teacher, "nonterminals", probe.format("nonterminals"))
    records = teacher.records()
    budgets = PRESETS[preset].steps
    heads = PRESETS[preset].student_heads[0]
    two_shot, two_shot_command = _two_shot(root, preset, heads, teacher)
    return {
        "preset": preset,
        "commands": [
            train,
            f"python -m PCFG_mlm.probe bayes-optimal --run runs/PCFG_mlm/{preset}",
            _probe_command(ngrams, "ngrams", NgramArguments(run=Path("runs/PCFG_mlm") / preset)),
            _probe_command(nonterminals, "nonterminals", NonterminalArguments(run=Path("runs/PCFG_mlm") / preset)),
            distill,
            two_shot_command,
        ],
        "versions": teacher.config["versions"],
        "teacher": {
            "arguments": {
                name: teacher.config["arguments"][name]
                for name in ("grammar", "start", "layers", "heads", "head_dim", "batch_size", "lr", "steps", "seed")
            },
            "steps": [record["step"] for record in records],
            "loss": [round(record["loss"], 5) for record in records],
            "accuracy": [round(record["accuracy"], 5) for record in records],
        },
        "phases": _phases(records),
        "bayes_optimal": {name: round(bayes_optimal[name], 5) for name in ("loss", "accuracy", "expected_accuracy")},
        "students": {
            method: {
                "heads": heads,
                "steps": list(budgets),
                **final_accuracies(
                    root,
                    {steps: f"{preset}-{method}-heads{heads}-steps{steps}" for steps in budgets},
                    distill,
                ),
            }
            for method in STUDENTS
        },
        "two_shot": two_shot,
        "ngrams": _ngrams(ngrams),
        "nonterminals": _nonterminals(nonterminals),
    }


def overview(data: dict[str, Any]) -> Figure:
    """Figure 1, PCFG panel: final accuracy of students against their steps, the teacher's, and the best possible."""
    figure, axes = new_figure(height=2.5)
    axis = axes[0, 0]
    for method, runs in data["students"].items():
        curve(axis, runs["steps"], runs["accuracy"], METHODS[method], mark_every_point=True)
    teacher = data["teacher"]
    for name, value, label, above in (
        ("bayes-optimal", data["bayes_optimal"]["accuracy"], "Bayes-optimal", True),
        ("teacher", teacher["accuracy"][-1], f"teacher, {EngFormatter(sep='')(teacher['steps'][-1])} steps", False),
    ):
        level(axis, [value], replace(METHODS[name], label=""))
        axis.annotate(
            label,
            (0.01, value),
            (0, 2 if above else -3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            verticalalignment="bottom" if above else "top",
            fontsize=7,
        )
    budgets = data["students"]["ce"]["steps"]
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(budgets))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("student's training steps")
    axis.set_ylabel("accuracy")
    _leave_room(axis, above=0.08)
    panel_title(axis, f"{data['teacher']['arguments']['grammar']}, masked tokens")
    legend_below(figure, 3, f"mean and range of {len(data['students']['ce']['seeds'])} seeds")
    return figure


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

    quartiles = np.asarray(ngrams["percentiles"])
    robust.fill_between(ngrams["steps"], quartiles[:, 0], quartiles[:, 2], color=PURPLE, alpha=0.2, linewidth=0)
    robust.plot(ngrams["steps"], quartiles[:, 1], color=PURPLE, linewidth=1.2, label="median and 25% to 75%")
    robust.set_yscale("log")
    robust.set_ylabel(rf"$M_\mathrm{{robust}}$, {NGRAM}-grams")
    if ngrams["bayes_optimal"] is not None:
        _bayes_optimal_robust(robust, ngrams["bayes_optimal"][1])
    panel_title(robust, f"(b) {NGRAM}-gram dependence")

    for method, runs in data["students"].items():
        if two_shot["steps"] in runs["steps"]:
            at = runs["steps"].index(two_shot["steps"])
            level(students, [accuracy[at] for accuracy in runs["accuracy"]], METHODS[method])
    curve(students, two_shot["checkpoints"], two_shot["accuracy"], METHODS["two-shot"], mark_every_point=True)
    students.set_ylabel("accuracy")
    panel_title(students, f"(c) students, {EngFormatter(sep='')(two_shot['steps'])} steps")

    for axis in axes[0]:
        _finish_teacher_axis(axis, data)
    students.set_xlabel("first checkpoint (step)")
    legend_below(figure, 4, f"students: mean and range of {len(two_shot['seeds'])} seeds")
    return figure


def nonterminals(data: dict[str, Any]) -> Figure:
    """Accuracy of the probe for nonterminals, one line per level of the tree, over the teacher's training."""
    figure, axes = new_figure(height=2.7)
    axis, found = axes[0, 0], data["nonterminals"]
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(found["levels"])))
    for entry, colour, marker in zip(found["levels"], colours, cycle(MARKERS)):
        line = Line(f"level {entry['level']}", to_hex(colour), "-", marker)
        curve(axis, found["steps"], [entry["accuracy"]], line)
        for name, (dashes, _) in BESIDE_THE_PROBE.items():
            if entry[name] is not None:
                level(axis, [entry[name]], Line("", line.colour, dashes))
    for name, (dashes, label) in BESIDE_THE_PROBE.items():
        if found["levels"][0][name] is not None:
            axis.plot([], [], color=BLACK, linestyle=dashes, linewidth=1.2, label=label)
    _finish_teacher_axis(axis, data)
    axis.set_ylabel("accuracy of the probe")
    panel_title(axis, "nonterminals")
    legend_below(figure, 3)
    return figure


FIGURES = {
    "figure1_PCFG_mlm": overview,
    "figure3_PCFG_mlm": curriculum,
    "figure_nonterminals_PCFG_mlm": nonterminals,
}


def _phases(records: list[dict[str, Any]]) -> dict[str, float] | None:
    """The phases of the teacher's loss; None if it has no transition, as after very few steps."""
    try:
        phases = find_phases([record["step"] for record in records], [record["loss"] for record in records])
    except UserError:
        return None
    return {name: round(step, 1) for name, step in asdict(phases).items()}


def _two_shot(root: Path, preset: str, heads: int, teacher: Run) -> tuple[dict[str, Any], str]:
    """Final accuracies by the first checkpoint, and the command; of several budgets the one with most checkpoints."""
    pattern = re.compile(rf"{preset}-two-shot-(\w+)-heads{heads}-steps(\d+)-seed\d+")
    names: dict[int, dict[str, int]] = {}
    saved = [checkpoint.step for checkpoint in find_checkpoints(teacher.directory)]
    for path in root.iterdir():
        if match := pattern.fullmatch(path.name):
            step = first_checkpoint(match[1], saved, teacher.directory, lambda record: record["loss"])
            names.setdefault(int(match[2]), {})[match[1]] = step
    if not names:
        raise UserError(
            f"no run {root / preset}-two-shot-*; make them by python -m PCFG_mlm.distill {preset} --methods two-shot, "
            "with the arguments in scripts/reproduce.sh"
        )
    budget = max(names, key=lambda steps: (len(names[steps]), steps))
    in_order = sorted(names[budget].items(), key=lambda item: item[1])
    flags = f"--methods two-shot --steps {budget} --checkpoint {' '.join(name for name, _ in in_order)}"
    made_by = f"python -m PCFG_mlm.distill {preset} {flags}"
    prefixes = {step: f"{preset}-two-shot-{name}-heads{heads}-steps{budget}" for name, step in in_order}
    final = final_accuracies(root, prefixes, made_by)
    one = Run(root / f"{preset}-two-shot-{in_order[0][0]}-heads{heads}-steps{budget}-seed{final['seeds'][0]}")
    first_steps = one.config["arguments"]["first_steps"]
    return {"steps": budget, "first_steps": first_steps, "checkpoints": list(prefixes), **final}, made_by


def _probe_command(result: dict[str, Any], name: str, defaults: NgramArguments | NonterminalArguments) -> str:
    """The command that made a probe's file, from the settings in it."""
    flags = [
        f"--{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in result["settings"].items()
        if value != (list(default) if isinstance(default := getattr(defaults, key), tuple) else default)
    ]
    return " ".join([f"python -m PCFG_mlm.probe {name} --run {defaults.run.as_posix()}", *flags])


def _ngrams(result: dict[str, Any]) -> dict[str, Any]:
    """25th, 50th and 75th percentiles of M_robust per checkpoint, and of the Bayes-optimal predictor if it is there."""

    def quartiles(probe: dict[str, Any]) -> list[float]:
        found = next(entry["percentiles"] for entry in probe["robust"] if entry["n"] == NGRAM)
        return [float(f"{found[key]:.4g}") for key in ("25", "50", "75")]

    return {
        "n": NGRAM,
        "pairs": result["checkpoints"][0]["pairs"],
        "steps": [entry["step"] for entry in result["checkpoints"]],
        "percentiles": [quartiles(entry) for entry in result["checkpoints"]],
        "bayes_optimal": quartiles(result["bayes_optimal"]) if "bayes_optimal" in result else None,
    }


def _nonterminals(result: dict[str, Any]) -> dict[str, Any]:
    """Accuracy per checkpoint, the majority's and, if it is there, the best possible, of each level below the root."""
    optimal = result.get("bayes_optimal")
    return {
        "steps": [entry["step"] for entry in result["checkpoints"]],
        "levels": [
            {
                "level": last["level"],
                "majority": round(last["majority"], 5),
                "bayes_optimal": None if optimal is None else round(optimal["levels"][i]["accuracy"], 5),
                "accuracy": [round(entry["levels"][i]["accuracy"], 5) for entry in result["checkpoints"]],
            }
            for i, last in enumerate(result["checkpoints"][-1]["levels"])
        ],
    }


def _finish_teacher_axis(axis: Axes, data: dict[str, Any]) -> None:
    """Shade the transition, and show the teacher's steps from its first checkpoint on, the same in all panels."""
    if data["phases"] is not None:
        shade_transition(axis, data["phases"]["start"], data["phases"]["end"])
    logarithmic_step_axis(axis, "teacher's training steps", data["ngrams"]["steps"][0], data["teacher"]["steps"][-1])


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


def _leave_room(axis: Axes, above: float) -> None:
    """Raise the top of an axis by a share of its height."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + above * (high - low))
