"""What an MLP sees of a sample: its signs.

The engines in `sgd/` read the packed bits of `common.parity.task`; this is for a training loop of one's own, with
`ParityTask.sample` and `ParityTask.labels`.
"""

import numpy as np
from numpy.typing import NDArray


def signs(bits: NDArray[np.uint64], d: int, dtype: type = np.float32) -> NDArray:
    """Packed bits (samples, words) to the inputs x, +1 and -1 of shape (samples, d)."""
    unpacked = np.unpackbits(bits.astype("<u8", copy=False).view(np.uint8), axis=1, count=d, bitorder="little")
    return (1 - 2 * unpacked.astype(np.int8)).astype(dtype)
