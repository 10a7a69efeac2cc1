"""Masked sentences of a grammar as batches.

A sentence is BOS and the terminals that the grammar's sampler gives. Each of its positions, BOS included, is chosen
with the mask rate, independently of the others; a sentence that has all of them chosen is drawn again, so that at least
one is left visible. Of the chosen positions 80% show MASK, 10% a terminal that is uniformly random (and may be the true
one), 10% what they are; the loss is on all chosen positions. In Panigrahi et al. (2025), arXiv:2410.05464, chosen
positions are also hidden from attention, whatever they show; `hide_masked` controls this, and changes nothing else.

The masks of sentence i of a stream depend on (seed, stream, i) alone; see common/masking.py.

Every batch is as wide as its longest sentence; see common/pcfg/batches.py for which sentences it has.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.masking import MASK_STREAMS, MAX_MASK_RATE, fill_masked, threshold_of
from common.pcfg.sampler import Sentences, Stream
from common.pcfg.task import GrammarTask, Selection


@dataclass(frozen=True)
class MaskedTask(GrammarTask):
    """Masked prediction on a grammar."""

    added = 1
    mask_rate: float = 0.3
    hide_masked: bool = True
    """Whether the chosen positions are hidden from attention."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate <= MAX_MASK_RATE:
            raise UserError(f"--mask-rate must be above 0 and at most {MAX_MASK_RATE}, got {self.mask_rate}")

    def batch(self, seed: int, stream: Stream, selection: Selection) -> "Batch":
        return mask_batch(self, seed, stream, *selection)


@dataclass(frozen=True)
class Batch:
    """Masked sentences; all tensors are int64, of shape (sentences, longest)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """0 at PAD and, with `hide_masked`, at chosen positions; 1 elsewhere."""
    labels: torch.Tensor
    """True token ids at chosen positions, `IGNORED_LABEL` elsewhere."""


def mask_batch(
    task: MaskedTask, seed: int, stream: Stream, sentences: Sentences, first: int, rows: NDArray[np.int64]
) -> Batch:
    """Some sentences with BOS, masked, as one batch.

    Args:
        task: what is masked, and how.
        seed: of the masks.
        stream: where the sentences are from.
        sentences: consecutive ones of the stream; see `Selection`.
        first: index of their first one in the stream.
        rows: which of them, in order.
    """
    lengths = sentences.lengths[rows]
    shape = (len(rows), 1 + int(lengths.max(initial=0)))
    input_ids, attention_mask, labels = (np.full(shape, value, np.int64) for value in (task.pad, 0, IGNORED_LABEL))
    fill_masked(
        sentences.tokens,
        sentences.offsets[rows],
        lengths,
        np.array([task.bos]),
        (first + rows).astype(np.uint64),
        np.uint64(seed),
        np.uint64(MASK_STREAMS[stream]),
        threshold_of(task.mask_rate),
        0,
        task.hide_masked,
        task.mask,
        np.zeros(task.vocabulary, np.bool_),
        np.arange(task.terminals),
        input_ids,
        attention_mask,
        labels,
    )
    return Batch(*(torch.from_numpy(array) for array in (input_ids, attention_mask, labels)))
