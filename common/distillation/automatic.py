"""Which of a teacher's checkpoints to learn from, and for how long, from what the checkpoints predict.

No training log, no label and no knowledge of the task is needed. With p_c(x) what checkpoint c predicts for a sample x,
and p the final one,

    information of c           I(c) = mean over x of KL(p_c(x) || mean of p_c),
    what c lacks of the final  D(c) = mean over x of KL(p(x) || p_c(x)) / I(final).

I is the mutual information between sample and predicted class: 0 for a constant prediction. D is 1 for the best
constant and 0 for the final checkpoint, and falls from one to the other in the teacher's transition. The checkpoints
are those where D is nearest to `LACKING`. The student moves on from one once its divergence from it is at most
`LEARNED` of the checkpoint's information, and in any case after one of `PARTS` equal parts of its steps, so that half
of them are left for the final one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

LACKING = (0.75, 0.5, 0.25)
LEARNED = 0.25
PARTS = 6


@dataclass(frozen=True)
class Anchor:
    """A checkpoint to learn from."""

    step: int
    """Teacher step."""
    information: float
    """Of its predictions, in nats."""


def choose_anchors(steps: Sequence[int], predict: Callable[[int], NDArray[np.floating]]) -> list[Anchor]:
    """The checkpoints that a student learns from in turn; the final one is the last.

    Args:
        steps: teacher steps of the checkpoints, increasing, at least one.
        predict: from such a step to the checkpoint's probabilities (samples, classes), for the same samples each time.

    Raises:
        UserError: the final checkpoint predicts the same for all samples.
    """
    final = predict(steps[-1]).astype(np.float64)
    all_information = information(final)
    if not all_information > 1e-6:
        raise UserError(
            f"checkpoint {steps[-1]} predicts the same for all samples, so that nothing can be learned from it: give "
            "another --teacher"
        )
    lacking, own = [], []
    for step in steps[:-1]:
        predicted = predict(step).astype(np.float64)
        lacking.append(divergence(final, predicted) / all_information)
        own.append(information(predicted))
    chosen = sorted({int(np.abs(np.array(lacking) - share).argmin()) for share in LACKING} if lacking else ())
    return [*(Anchor(steps[i], own[i]) for i in chosen), Anchor(steps[-1], all_information)]


def information(probabilities: NDArray[np.float64]) -> float:
    """Mutual information of sample and class, in nats, from probabilities (samples, classes)."""
    return divergence(probabilities, np.broadcast_to(probabilities.mean(axis=0), probabilities.shape))


def divergence(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Mean KL(first || second) in nats, of probabilities (samples, classes)."""
    tiny = np.finfo(np.float64).tiny
    terms = np.where(first > 0, first * np.log(np.maximum(first, tiny) / np.maximum(second, tiny)), 0.0)
    return float(terms.sum(axis=1).mean())
