"""Train BERT to predict masked tokens of a grammar's sentences: a teacher, or a student without one.

    python train.py laptop
    python train.py paper --grammar cfg3f --seed 1 --device cuda

The run is a directory, by default in runs/PCFG_mlm/; the same command goes on with one that was stopped.
"""

from dataclasses import dataclass

import tyro

from common.arguments import require_at_least, require_seed
from common.distillation import FROM_LABELS
from common.processes import open_shared_run
from common.runs import command, default_name
from PCFG_mlm.training import (
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
class TrainArguments(Arguments):
    """Arguments of `train.py`."""

    heads: int
    """Attention heads."""
    steps: int
    """Optimiser steps."""
    seed: int = 0
    """Seed of the initial weights, of dropout and of the data stream."""


PRESETS = {
    "smoke": TrainArguments(
        preset="smoke",
        grammar="small",
        layers=1,
        heads=4,
        steps=60,
        batch_size=16,
        lr=5e-3,
        eval_every=5,
        checkpoint_every=10,
        eval_samples=128,
    ),
    "laptop": TrainArguments(
        preset="laptop",
        grammar="cfg3b",
        start="16",
        layers=2,
        heads=8,
        dropout=0.0,
        steps=3000,
        batch_size=64,
        lr=5e-3,
        eval_every=50,
        checkpoint_every=50,
        eval_samples=1024,
    ),
    "paper": TrainArguments(
        preset="paper",
        grammar="cfg3b",
        layers=4,
        heads=32,
        steps=8_000,
        batch_size=512,
        lr=5e-3,
        eval_every=100,
        checkpoint_every=200,
    ),
}
DESCRIPTIONS = {"smoke": "seconds", "laptop": "shows the effect in minutes", "paper": "the published size"}


def train(arguments: TrainArguments) -> None:
    """Make the run that the arguments describe, or finish it."""
    check(arguments)
    require_at_least(1, arguments, "heads", "steps")
    require_seed(arguments, "seed")
    task = task_of(arguments)
    source = source_of(arguments, task, arguments.steps, arguments.seed)
    directory = arguments.out or RUNS / default_name(arguments, PRESETS[arguments.preset], arguments.preset)
    settings = settings_of(arguments, directory, arguments.steps, arguments.seed)
    options = {"force": arguments.force, "wandb": arguments.wandb}
    with open_shared_run(directory, config_of(arguments, task), processes_of(settings), **options) as run:
        train_to_end(arguments, run, settings, source, arguments.heads, arguments.seed, FROM_LABELS)


def main() -> None:
    """Parse the command line."""
    presets = {name: (DESCRIPTIONS[name], arguments) for name, arguments in PRESETS.items()}
    train(tyro.extras.overridable_config_cli(presets, description=__doc__))


if __name__ == "__main__":
    command(main)
