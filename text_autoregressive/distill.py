"""Train causal students on text from a teacher's checkpoints, one run per method, size, seed and number of steps.

    python distill.py laptop --teacher ../runs/text_autoregressive/laptop
    python distill.py laptop --methods two-shot --checkpoint 200 600 1500 --first-steps 100
    python distill.py laptop --steps 300 600 --student-heads 2 4

All students see the same stream of samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import command, run_command
from common.language_models import arguments
from text_autoregressive.arguments import LAPTOP, PAPER, SMOKE, Arguments, require_rotated_positions


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, arguments.DistillArguments):
    """Arguments of `distill.py`."""


PRESETS = {
    "smoke": DistillArguments(
        **SMOKE, student_heads=(2,), steps=(60,), checkpoint_every=0, first_steps=20, saturation_steps=20
    ),
    "laptop": DistillArguments(
        **LAPTOP,
        student_heads=(2,),
        seeds=(2, 3, 4),  # the other arguments were chosen with other seeds
        steps=(300, 600),
        lr=5e-3,
        temperature=1.0,
        teacher_range=(400, 1_400),
        teacher_every=20,
        eval_every=100,
        checkpoint_every=0,
        first_steps=200,
        saturation_steps=200,
    ),
    "paper": DistillArguments(
        **PAPER,
        student_heads=(4,),
        steps=(24_000, 60_000, 120_000),
        temperature=1.0,
        checkpoint_every=0,
        first_steps=8_000,
        saturation_steps=8_000,
    ),
}


def distill(arguments: DistillArguments, argv: Sequence[str] = ()) -> None:
    """Start or resume one run for every method, size, number of steps and seed (and first checkpoint of two-shot)."""
    from common.language_models import commands  # these take seconds to import, and `command` prepares the process
    from text_autoregressive.training import SETTING

    require_rotated_positions(arguments)
    commands.distill(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, distill, __doc__)


if __name__ == "__main__":
    command(main)
