"""How good the Bayes-optimal predictor is: no model can have a lower expected loss or a higher expected accuracy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BayesOptimal:
    """Means over all positions that are to be predicted, as in an evaluation."""

    loss: float
    """Cross entropy in nats."""
    accuracy: float
    """Fraction of the tokens that are the most probable one; the first of several that are equally probable."""
    expected_accuracy: float
    """Mean probability of the most probable token: the accuracy without the luck of the draw."""


def score(probabilities: NDArray[np.float64], truth: NDArray[np.integer], certain: int = 0) -> BayesOptimal:
    """Loss and accuracy of exact probabilities.

    Args:
        probabilities: (predicted, tokens).
        truth: (predicted,), the tokens.
        certain: number of further positions, whose token is certain.
    """
    predicted = len(truth) + certain
    return BayesOptimal(
        loss=float(-np.log(probabilities[np.arange(len(truth)), truth]).sum() / predicted),
        accuracy=float(((probabilities.argmax(axis=1) == truth).sum() + certain) / predicted),
        expected_accuracy=float((probabilities.max(axis=1).sum() + certain) / predicted),
    )
