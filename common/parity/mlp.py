"""The MLP: its module, its initialisation, its checkpoints and its logits.

ReLU layers with bias and torch's default `nn.Linear` initialisation. Engines work on plain arrays, so a network is
passed as a dictionary of arrays by the names of `MLP.state_dict()`.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import UserError, listed
from common.parity.networks import Network, Tensors, read_arrays, require_shapes
from common.parity.task import ParityTask, unpack_signs

MODEL_TYPE = "parity_mlp"

LOGITS_BATCH = 4096
"""Samples in one forward pass: their activations, (samples, width), must fit in memory."""


class MLP(nn.Module):
    """`layers` hidden ReLU layers of `width` neurons on d inputs; input (samples, d), output (samples, classes)."""

    def __init__(self, d: int, width: int, classes: int, layers: int = 1) -> None:
        super().__init__()
        sizes = [d] + [width] * layers
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.output = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.output(x)


def initial_tensors(d: int, width: int, classes: int, layers: int, seed: int, dtype: str) -> Tensors:
    """A freshly initialised network, which depends on `seed` alone.

    Args:
        d: inputs.
        width: neurons per hidden layer.
        classes: outputs.
        layers: hidden layers.
        seed: below 2^63.
        dtype: float32 or float64; the weights are drawn in float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(d, width, classes, layers)
    return {name: value.numpy().astype(dtype) for name, value in model.state_dict().items()}


def architecture(tensors: Tensors) -> dict[str, Any]:
    """The entries of a checkpoint's config.json, read off the tensors of an MLP."""
    width, d = tensors["hidden.0.weight"].shape
    return {
        "model_type": MODEL_TYPE,
        "d": d,
        "width": width,
        "layers": sum(name.startswith("hidden.") and name.endswith(".weight") for name in tensors),
        "classes": len(tensors["output.bias"]),
        "dtype": str(tensors["output.bias"].dtype),
    }


def checked_network(checkpoint: Path, config: dict[str, Any], tensors: Tensors, task: ParityTask) -> Network:
    """The content of a checkpoint as a network, if it is an MLP for this task.

    Raises:
        UserError: it has another d or number of classes, or its tensors are not those that its config.json describes,
            all in float32 or all in float64.
    """
    sizes = [config.get(name, 1) for name in ("d", "width", "classes", "layers")]
    if not all(type(size) is int and 1 <= size < 2**31 for size in sizes) or sizes[-1] > len(tensors):
        raise UserError(
            f"{checkpoint / 'config.json'}: d, width, classes and layers must be those of its weights, got "
            f"{listed(f'{size!r:.40}' for size in sizes)}: correct it, or save the checkpoint again"
        )
    with torch.device("meta"):
        expected = MLP(*sizes).state_dict()
    require_shapes(checkpoint, {name: tuple(value.shape) for name, value in expected.items()}, tensors)
    tensors = {name: tensors[name] for name in expected}
    if {str(tensor.dtype) for tensor in tensors.values()} not in ({"float32"}, {"float64"}):
        raise UserError(f"{checkpoint}: the tensors must be float32 or float64, and all the same: save them so")
    for name, here in (("d", task.d), ("classes", task.classes)):
        if config.get(name) != here:
            raise UserError(f"the network in {checkpoint} has {name} = {config.get(name)}, but this task has {here}")
    return Network(architecture(tensors), tensors)


def load_model(checkpoint: Path) -> MLP:
    """The network of a checkpoint as a torch module.

    Raises:
        UserError: the weights are damaged or not finite.
    """
    return module_of(read_arrays(checkpoint), "cpu")


def module_of(tensors: Tensors, device: str) -> MLP:
    """A torch module with a copy of these weights, on a device; no random number is drawn."""
    shape = architecture(tensors)
    with torch.device("meta"):
        model = MLP(shape["d"], shape["width"], shape["classes"], shape["layers"])
    state = {name: torch.tensor(value, device=device) for name, value in tensors.items()}
    model.load_state_dict(state, assign=True)
    return model


def batched_logits(model: MLP, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Logits (samples, classes) of a network for packed bits (samples, words), without gradients."""
    weight = model.output.weight
    d = model.hidden[0].in_features
    assert isinstance(d, int)
    with torch.no_grad():
        parts = [
            model(unpack_signs(bits[start : start + LOGITS_BATCH], d, weight.device, weight.dtype))
            for start in range(0, len(bits), LOGITS_BATCH)
        ]
    return torch.cat(parts).double().cpu().numpy()
