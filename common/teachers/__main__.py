"""Commands on a teacher: check its checkpoints, download them ahead of time.

python -m common.teachers check runs/parity_mlp/laptop
python -m common.teachers check EleutherAI/pythia-70m
python -m common.teachers cache EleutherAI/pythia-70m --steps 0 10000 --dry-run
"""

import tyro

from common.cli import command
from common.teachers.caching import CacheArguments, cache
from common.teachers.checking import CheckArguments, check


def main() -> None:
    """Parse the command line."""
    arguments = tyro.extras.subcommand_cli_from_dict(
        {"check": CheckArguments, "cache": CacheArguments},
        prog="python -m common.teachers",
        description=__doc__,
    )
    if isinstance(arguments, CheckArguments):
        check(arguments)
    else:
        cache(arguments)


if __name__ == "__main__":
    command(main)
