"""The memory and disk that training a Transformer with Adam needs, from its sizes."""

from common.resources import Needs

STATE = 16
"""Bytes per parameter: the weight, its gradient and Adam's two moments."""
SAVED = 12
"""Bytes per parameter in a resume state: the weight and the moments."""
ACTIVATIONS = 48
"""Bytes per token, block and dimension of the hidden state that the backward pass needs, at least, in float32."""
TOKEN = 24
"""Bytes per token of a batch: three tensors of 64-bit integers."""


def transformer_needs(
    *,
    layers: int,
    hidden: int,
    vocabulary: int,
    positions: int,
    batch_tokens: float,
    evaluation_tokens: float,
    checkpoints: int,
) -> Needs:
    """What training one Transformer in float32 needs at least.

    Args:
        layers: blocks.
        hidden: dimensions of the hidden state; the feed-forward layers have four times as many.
        vocabulary: number of token ids.
        positions: of the position embedding.
        batch_tokens: tokens that are computed at a time.
        evaluation_tokens: tokens of all evaluation samples.
        checkpoints: number that will be saved.
    """
    parameters = hidden * (layers * (12 * hidden + 13) + vocabulary + positions)
    return Needs(
        memory={
            "weights and their optimiser": STATE * parameters,
            "a resume state": SAVED * parameters,
            "a batch": int(batch_tokens * (ACTIVATIONS * hidden * layers + TOKEN)),
            "evaluation data": int(evaluation_tokens * TOKEN),
        },
        disk={"checkpoints": 4 * parameters * checkpoints, "a resume state": SAVED * parameters},
    )
