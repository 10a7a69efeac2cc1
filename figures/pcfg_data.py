"""Collect the data behind the figures of BERT and GPT-2 on grammars from runs, small enough to be committed.

`pcfg_figures.py` draws them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from finding_runs import (
    Collected,
    FoundRun,
    Part,
    collect_parts,
    only_run,
    probe_file,
    probe_result,
    runs_by_key,
    students_of,
    with_arguments,
)
from language_model_data import (
    NGRAM,
    compared_students,
    paired_students,
    phases_of,
    robust_quartiles,
    teacher_data,
    teachers_among,
    transition_of,
    two_shot_students,
)

from common.language_models.setting import Setting, config_of, task_of
from PCFG_autoregressive.distill import PRESETS as AUTOREGRESSIVE_STUDENTS
from PCFG_autoregressive.train import PRESETS as AUTOREGRESSIVE_TEACHERS
from PCFG_autoregressive.training import SETTING as AUTOREGRESSIVE
from PCFG_mlm.distill import PRESETS as MLM_STUDENTS
from PCFG_mlm.train import PRESETS as MLM_TEACHERS
from PCFG_mlm.training import SETTING as MLM

SettingName = Literal["PCFG_mlm", "PCFG_autoregressive"]


@dataclass(frozen=True)
class Package:
    """A setting and its presets."""

    setting: Setting
    teachers: Mapping[str, Any]
    students: Mapping[str, Any]

    def config(self, arguments: Any) -> dict[str, Any]:
        """The arguments in the config.json of a run, its grammar resolved."""
        return config_of(arguments, task_of(arguments, self.setting), self.setting)


PACKAGES: dict[SettingName, Package] = {
    "PCFG_mlm": Package(MLM, MLM_TEACHERS, MLM_STUDENTS),
    "PCFG_autoregressive": Package(AUTOREGRESSIVE, AUTOREGRESSIVE_TEACHERS, AUTOREGRESSIVE_STUDENTS),
}
TASK = ("label_level", "grammar", "start")
"""Arguments that define the task of a GPT-2 teacher; teachers of a preset may differ in them."""
CHECKPOINTS = ("teacher_range", "teacher_every")
"""Arguments that choose the checkpoints of progressive students; good values depend on the task."""


def collect(found: Sequence[FoundRun], preset: str, setting: SettingName = "PCFG_mlm") -> Collected:
    """Curves, final accuracies and probe results of a preset's runs, such as `scripts/reproduce.sh` makes.

    Args:
        found: runs of any setting.
        preset: its name. Only runs with exactly its arguments are used, and only students of its teacher. Two-shot
            students may have another budget of steps. GPT-2 teachers may have another task (label level or grammar)
            and other intervals of evaluation and checkpoints, if they have students or their generation was probed;
            their students may have other budgets and checkpoints.
        setting: whose runs.

    Returns:
        Always: `setting`, `preset`, `commands`, `versions`, `commits`, `teacher`, its `phases` (None without a
        transition) and, for GPT-2, `label_level`. By part: `bayes_optimal`, the probes in `SUMMARIES`, `students`,
        `two_shot`, for GPT-2 `other_tasks`, and of the preset workstation `paired`.

    Raises:
        MissingError: there is no teacher; the message names the command that makes it.
        UserError: there are two.
    """
    package = PACKAGES[setting]
    runs = [run for run in found if run.setting == setting]
    preset_teachers = with_arguments(teachers_among(runs), package.config(package.teachers[preset]))
    teacher = only_run(preset_teachers, f"the teacher of {setting} {preset}", f"python -m {setting}.train {preset}")
    students = students_of(teacher, runs)
    panel = _panel(runs, preset, setting, teacher, package.students[preset].steps)
    parts = {
        "bayes_optimal": panel["bayes_optimal"],
        "ngrams": partial(_probe, teacher, "ngrams"),
        "windows": partial(_probe, teacher, "windows"),
        **(
            {"nonterminals": partial(_probe, teacher, "nonterminals")}
            if setting == "PCFG_mlm"
            else {"generation": lambda: _generation(runs, preset, teacher)}
        ),
        "students": panel["students"],
        "two_shot": lambda: two_shot_students(
            teacher,
            students,
            same_task(preset, teacher),
            f"python -m {setting}.distill {preset} --methods two-shot",
        ),
        **({"paired": lambda: _paired(runs, preset, setting, teacher)} if preset == "workstation" else {}),
        **({"other_tasks": lambda: _other_tasks(runs, preset)} if setting == "PCFG_autoregressive" else {}),
    }
    always = {**_teacher_data(teacher), "phases": phases_of(transition_of(teacher))}
    return collect_parts(preset, teacher, students, always, parts)


def _teacher_data(teacher: FoundRun) -> dict[str, Any]:
    """The main arguments of a teacher, and its learning curve."""
    names = ("grammar", "start", "layers", "heads", "head_dim", "batch_size", "lr", "steps", "seed")
    label_level = {"label_level": teacher.arguments["label_level"]} if "label_level" in teacher.arguments else {}
    return {**label_level, "teacher": teacher_data(teacher, names)}


def _panel(
    runs: Sequence[FoundRun],
    preset: str,
    setting: SettingName,
    teacher: FoundRun,
    budgets: Sequence[int],
    flags: str = "",
    free: Collection[str] = (),
) -> dict[str, Callable[[], Part]]:
    """Parts on the task of a teacher: the best possible values, and the final accuracies of its students.

    Args:
        runs: of the setting.
        preset: its name.
        setting: whose runs.
        teacher: of the students.
        budgets: steps of the students.
        flags: of the command that makes the students, after the preset.
        free: arguments of the students that may differ from the preset's.
    """

    def bayes_optimal() -> Part:
        command = f"python -m {setting}.probe bayes-optimal --run {teacher.directory}"
        result = probe_result(teacher, "bayes_optimal", command)
        values = {name: round(result[name], 5) for name in ("loss", "accuracy", "expected_accuracy")}
        return Part(values, [result.get("argv", ())])

    def students() -> Part:
        command = f"python -m {setting}.distill {preset}{flags}"
        return compared_students(teacher, runs, same_task(preset, teacher), budgets, command, free)

    return {"bayes_optimal": bayes_optimal, "students": students}


def same_task(preset: str, teacher: FoundRun) -> dict[str, Any]:
    """The arguments of a preset's students, with the task of their teacher."""
    package = PACKAGES[teacher.setting]  # type: ignore[index]
    arguments = package.config(package.students[preset])
    return arguments | {name: teacher.arguments[name] for name in (*TASK, "rules") if name in arguments}


def _paired(runs: Sequence[FoundRun], preset: str, setting: SettingName, teacher: FoundRun) -> Part:
    """Students of the preset's teacher and of those that differ from it in their seed alone, on all streams.

    A teacher without students is left out.
    """
    package = PACKAGES[setting]
    found = with_arguments(teachers_among(runs), package.config(package.teachers[preset]), free=("seed",))
    name = f"teachers of {setting} {preset} with seed"
    by_seed = runs_by_key(found, lambda run: run.arguments["seed"], lambda seed: f"{name} {seed}")
    others = [run for seed, run in sorted(by_seed.items()) if run is not teacher and students_of(run, runs)]
    command = f"scripts/reproduce.sh {setting} {preset}"
    arguments, budgets = same_task(preset, teacher), package.students[preset].steps
    return paired_students([teacher, *others], runs, arguments, budgets, command)


def _other_tasks(runs: Sequence[FoundRun], preset: str) -> Part:
    """Panels of tasks other than the preset's whose teachers have students."""
    own = _task(PACKAGES["PCFG_autoregressive"].config(AUTOREGRESSIVE_TEACHERS[preset]))
    with_students = [run for run in _trained_on(TASK, runs, preset) if students_of(run, runs)]
    teachers = runs_by_key(
        with_students, lambda run: _task(run.arguments), lambda task: f"teachers of {' '.join(task)}"
    )
    panels: list[dict[str, Any]] = []
    commands: list[Sequence[str]] = []
    for task, teacher in sorted(teachers.items()):
        if task == own:
            continue
        budgets = sorted({run.arguments["steps"][0] for run in students_of(teacher, runs)})
        flags = f" --label-level {task[0]} --grammar {task[1]} --steps {' '.join(map(str, budgets))}"
        flags += f" --teacher {teacher.directory}"
        panel = _panel(runs, preset, "PCFG_autoregressive", teacher, budgets, flags, CHECKPOINTS)
        parts = {name: part() for name, part in panel.items()}
        panels.append({**_teacher_data(teacher), **{name: part.data for name, part in parts.items()}})
        commands += [teacher.argv, *(argv for part in parts.values() for argv in part.commands)]
    return Part(panels, commands)


def _task(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(arguments[name]) for name in TASK)


def _trained_on(free: Collection[str], runs: Sequence[FoundRun], preset: str, **task: str) -> list[FoundRun]:
    """GPT-2 teachers of a task, with any intervals of evaluation and checkpoints.

    Args:
        free: arguments of the task that may have any value.
        runs: of the setting.
        preset: its name.
        task: arguments that differ from the preset's task.
    """
    wanted = PACKAGES["PCFG_autoregressive"].config(AUTOREGRESSIVE_TEACHERS[preset]) | task
    return with_arguments(teachers_among(runs), wanted, free=(*free, "rules", "eval_every", "checkpoint_every"))


def _probe(run: FoundRun, name: str) -> Part:
    """The summary of a probe of a run."""
    result = probe_result(run, name, f"python -m {run.setting}.probe {name} --run {run.directory}")
    return Part(SUMMARIES[name](result), [result.get("argv", ())])


def _generation(runs: Sequence[FoundRun], preset: str, teacher: FoundRun) -> Part:
    """The probe of generation, of the teacher if it predicts all tokens, or else of a run that does."""
    run, used = teacher, []
    if AUTOREGRESSIVE_TEACHERS[preset].label_level != "all":
        candidates = _trained_on(("grammar", "start"), runs, preset, label_level="all")
        probed = [run for run in candidates if probe_file(run, "generation") is not None]
        command = f"python -m PCFG_autoregressive.train {preset} --label-level all"
        run = only_run(probed or candidates[:1], f"a teacher of all tokens of PCFG_autoregressive {preset}", command)
        used = [run.argv]
    data, commands = _probe(run, "generation")
    return Part(
        {**data, "grammar": run.arguments["grammar"], "phases": phases_of(transition_of(run))}, [*used, *commands]
    )


def _ngram_summary(result: dict[str, Any]) -> dict[str, Any]:
    """25th, 50th and 75th percentiles of M_robust by checkpoint and, if it was probed, of the Bayes-optimal model, for
    n-grams of one length; medians by checkpoint for all lengths."""
    sizes, checkpoints = result["settings"]["sizes"], result["checkpoints"]
    return {
        "n": NGRAM,
        "pairs": checkpoints[0]["pairs"],
        "steps": [entry["step"] for entry in checkpoints],
        "percentiles": [robust_quartiles(entry) for entry in checkpoints],
        "bayes_optimal": robust_quartiles(result["bayes_optimal"]) if "bayes_optimal" in result else None,
        "sizes": sizes,
        "medians": [[robust_quartiles(entry, n)[1] for entry in checkpoints] for n in sizes],
    }


def _window_summary(result: dict[str, Any]) -> dict[str, Any]:
    """KL(posterior || model) by window and checkpoint, and how good the posterior of each window is."""
    windows, checkpoints = result["windows"], result["checkpoints"]
    return {
        "positions": result["positions"],
        "tokens": [window["tokens"] for window in windows],
        "entropy": [round(window["entropy"], 5) for window in windows],
        "accuracy": [round(window["expected_accuracy"], 5) for window in windows],
        "steps": [entry["step"] for entry in checkpoints],
        "kl": [[round(entry["windows"][i]["kl"], 5) for entry in checkpoints] for i in range(len(windows))],
    }


def _nonterminal_summary(result: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by checkpoint, of the majority and, if known, of the Bayes-optimal model, at each level."""
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


def _generation_summary(result: dict[str, Any]) -> dict[str, Any]:
    """Fraction of accepted continuations by checkpoint."""
    return {
        "steps": [entry["step"] for entry in result["checkpoints"]],
        "accepted": [round(entry["accepted"], 5) for entry in result["checkpoints"]],
        "given": result["given"],
        **{name: result["settings"][name] for name in ("tokens", "continuations")},
    }


SUMMARIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ngrams": _ngram_summary,
    "windows": _window_summary,
    "nonterminals": _nonterminal_summary,
    "generation": _generation_summary,
}
"""What is kept of a probe's file, by probe."""
