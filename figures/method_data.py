"""Collect a preset's students of every method from runs: one group for each way of supervising them."""

import json
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal

import numpy as np
import parity_data
import pcfg_data
from finding_runs import FoundRun, MissingError, runs_by_key

from common.distillation.arguments import DistillationArguments
from common.errors import UserError
from common.parity import arguments as parity
from common.pcfg import arguments as pcfg
from common.runs.finding import passed_at
from common.runs.names import EXECUTION_ARGUMENTS
from common.runs.table import USED_BY

SettingName = Literal["parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive"]
PACKAGES: dict[str, Any] = dict([*parity_data.PACKAGES.items(), *pcfg_data.PACKAGES.items()])

SUPERVISION = {
    *(field.name for field in fields(DistillationArguments)),
    *parity.StudentArguments.design_defaults,
    *pcfg.StudentArguments.design_defaults,
    "steps",
}
"""Arguments that say how a student is supervised, and for how long."""
OF_RUN = ("teacher", "seeds", "stream_seed")
"""Arguments that tell the runs of a group apart."""


def collect(
    found: Sequence[FoundRun],
    setting: SettingName,
    preset: str,
    command: str,
    seeds: Collection[int],
    changed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Students by what they learn from.

    Args:
        found: runs of any setting.
        setting: whose students.
        preset: its name. Students have the first size and learning rate of the preset, and may differ from it in how
            they are supervised and for how many steps.
        command: that makes them.
        seeds: of students; others are left out.
        changed: arguments in which they all differ from the preset.

    Returns:
        `setting`, `preset`, `commands`, `versions`, `commits`, the preset's `first_steps`, and `groups`: for each its
        `method`, its `steps`, its `first_steps` (None if the method has none), the other `arguments` in which it
        differs from the preset, the number of `checkpoints` that it learns from and of `teacher_steps`, at which it
        needs an output of the teacher (the largest of its runs), and its `runs`: of each the seeds of its `teacher`
        (None without one), its `stream` and its weights, the step at which it `passed` 95% (None if it never does), the
        accuracy `at_switch`, after the first steps (None without them), and the final `accuracy`.

    Raises:
        MissingError: there is none.
        UserError: two runs are the same student.
    """
    usual = _usual(setting, preset) | dict(changed or {})
    teachers = {str(run.config.get("id")): int(run.arguments.get("seed", 0)) for run in found if not run.is_student}
    students = [
        run
        for run in found
        if run.setting == setting and run.is_student and run.arguments["seeds"][0] in seeds and _belongs(run, usual)
    ]
    if not students:
        raise MissingError(f"no such students of {setting} {preset}; create them with {command}")
    used = {str(run.arguments.get("teacher_id")) for run in students if _teacher_steps(run)} & teachers.keys()
    if len({teachers[teacher] for teacher in used}) < len(used):
        raise UserError(f"students of {setting} {preset} have two teachers of one seed: keep only those of one of them")
    groups: dict[str, list[FoundRun]] = {}
    for run in students:
        groups.setdefault(json.dumps(_way(run, usual)), []).append(run)
    return {
        "setting": setting,
        "preset": preset,
        "commands": list(dict.fromkeys(shlex.join(run.argv) for run in students if run.argv)),
        "versions": students[0].config["versions"],
        "commits": sorted({run.config["commit"] for run in students if run.config.get("commit")}),
        "first_steps": usual["first_steps"],
        "groups": [{**json.loads(way), **_runs(groups[way], way, teachers)} for way in sorted(groups)],
    }


def _usual(setting: SettingName, preset: str) -> dict[str, Any]:
    """The arguments of the preset's students, as config.json has them, with one size and rate."""
    arguments = PACKAGES[setting].students[preset]
    usual = PACKAGES[setting].config(arguments) if setting in pcfg_data.PACKAGES else asdict(arguments)
    for name in {"widths", "student_heads", "lr"} & usual.keys():
        usual[name] = usual[name][:1] if isinstance(usual[name], tuple) else usual[name]
    plain: dict[str, Any] = json.loads(json.dumps(usual, default=os.fspath))
    return plain


def _belongs(run: FoundRun, usual: Mapping[str, Any]) -> bool:
    """Whether a student differs from the preset in nothing but its supervision."""
    fixed = usual.keys() - {*EXECUTION_ARGUMENTS, *SUPERVISION}
    return all(run.arguments.get(name, usual[name]) == usual[name] for name in fixed)


def _way(run: FoundRun, usual: Mapping[str, Any]) -> dict[str, Any]:
    """How a student is supervised, as `collect` describes it for its group."""
    arguments = run.arguments
    (method,) = arguments["methods"]
    (steps,) = np.atleast_1d(arguments["steps"]).tolist()
    left_out = {
        *OF_RUN,
        "methods",
        "steps",
        "first_steps",
        *(name for name, methods in USED_BY.items() if method not in methods),
    }
    named = sorted(name for name in SUPERVISION if name in arguments and name not in left_out)
    differing = {name: arguments[name] for name in named if arguments[name] not in (usual.get(name), None)}
    if method != "two-shot":
        differing.pop("checkpoint", None)
    first_steps = arguments["first_steps"] if method in USED_BY["first_steps"] else None
    return {"method": method, "steps": steps, "first_steps": first_steps, "arguments": differing}


def _runs(runs: Sequence[FoundRun], way: str, teachers: Mapping[str, int]) -> dict[str, Any]:
    """The runs of a group, and what they need of a teacher; `teachers` are their seeds by id."""

    def key(run: FoundRun) -> tuple[int, int, int]:
        if not _teacher_steps(run):
            return -1, run.arguments["stream_seed"], run.arguments["seeds"][0]
        taught = teachers.get(str(run.arguments.get("teacher_id")))
        if taught is None:
            raise MissingError(
                f"the teacher of {run.directory}, {run.arguments['teacher']}, is not in the directory of runs: give "
                "one that contains both"
            )
        return taught, run.arguments["stream_seed"], run.arguments["seeds"][0]

    by_key = runs_by_key(runs, key, lambda key: f"{way} with teacher {key[0]}, stream {key[1]} and seed {key[2]}")
    entries = []
    for (taught, stream, seed), run in sorted(by_key.items()):
        records = run.records()
        switch = [record["accuracy"] for record in records if record["step"] == run.arguments["first_steps"]]
        has_switch = run.arguments["methods"][0] in USED_BY["first_steps"]
        entries.append(
            {
                "teacher": None if taught < 0 else taught,
                "stream": stream,
                "seed": seed,
                "passed": passed_at(records),
                "at_switch": round(switch[0], 5) if switch and has_switch else None,
                "accuracy": round(records[-1]["accuracy"], 5),
            }
        )
    used = [sum(digest is not None for digest in run.config.get("teacher_checkpoints", {}).values()) for run in runs]
    return {"checkpoints": max(used), "teacher_steps": max(map(_teacher_steps, runs)), "runs": entries}


def _teacher_steps(run: FoundRun) -> int:
    """Steps at which a student needs an output of its teacher."""
    arguments = run.arguments
    (method,), (steps,) = arguments["methods"], np.atleast_1d(arguments["steps"]).tolist()
    if method == "ce":
        return 0
    if method == "designed":
        return 0 if arguments["then"] == "labels" else max(steps - arguments["first_steps"], 0)
    return int(steps)
