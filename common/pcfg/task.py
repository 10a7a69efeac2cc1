"""What every prediction task on a grammar has: its token ids, and the rules that identify a run's grammar."""

from dataclasses import dataclass
from typing import ClassVar

from common.pcfg.grammar import Grammar

UNBOUNDED_POSITIONS = 1024
"""Positions of a model for a grammar without a longest sentence."""


@dataclass(frozen=True)
class GrammarTask:
    """Token ids: the terminals, then BOS, EOS, PAD and MASK; one more is never used."""

    grammar: Grammar
    added: ClassVar[int]
    """Tokens that a task adds to a sentence, such as BOS."""

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


def rules_of(grammar: Grammar) -> list[str]:
    """A grammar's rules with their probabilities, each as a line of a grammar file."""
    return [f"{rule.left} -> {' '.join(rule.right)} [{rule.probability!r}]" for rule in grammar.rules]
