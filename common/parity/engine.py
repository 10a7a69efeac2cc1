"""What trains networks."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.parity.mlp import Tensors
from common.parity.objective import Objective


class Engine(Protocol):
    """Networks in training. All inputs are packed bits of shape (samples, words), see `parity_mlp.data`."""

    def train(self, bits: NDArray[np.uint64], objectives: dict[int, Objective]) -> None:
        """Take one step per batch of `bits`, in order, on each network that `objectives` names by its number."""

    def logits(self, network: int, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Logits (samples, classes) of a network as it is now."""

    def tensors(self, network: int) -> Tensors:
        """A copy of a network's weights."""

    def state(self, network: int) -> Tensors:
        """A copy of all that the training needs to go on; with SGD, the weights."""
