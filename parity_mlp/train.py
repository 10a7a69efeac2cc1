"""Train an MLP on parity from the labels: a teacher, or a student without one.

    python train.py laptop
    python train.py paper --seed 1 --adaptive-checkpoints

The run is a directory, by default in runs/parity_mlp/; the same command goes on with one that was stopped.
"""

from dataclasses import asdict, dataclass

import tyro

from common.arguments import require_at_least, require_seed
from common.distillation import FROM_LABELS
from common.runs import command, default_name, open_run
from parity_mlp.models import initial_tensors
from parity_mlp.training import (
    RUNS,
    Arguments,
    Student,
    check,
    task_of,
    train_together,
)


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """Arguments of `train.py`."""

    width: int
    """Neurons per hidden layer."""
    seed: int = 0
    """Seed of the initial weights and of the data stream."""


PRESETS = {
    "smoke": TrainArguments(
        preset="smoke", d=24, k=4, width=256, steps=20_000, lr=0.02, eval_every=500, checkpoint_every=500
    ),
    "laptop": TrainArguments(
        preset="laptop", d=100, k=4, width=1_000, steps=600_000, lr=0.01, eval_every=5_000, checkpoint_every=5_000
    ),
    "paper": TrainArguments(
        preset="paper", d=100, k=6, width=50_000, steps=8_000_000, lr=0.02, eval_every=20_000, checkpoint_every=100_000
    ),
}
DESCRIPTIONS = {"smoke": "seconds", "laptop": "shows the effect in seconds", "paper": "the published size"}


def train(arguments: TrainArguments) -> None:
    """Make the run that the arguments describe, or finish it."""
    check(arguments)
    require_at_least(1, arguments, "width")
    require_seed(arguments, "seed")
    task = task_of(arguments)
    directory = arguments.out or RUNS / default_name(arguments, PRESETS[arguments.preset], arguments.preset)
    with open_run(directory, asdict(arguments), force=arguments.force, wandb=arguments.wandb) as run:
        if run.complete:
            print(f"{directory} is complete")
            return
        tensors = initial_tensors(
            task.d, arguments.width, task.classes, arguments.layers, arguments.seed, arguments.dtype
        )
        train_together(arguments, [Student(run, FROM_LABELS, tensors)], arguments.seed, directory.name)
        print(f"{directory}: accuracy {run.records()[-1]['accuracy']:.3f}")


def main() -> None:
    """Parse the command line."""
    presets = {name: (DESCRIPTIONS[name], arguments) for name, arguments in PRESETS.items()}
    train(tyro.extras.overridable_config_cli(presets, description=__doc__))


if __name__ == "__main__":
    command(main)
