"""Which positions of token sequences are masked, and what they show: the rule that all masked language models share.

Each position is chosen with the mask rate, independently of the others; a sequence with too few or too many chosen is
drawn again. Of the chosen positions 80% show MASK, 10% an ordinary token that is uniformly random (and may be the true
one), 10% what they are (Devlin et al. 2019, arXiv:1810.04805); the loss is on all chosen positions.

The masks of sequence i of a stream depend on (seed, stream, i) alone: their bits come from Philox4x32-10 (Salmon et al.
2011, doi:10.1145/2063384.2063405) with the seed as key and the stream and i in the counter. So they do not depend on
batching, and a run can resume anywhere.
"""

import numpy as np
from numba import njit

from common.distillation.losses import IGNORED_LABEL
from common.philox import philox4x32

MAX_MASK_RATE = 0.99

MASK_STREAMS = {"train": 0x6D61736B, "evaluation": 0x6D61736C, "probe": 0x6D61736D}
"""Differ from the stream numbers of the grammars' sampler, so that masks do not reuse its random bits."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TEN = np.uint64(10)


def threshold_of(mask_rate: float) -> np.uint64:
    """The number below which 32 random bits choose a position."""
    return np.uint64(round(mask_rate * 2**32))


@njit(cache=True, nogil=True)
def fill_masked(  # type: ignore[no-untyped-def]
    tokens,
    starts,
    lengths,
    lead,
    indices,
    key,
    stream,
    threshold,
    fewest,
    hide,
    mask,
    fixed,
    ordinary,
    input_ids,
    attention_mask,
    labels,
):
    """Write masked sequences over PAD. A position uses 64 bits: half choose it, half decide what it then shows.

    Args:
        tokens: (tokens,) of all sequences, any integer type.
        starts, lengths: (rows,) where each sequence begins in `tokens`, and its number of tokens there.
        lead: (leading,) ids that every sequence begins with, such as BOS; may be empty.
        indices: (rows,) uint64, of the sequences in their stream.
        key: np.uint64, the seed.
        stream: np.uint64, from `MASK_STREAMS`.
        threshold: from `threshold_of`.
        fewest: positions that must be chosen, 0 or 1, if any can be. At least one always stays visible, so that a
            sequence with `fewest` 1 needs two positions.
        hide: whether chosen positions are hidden from attention, whatever they show.
        mask: id of MASK.
        fixed: (vocabulary,) bool, ids that are never chosen.
        ordinary: (ordinary,) int64, ids that are shown at random.
        input_ids, attention_mask, labels: (rows, longest) int64, written: the shown ids; 0 where hidden; true ids at
            chosen positions and `IGNORED_LABEL` elsewhere.
    """
    leading, choices = len(lead), np.uint64(len(ordinary))
    for row in range(len(indices)):
        length = lengths[row] + leading
        block, chosen, least = np.uint64(0), length, 0
        while chosen == length or chosen < least:
            chosen, open_positions = 0, 0
            for position in range(0, length, 2):
                words = philox4x32(block, stream, indices[row] & _LOW, indices[row] >> _HALF, key & _LOW, key >> _HALF)
                block += np.uint64(1)
                for i in range(position, min(position + 2, length)):
                    choose, show = (words[0], words[1]) if i == position else (words[2], words[3])
                    true = np.int64(tokens[starts[row] + i - leading]) if i >= leading else np.int64(lead[i])
                    input_ids[row, i], attention_mask[row, i], labels[row, i] = true, 1, IGNORED_LABEL
                    if fixed[true]:
                        continue
                    open_positions += 1
                    if choose < threshold:
                        chosen += 1
                        labels[row, i] = true
                        attention_mask[row, i] = 0 if hide else 1
                        tenth, rest = (show * _TEN) >> _HALF, (show * _TEN) & _LOW
                        if tenth < 8:
                            input_ids[row, i] = mask
                        elif tenth == 8:
                            input_ids[row, i] = ordinary[(rest * choices) >> _HALF]
            least = min(fewest, open_positions)
