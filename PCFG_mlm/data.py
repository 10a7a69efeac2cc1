"""Export sentences of a grammar to a Hugging Face dataset that `train.py` and `distill.py` take as `--dataset`.

    python data.py export --grammar cfg3b --sentences 100000 --out ../datasets/cfg3b

Without a dataset, a run samples its sentences. How they are masked and batched is in batches.py.
"""

import tyro

from common.cli import command
from common.pcfg.arguments import ExportArguments


def export(arguments: ExportArguments) -> None:
    """Write the dataset."""
    from common.pcfg import dataset  # this takes seconds to import, and `command` prepares the process first

    dataset.export(arguments)


def main() -> None:
    """Parse the command line."""
    export(tyro.extras.subcommand_cli_from_dict({"export": ExportArguments}, description=__doc__))


if __name__ == "__main__":
    command(main)
