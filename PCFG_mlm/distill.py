"""Train BERT students on a grammar from a teacher's checkpoints, one run per method, size, seed and budget of steps.

    python distill.py laptop --teacher ../runs/PCFG_mlm/laptop
    python distill.py laptop --methods two-shot --checkpoint before inside after --first-steps 250
    python distill.py laptop --steps 500 1000 --student-heads 2 4

All students see the same stream of sentences.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from common.arguments import require_at_least, require_seed
from common.checkpoints import find_checkpoints, local_path
from common.distillation import (
    DistillationArguments,
    check_plural,
    own_teacher,
    resolved_teacher,
    single_runs,
    supervision,
)
from common.errors import DivergedError, UserError
from common.processes import open_shared_run
from common.runs import SURROUNDINGS, command, default_name
from PCFG_mlm.data import MaskedTask
from PCFG_mlm.models import load_model
from PCFG_mlm.training import (
    ROOT,
    RUNS,
    Arguments,
    check,
    config_of,
    processes_of,
    settings_of,
    source_of,
    task_of,
    train_to_end,
)


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, DistillationArguments):
    """Arguments of `distill.py`."""

    student_heads: tuple[int, ...]
    """Attention heads of the students."""
    steps: tuple[int, ...]
    """Optimiser steps, one run for each."""
    temperature: float = 0.0
    """Temperature of the teacher's logits; 0 is the arg-max."""


PRESETS = {
    "smoke": DistillArguments(
        preset="smoke",
        grammar="small",
        layers=1,
        student_heads=(2,),
        steps=(60,),
        batch_size=16,
        lr=5e-3,
        eval_every=5,
        checkpoint_every=0,
        eval_samples=128,
        first_steps=20,
        saturation_steps=20,
    ),
    "laptop": DistillArguments(
        preset="laptop",
        grammar="cfg3b",
        start="16",
        layers=2,
        student_heads=(3,),
        dropout=0.0,
        steps=(500, 700, 1_000),
        batch_size=64,
        lr=1e-2,
        temperature=1.0,
        eval_every=100,
        checkpoint_every=0,
        eval_samples=1024,
        teacher_range=(200, 600),
        teacher_every=40,
        first_steps=300,
        saturation_steps=200,
    ),
    "paper": DistillArguments(
        preset="paper",
        grammar="cfg3b",
        layers=4,
        student_heads=(8,),
        steps=(2_000, 4_000, 8_000, 16_000),
        batch_size=512,
        lr=5e-3,
        eval_every=100,
        checkpoint_every=0,
        first_steps=1_000,
        saturation_steps=1_000,
    ),
}
DESCRIPTIONS = {"smoke": "seconds", "laptop": "shows the effect in minutes", "paper": "the published size"}
PLURAL = ("methods", "student_heads", "steps", "seeds", "checkpoint")
"""Arguments of which each run has one value."""


def distill(arguments: DistillArguments) -> None:
    """Make one run for every method, size, budget and seed (and first checkpoint of two-shot), or finish them.

    Raises:
        DivergedError: a student's loss is not finite; the other students are trained first.
    """
    check(arguments)
    check_plural(arguments, PLURAL)
    require_at_least(1, arguments, "student_heads", "steps")
    require_seed(arguments, "seeds", "stream_seed")
    task = task_of(arguments)
    arguments = replace(
        arguments, teacher=resolved_teacher(arguments.teacher, _default_teacher(arguments.preset), ROOT)
    )
    directory = ROOT / arguments.teacher
    teacher = find_checkpoints(directory if directory.exists() else arguments.teacher)
    load_model(local_path(teacher[-1]), task)
    teacher_id = _check_own_teacher(arguments, task, directory)
    planned = [
        (
            single,
            source_of(single, task, single.steps[0], single.stream_seed),
            supervision(single, single.steps[0], teacher, directory, task.vocabulary, lambda record: record["loss"]),
        )
        for single in single_runs(arguments, PLURAL)
    ]
    diverged: list[DivergedError] = []
    for single, source, taught in planned:
        run_directory = _run_directory(arguments, single)
        settings = settings_of(single, run_directory, single.steps[0], single.seeds[0])
        config = {**config_of(single, task), "teacher_id": teacher_id}
        options = {"force": single.force, "wandb": single.wandb, "group": single.preset}
        with open_shared_run(run_directory, config, processes_of(settings), **options) as run:
            try:
                train_to_end(single, run, settings, source, single.student_heads[0], single.seeds[0], taught)
            except DivergedError as error:
                diverged.append(error)
    if diverged:
        raise diverged[0]


def _default_teacher(preset: str) -> str:
    return (RUNS / preset).relative_to(ROOT).as_posix()


def _run_directory(arguments: DistillArguments, single: DistillArguments) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in runs/PCFG_mlm."""
    sizes = [f"heads{single.student_heads[0]}", f"steps{single.steps[0]}", f"seed{single.seeds[0]}"]
    parts = [*single.methods, *single.checkpoint, *sizes]
    if arguments.out is not None:
        return arguments.out / "-".join(parts) if len(single_runs(arguments, PLURAL)) > 1 else arguments.out
    name = "-".join([arguments.preset, *parts])
    preset = replace(PRESETS[arguments.preset], teacher=_default_teacher(arguments.preset))
    return RUNS / default_name(single, preset, name, exclude=(*SURROUNDINGS, *PLURAL))


def _check_own_teacher(arguments: DistillArguments, task: MaskedTask, directory: Path) -> str | None:
    """The id of a teacher that one of our runs made; None for any other.

    Raises:
        UserError: the run is not complete, its config.json is damaged, or it was trained on another grammar.
    """
    config = own_teacher(directory, ("rules", "start", "mask_rate"))
    if config is None:
        return None
    theirs, ours = config["arguments"], config_of(arguments, task)
    if (theirs["start"], theirs["rules"]) != (ours["start"], ours["rules"]):
        raise UserError(
            f"{directory} was trained on {theirs['grammar']} from {theirs['start']}, but here the grammar is "
            f"{arguments.grammar} from {ours['start']}"
        )
    return config.get("id")


def main() -> None:
    """Parse the command line."""
    presets = {name: (DESCRIPTIONS[name], arguments) for name, arguments in PRESETS.items()}
    distill(tyro.extras.overridable_config_cli(presets, description=__doc__))


if __name__ == "__main__":
    command(main)
