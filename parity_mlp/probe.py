"""Correlations of every checkpoint of a run with monomials inside and outside the hidden support.

    python probe.py --run ../runs/parity_mlp/laptop
    python probe.py --run teachers/theirs --d 100 --k 6 --support 3,14,15,92,65,35

Writes probes/monomials.json in the run's directory (arguments other than the defaults become part of the name) after
each checkpoint; rerun the command to resume. The run may be of `parity_gpt2` as well. The second command probes the
checkpoints of a teacher that is not a run, and writes to runs/parity_mlp/probes-of-theirs/ or to --out.
"""

from collections.abc import Sequence

import tyro

from common.cli import command, command_line
from common.parity.arguments import ProbeArguments


def probe(arguments: ProbeArguments, argv: Sequence[str] = ()) -> None:
    """Probe every checkpoint that is not in the file yet."""
    from common.parity import probing  # these take seconds to import, and `command` prepares the process first
    from parity_mlp.training import SETTING

    probing.probe(arguments, SETTING, argv)


def main() -> None:
    """Parse the command line."""
    probe(tyro.cli(ProbeArguments, description=__doc__), command_line(probe))


if __name__ == "__main__":
    command(main)
