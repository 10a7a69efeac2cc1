"""Targets with few classes: of a cache, where the teacher's arg-max, top-k or sampled classes stand for all of them.

With student probabilities p and targets q, the forward KL divergence sum q (log q - log p) needs log p at the classes
of q only, and its gradient at the student's logits is p - q. It is linear in q up to the entropy, so sampled classes,
whose mean is q, give an unbiased estimate of both; the k most probable classes do not (Anshumann et al., ACL 2025,
arXiv:2503.16870).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseTargets:
    """A teacher's probabilities at labelled positions; those of all classes that are not named are 0."""

    classes: Tensor
    """(labelled, width), integers; where a position has fewer classes, the rest is of probability 0."""
    probabilities: Tensor
    """(labelled, width) in float32; those of a position sum to 1."""
    entropy: float | Tensor
    """Of the teacher's probabilities, in nats: the mean over the positions."""
    number_of_classes: int
    """Of the teacher."""

    def __len__(self) -> int:
        return len(self.classes)

    def mean(self, values: Tensor, rows: slice) -> Tensor:
        """sum q v at some positions, of shape (rows,), for values v (rows, classes)."""
        return (values.gather(-1, self.classes[rows]) * self.probabilities[rows]).sum(-1)

    def forward_kl(self, log_student: Tensor) -> Tensor:
        """KL(q || p), of shape (labelled,), up to the difference of a position's entropy from the mean.

        Args:
            log_student: log p, (labelled, classes).
        """
        return -self.mean(log_student, slice(None)) - self.entropy

    def subtract_from(self, gradient: Tensor, rows: slice, factor: float) -> None:
        """Subtract factor times q at some positions from a gradient (rows, classes)."""
        gradient.scatter_add_(-1, self.classes[rows], self.probabilities[rows] * -factor)


def arg_max_targets(logits: Tensor) -> SparseTargets:
    """The first of the largest logits (labelled, classes), with probability 1."""
    best = logits.argmax(-1, keepdim=True)
    return SparseTargets(best, torch.ones_like(best, dtype=torch.float32), 0.0, logits.shape[-1])
