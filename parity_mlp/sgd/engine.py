"""One interface to the ways of training an MLP: blocks on the CPU, blocks on an accelerator, and plain PyTorch.

An engine holds networks that learn from one stream of samples. The block engines (`block_cpu`, `block_torch`) take
exact batch-1 SGD steps for one hidden layer; `plain` takes any number of layers and any batch size. All of them are
`common.parity.engine.Engine`s.
"""

import numpy as np
from numpy.typing import NDArray

from common.parity.engine import Engine
from common.parity.mlp import architecture
from common.parity.networks import Tensors
from common.parity.objective import Objective
from parity_mlp.sgd import block_cpu, tiles
from parity_mlp.sgd.block_torch import TorchBlockEngine
from parity_mlp.sgd.plain import PlainEngine


class CPUBlockEngine:
    """Exact blocks of batch-1 steps on the CPU; see `block_cpu`.

    Args:
        networks: of equal d, number of classes and dtype, of any widths.
        threads: processor threads.
        block: steps per block, at most `tiles.MAX_BLOCK`.
    """

    def __init__(self, networks: list[Tensors], threads: int, block: int = tiles.DEFAULT_BLOCK) -> None:
        self._shapes = [network["hidden.0.weight"].shape for network in networks]
        self._networks = [tiles.pack(network) for network in networks]
        self._workspaces = [block_cpu.workspace(network, block) for network in self._networks]
        self._threads = threads
        self._block = block

    def train(self, bits: NDArray[np.uint64], objectives: dict[int, Objective]) -> None:
        d = self._shapes[0][1]
        inputs = tiles.prepare(bits, d, self._networks[0].hidden.dtype.name, self._block)
        block_cpu.sgd_steps(
            [self._networks[i] for i in objectives],
            [self._workspaces[i] for i in objectives],
            list(objectives.values()),
            inputs,
            self._threads,
        )

    def logits(self, network: int, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        return block_cpu.network_logits(self._networks[network], bits, self._threads)

    def tensors(self, network: int) -> Tensors:
        width, d = self._shapes[network]
        return tiles.unpack(self._networks[network], d, width)

    state = tensors


def make_engine(networks: list[Tensors], device: str, batch_size: int, threads: int) -> Engine:
    """The fastest engine on a torch device for these networks, which share d, the number of classes and the dtype."""
    deep = any(architecture(network)["layers"] > 1 for network in networks)
    if deep or batch_size > 1:
        return PlainEngine(networks, device, batch_size)
    if device == "cpu":
        return CPUBlockEngine(networks, threads)
    return TorchBlockEngine(networks, device)
