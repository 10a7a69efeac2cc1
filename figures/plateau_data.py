"""Collect the data behind the figure on plateaus from runs of `scripts/sweep_plateaus.sh`; `plateaus.py` draws them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from finding_runs import (
    FoundRun,
    MissingError,
    final_accuracies,
    probe_result,
    runs_by_key,
    students_of,
    with_arguments,
)
from language_model_data import METHODS, teacher_data, teachers_among
from pcfg_data import CHECKPOINTS, PACKAGES, TASK, SettingName, same_task

from common.errors import UserError, listed

TEACHER_SEED = 3
"""Of the sweep."""


def collect(found: Sequence[FoundRun], preset: str) -> dict[str, Any]:
    """The curves of teachers on several tasks, and the final accuracies of their students.

    Args:
        found: runs of any setting.
        preset: its name. Teachers differ from it in their task and have the seed of the sweep, students differ in
            budgets and checkpoints. A teacher counts if it has progressive students.

    Returns:
        `preset`, and in `settings` by name: `commands`, `versions`, `commits`, `budgets` of the students of the labels,
        `budget` of the others, `teacher_range` and `teacher_every` of progressive ones, and for each of `tasks` its
        `teacher`, the `best` possible accuracy, `seeds`, and `accuracy` by method, of shape (seeds, budgets), with a
        single budget but for `ce`.

    Raises:
        MissingError: there are no such runs, or a student or a probe is missing; the message names the command that
            makes it.
        UserError: two runs would be the same point, or distilled students have several budgets or schedules.
    """
    settings = {}
    for setting in PACKAGES:
        runs = [run for run in found if run.setting == setting]
        if teachers := _teachers(runs, preset, setting):
            settings[setting] = _of_setting(teachers, runs, preset)
    if not settings:
        raise MissingError(
            f"no teachers of {preset} with seed {TEACHER_SEED} and progressive students; create them with "
            f"scripts/sweep_plateaus.sh PCFG_autoregressive {preset}"
        )
    return {"preset": preset, "settings": settings}


def _teachers(runs: Sequence[FoundRun], preset: str, setting: SettingName) -> list[FoundRun]:
    """Those with progressive students, in the order of their tasks."""
    package = PACKAGES[setting]
    wanted = {**package.config(package.teachers[preset]), "seed": TEACHER_SEED}
    trained = with_arguments(teachers_among(runs), wanted, free=(*TASK, "rules"))
    by_task = runs_by_key(
        [run for run in trained if _students(run, runs, preset, "progressive")],
        lambda run: tuple(str(run.arguments[name]) for name in TASK if name in run.arguments),
        lambda task: f"teachers of {setting} {preset} on {' '.join(task)}",
    )
    return [by_task[task] for task in sorted(by_task)]


def _students(teacher: FoundRun, runs: Sequence[FoundRun], preset: str, method: str) -> list[FoundRun]:
    """Those of a method, with any budget and seed."""
    arguments = same_task(preset, teacher)
    own = {"methods": [method], "student_heads": arguments["student_heads"][:1], "checkpoint": []}
    free = ("seeds", "steps", "teacher", *CHECKPOINTS)
    return with_arguments(students_of(teacher, runs), {**arguments, **own}, free)


def _of_setting(teachers: Sequence[FoundRun], runs: Sequence[FoundRun], preset: str) -> dict[str, Any]:
    """The data of a setting; see `collect`."""
    setting = teachers[0].setting
    students = {
        teacher.directory: {method: _students(teacher, runs, preset, method) for method in METHODS}
        for teacher in teachers
    }

    def runs_of(*methods: str) -> list[FoundRun]:
        return [run for some in students.values() for method in methods for run in some[method]]

    def steps_of(*methods: str) -> set[int]:
        return {run.arguments["steps"][0] for run in runs_of(*methods)}

    distilled = sorted(steps_of("one-shot", "progressive"))
    if len(distilled) > 1:
        raise UserError(
            f"distilled students of {setting} {preset} have {listed(distilled)} steps: keep only those of one budget "
            "in the directory"
        )
    schedules = {json.dumps({name: run.arguments[name] for name in CHECKPOINTS}) for run in runs_of("progressive")}
    if len(schedules) > 1:
        raise UserError(
            f"progressive students of {setting} {preset} have different schedules, {listed(sorted(schedules))}: keep "
            "only those of one in the directory"
        )
    budgets = sorted({*steps_of("ce"), *distilled})
    taught = {"ce": budgets, "one-shot": distilled, "progressive": distilled}
    tasks: list[dict[str, Any]] = []
    commands: list[Sequence[str]] = []
    used: list[FoundRun] = []
    for teacher in teachers:
        own = students[teacher.directory]
        probe = probe_result(
            teacher, "bayes_optimal", f"python -m {setting}.probe bayes-optimal --run {teacher.directory}"
        )
        tasks.append({**_task(teacher, own, taught), "best": round(probe["accuracy"], 5)})
        used += [teacher, *chain(*own.values())]
        commands += [teacher.argv, probe.get("argv", ()), *(run.argv for run in chain(*own.values()))]
    return {
        "commands": list(dict.fromkeys(shlex.join(argv) for argv in commands if argv)),
        "versions": teachers[0].config["versions"],
        "commits": sorted({run.config["commit"] for run in used if run.config.get("commit")}),
        "budgets": budgets,
        "budget": distilled[0],
        **json.loads(schedules.pop()),
        "tasks": tasks,
    }


def _task(
    teacher: FoundRun, students: Mapping[str, Sequence[FoundRun]], budgets: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The data of a task but for the best possible accuracy.

    Args:
        teacher: trained on it.
        students: by method.
        budgets: of the students, by method.
    """
    command = f"scripts/sweep_plateaus.sh {teacher.setting} {teacher.arguments['preset']}"
    names = [name for name in (*TASK, "steps", "seed") if name in teacher.arguments]
    final = {
        method: final_accuracies(
            {steps: [run for run in some if run.arguments["steps"] == [steps]] for steps in budgets[method]},
            lambda steps, method=method: f"{method} students of {teacher.directory} and {steps} steps",  # type: ignore[misc]
            command,
        )
        for method, some in students.items()
    }
    seeds = final["ce"]["seeds"]
    for method in METHODS:
        if final[method]["seeds"] != seeds:
            raise MissingError(
                f"ce and {method} students of {teacher.directory} have different seeds; create the missing ones with "
                f"{command}"
            )
    return {
        "teacher": teacher_data(teacher, names),
        "seeds": seeds,
        "accuracy": {method: found["accuracy"] for method, found in final.items()},
    }
