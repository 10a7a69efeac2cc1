"""Commands on existing runs: list them, compare two, upload them to Weights & Biases.

python -m common.runs table runs/ --where method=progressive --sort final_accuracy
python -m common.runs compare runs/parity_mlp/laptop runs/parity_mlp/laptop-seed1
python -m common.runs sync runs/ --group sweep
"""

import tyro

from common.cli import command
from common.runs.comparison import CompareArguments, compare
from common.runs.table import TableArguments, table
from common.runs.uploads import SyncArguments, sync


def main() -> None:
    """Parse the command line."""
    arguments = tyro.extras.subcommand_cli_from_dict(
        {"table": TableArguments, "compare": CompareArguments, "sync": SyncArguments},
        prog="python -m common.runs",
        description=__doc__,
    )
    if isinstance(arguments, SyncArguments):
        sync(arguments)
    elif isinstance(arguments, TableArguments):
        table(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    command(main)
