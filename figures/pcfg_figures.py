"""The figures of BERT and GPT-2 on PCFG: their panels of the overview (figure 1), the curriculum (figure 3), and what
the teacher knows of nonterminals (BERT) or writes (GPT-2) over its training.

`collect` reads runs and returns what is behind the pictures, small enough to be committed; the other functions draw it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args

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
from common.pcfg import probing
from common.pcfg.probing import NonterminalArguments
from common.pcfg.training import PLURAL
from common.phases import find_phases
from common.plotting import (
    BLACK,
    COLUMN_WIDTH,
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
from common.runs import SURROUNDINGS, Run, default_name
from PCFG_autoregressive.data import LabelLevel
from PCFG_autoregressive.distill import PRESETS as AUTOREGRESSIVE
from PCFG_autoregressive.probe import GenerationArguments
from PCFG_mlm.distill import PRESETS as MLM
from PCFG_mlm.probe import NgramArguments

Setting = Literal["PCFG_mlm", "PCFG_autoregressive"]
PRESETS: dict[Setting, Mapping[str, Any]] = {"PCFG_mlm": MLM, "PCFG_autoregressive": AUTOREGRESSIVE}
PROBES: dict[Setting, dict[str, Callable[..., Any]]] = {
    "PCFG_mlm": {"ngrams": NgramArguments, "nonterminals": NonterminalArguments},
    "PCFG_autoregressive": {"ngrams": probing.NgramArguments, "generation": GenerationArguments},
}
"""Those that are drawn, and their arguments."""

STUDENTS = ("ce", "one-shot", "progressive")
NGRAM = 3
MARKERS = "osv^D<>P"
BESIDE_THE_PROBE = {"majority": (":", "majority"), "bayes_optimal": ("-.", "Bayes-optimal")}
"""Dashes and label of what the probe's accuracy is compared with."""


def collect(runs: Path, preset: str, setting: Setting = "PCFG_mlm") -> dict[str, Any]:
    """Curves, final accuracies and probes of a preset's runs, as made by `scripts/reproduce.sh`.

    Of GPT-2 there are also final accuracies at other label levels, if a teacher was trained on them.

    Args:
        runs: directory that holds PCFG_mlm/ or PCFG_autoregressive/.
        preset: the preset's name; apart from the label level only runs made with it as it is are used.
        setting: whose runs.

    Raises:
        UserError: a run or a probe is missing or incomplete; the message names the command that makes it.
    """
    root = runs / setting
    train, distill = f"python -m {setting}.train {preset}", f"python -m {setting}.distill {preset}"
    teacher = complete_run(root / preset, train)
    own = _panel(root, preset, setting, teacher)
    made_by, probed = [], {}
    for name, arguments in PROBES[setting].items():
        run = _writer(root, preset, teacher) if name == "generation" else teacher
        probe = f"python -m {setting}.probe {name} --run"
        result = probe_result(run, name, f"{probe} {run.directory}")
        made_by.append(_probe_command(result, probe, arguments(run=Path("runs") / setting / run.directory.name)))
        probed[name] = SUMMARIES[name](result)
        if name == "generation":
            probed[name]["phases"] = _phases(run.records())
    two_shot, two_shot_command = _two_shot(root, preset, setting, teacher)
    bayes_optimal = f"python -m {setting}.probe bayes-optimal --run runs/{setting}/{preset}"
    levels = {"other_levels": _other_levels(root, preset)} if setting == "PCFG_autoregressive" else {}
    return {
        "preset": preset,
        "commands": [train, bayes_optimal, *made_by, distill, two_shot_command],
        "versions": teacher.config["versions"],
        **own,
        "phases": _phases(teacher.records()),
        "two_shot": two_shot,
        **probed,
        **levels,
    }


def overview(data: dict[str, Any]) -> Figure:
    """Figure 1, PCFG panels: final accuracy of students against their steps, the teacher's, and the best possible."""
    panels = [data, *data.get("other_levels", ())]
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
    for method, runs in panel["students"].items():
        curve(axis, runs["steps"], runs["accuracy"], METHODS[method], mark_every_point=True)
    teacher = panel["teacher"]
    for name, value, label, above in (
        ("bayes-optimal", panel["bayes_optimal"]["accuracy"], "Bayes-optimal", True),
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
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(panel["students"]["ce"]["steps"]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("student's training steps")
    _leave_room(axis, above=0.08)
    panel_title(axis, f"{teacher['arguments']['grammar']}, {_predicted(panel)}")


def _predicted(panel: dict[str, Any]) -> str:
    """What models are asked for."""
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
        _finish_teacher_axis(axis, data["phases"], ngrams["steps"][0], teacher["steps"][-1])
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
    _finish_teacher_axis(axis, data["phases"], found["steps"][0], data["teacher"]["steps"][-1])
    axis.set_ylabel("accuracy of the probe")
    panel_title(axis, "nonterminals")
    legend_below(figure, 3)
    return figure


def generation(data: dict[str, Any]) -> Figure:
    """Share of the teacher's continuations that the grammar accepts, over its training."""
    figure, axes = new_figure(height=2.5)
    axis, found = axes[0, 0], data["generation"]
    curve(axis, found["steps"], [found["accepted"]], replace(METHODS["teacher"], dashes="-"))
    _finish_teacher_axis(axis, found["phases"], found["steps"][0], found["steps"][-1])
    axis.set_ylim(0, 1)
    axis.set_ylabel("share that the grammar accepts")
    panel_title(axis, f"{found['given']} tokens given, up to {found['tokens']} written")
    legend_below(figure, 2)
    return figure


MLM_FIGURES = {
    "figure1_PCFG_mlm": overview,
    "figure3_PCFG_mlm": curriculum,
    "figure_nonterminals_PCFG_mlm": nonterminals,
}
AUTOREGRESSIVE_FIGURES = {
    "figure1_PCFG_autoregressive": overview,
    "figure3_PCFG_autoregressive": curriculum,
    "figure_generation_PCFG_autoregressive": generation,
}


def _panel(
    root: Path, preset: str, setting: Setting, teacher: Run, flags: str = "", suffix: str = ""
) -> dict[str, Any]:
    """The teacher, the best possible, and the final accuracies of students, at the label level of a teacher.

    Args:
        root: directory of the setting's runs.
        preset: the preset's name.
        setting: whose runs.
        teacher: of the students.
        flags: of the command that makes the students, after the preset.
        suffix: of the students' names.
    """
    arguments, records = teacher.config["arguments"], teacher.records()
    made_by = f"python -m {setting}.probe bayes-optimal --run {teacher.directory}"
    bayes_optimal = probe_result(teacher, "bayes_optimal", made_by)
    students = PRESETS[setting][preset]
    heads, budgets = students.student_heads[0], students.steps
    distill = f"python -m {setting}.distill {preset}{flags}"
    return {
        **({"label_level": arguments["label_level"]} if setting == "PCFG_autoregressive" else {}),
        "teacher": {
            "arguments": {
                name: arguments[name]
                for name in ("grammar", "start", "layers", "heads", "head_dim", "batch_size", "lr", "steps", "seed")
            },
            "steps": [record["step"] for record in records],
            "loss": [round(record["loss"], 5) for record in records],
            "accuracy": [round(record["accuracy"], 5) for record in records],
        },
        "bayes_optimal": {name: round(bayes_optimal[name], 5) for name in ("loss", "accuracy", "expected_accuracy")},
        "students": {
            method: {
                "heads": heads,
                "steps": list(budgets),
                **final_accuracies(
                    root,
                    {steps: f"{preset}-{method}-heads{heads}-steps{steps}" for steps in budgets},
                    distill,
                    suffix,
                ),
            }
            for method in STUDENTS
        },
    }


def _other_levels(root: Path, preset: str) -> list[dict[str, Any]]:
    """Panels of the label levels, other than the preset's, on which a teacher was trained."""
    students = AUTOREGRESSIVE[preset]
    panels = []
    for depth in get_args(LabelLevel):
        name = default_name(replace(students, label_level=depth), students, preset)
        teacher = Run(root / name)
        if depth == students.label_level or not teacher.complete:
            continue
        own, others = (f"runs/{root.name}/{run}" for run in (preset, name))
        suffix = default_name(
            replace(students, label_level=depth, teacher=others),
            replace(students, teacher=own),
            "",
            exclude=(*SURROUNDINGS, *PLURAL),
        )
        flags = f" --label-level {depth} --teacher {others}"
        panels.append(_panel(root, preset, "PCFG_autoregressive", teacher, flags, suffix))
    return panels


def _writer(root: Path, preset: str, teacher: Run) -> Run:
    """The teacher of all tokens: only such a one can write sentences."""
    students = AUTOREGRESSIVE[preset]
    if students.label_level == "all":
        return teacher
    name = default_name(replace(students, label_level="all"), students, preset)
    return complete_run(root / name, f"python -m PCFG_autoregressive.train {preset} --label-level all")


def _phases(records: list[dict[str, Any]]) -> dict[str, float] | None:
    """The phases of the teacher's loss; None if it has no transition, as after very few steps."""
    try:
        phases = find_phases([record["step"] for record in records], [record["loss"] for record in records])
    except UserError:
        return None
    return {name: round(step, 1) for name, step in asdict(phases).items()}


def _two_shot(root: Path, preset: str, setting: Setting, teacher: Run) -> tuple[dict[str, Any], str]:
    """Final accuracies by the first checkpoint, and the command; of several budgets the one with most checkpoints."""
    heads = PRESETS[setting][preset].student_heads[0]
    pattern = re.compile(rf"{preset}-two-shot-(\w+)-heads{heads}-steps(\d+)-seed\d+")
    names: dict[int, dict[str, int]] = {}
    saved = [checkpoint.step for checkpoint in find_checkpoints(teacher.directory)]
    for path in root.iterdir():
        if match := pattern.fullmatch(path.name):
            step = first_checkpoint(match[1], saved, teacher.directory, lambda record: record["loss"])
            names.setdefault(int(match[2]), {})[match[1]] = step
    if not names:
        raise UserError(
            f"no run {root / preset}-two-shot-*; make them by python -m {setting}.distill {preset} --methods two-shot, "
            "with the arguments in scripts/reproduce.sh"
        )
    budget = max(names, key=lambda steps: (len(names[steps]), steps))
    in_order = sorted(names[budget].items(), key=lambda item: item[1])
    flags = f"--methods two-shot --steps {budget} --checkpoint {' '.join(name for name, _ in in_order)}"
    made_by = f"python -m {setting}.distill {preset} {flags}"
    prefixes = {step: f"{preset}-two-shot-{name}-heads{heads}-steps{budget}" for name, step in in_order}
    final = final_accuracies(root, prefixes, made_by)
    one = Run(root / f"{preset}-two-shot-{in_order[0][0]}-heads{heads}-steps{budget}-seed{final['seeds'][0]}")
    first_steps = one.config["arguments"]["first_steps"]
    return {"steps": budget, "first_steps": first_steps, "checkpoints": list(prefixes), **final}, made_by


def _probe_command(result: dict[str, Any], command: str, defaults: probing.Arguments) -> str:
    """The command that made a probe's file, from the settings in it; `command` is followed by the run."""
    flags = [
        f"--{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in result["settings"].items()
        if value != (list(default) if isinstance(default := getattr(defaults, key), tuple) else default)
    ]
    return " ".join([command, defaults.run.as_posix(), *flags])


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


def _generation(result: dict[str, Any]) -> dict[str, Any]:
    """Share of accepted continuations per checkpoint."""
    return {
        "steps": [entry["step"] for entry in result["checkpoints"]],
        "accepted": [round(entry["accepted"], 5) for entry in result["checkpoints"]],
        "given": result["given"],
        **{name: result["settings"][name] for name in ("tokens", "continuations")},
    }


SUMMARIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ngrams": _ngrams,
    "nonterminals": _nonterminals,
    "generation": _generation,
}
"""What is kept of a probe's file."""


def _finish_teacher_axis(axis: Axes, phases: dict[str, float] | None, first: float, last: float) -> None:
    """Shade the transition, and show the teacher's steps from `first` to `last`."""
    if phases is not None:
        shade_transition(axis, phases["start"], phases["end"])
    logarithmic_step_axis(axis, "teacher's training steps", first, last)


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
