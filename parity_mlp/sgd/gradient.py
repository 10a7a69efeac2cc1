"""The gradient of the objective at a student's logits, in closed form."""

import math

from numba import njit

from common.distillation.losses import LOG_PROBABILITY_FLOOR
from common.parity.objective import FORWARD_KL, REVERSE_KL


@njit(cache=True, nogil=True)
def logit_gradient(logits, target, label, alpha, divergence, beta, gradient):  # type: ignore[no-untyped-def]
    """Write d loss / d logits for one sample into `gradient`; all three arrays are float64 of shape (classes,)."""
    classes = len(logits)
    largest = logits.max()
    total = 0.0
    for c in range(classes):
        gradient[c] = math.exp(logits[c] - largest)
        total += gradient[c]
    if divergence == FORWARD_KL:
        for c in range(classes):
            gradient[c] = gradient[c] / total - (1 - alpha) * target[c]
    else:
        log_total = largest + math.log(total)
        mean = 0.0
        for c in range(classes):
            p = gradient[c] / total
            if p > 0:
                mean += p * _slope(logits[c] - log_total, p, target[c], divergence, beta)
        for c in range(classes):
            p = gradient[c] / total
            if p > 0:
                slope = _slope(logits[c] - log_total, p, target[c], divergence, beta)
                gradient[c] = alpha * p + (1 - alpha) * p * (slope - mean)
    gradient[label] -= alpha


@njit(cache=True, nogil=True)
def _slope(log_p, p, q, divergence, beta):  # type: ignore[no-untyped-def]
    if divergence == REVERSE_KL:
        log_q = math.log(q) if q > 0 else LOG_PROBABILITY_FLOOR
        return log_p - max(log_q, LOG_PROBABILITY_FLOOR)
    return (1 - beta) * (log_p - math.log(beta * q + (1 - beta) * p))
