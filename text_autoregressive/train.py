"""Train a causal language model to predict the next token of text: a teacher, or a student without one.

    python train.py laptop
    python train.py laptop --corpus my.txt --seed 1
    python train.py paper --device cuda

The run is a directory, by default in runs/text_autoregressive/; rerun the command to resume one that was stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import command, run_command
from common.language_models import arguments
from text_autoregressive.arguments import LAPTOP, PAPER, SMOKE, Arguments, require_rotated_positions


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments, arguments.TrainArguments):
    """Arguments of `train.py`."""


PRESETS = {
    "smoke": TrainArguments(**SMOKE, heads=4, steps=60, checkpoint_every=10),
    "laptop": TrainArguments(**LAPTOP, heads=8, steps=3_000, lr=3e-3, eval_every=50, checkpoint_every=100),
    "paper": TrainArguments(**PAPER, heads=12, steps=120_000, checkpoint_every=1_000),
}


def train(arguments: TrainArguments, argv: Sequence[str] = ()) -> None:
    """Start the run that the arguments describe, or resume it."""
    from common.language_models import commands  # these take seconds to import, and `command` prepares the process
    from text_autoregressive.training import SETTING

    require_rotated_positions(arguments)
    commands.train(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, train, __doc__)


if __name__ == "__main__":
    command(main)
