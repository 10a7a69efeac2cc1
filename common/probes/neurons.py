"""Which input coordinates the neurons of a one-hidden-layer network hold.

A neuron holds a coordinate if its weight there is `FACTOR` times as large as the root mean square of all its weights.
That of weights drawn uniformly is below sqrt(3), so that initially no neuron holds anything; a neuron with equal
weights on k of d coordinates, and none elsewhere, holds these if sqrt(d / k) is above `FACTOR`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

FACTOR = 3.0


@dataclass(frozen=True)
class HeldCoordinates:
    """What the neurons of a network hold; `dataclasses.asdict` of it can be stored as JSON."""

    support: float
    """Fraction of neurons that hold a coordinate of the support, mean over these."""
    others: float
    """The same for the other coordinates."""
    whole_support: float
    """Fraction of neurons that hold all of the support."""
    share: float
    """Share of these in the output: of the sum over neurons of |output weight| times the norm of the input weights."""


def held(weights: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether each neuron holds each coordinate: (neurons, d), from its input weights (neurons, d)."""
    magnitudes = np.abs(weights.astype(np.float64))
    root_mean_square = np.sqrt((magnitudes**2).mean(axis=1, keepdims=True))
    return (magnitudes > FACTOR * root_mean_square).astype(np.bool_)


def probe_neurons(
    weights: NDArray[np.floating], output: NDArray[np.floating], support: Sequence[int]
) -> HeldCoordinates:
    """What the neurons hold of the support.

    Args:
        weights: input weights, (neurons, d).
        output: output weights, (2, neurons); the logits of the two classes matter by their difference only.
        support: coordinates.

    Raises:
        UserError: no other coordinates, or so large a support that a neuron could not hold all of it.
    """
    d = weights.shape[1]
    if not 0 < len(support) < d / FACTOR**2:
        raise UserError(
            f"a neuron can hold at most {int(d / FACTOR**2)} of {d} coordinates at once, not {len(support)}"
        )
    found = held(weights)
    inside = found[:, list(support)]
    whole = inside.all(axis=1)
    importance = np.abs(output[0] - output[1]) * np.linalg.norm(weights, axis=1)
    total = float(importance.sum())
    return HeldCoordinates(
        support=float(inside.mean()),
        others=float(np.delete(found, list(support), axis=1).mean()),
        whole_support=float(whole.mean()),
        share=float(importance[whole].sum()) / total if total else 0.0,
    )
