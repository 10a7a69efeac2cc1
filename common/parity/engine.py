"""The interface of the engines that train networks: SGD in `parity_mlp.sgd`, Adam in `parity_gpt2.engine`."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.parity.networks import Tensors
from common.parity.objective import Objective


class Engine(Protocol):
    """Networks in training. They are identified by their index, and all of them learn from one stream of samples.

    Samples come as packed bits of shape (samples, words), see `common.parity.task`.
    """

    def train(self, bits: NDArray[np.uint64], objectives: dict[int, Objective]) -> None:
        """Take one optimiser step per batch, in order.

        Args:
            bits: (steps * batch size, words), the samples of a range of steps.
            objectives: what to minimise in these steps, by the index of the network; the other networks stay as they
                are.
        """

    def logits(self, network: int, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Logits (samples, classes) of a network with its current weights, for bits (samples, words)."""

    def tensors(self, network: int) -> Tensors:
        """A copy of a network's weights, by the names of its checkpoints."""

    def state(self, network: int) -> Tensors:
        """A copy of all that training resumes from: the weights, and the optimiser's moments if it has any."""
