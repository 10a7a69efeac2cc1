"""What a GPT-2 sees of a sample: a token for each coordinate, and a class token if it has one.

The engine computes on one-hot tokens, see `common.parity.last_position`; this is for a training loop of one's own, with
`ParityTask.sample` and `ParityTask.labels`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.parity.task import unpack_bits


def token_ids(bits: NDArray[np.uint64], d: int, class_token: int | None = None) -> Tensor:
    """Packed bits (samples, words) to token ids, int64: 0 for x_i = +1 and 1 for x_i = -1.

    Args:
        bits: packed inputs.
        d: coordinates of the task.
        class_token: id of the class token, which comes last.

    Returns:
        (samples, d), or (samples, d + 1) with a class token.
    """
    ids = unpack_bits(bits, d, "cpu").to(torch.int64)
    return ids if class_token is None else F.pad(ids, (0, 1), value=class_token)
