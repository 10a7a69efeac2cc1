"""Train BERT students on a grammar from a teacher's checkpoints, one run per method, size, seed and number of steps.

    python distill.py laptop --teacher ../runs/PCFG_mlm/laptop
    python distill.py laptop --methods two-shot --checkpoint before inside after --first-steps 250
    python distill.py laptop --steps 500 1000 --student-heads 2 4

All students see the same stream of sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.cli import command, run_command
from common.pcfg.arguments import WORKSTATION_STUDENTS, StudentArguments
from PCFG_mlm.arguments import LAPTOP, PAPER, SMOKE, Arguments


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, StudentArguments):
    """Arguments of `distill.py`."""


LAPTOP_STUDENTS = DistillArguments(
    **LAPTOP,
    student_heads=(3,),
    steps=(500, 700, 1_000),
    lr=1e-2,
    temperature=1.0,
    teacher_range=(200, 600),
    teacher_every=40,
    eval_every=100,
    checkpoint_every=0,
    first_steps=300,
    saturation_steps=200,
)
PRESETS = {
    "smoke": DistillArguments(
        **SMOKE, student_heads=(2,), steps=(60,), checkpoint_every=0, first_steps=20, saturation_steps=20
    ),
    "laptop": LAPTOP_STUDENTS,
    "workstation": replace(LAPTOP_STUDENTS, **WORKSTATION_STUDENTS),
    "paper": DistillArguments(
        **PAPER,
        student_heads=(8,),
        steps=(2_000, 4_000, 8_000, 16_000),
        checkpoint_every=0,
        first_steps=1_000,
        saturation_steps=1_000,
    ),
}


def distill(arguments: DistillArguments, argv: Sequence[str] = ()) -> None:
    """Start or resume one run for every method, size, number of steps and seed (and first checkpoint of two-shot)."""
    from common.language_models import (
        commands,
    )  # these take seconds to import, and `command` prepares the process first
    from PCFG_mlm.training import SETTING

    commands.distill(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, distill, __doc__)


if __name__ == "__main__":
    command(main)
