"""Sentences of a grammar for next-token prediction: labels and batches.

A sentence is BOS, the terminals that the grammar's sampler gives, and EOS. Labels are on every token after BOS, EOS
included, or only on the terminals that close a span of a nonterminal at one depth of the tree, the root being at depth
0: the last tokens of the parts that the sentence has there. A label is the token at its own position, as transformers
wants it; the model predicts it at the position before.

Every batch is as wide as its longest sentence; see common/pcfg/batches.py for which sentences it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.pcfg.sampler import Stream
from common.pcfg.task import GrammarTask, Selection
from PCFG_autoregressive.arguments import LabelLevel


@dataclass(frozen=True)
class NextTokenTask(GrammarTask):
    """Next-token prediction on a grammar."""

    added = 2
    label_level: LabelLevel = "all"
    """Depth of the tree whose spans end at the labelled tokens, or all tokens."""

    def __post_init__(self) -> None:
        depth = self.grammar.depth
        if depth is not None and self.tree_levels > depth:
            raise UserError(
                f"--label-level {self.label_level} has no tokens: below {self.grammar.start}, {self.grammar.name} has "
                f"nonterminals at depths up to {depth - 1}"
            )

    @property
    def tree_levels(self) -> int:
        return 0 if self.label_level == "all" else self.label_level + 1

    def batch(self, seed: int, stream: Stream, selection: Selection) -> "Batch":
        return label_batch(self, selection)


@dataclass(frozen=True)
class Batch:
    """Sentences; both tensors are int64, of shape (sentences, longest).

    Attention is causal, so that no token sees the PAD after its sentence, and needs no mask.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    """Token ids where there is a label, `IGNORED_LABEL` elsewhere."""


def label_batch(task: NextTokenTask, selection: Selection) -> Batch:
    """Sentences with BOS, EOS and labels, as one batch.

    Args:
        task: which tokens have labels.
        selection: the sentences, with `task.tree_levels` levels of `span_ends` or more.
    """
    sentences, _, rows = selection
    lengths = sentences.lengths[rows]
    columns = np.arange(2 + int(lengths.max(initial=0)))
    inside = (columns >= 1) & (columns <= lengths[:, None])
    places = np.where(inside, sentences.offsets[rows, None] + columns - 1, 0)
    input_ids = np.where(inside, sentences.tokens[places], task.pad).astype(np.int64)
    input_ids[:, 0] = task.bos
    input_ids[np.arange(len(rows)), 1 + lengths] = task.eos
    if task.label_level == "all":
        labelled = (columns >= 1) & (columns <= 1 + lengths[:, None])
    else:
        assert sentences.span_ends is not None
        labelled = inside & sentences.span_ends[places, task.label_level]
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(np.where(labelled, input_ids, IGNORED_LABEL)))


def sentences_of(task: NextTokenTask, batches: Sequence[Batch]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Terminals (length,) of each sentence, and which tokens have a label: (length + 1,), EOS being the last."""
    found = []
    for batch in batches:
        for ids, labels in zip(batch.input_ids.numpy(), batch.labels.numpy(), strict=True):
            length = int((ids != task.pad).sum())
            found.append((ids[1 : length - 1], labels[1:length] != IGNORED_LABEL))
    return found
