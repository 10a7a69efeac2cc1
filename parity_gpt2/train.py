"""Train a GPT-2 on parity from the labels: a teacher, or a student without one.

    python train.py laptop
    torchrun --nproc-per-node 2 train.py paper --device cuda

The run is a directory, by default in runs/parity_gpt2/; rerun the command to resume one that was stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import command, run_command
from parity_gpt2.arguments import LAPTOP, PAPER, SMOKE, Arguments


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """Arguments of `train.py`."""

    heads: int
    """Attention heads."""
    lr: float
    """Peak learning rate."""
    seed: int = 0
    """Seed of the initial weights, of dropout and of the data stream."""


PRESETS = {
    "smoke": TrainArguments(**SMOKE, heads=2, lr=1e-3, checkpoint_every=20),
    "laptop": TrainArguments(**LAPTOP, heads=8, lr=3e-5, checkpoint_every=50),
    "paper": TrainArguments(**PAPER, heads=32, lr=1e-4, checkpoint_every=10_000),
}


def train(arguments: TrainArguments, argv: Sequence[str] = ()) -> None:
    """Start the run that the arguments describe, or resume it."""
    from common.parity import commands  # these take seconds to import, and `command` prepares the process first
    from parity_gpt2.training import SETTING

    commands.train(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, train, __doc__)


if __name__ == "__main__":
    command(main)
