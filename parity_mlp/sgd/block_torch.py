"""Exact batch-1 SGD in blocks of steps with plain torch operations, for accelerators.

The algorithm and its symbols are those of `block_cpu`: per block one product H = X W^T, a sequential loop on H, V and c
in which row t of H becomes D_t, and one product W += D^T X. The loop only queues work: the numbers that it needs
(learning rate, decay, alpha) are known on the host, so that the host never waits for the device.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.distillation.losses import LOG_PROBABILITY_FLOOR
from common.parity.mlp import LOGITS_BATCH
from common.parity.networks import Tensors
from common.parity.objective import FORWARD_KL, REVERSE_KL, Objective
from common.parity.task import unpack_signs


@dataclass
class _Network:
    hidden: Tensor
    """(width, d + 1): W, with the bias as last column."""
    output: Tensor
    """(classes, width): V."""
    bias: Tensor
    """(classes,): c."""


@dataclass(frozen=True)
class _Targets:
    labels: Tensor
    """(n, classes), float64: one-hot."""
    targets: Tensor
    """(n, classes), float64."""
    alpha: list[float]
    lr: list[float]


class TorchBlockEngine:
    """An engine for one-hidden-layer networks of equal d, number of classes and dtype, on any torch device."""

    def __init__(self, networks: list[Tensors], device: str, block: int = 64) -> None:
        self._device = device
        self._block = block
        self._d = networks[0]["hidden.0.weight"].shape[1]
        self._networks = [
            _Network(
                hidden=torch.tensor(
                    np.concatenate([network["hidden.0.weight"], network["hidden.0.bias"][:, None]], axis=1),
                    device=device,
                ),
                output=torch.tensor(network["output.weight"], device=device),
                bias=torch.tensor(network["output.bias"], device=device),
            )
            for network in networks
        ]

    def train(self, bits: NDArray[np.uint64], objectives: dict[int, Objective]) -> None:
        x = self._inputs(bits)
        targets = {i: self._targets(i, objective) for i, objective in objectives.items()}
        for start in range(0, len(x), self._block):
            rows = x[start : start + self._block]
            gram = rows @ rows.T
            for i, objective in objectives.items():
                _train_block(self._networks[i], objective, targets[i], rows, gram, start)

    def logits(self, network: int, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        weights = self._networks[network]
        logits = [
            torch.relu(self._inputs(bits[start : start + LOGITS_BATCH]) @ weights.hidden.T) @ weights.output.T
            for start in range(0, len(bits), LOGITS_BATCH)
        ]
        return (torch.cat(logits) + weights.bias).double().cpu().numpy()

    def tensors(self, network: int) -> Tensors:
        weights = self._networks[network]
        hidden = weights.hidden.cpu().numpy()
        return {
            "hidden.0.weight": hidden[:, : self._d].copy(),
            "hidden.0.bias": hidden[:, self._d].copy(),
            "output.weight": weights.output.cpu().numpy().copy(),
            "output.bias": weights.bias.cpu().numpy().copy(),
        }

    state = tensors

    def _inputs(self, bits: NDArray[np.uint64]) -> Tensor:
        """(n, d + 1): signs and the constant 1."""
        return F.pad(unpack_signs(bits, self._d, self._device, self._networks[0].hidden.dtype), (0, 1), value=1.0)

    def _targets(self, network: int, objective: Objective) -> _Targets:
        labels = torch.tensor(objective.labels, device=self._device)
        return _Targets(
            labels=F.one_hot(labels, len(self._networks[network].bias)).double(),
            targets=torch.tensor(objective.targets, device=self._device),
            alpha=objective.alpha.tolist(),
            lr=objective.lr.tolist(),
        )


def _train_block(
    network: _Network, objective: Objective, targets: _Targets, x: Tensor, gram: Tensor, start: int
) -> None:
    """Steps start .. start + len(x) - 1, in place. `x` is (steps, d + 1), `gram` is x x^T."""
    steps = x @ network.hidden.T  # row t is W x_t, then D_t / S_{t+1}
    scale = 1.0  # S_t
    for t in range(len(x)):
        h = scale * torch.addmv(steps[t], steps[:t].T, gram[t, :t])
        activation = torch.relu(h)
        gradient = logit_gradient(
            torch.addmv(network.bias, network.output, activation).double(),
            targets.targets[start + t],
            targets.labels[start + t],
            targets.alpha[start + t],
            objective.divergence,
            objective.beta,
        )
        lr = targets.lr[start + t]
        keep = 1 - lr * objective.decay
        scale *= keep
        pull = (-lr * gradient).to(x.dtype)
        steps[t] = torch.where(h > 0, pull @ network.output, 0) / scale
        network.output.addr_(pull, activation, beta=keep)
        network.bias.mul_(keep).add_(pull)
    network.hidden.addmm_(steps.T, x, beta=scale, alpha=scale)


def logit_gradient(logits: Tensor, target: Tensor, label: Tensor, alpha: float, divergence: int, beta: float) -> Tensor:
    """d loss / d logits of one sample; the torch version of `gradient.logit_gradient`.

    Args:
        logits: (classes,), float64.
        target: (classes,), float64: the teacher's probabilities.
        label: (classes,), float64: one-hot.
        alpha: weight of the cross entropy with the label.
        divergence: one of `common.parity.objective.DIVERGENCE_CODES`.
        beta: only for the Jensen-Shannon divergence.

    Returns:
        (classes,), float64.
    """
    p = logits.softmax(-1)
    if divergence == FORWARD_KL:
        from_teacher = p - target
    else:
        if divergence == REVERSE_KL:
            log_ratio = logits.log_softmax(-1) - target.log().clamp(min=LOG_PROBABILITY_FLOOR)
        else:
            log_ratio = (1 - beta) * (logits.log_softmax(-1) - (beta * target + (1 - beta) * p).log())
        log_ratio = torch.where(p > 0, log_ratio, 0)  # p log p = 0
        from_teacher = p * (log_ratio - p.dot(log_ratio))
    return alpha * (p - label) + (1 - alpha) * from_teacher
