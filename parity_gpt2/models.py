"""The GPT-2 of a run, from its arguments; see `common.parity.gpt2` for the module and its checkpoints."""

from common.parity.gpt2 import Shape, initial_network
from common.parity.networks import Network
from parity_gpt2.arguments import Arguments


def new_network(arguments: Arguments, heads: int, seed: int) -> Network:
    """A freshly initialised network, which depends on these arguments alone."""
    shape = Shape(
        layers=arguments.layers,
        heads=heads,
        head_dim=arguments.head_dim,
        vocabulary=arguments.labels + arguments.class_token,
        positions=arguments.positions or arguments.d + arguments.class_token,
        causal=arguments.causal,
        feed_forward=arguments.feed_forward,
        average_heads=arguments.average_heads,
        class_token=arguments.class_token,
        tied=arguments.tie_embeddings,
        dropout=arguments.dropout,
    )
    return initial_network(shape, arguments.initial_std, seed)
