"""The figures of BERT and GPT-2 on PCFG: their panels of the overview (figure 1), the curriculum (figure 3), and what
the teacher knows of nonterminals (BERT) or writes (GPT-2) over its training.

`collect` reads runs and returns what is behind the pictures, small enough to be committed; the functions of `FIGURES`
draw it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from finding_runs import (
    Collected,
    FoundRun,
    MissingError,
    belongs_to,
    by_key,
    collect_parts,
    commits_of,
    final_accuracies,
    made_with,
    only_one,
    probe_file,
    probe_result,
)
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from common.distillation.phases import find_phases
from common.distillation.supervision import first_checkpoint
from common.errors import UserError
from common.pcfg import probing, training
from common.pcfg.probing import NonterminalArguments
from common.pcfg.training import DistillArguments, TrainArguments, config_of, task_of
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
from common.teachers.discovery import find_checkpoints
from PCFG_autoregressive.distill import PRESETS as AUTOREGRESSIVE_STUDENTS
from PCFG_autoregressive.probe import GenerationArguments
from PCFG_autoregressive.train import PRESETS as AUTOREGRESSIVE_TEACHERS
from PCFG_autoregressive.training import SETTING as AUTOREGRESSIVE
from PCFG_mlm.distill import PRESETS as MLM_STUDENTS
from PCFG_mlm.probe import NgramArguments
from PCFG_mlm.train import PRESETS as MLM_TEACHERS
from PCFG_mlm.training import SETTING as MLM

Setting = Literal["PCFG_mlm", "PCFG_autoregressive"]
Draw = Callable[[dict[str, Any]], Figure]


@dataclass(frozen=True)
class Package:
    """A setting's presets and task."""

    setting: training.Setting
    teachers: Mapping[str, TrainArguments]
    students: Mapping[str, DistillArguments]

    @property
    def known_by(self) -> tuple[str, ...]:
        """Arguments by which a run of the setting is told from others."""
        return self.setting.known_by

    def arguments(self, arguments: training.Arguments) -> dict[str, Any]:
        """What the config.json of a run has, its grammar resolved."""
        return config_of(arguments, task_of(arguments, self.setting))


PACKAGES: dict[Setting, Package] = {
    "PCFG_mlm": Package(MLM, MLM_TEACHERS, MLM_STUDENTS),
    "PCFG_autoregressive": Package(AUTOREGRESSIVE, AUTOREGRESSIVE_TEACHERS, AUTOREGRESSIVE_STUDENTS),
}
PROBES: dict[Setting, dict[str, Callable[..., Any]]] = {
    "PCFG_mlm": {"ngrams": NgramArguments, "nonterminals": NonterminalArguments},
    "PCFG_autoregressive": {"ngrams": probing.NgramArguments, "generation": GenerationArguments},
}
"""Those that are drawn, and their arguments."""

STUDENTS = ("ce", "one-shot", "progressive")
TASK = ("label_level", "grammar", "start")
"""What a teacher of GPT-2 learns; those of a preset may differ in it."""
CHECKPOINTS = ("teacher_range", "teacher_every")
"""Which of a teacher's checkpoints progressive students learn from; that depends on the task."""
NGRAM = 3
MARKERS = "osv^D<>P"
BESIDE_THE_PROBE = {"majority": (":", "majority"), "bayes_optimal": ("-.", "Bayes-optimal")}
"""Dashes and label of what the probe's accuracy is compared with."""


def collect(found: Sequence[FoundRun], preset: str, setting: Setting = "PCFG_mlm") -> Collected:
    """Curves, final accuracies and probes of a preset's runs, such as `scripts/reproduce.sh` makes.

    Args:
        found: runs of any setting.
        preset: the preset's name; only runs made with it as it is are used, and only students of its teacher. What
            may differ is the budget of two-shot students, and, where a teacher of GPT-2 has another task (label level
            or grammar) and students or a probe of what it writes, this task, its students' budgets and checkpoints,
            and how often it was evaluated and saved.
        setting: whose runs.

    Returns:
        What is always there: `preset`, `commands`, `versions`, `commits`, `teacher` and its `phases` (None if it has no
        transition), and GPT-2's `label_level`. By part: `bayes_optimal`, `students`, `two_shot`, the probes in
        `PROBES`, and GPT-2's `other_tasks`.

    Raises:
        MissingError: there is no teacher; the message names the command that makes it.
        UserError: there are two.
    """
    package = PACKAGES[setting]
    runs = [run for run in found if {"grammar", "start", *package.known_by} <= run.arguments.keys()]
    train, distill = f"python -m {setting}.train {preset}", f"python -m {setting}.distill {preset}"
    wanted = package.arguments(package.teachers[preset])
    teacher = only_one(made_with(_trained(runs), wanted), f"the teacher of {setting} {preset}", train)
    made_by = {"teacher": train}
    taught = _students_of(teacher, runs)

    def probed(name: str) -> dict[str, Any]:
        run = _writer(runs, preset, teacher) if name == "generation" else teacher
        probe = f"python -m {setting}.probe {name} --run"
        result = probe_result(run, name, f"{probe} {run.directory}")
        made_by[name] = _probe_command(result, probe, PROBES[setting][name](run=Path(run.shown)))
        summary = SUMMARIES[name](result)
        if name != "generation":
            return summary
        if run is not teacher:
            made_by["writer"] = _train_command(run, preset)
        return {**summary, "grammar": run.arguments["grammar"], "phases": _phases(run.records())}

    def two_shot() -> dict[str, Any]:
        summary, made_by["two_shot"] = _two_shot(taught, preset, setting, teacher)
        return summary

    def other_tasks() -> list[dict[str, Any]]:
        panels, commands = _other_tasks(runs, preset)
        of_other_tasks.extend(commands)
        return panels

    of_other_tasks: list[str] = []
    own = _panel(runs, preset, setting, teacher, package.students[preset].steps)
    others = {"other_tasks": other_tasks} if setting == "PCFG_autoregressive" else {}
    probes = {name: partial(probed, name) for name in PROBES[setting]}
    parts = collect_parts({**own, **probes, "two_shot": two_shot, **others})
    for part, made in (("bayes_optimal", _bayes_optimal_command(setting, teacher.shown)), ("students", distill)):
        if part in parts.data:
            made_by[part] = made
    order = ("teacher", "bayes_optimal", "ngrams", "nonterminals", "writer", "generation", "students", "two_shot")
    data = {
        "preset": preset,
        "commands": list(dict.fromkeys([*(made_by[part] for part in order if part in made_by), *of_other_tasks])),
        "versions": teacher.config["versions"],
        "commits": commits_of([teacher, *taught]),
        **_teacher(setting, teacher),
        "phases": _phases(teacher.records()),
        **parts.data,
    }
    return Collected(data, parts.errors)


def overview(data: dict[str, Any]) -> Figure:
    """Figure 1, PCFG panels: final accuracy of students against their steps, the teacher's, and the best possible."""
    panels = [data, *data.get("other_tasks", ())]
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
    panel_title(axis, f"{teacher['arguments']['grammar']}, {predicted(panel)}")


def predicted(panel: Mapping[str, Any]) -> str:
    """What models are asked for at a panel's label level."""
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
    panel_title(axis, f"{found['grammar']}, {found['given']} tokens given, {found['tokens']} written")
    legend_below(figure, 2)
    return figure


OVERVIEW = ("bayes_optimal", "students")
CURRICULUM = ("bayes_optimal", "ngrams", "students", "two_shot")
FIGURES: dict[Setting, dict[str, tuple[Draw, tuple[str, ...]]]] = {
    "PCFG_mlm": {
        "figure1": (overview, OVERVIEW),
        "figure3": (curriculum, CURRICULUM),
        "figure_nonterminals": (nonterminals, ("nonterminals",)),
    },
    "PCFG_autoregressive": {
        "figure1": (overview, (*OVERVIEW, "other_tasks")),
        "figure3": (curriculum, CURRICULUM),
        "figure_generation": (generation, ("generation",)),
    },
}
"""How each is drawn, and the parts of the data that it needs."""


def _trained(runs: Sequence[FoundRun]) -> list[FoundRun]:
    return [run for run in runs if not run.is_student]


def _students_of(teacher: FoundRun, runs: Sequence[FoundRun]) -> list[FoundRun]:
    return [run for run in runs if run.is_student and belongs_to(run, teacher)]


def _teacher(setting: Setting, teacher: FoundRun) -> dict[str, Any]:
    """What a teacher was and how it learned."""
    records, names = teacher.records(), ("grammar", "start", "layers", "heads", "head_dim", "batch_size", "lr", "steps")
    return {
        **({"label_level": teacher.arguments["label_level"]} if setting == "PCFG_autoregressive" else {}),
        "teacher": {
            "arguments": {name: teacher.arguments[name] for name in (*names, "seed")},
            "steps": [record["step"] for record in records],
            "loss": [round(record["loss"], 5) for record in records],
            "accuracy": [round(record["accuracy"], 5) for record in records],
        },
    }


def _panel(
    runs: Sequence[FoundRun],
    preset: str,
    setting: Setting,
    teacher: FoundRun,
    budgets: Sequence[int],
    flags: str = "",
    free: Collection[str] = (),
) -> dict[str, Callable[[], Any]]:
    """Parts: the best possible, and the final accuracies of students, on the task of a teacher.

    Args:
        runs: of the setting.
        preset: the preset's name.
        setting: whose runs.
        teacher: of the students.
        budgets: steps of the students.
        flags: of the command that makes the students, after the preset.
        free: arguments of the students that may differ from the preset's.
    """

    def bayes_optimal() -> dict[str, float]:
        result = probe_result(teacher, "bayes_optimal", _bayes_optimal_command(setting, teacher.directory))
        return {name: round(result[name], 5) for name in ("loss", "accuracy", "expected_accuracy")}

    def students(method: str) -> dict[str, Any]:
        heads = PACKAGES[setting].students[preset].student_heads[0]
        one = {**_same_task(setting, preset, teacher), "methods": [method], "student_heads": [heads], "checkpoint": []}
        some = made_with(_students_of(teacher, runs), one, free=("seeds", "steps", "teacher", *free))
        final = final_accuracies(
            {steps: [run for run in some if run.arguments["steps"] == [steps]] for steps in budgets},
            lambda steps: f"{method} students of {teacher.directory} and {steps} steps",
            " ".join([f"python -m {setting}.distill {preset}", *([flags] if flags else [])]),
        )
        return {"heads": heads, "steps": list(budgets), **final}

    return {
        "bayes_optimal": bayes_optimal,
        "students": lambda: {method: students(method) for method in STUDENTS},
    }


def _same_task(setting: Setting, preset: str, teacher: FoundRun) -> dict[str, Any]:
    """The arguments of a preset's students, with the task of their teacher."""
    arguments = PACKAGES[setting].arguments(PACKAGES[setting].students[preset])
    return arguments | {name: teacher.arguments[name] for name in (*TASK, "rules") if name in arguments}


def _other_tasks(runs: Sequence[FoundRun], preset: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Panels of the tasks, other than the preset's, whose teacher has students; and the commands behind them."""
    own = _task(PACKAGES["PCFG_autoregressive"].arguments(AUTOREGRESSIVE_TEACHERS[preset]))
    taught = [run for run in _trained_on(TASK, runs, preset) if _students_of(run, runs)]
    teachers = by_key(taught, lambda run: _task(run.arguments), lambda task: f"the teacher of {' '.join(task)}")
    panels, commands = [], []
    for task, teacher in sorted(teachers.items()):
        if task == own:
            continue
        students = _students_of(teacher, runs)
        budgets = sorted({run.arguments["steps"][0] for run in students})
        flags = f"{_different(students[-1], AUTOREGRESSIVE_STUDENTS[preset])} --teacher {teacher.shown}"
        if budgets != list(AUTOREGRESSIVE_STUDENTS[preset].steps):
            flags += f" --steps {' '.join(map(str, budgets))}"
        parts = _panel(runs, preset, "PCFG_autoregressive", teacher, budgets, flags, CHECKPOINTS)
        collected = {name: part() for name, part in parts.items()}
        panels.append({**_teacher("PCFG_autoregressive", teacher), **collected})
        commands += [
            _train_command(teacher, preset),
            _bayes_optimal_command("PCFG_autoregressive", teacher.shown),
            f"python -m PCFG_autoregressive.distill {preset} {flags}",
        ]
    return panels, commands


def _task(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(arguments[name]) for name in TASK)


def _trained_on(free: Collection[str], runs: Sequence[FoundRun], preset: str, **task: str) -> list[FoundRun]:
    """Teachers of a task, however often they were evaluated and saved.

    Args:
        free: what of the task may be anything.
        runs: of the setting.
        preset: the preset's name.
        task: what differs from the preset's task.
    """
    wanted = PACKAGES["PCFG_autoregressive"].arguments(AUTOREGRESSIVE_TEACHERS[preset]) | task
    return made_with(_trained(runs), wanted, free=(*free, "rules", "eval_every", "checkpoint_every"))


def _writer(runs: Sequence[FoundRun], preset: str, teacher: FoundRun) -> FoundRun:
    """The teacher of all tokens: only such a one can write sentences. Of several, the one whose writing was probed."""
    if AUTOREGRESSIVE_TEACHERS[preset].label_level == "all":
        return teacher
    writers = _trained_on(("grammar", "start"), runs, preset, label_level="all")
    probed = [run for run in writers if probe_file(run, "generation") is not None]
    train = f"python -m PCFG_autoregressive.train {preset} --label-level all"
    return only_one(probed or writers[:1], f"the writer of PCFG_autoregressive {preset}", train)


def _train_command(run: FoundRun, preset: str) -> str:
    """The command that made a teacher of GPT-2 of another task than the preset's."""
    flags = _different(run, AUTOREGRESSIVE_TEACHERS[preset])
    out = [] if run.arguments["out"] is None else [f"--out {run.shown}"]
    return " ".join([f"python -m PCFG_autoregressive.train {preset}", flags, *out])


def _different(run: FoundRun, preset: training.Arguments) -> str:
    """Flags of what differs in a run, of the task, of how often it was evaluated and saved, and of its checkpoints."""
    names = [*TASK, "eval_every", "checkpoint_every", *CHECKPOINTS]
    given = {name: run.arguments[name] for name in names if name in run.arguments}
    usual = PACKAGES["PCFG_autoregressive"].arguments(preset)
    return " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
        if value != (list(own) if isinstance(own := usual[name], tuple) else own)
    )


def _bayes_optimal_command(setting: Setting, directory: Path | str) -> str:
    return f"python -m {setting}.probe bayes-optimal --run {directory}"


def _phases(records: list[dict[str, Any]]) -> dict[str, float] | None:
    """The phases of the teacher's loss; None if it has no transition, as after very few steps."""
    try:
        phases = find_phases([record["step"] for record in records], [record["loss"] for record in records])
    except UserError:
        return None
    return {name: round(step, 1) for name, step in asdict(phases).items()}


def _two_shot(
    taught: Sequence[FoundRun], preset: str, setting: Setting, teacher: FoundRun
) -> tuple[dict[str, Any], str]:
    """Final accuracies by the first checkpoint, and the command; of several budgets the one with most checkpoints.

    Of two names for one checkpoint, such as 500 and inside, the number is preferred.
    """
    heads = PACKAGES[setting].students[preset].student_heads[0]
    one = {**_same_task(setting, preset, teacher), "methods": ["two-shot"], "student_heads": [heads]}
    some = made_with(taught, one, free=("seeds", "steps", "teacher", "checkpoint"))
    if not some:
        raise MissingError(
            f"there are no two-shot students of {teacher.directory}; make them by python -m {setting}.distill "
            f"{preset} --methods two-shot, with the arguments in scripts/reproduce.sh"
        )
    saved = [checkpoint.step for checkpoint in find_checkpoints(teacher.directory)]
    budgets: dict[int, dict[str, list[FoundRun]]] = {}
    for run in some:
        names = budgets.setdefault(run.arguments["steps"][0], {})
        names.setdefault(run.arguments["checkpoint"][0], []).append(run)
    budget = max(budgets, key=lambda steps: (len(budgets[steps]), steps))
    names_at: dict[int, str] = {}
    for name in sorted(budgets[budget]):  # digits come before letters
        names_at.setdefault(first_checkpoint(name, saved, teacher.directory, lambda record: record["loss"]), name)
    in_order = sorted(names_at)
    checkpoints = " ".join(names_at[step] for step in in_order)
    made_by = f"python -m {setting}.distill {preset} --methods two-shot --steps {budget} --checkpoint {checkpoints}"
    final = final_accuracies(
        {step: budgets[budget][names_at[step]] for step in in_order},
        lambda step: f"two-shot students from {names_at[step]} of {teacher.directory} and {budget} steps",
        made_by,
    )
    first_steps = some[0].arguments["first_steps"]
    return {"steps": budget, "first_steps": first_steps, "checkpoints": in_order, **final}, made_by


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
