"""Prepare the text that `train.py` and `distill.py` train on: documents to blocks of tokens on disk.

    python data.py prepare
    python data.py prepare --corpus my.txt other.jsonl --vocabulary 8192 --length 128

The commands do this themselves; here it can be done before, such as on a node with a network. How blocks are
batched is in common/text/batches.py.
"""

import tyro

from common.cli import command
from text_autoregressive.arguments import PrepareArguments


def prepare(arguments: PrepareArguments) -> None:
    """Prepare the blocks, unless they exist, and print a summary."""
    from common.text import report  # this takes seconds to import, and `command` prepares the process first

    report.prepare(arguments)


def main() -> None:
    """Parse the command line."""
    prepare(tyro.extras.subcommand_cli_from_dict({"prepare": PrepareArguments}, description=__doc__))


if __name__ == "__main__":
    command(main)
