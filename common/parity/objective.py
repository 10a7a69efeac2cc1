"""What a student minimises in a range of steps, and the gradient of that at its logits.

The losses themselves are in `common.distillation.losses`, and `divergence_from_targets` chooses among them. Engines
that do not use autograd compute the derivative with respect to the logits in closed form. With student probabilities p,
teacher probabilities q and the one-hot label y,

    alpha (p - y) + (1 - alpha) (p - q)             forward KL
    alpha (p - y) + (1 - alpha) p (v - <p, v>)      reverse KL: v = log(p / q)
                                                    Jensen-Shannon: v = (1 - beta) log(p / m), m = beta q + (1 - beta) p
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.distillation.losses import forward_kl, jensen_shannon, reverse_kl

FORWARD_KL, REVERSE_KL, JENSEN_SHANNON = 0, 1, 2
DIVERGENCE_CODES = {"forward-kl": FORWARD_KL, "reverse-kl": REVERSE_KL, "jensen-shannon": JENSEN_SHANNON}


class Objective(NamedTuple):
    """Loss, learning rate and weight decay of a range of steps.

    With m steps of batch_size samples each there are n = m * batch_size samples, and a step uses batch_size of them in
    a row. The block engines have batch_size 1, so that n = m.
    """

    labels: NDArray[np.int64]
    """(n,) classes."""
    targets: NDArray[np.float64]
    """(n, classes) teacher probabilities; unused where alpha is 1, but always finite."""
    alpha: NDArray[np.float64]
    """(n,) weight of the cross entropy with the label; 1 - alpha is that of the divergence from the teacher."""
    lr: NDArray[np.float64]
    """(m,) learning rates."""
    decay: float
    """L2 weight decay, as in torch.optim.SGD: added to the gradient as decay * weight."""
    divergence: int
    """One of `DIVERGENCE_CODES`."""
    beta: float
    """Weight of KL(q || m) in the Jensen-Shannon divergence."""


def divergence_from_targets(logits: Tensor, targets: Tensor, divergence: int, beta: float) -> Tensor:
    """The divergence of that code between teacher probabilities and a student, both (..., classes), of shape (...)."""
    if divergence == FORWARD_KL:
        return forward_kl(logits, targets)
    if divergence == REVERSE_KL:
        return reverse_kl(logits, targets)
    return jensen_shannon(logits, targets, beta)
