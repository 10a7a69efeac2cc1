"""What every prediction task on a grammar has: token ids, batches, and the rules that identify a run's grammar."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from common.pcfg.grammar import Grammar
from common.pcfg.sampler import Sentences, Stream

UNBOUNDED_POSITIONS = 1024
"""Positions of a model for a grammar without a longest sentence."""


class Selection(NamedTuple):
    """The sentences of a batch, selected from a stream."""

    sentences: Sentences
    """Consecutive ones of a stream."""
    first: int
    """Index of their first one in the stream."""
    rows: NDArray[np.int64]
    """Which of them are in the batch, in its order."""


class Batch(Protocol):
    """A dataclass of tensors, named as the model's arguments, and `labels`; all (sentences, longest)."""

    @property
    def input_ids(self) -> torch.Tensor:
        """(sentences, longest) token ids."""


@dataclass(frozen=True)
class GrammarTask(ABC):
    """Token ids: the terminals, then BOS, EOS, PAD and MASK; one more is never used."""

    grammar: Grammar
    added: ClassVar[int]
    """Tokens that a task adds to a sentence, such as BOS."""

    @abstractmethod
    def batch(self, seed: int, stream: Stream, selection: Selection) -> Any:
        """Sentences of a stream as a `Batch`; the seed is that of what the task draws, such as masks."""

    @property
    def tree_levels(self) -> int:
        """Levels of the tree, from the root, that the labels depend on."""
        return 0

    @property
    def terminals(self) -> int:
        return len(self.grammar.terminals)

    @property
    def bos(self) -> int:
        return self.terminals

    @property
    def eos(self) -> int:
        return self.terminals + 1

    @property
    def pad(self) -> int:
        return self.terminals + 2

    @property
    def mask(self) -> int:
        return self.terminals + 3

    @property
    def vocabulary(self) -> int:
        """Size of the embedding; 8 with three terminals, as published."""
        return self.terminals + 5

    @property
    def positions(self) -> int:
        """Tokens that a model must have room for: those of the longest sentence, and those added to it."""
        longest = self.grammar.length_ranges[0][1]
        return UNBOUNDED_POSITIONS if longest is None else longest + self.added

    @property
    def expected_length(self) -> float:
        """Tokens of a sentence on average, with those added to it."""
        return min(self.grammar.expected_length + self.added, self.positions)


def rules_of(grammar: Grammar) -> list[str]:
    """A grammar's rules with their probabilities, each as a line of a grammar file."""
    return [f"{rule.left} -> {' '.join(rule.right)} [{rule.probability!r}]" for rule in grammar.rules]
