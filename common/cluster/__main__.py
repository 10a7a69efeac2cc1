"""Execute a sweep whose plan is read from stdin; scripts/sweep_*.sh call this.

python -m common.cluster runs/parity_mlp/sweeps/mine --jobs 2 < plan.tsv
"""

import sys

import tyro

from common.cli import command
from common.cluster.launcher import SweepArguments, launch


def main() -> None:
    """Parse the command line."""
    launch(
        tyro.cli(SweepArguments, prog="python -m common.cluster", description=__doc__),
        [line for line in sys.stdin if line.strip()],
    )


if __name__ == "__main__":
    command(main)
