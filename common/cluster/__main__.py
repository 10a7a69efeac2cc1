"""Make the runs of a sweep, whose plan comes on stdin; the scripts in scripts/sweep_*.sh call it.

python -m common.cluster runs/parity_mlp/sweeps/mine --jobs 2 < plan.tsv
"""

import sys

import tyro

from common.cli import command
from common.cluster.launcher import SweepArguments, launch


def main() -> None:
    """Parse the command line."""
    launch(tyro.cli(SweepArguments, description=__doc__), [line for line in sys.stdin if line.strip()])


if __name__ == "__main__":
    command(main)
