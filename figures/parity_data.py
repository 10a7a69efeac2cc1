"""Collect the data behind the parity figures, of the MLP and of GPT-2, from runs, small enough to be committed.

`parity_figures.py` draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from finding_runs import (
    Collected,
    FoundRun,
    Part,
    collect_parts,
    only_run,
    probe_file,
    probe_result,
    runs_by_seed,
    students_of,
    with_arguments,
)

from common.distillation.phases import Phases, choose_checkpoints, find_phases
from common.parity.training import Setting
from common.probes.checkpoints import read_probe
from common.runs.names import EXECUTION_ARGUMENTS
from common.teachers.discovery import find_checkpoints
from parity_gpt2.distill import PRESETS as GPT2_STUDENTS
from parity_gpt2.train import PRESETS as GPT2_TEACHERS
from parity_gpt2.training import SETTING as GPT2
from parity_mlp.distill import PRESETS as MLP_STUDENTS
from parity_mlp.train import PRESETS as MLP_TEACHERS
from parity_mlp.training import SETTING as MLP

SettingName = Literal["parity_mlp", "parity_gpt2"]


@dataclass(frozen=True)
class Package:
    """A setting and its presets."""

    setting: Setting
    teachers: Mapping[str, Any]
    students: Mapping[str, Any]
    shown: Sequence[str]
    """Arguments of a teacher that are kept."""


PACKAGES: dict[SettingName, Package] = {
    "parity_mlp": Package(MLP, MLP_TEACHERS, MLP_STUDENTS, ("d", "k", "width", "lr", "steps", "seed")),
    "parity_gpt2": Package(
        GPT2,
        GPT2_TEACHERS,
        GPT2_STUDENTS,
        ("d", "k", "layers", "heads", "head_dim", "batch_size", "lr", "steps", "seed"),
    ),
}
METHODS = ("ce", "one-shot", "progressive")
"""Methods of the overview."""
PLACES = ("before", "inside", "after")
"""Where the first checkpoint of two-shot students is, relative to the transition."""


def collect(found: Sequence[FoundRun], preset: str, setting: SettingName = "parity_mlp") -> Collected:
    """Curves, candidate checkpoints and correlations of a preset's runs, such as `scripts/reproduce.sh` makes.

    Args:
        found: runs of any setting.
        preset: its name; only runs with exactly its arguments are used, and only students of its teacher.
        setting: whose runs.

    Returns:
        Always: `setting`, `preset`, `commands`, `versions`, `commits` and `teacher`. By part: `phases` of the teacher's
        accuracy, `candidates` for the first of two checkpoints, `monomials`, `students`, `two_shot`.

    Raises:
        MissingError: there is no teacher; the message names the command that makes it.
        UserError: there are two.
    """
    package = PACKAGES[setting]
    runs = [run for run in found if run.setting == setting]
    trained = [run for run in runs if not run.is_student]
    preset_teachers = with_arguments(trained, asdict(package.teachers[preset]))
    teacher = only_run(preset_teachers, f"the teacher of {setting} {preset}", f"python -m {setting}.train {preset}")
    students = students_of(teacher, runs)
    records = teacher.records()
    steps = [record["step"] for record in records]

    def phases() -> Phases:
        return find_phases(steps, [1 - record["accuracy"] for record in records])

    def candidates() -> dict[str, int]:
        saved = [checkpoint.step for checkpoint in find_checkpoints(teacher.directory)]
        return dict(zip(PLACES, choose_checkpoints(phases(), saved), strict=True))

    def by_method() -> Part:
        command = f"python -m {setting}.distill {preset}"
        return _join({method: _students(students, teacher, preset, method, (), command) for method in METHODS})

    def by_place() -> Part:
        command = f"python -m {setting}.distill {preset} --methods two-shot --checkpoint {' '.join(PLACES)}"
        return _join({place: _students(students, teacher, preset, "two-shot", [place], command) for place in PLACES})

    always = {
        "teacher": {
            "arguments": {name: teacher.arguments[name] for name in package.shown},
            "steps": steps,
            "accuracy": [record["accuracy"] for record in records],
            "loss": [round(record["loss"], 6) for record in records],
        }
    }
    parts = {
        "phases": lambda: Part({name: getattr(phases(), name) for name in ("start", "steepest", "end")}, ()),
        "candidates": lambda: Part(candidates(), ()),
        "monomials": lambda: _monomials(teacher, trained),
        "students": by_method,
        "two_shot": by_place,
    }
    return collect_parts(preset, teacher, students, always, parts)


def _join(parts: Mapping[str, Part]) -> Part:
    data = {name: part.data for name, part in parts.items()}
    return Part(data, [argv for part in parts.values() for argv in part.commands])


def _students(
    students: Sequence[FoundRun], teacher: FoundRun, preset: str, method: str, checkpoint: Sequence[str], command: str
) -> Part:
    """Accuracies over training of the students of a method and first checkpoint, one row per seed."""
    package = PACKAGES[teacher.setting]  # type: ignore[index]
    usual = package.students[preset]
    sizes = package.setting.sizes
    size = getattr(usual, sizes)[0]
    wanted = {"methods": [method], sizes: [size], "lr": usual.lr[:1], "checkpoint": checkpoint}
    found = with_arguments(students, {**asdict(usual), **wanted}, free=("seeds", "teacher"))
    description = " ".join([method, "students", *(f"from {place}" for place in checkpoint), f"of {teacher.directory}"])
    by_seed = runs_by_seed(found, description, command)
    records = [run.records() for run in by_seed.values()]
    data = {
        package.setting.size: size,
        "lr": usual.lr[0],
        "first_steps": found[0].arguments["first_steps"],
        "seeds": list(by_seed),
        "steps": [record["step"] for record in records[0]],
        "accuracy": [[record["accuracy"] for record in run] for run in records],
    }
    return Part(data, [run.argv for run in by_seed.values()])


def _monomials(teacher: FoundRun, trained: Sequence[FoundRun]) -> Part:
    """Correlations per degree and checkpoint: of every subset of the support, and percentiles 0, 50, 100 of the others.

    The teacher's checkpoints are joined by those of runs on the same trajectory that were probed with the same
    settings: runs that differ only in where they saved and, if nothing depends on it, in their last step.
    """
    own = probe_result(teacher, "monomials", f"python -m {teacher.setting}.probe --run {teacher.directory}")
    entries = {entry["step"]: entry for entry in own["checkpoints"]}
    commands = [own.get("argv", ())]
    for run in trained:
        if run is teacher or _trajectory(run) != _trajectory(teacher) or (path := probe_file(run, "monomials")) is None:
            continue
        probe = read_probe(path)
        if probe.get("settings") == own.get("settings"):
            entries |= {entry["step"]: entry for entry in probe["checkpoints"]}
            commands += [run.argv, probe.get("argv", ())]
    in_order = [entries[step] for step in sorted(entries)]
    data = {
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
    return Part(data, commands)


def _trajectory(run: FoundRun) -> dict[str, Any]:
    """The arguments that determine the weights at a step; arguments that are None have no effect."""
    arguments = run.arguments
    excluded = [*EXECUTION_ARGUMENTS, "checkpoint_every", "checkpoint_from", "adaptive_checkpoints"]
    annealed = arguments["end_label_temperature"] is not None
    if arguments["lr_schedule"] == "constant" and arguments["warmup"] == 0 and not annealed:
        excluded.append("steps")
    return {name: value for name, value in arguments.items() if name not in excluded and value is not None}
