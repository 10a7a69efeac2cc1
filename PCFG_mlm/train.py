"""Train BERT to predict masked tokens of a grammar's sentences: a teacher, or a student without one.

    python train.py laptop
    python train.py paper --grammar cfg3f --seed 1 --device cuda

The run is a directory, by default in runs/PCFG_mlm/; rerun the command to resume one that was stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.cli import command, run_command
from common.language_models import arguments
from common.pcfg.arguments import WORKSTATION_TEACHER
from PCFG_mlm.arguments import LAPTOP, PAPER, SMOKE, Arguments


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments, arguments.TrainArguments):
    """Arguments of `train.py`."""


LAPTOP_TEACHER = TrainArguments(**LAPTOP, heads=8, steps=3_000, lr=5e-3, eval_every=50, checkpoint_every=50)
PRESETS = {
    "smoke": TrainArguments(**SMOKE, heads=4, steps=60, checkpoint_every=10),
    "laptop": LAPTOP_TEACHER,
    "workstation": replace(LAPTOP_TEACHER, **WORKSTATION_TEACHER),
    "paper": TrainArguments(**PAPER, heads=32, steps=8_000, checkpoint_every=200),
}


def train(arguments: TrainArguments, argv: Sequence[str] = ()) -> None:
    """Start the run that the arguments describe, or resume it."""
    from common.language_models import (
        commands,
    )  # these take seconds to import, and `command` prepares the process first
    from PCFG_mlm.training import SETTING

    commands.train(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, train, __doc__)


if __name__ == "__main__":
    command(main)
