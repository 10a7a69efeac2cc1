"""Train an MLP on parity from the labels: a teacher, or a student without one.

    python train.py laptop
    python train.py paper --seed 1 --adaptive-checkpoints

The run is a directory, by default in runs/parity_mlp/; rerun the command to resume one that was stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import command, run_command
from parity_mlp.arguments import LAPTOP, PAPER, SMOKE, Arguments


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """Arguments of `train.py`."""

    width: int
    """Neurons per hidden layer."""
    lr: float
    """Learning rate."""
    seed: int = 0
    """Seed of the initial weights and of the data stream."""


PRESETS = {
    "smoke": TrainArguments(**SMOKE, width=256, lr=0.02, checkpoint_every=500),
    "laptop": TrainArguments(**LAPTOP, width=1_000, lr=0.01, checkpoint_every=5_000),
    "paper": TrainArguments(**PAPER, width=50_000, lr=0.02, checkpoint_every=100_000),
}


def train(arguments: TrainArguments, argv: Sequence[str] = ()) -> None:
    """Start the run that the arguments describe, or resume it."""
    from common.parity import commands  # these take seconds to import, and `command` prepares the process first
    from parity_mlp.training import SETTING

    commands.train(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, train, __doc__)


if __name__ == "__main__":
    command(main)
