"""Train GPT-2 students on parity from a teacher's checkpoints: one run per method, seed, size and learning rate.

    python distill.py laptop --teacher ../runs/parity_gpt2/laptop
    python distill.py laptop --student-heads 2 4 --lr 1e-4 3e-4

All students see the same stream of samples, so the teacher's logits are computed once. The teacher may be any GPT-2 or
MLP on parity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import command, run_command
from common.parity.arguments import StudentArguments
from parity_gpt2.arguments import LAPTOP, PAPER, SMOKE, Arguments


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, StudentArguments):
    """Arguments of `distill.py`."""

    student_heads: tuple[int, ...]
    """Attention heads of the students."""
    lr: tuple[float, ...]
    """Peak learning rates, one run each."""
    saturation_steps: int = 1_000
    """Student steps after which the next checkpoint takes over in any case (until-saturation)."""


PRESETS = {
    "smoke": DistillArguments(
        **SMOKE, student_heads=(1,), lr=(1e-3,), checkpoint_every=0, teacher_every=20, first_steps=100
    ),
    "laptop": DistillArguments(
        **LAPTOP, student_heads=(2,), lr=(1e-3,), checkpoint_every=0, teacher_every=50, first_steps=2_000
    ),
    "paper": DistillArguments(
        **PAPER,
        student_heads=(4,),
        lr=(3e-4,),
        checkpoint_every=0,
        teacher_every=10_000,
        first_steps=50_000,
        saturation_steps=10_000,
    ),
}


def distill(arguments: DistillArguments, argv: Sequence[str] = ()) -> None:
    """Start or resume one run for every method, size, seed and learning rate (and first checkpoint of two-shot)."""
    from common.parity import commands  # these take seconds to import, and `command` prepares the process first
    from parity_gpt2.training import SETTING

    commands.distill(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, distill, __doc__)


if __name__ == "__main__":
    command(main)
