"""The MLP of a run, from its arguments; see `common.parity.mlp` for the module and its checkpoints."""

from common.parity.mlp import architecture, initial_tensors
from common.parity.networks import Network
from parity_mlp.arguments import Arguments


def new_network(arguments: Arguments, width: int, seed: int) -> Network:
    """A freshly initialised network, which depends on these arguments alone."""
    tensors = initial_tensors(arguments.d, width, arguments.labels, arguments.layers, seed, arguments.dtype)
    return Network(architecture(tensors), tensors)
