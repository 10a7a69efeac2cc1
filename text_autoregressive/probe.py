"""Probe every checkpoint of a run: how much it relies on n-grams, and how near it is to n-gram models.

    python probe.py ngrams --run ../runs/text_autoregressive/laptop
    python probe.py ngrams --run ../runs/text_autoregressive/laptop --unit word
    python probe.py kneser-ney --run ../runs/text_autoregressive/laptop

Writes probes/ngrams.json or probes/kneser_ney.json in the run's directory (arguments other than the defaults become
part of the name) after each checkpoint; rerun the command to resume. For the checkpoints of a teacher that is not a
run, give its text and its tokenizer; the file is then in runs/text_autoregressive/probes-of-<teacher>/, or --out.

`kneser-ney` fits n-gram models to the training text and measures the divergence of every checkpoint's predictions from
theirs, for n = 1 to 5: a checkpoint that uses n - 1 tokens of context should be near the model of order n. Text has no
Bayes-optimal predictor to compare with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from common.cli import command, command_line
from common.text.arguments import KneserNeyArguments, NgramArguments

PROBES: dict[str, Callable[..., Any]] = {"ngrams": NgramArguments, "kneser-ney": KneserNeyArguments}


def probe(arguments: NgramArguments | KneserNeyArguments, argv: Sequence[str] = ()) -> None:
    """Measure what is not in the probe's file yet."""
    from common.text import probing  # these take seconds to import, and `command` prepares the process first
    from text_autoregressive.training import SETTING

    match arguments:
        case NgramArguments():
            probing.ngrams(arguments, argv, SETTING)
        case KneserNeyArguments():
            probing.kneser_ney(arguments, argv, SETTING)


def main() -> None:
    """Parse the command line."""
    probe(tyro.extras.subcommand_cli_from_dict(PROBES, description=__doc__), command_line(probe))


if __name__ == "__main__":
    command(main)
