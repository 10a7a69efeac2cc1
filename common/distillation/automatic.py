"""Which of a teacher's checkpoints to learn from, and for how long, from what the checkpoints predict.

No training log, no label and no knowledge of the task is needed. With p_c(x) what checkpoint c predicts for a sample x,
and p the final one,

    information of c           I(c) = mean over x of KL(p_c(x) || mean of p_c),
    what c lacks of the final  D(c) = mean over x of KL(p(x) || p_c(x)) / I(final).

I is the mutual information between sample and predicted class: 0 for a constant prediction. D is 1 for the best
constant and 0 for the final checkpoint, and falls from one to the other in the teacher's transition. The student learns
first from the checkpoint where D is nearest to `LACKING`, until its divergence from it is at most `LEARNED` of the
checkpoint's information, or for `LONGEST` of its steps, and then from the final one.

The three numbers were chosen by a few tries with one teacher on parity (100, 4), then checked with two others there
and on the grammar of PCFG_mlm: a first checkpoint that lacks 0.1 or less is too late, several checkpoints are slower,
and `LEARNED` from 0.25 to 0.75 matters little. parity_mlp/README.md compares the result with other methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.distillation.losses import forward_kl
from common.errors import UserError

LACKING = 0.25
LEARNED = 0.5
LONGEST = 1 / 6
LEAST_LACKING, MOST_LACKING = 0.1, 0.6
"""Of a first checkpoint; there is a warning beyond."""
LEAST_INFORMATION = 1e-10
"""Of predictions that differ by more than rounding, in nats."""


@dataclass(frozen=True)
class Anchor:
    """A checkpoint to learn from."""

    step: int
    """Teacher step."""
    information: float
    """Of its predictions, in nats."""
    lacking: float
    """What it lacks of the final one, as a share of the final one's information."""


def choose_anchors(steps: Sequence[int], predict: Callable[[int], NDArray[np.floating]]) -> list[Anchor]:
    """The checkpoint that a student learns from first, and the final one; if there are no others, the final one alone.

    Args:
        steps: teacher steps of the checkpoints, increasing, at least one.
        predict: from such a step to the checkpoint's probabilities (samples, classes), for the same samples each time.

    Raises:
        UserError: the final checkpoint predicts the same for all samples.
    """
    final = predict(steps[-1]).astype(np.float64)
    all_information = information(final)
    if not all_information > LEAST_INFORMATION:
        raise UserError(
            f"checkpoint {steps[-1]} predicts the same for all samples, so that nothing can be learned from it: give "
            "another --teacher"
        )
    last = Anchor(steps[-1], all_information, 0.0)
    nearest: Anchor | None = None
    for step in steps[:-1]:
        predicted = predict(step).astype(np.float64)
        lacking = divergence(final, predicted) / all_information
        if nearest is None or abs(lacking - LACKING) < abs(nearest.lacking - LACKING):
            nearest = Anchor(step, information(predicted), lacking)
    return [last] if nearest is None else [nearest, last]


def information(probabilities: NDArray[np.float64]) -> float:
    """Mutual information of sample and class, in nats, from probabilities (samples, classes)."""
    return divergence(probabilities, np.broadcast_to(probabilities.mean(axis=0), probabilities.shape))


def divergence(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Mean KL(first || second) in nats, of probabilities (samples, classes)."""
    logits = np.log(np.maximum(second, np.finfo(np.float64).tiny))
    return forward_kl(torch.from_numpy(logits), torch.from_numpy(first)).mean().item()
