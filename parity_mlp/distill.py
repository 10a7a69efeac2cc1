"""Train students on parity from a teacher's checkpoints: one run per method, seed, width and learning rate.

    python distill.py laptop --teacher ../runs/parity_mlp/laptop
    python distill.py laptop --methods two-shot --checkpoint before inside after --first-steps 100000

All students see the same stream of samples, so the teacher's logits and the products of inputs are computed once. The
teacher may be any MLP or GPT-2 on parity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli import command, run_command
from common.parity.arguments import StudentArguments
from parity_mlp.arguments import LAPTOP, PAPER, SMOKE, Arguments


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, StudentArguments):
    """Arguments of `distill.py`."""

    widths: tuple[int, ...]
    """Neurons per hidden layer of the students."""
    lr: tuple[float, ...]
    """Learning rates, one run each."""
    saturation_steps: int = 100_000
    """Student steps after which the next checkpoint takes over in any case (until-saturation)."""


PRESETS = {
    "smoke": DistillArguments(
        **SMOKE, widths=(16,), lr=(0.02,), checkpoint_every=0, teacher_every=500, first_steps=4_000
    ),
    "laptop": DistillArguments(
        **LAPTOP, widths=(10,), lr=(0.01,), checkpoint_every=0, teacher_every=5_000, first_steps=100_000
    ),
    "paper": DistillArguments(
        **PAPER, widths=(100,), lr=(0.01,), checkpoint_every=0, teacher_every=100_000, first_steps=1_000_000
    ),
}


def distill(arguments: DistillArguments, argv: Sequence[str] = ()) -> None:
    """Start or resume one run for every method, width, seed and learning rate (and first checkpoint of two-shot)."""
    from common.parity import commands  # these take seconds to import, and `command` prepares the process first
    from parity_mlp.training import SETTING

    commands.distill(arguments, PRESETS, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS, distill, __doc__)


if __name__ == "__main__":
    command(main)
