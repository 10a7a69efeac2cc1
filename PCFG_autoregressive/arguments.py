"""Arguments of this setting's commands."""

from dataclasses import dataclass
from typing import Literal

from common.pcfg import arguments

LabelLevel = Literal[1, 2, 3, "all"]


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments):
    """Shared by `train.py` and `distill.py`."""

    label_level: LabelLevel = "all"
    """Predict the tokens that close a span of a nonterminal at this depth of the tree (the root is at depth 0), or
    all."""


@dataclass(frozen=True, kw_only=True)
class GenerationArguments(arguments.ProbeArguments):
    """Measure which continuations by every checkpoint the grammar accepts."""

    continuations: int = 1000
    """Fresh sentences whose prefixes the model continues."""
    given: int | None = None
    """Tokens of each prefix; by default 50, or half the expected sentence length if that is less."""
    tokens: int = 100
    """Largest number of tokens that the model writes."""
    batch_size: int = 250
    """Continuations per batch."""
