"""Adam on GPT-2: networks of one shape and divergence are stacked, whatever their seed, learning rate or teacher.

All weights of a stack lie in one piece of memory, name by name, and so do their gradients. Autograd adds into views of
the gradients, one all-reduce sums them over several processes, and fused Adam takes all weights of one learning rate at
once. Inputs come as packed bits and are unpacked on the device; within a range of steps the host waits for nothing.

What a network computes depends on the others of its stack by rounding only, except with dropout, whose random numbers
are drawn for the whole stack. They are a function of the step, the process and the micro-batch, so that a resumed run
draws the same ones. A run may be resumed with another number of processes: without dropout that changes its numbers by
rounding only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from common.distillation.losses import cross_entropy, label_cross_entropy
from common.parity.arguments import Precision
from common.parity.gpt2 import Shape, shape_of
from common.parity.last_position import (
    Weights,
    autocast,
    batched_logits,
    last_logits,
    one_hot_tokens,
    weight_views,
)
from common.parity.networks import Network, Tensors
from common.parity.objective import FORWARD_KL, Objective, divergence_from_targets

MOMENTS = ("exp_avg/", "exp_avg_sq/")
"""Prefixes, in a network's state, of what Adam keeps of every weight; without the slash they are torch's names."""
STEP = "adam/step"
"""Name of the number of steps in a network's state."""


@dataclass(frozen=True)
class AdamSettings:
    """How networks are trained."""

    device: str = "cpu"
    batch_size: int = 32
    """Samples per step, of this process."""
    accumulate: int = 1
    """Micro-batches into which they are cut to save memory."""
    beta1: float = 0.9
    beta2: float = 0.999
    precision: Precision = "float32"
    """bf16 computes matrix products in bfloat16; the weights stay in float32."""
    compiled: bool = False
    """Compile the loss with torch.compile; on a GPU with CUDA graphs."""
    seed: int = 0
    """Seed of dropout."""
    process: int = 0
    """Index of this process."""
    processes: int = 1
    """Processes that average their gradients."""


class TransformerEngine:
    """A `common.parity.engine.Engine` for GPT-2, where the methods are described.

    Args:
        networks: as a checkpoint holds them, or with the tensors of `state`: the weights, Adam's moments under
            `MOMENTS` and the number of steps under `STEP`.
        d: coordinates of the task.
        settings: how they are trained.
    """

    def __init__(self, networks: Sequence[Network], d: int, settings: AdamSettings) -> None:
        self._d, self._settings = d, settings
        self._shapes = [shape_of(network.config) for network in networks]
        self._states = [network.tensors for network in networks]
        self._steps = [int(state.get(STEP, 0)) for state in self._states]
        self._stacks: dict[tuple[int, ...], StackedNetworks] = {}
        for members in group_by_kind({i: (shape, self._steps[i]) for i, shape in enumerate(self._shapes)}):
            self._stack_of(members)

    def train(self, bits: NDArray[np.uint64], objectives: dict[int, Objective]) -> None:
        tokens = one_hot_tokens(bits, self._d, self._settings.device)
        kinds = {i: (self._shapes[i], self._steps[i], each.divergence) for i, each in objectives.items()}
        for members in group_by_kind(kinds):
            self._stack_of(members).train(tokens, [objectives[i] for i in members])
            for i in members:
                self._steps[i] += len(objectives[i].lr)

    def logits(self, network: int, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        members = self._members_with(network)
        return self._stacks[members].logits(
            members.index(network), one_hot_tokens(bits, self._d, self._settings.device)
        )

    def tensors(self, network: int) -> Tensors:
        members = self._members_with(network)
        return self._stacks[members].tensors(members.index(network), ("",))

    def state(self, network: int) -> Tensors:
        members = self._members_with(network)
        return self._stacks[members].state(members.index(network))

    def _members_with(self, network: int) -> tuple[int, ...]:
        return next(members for members in self._stacks if network in members)

    def _stack_of(self, members: tuple[int, ...]) -> "StackedNetworks":
        """The stack of exactly these networks; other stacks that contain some of them are taken apart."""
        if members not in self._stacks:
            groups = [members]
            for others in [others for others in self._stacks if set(others) & set(members)]:
                for i in others:
                    self._states[i] = self.state(i)
                del self._stacks[others]
                groups += [(i,) for i in others if i not in members]
            for group in groups:
                states = [self._states[i] for i in group]
                self._stacks[group] = StackedNetworks(self._shapes[group[0]], states, self._settings)
        return self._stacks[members]


def group_by_kind(kinds: Mapping[int, object]) -> list[tuple[int, ...]]:
    """Indices of the networks of each kind, from the kind of each network."""
    return [tuple(i for i in kinds if kinds[i] == kind) for kind in dict.fromkeys(kinds.values())]


class StackedNetworks:
    """Networks of one shape that have taken the same number of steps, and are trained in one pass.

    Args:
        shape: of all of them.
        states: of each, as `state` returns it, or the weights alone.
        settings: how they are trained.
    """

    def __init__(self, shape: Shape, states: Sequence[Tensors], settings: AdamSettings) -> None:
        self._shape, self._settings = shape, settings
        # In an order of their own: where weights lie in the memory changes the rounding, and files have another order.
        self._sizes = {name: tensor.shape for name, tensor in sorted(states[0].items()) if "/" not in name}
        self._networks = len(states)
        self._flat = {prefix: self._joined(states, prefix) for prefix in ("", *MOMENTS)}
        self._gradients = torch.zeros_like(self._flat[""])
        self._step = int(states[0].get(STEP, 0))
        self._weights = self._views(self._flat[""])
        for weight, gradient in zip(self._weights.values(), self._views(self._gradients).values(), strict=True):
            weight.requires_grad_()
            weight.grad = gradient
        self._loss: Callable[..., Tensor] = partial(_loss, shape, self._weights)
        if settings.compiled:
            mode = "reduce-overhead" if settings.device.startswith("cuda") else "default"
            self._loss = torch.compile(self._loss, mode=mode)

    def train(self, tokens: Tensor, objectives: Sequence[Objective]) -> None:
        """Take one step per batch, in order.

        Args:
            tokens: (d, steps * batch size, 2), one-hot as `last_logits` takes them.
            objectives: one for each network, of one divergence and weight decay, with the same labels.
        """
        settings = self._settings
        labels, targets, alpha = self._loss_terms(objectives)
        optimizer, rates = self._optimizer(objectives)
        size = settings.batch_size // settings.accumulate
        for step in range(len(objectives[0].lr)):
            for part in range(settings.accumulate):
                start = step * settings.batch_size + part * size
                chosen = slice(start, start + size)
                if self._shape.dropout:
                    _seed_dropout(settings.seed, self._step, settings.process, part)
                with autocast(tokens.device.type, settings.precision):
                    loss = self._loss(
                        tokens[:, chosen],
                        labels[chosen],
                        targets[:, chosen],
                        alpha[:, chosen],
                        objectives[0].divergence,
                        objectives[0].beta,
                    )
                (loss / settings.accumulate).backward()
            if settings.processes > 1:
                torch.distributed.all_reduce(self._gradients)
                self._gradients /= settings.processes
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate[step]
            optimizer.step()
            self._gradients.zero_()
            self._step += 1

    def logits(self, row: int, tokens: Tensor) -> NDArray[np.float64]:
        """Logits (samples, classes) of the network in a row, for tokens (d, samples, 2), without dropout."""
        weights = {name: weight[row : row + 1] for name, weight in self._weights.items()}
        return batched_logits(self._shape, weights, tokens, self._settings.precision)

    def state(self, row: int) -> Tensors:
        """Weights, moments and number of steps of the network in a row of the stack."""
        return {STEP: np.array(self._step), **self.tensors(row, ("", *MOMENTS))}

    def tensors(self, row: int, prefixes: Sequence[str]) -> Tensors:
        """A copy of what is kept of a network under these prefixes, "" for the weights or some of `MOMENTS`."""
        return {
            prefix + name: values[row].view(self._sizes[name]).cpu().numpy().copy()
            for prefix in prefixes
            for name, values in self._views(self._flat[prefix]).items()
        }

    def _joined(self, states: Sequence[Tensors], prefix: str) -> Tensor:
        """The tensors of this prefix, or zeros where there are none, name by name and network by network."""
        parts = [
            np.ravel(state.get(prefix + name, np.zeros(size, np.float32)))
            for name, size in self._sizes.items()
            for state in states
        ]
        return torch.tensor(np.concatenate(parts), device=self._settings.device)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        return weight_views(flat, self._sizes, self._networks)

    def _loss_terms(self, objectives: Sequence[Objective]) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (samples,), targets (networks, samples, classes) and alpha (networks, samples) on the device."""
        labels = objectives[0].labels
        targets = np.stack([objective.targets for objective in objectives])
        alpha = np.stack([objective.alpha for objective in objectives])
        if objectives[0].divergence == FORWARD_KL:  # the gradient is that of the cross entropy with a mixture of both
            weight = alpha[..., None]
            targets = weight * np.eye(targets.shape[-1])[labels] + (1 - weight) * targets
        device = self._settings.device
        return (
            torch.from_numpy(labels).to(device),
            torch.from_numpy(targets).float().to(device),
            torch.from_numpy(alpha).float().to(device),
        )

    def _optimizer(self, objectives: Sequence[Objective]) -> tuple[torch.optim.Optimizer, list[Tensor]]:
        """Adam on the networks, grouped by learning rate, and the learning rates (steps,) of each group."""
        settings = self._settings
        groups: dict[bytes, list[int]] = {}
        for i, objective in enumerate(objectives):
            groups.setdefault(objective.lr.tobytes(), []).append(i)
        pieces = self._pieces(groups.values()) if len(groups) > 1 else [[(self._gradients, *self._flat.values())]]
        optimizer = torch.optim.AdamW(
            [{"params": [weights for _, weights, *_ in group]} for group in pieces],
            betas=(settings.beta1, settings.beta2),
            weight_decay=objectives[0].decay,
            fused=True,
        )
        for gradients, weights, mean, square in (piece for group in pieces for piece in group):
            step = torch.tensor(float(self._step), device=settings.device)
            weights.grad = gradients
            optimizer.state[weights] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        rates = [torch.from_numpy(objectives[members[0]].lr).float().to(settings.device) for members in groups.values()]
        return optimizer, rates

    def _pieces(self, groups: Iterable[list[int]]) -> list[list[tuple[Tensor, ...]]]:
        """Gradients, weights and moments of every group of networks, tensor by tensor."""
        flats = (self._gradients, *self._flat.values())
        return [
            list(
                zip(*([view[i] for view in self._views(flat).values() for i in members] for flat in flats), strict=True)
            )
            for members in groups
        ]


def _loss(
    shape: Shape,
    weights: Weights,
    tokens: Tensor,
    labels: Tensor,
    targets: Tensor,
    alpha: Tensor,
    divergence: int,
    beta: float,
) -> Tensor:
    """Sum over the networks of the mean loss of a micro-batch; the forward KL lacks the term without a gradient.

    Args:
        tokens: (d, samples, 2).
        labels: (samples,).
        targets: (networks, samples, classes).
        alpha: (networks, samples).
    """
    logits = last_logits(shape, weights, tokens, shape.dropout).float()
    if divergence == FORWARD_KL:
        return cross_entropy(logits, targets).mean(1).sum()
    from_labels = label_cross_entropy(logits, labels.expand(logits.shape[:2]))
    from_teacher = divergence_from_targets(logits, targets, divergence, beta)
    return (alpha * from_labels + (1 - alpha) * from_teacher).mean(1).sum()


def _seed_dropout(*key: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
