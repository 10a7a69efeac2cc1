"""SGD as PyTorch does it, one autograd step at a time: for deep networks and for batches of more than one sample."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.distillation.losses import label_cross_entropy
from common.parity.mlp import MLP, batched_logits, module_of
from common.parity.networks import Tensors
from common.parity.objective import Objective, divergence_from_targets
from common.parity.task import unpack_signs


class PlainEngine:
    """An engine for networks of any depth, with equal d, number of classes and dtype; the loss is a batch's mean."""

    def __init__(self, networks: list[Tensors], device: str, batch_size: int) -> None:
        self._device = device
        self._batch_size = batch_size
        self._d = networks[0]["hidden.0.weight"].shape[1]
        self._models = [module_of(network, device) for network in networks]

    def train(self, bits: NDArray[np.uint64], objectives: dict[int, Objective]) -> None:
        x = unpack_signs(bits, self._d, self._device, self._models[0].output.weight.dtype)
        for i, objective in objectives.items():
            self._train_network(self._models[i], x, objective)

    def logits(self, network: int, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        return batched_logits(self._models[network], bits)

    def tensors(self, network: int) -> Tensors:
        return {name: value.cpu().numpy().copy() for name, value in self._models[network].state_dict().items()}

    state = tensors

    def _train_network(self, model: MLP, x: Tensor, objective: Objective) -> None:
        labels = torch.tensor(objective.labels, device=self._device)
        targets = torch.tensor(objective.targets, device=self._device, dtype=x.dtype)
        alpha = torch.tensor(objective.alpha, device=self._device, dtype=x.dtype)
        optimizer = torch.optim.SGD(model.parameters(), weight_decay=objective.decay)
        for step, lr in enumerate(objective.lr.tolist()):
            batch = slice(step * self._batch_size, (step + 1) * self._batch_size)
            logits = model(x[batch])
            from_labels = label_cross_entropy(logits, labels[batch])
            from_teacher = divergence_from_targets(logits, targets[batch], objective.divergence, objective.beta)
            loss = (alpha[batch] * from_labels + (1 - alpha[batch]) * from_teacher).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
