"""Masked sentences of a grammar as batches.

A sentence is BOS and the terminals that the grammar's sampler gives. Each of its positions, BOS included, is chosen
with the mask rate, independently of the others; a sentence that has all of them chosen is drawn again, so that at least
one is left visible. Of the chosen positions 80% show MASK, 10% a terminal that is uniformly random (and may be the true
one), 10% what they are; the loss is on all chosen positions. In Panigrahi et al. (2025), arXiv:2410.05464, chosen
positions are also hidden from attention, whatever they show; `hide_masked` controls this, and changes nothing else.

The masks of sentence i of a stream depend on (seed, stream, i) alone: their bits come from Philox4x32-10 (Salmon et al.
2011, doi:10.1145/2063384.2063405) with the seed as key and the stream and i in the counter. So they do
not depend on batching, and a run can resume anywhere.

Every batch is as wide as its longest sentence; see common/pcfg/batches.py for which sentences it has.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.pcfg.philox import philox4x32
from common.pcfg.sampler import Sentences, Stream
from common.pcfg.task import GrammarTask, Selection

MAX_MASK_RATE = 0.99

_MASK_STREAMS: dict[Stream, int] = {"train": 0x6D61736B, "evaluation": 0x6D61736C, "probe": 0x6D61736D}
"""Differ from the sampler's stream numbers, so that masks do not reuse its random bits."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TEN = np.uint64(10)


@dataclass(frozen=True)
class MaskedTask(GrammarTask):
    """Masked prediction on a grammar."""

    added = 1
    mask_rate: float = 0.3
    hide_masked: bool = True
    """Whether the chosen positions are hidden from attention."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate <= MAX_MASK_RATE:
            raise UserError(f"the mask rate must be above 0 and at most {MAX_MASK_RATE}, got {self.mask_rate}")

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
    _fill_batch(
        sentences.tokens,
        sentences.offsets[rows],
        lengths,
        (first + rows).astype(np.uint64),
        np.uint64(seed),
        np.uint64(_MASK_STREAMS[stream]),
        np.uint64(round(task.mask_rate * 2**32)),
        task.hide_masked,
        task.bos,
        task.mask,
        input_ids,
        attention_mask,
        labels,
    )
    return Batch(*(torch.from_numpy(array) for array in (input_ids, attention_mask, labels)))


@njit(cache=True, nogil=True)
def _fill_batch(  # type: ignore[no-untyped-def]
    tokens, starts, lengths, indices, key, stream, threshold, hide, bos, mask, input_ids, attention_mask, labels
):
    """Write masked sentences over PAD. A position uses 64 bits: half choose it, half decide what it then shows."""
    for row in range(len(indices)):
        length = lengths[row] + 1
        block, chosen = np.uint64(0), length
        while chosen == length:
            chosen = 0
            for position in range(0, length, 2):
                words = philox4x32(block, stream, indices[row] & _LOW, indices[row] >> _HALF, key & _LOW, key >> _HALF)
                block += np.uint64(1)
                for i in range(position, min(position + 2, length)):
                    choose, show = (words[0], words[1]) if i == position else (words[2], words[3])
                    true = tokens[starts[row] + i - 1] if i > 0 else bos
                    input_ids[row, i], attention_mask[row, i], labels[row, i] = true, 1, IGNORED_LABEL
                    if choose < threshold:
                        chosen += 1
                        labels[row, i] = true
                        attention_mask[row, i] = 0 if hide else 1
                        tenth, rest = (show * _TEN) >> _HALF, (show * _TEN) & _LOW
                        if tenth < 8:
                            input_ids[row, i] = mask
                        elif tenth == 8:
                            input_ids[row, i] = (rest * np.uint64(bos)) >> _HALF  # the ids below BOS are the terminals
