"""The MLP, its initialisation and its checkpoints.

ReLU layers with bias and torch's default `nn.Linear` initialisation. The optimisation engines work on plain arrays, so
a network travels as a `Tensors` dictionary with the names of `MLP.state_dict()`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import UserError
from common.runs.checkpoints import read_checkpoint

MODEL_TYPE = "parity_mlp"

Tensors = dict[str, NDArray]


@dataclass(frozen=True)
class Network:
    """A network of any architecture, as a checkpoint holds it."""

    config: Mapping[str, Any]
    """What its config.json says, `model_type` among it."""
    tensors: Tensors
    """Its weights; in a resume state, also what its optimiser keeps."""


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
    """A freshly initialised network; the same for a seed whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(d, width, classes, layers)
    return {name: value.numpy().astype(dtype) for name, value in model.state_dict().items()}


def architecture(tensors: Tensors) -> dict[str, Any]:
    """The entries of a checkpoint's config.json."""
    width, d = tensors["hidden.0.weight"].shape
    return {
        "model_type": MODEL_TYPE,
        "d": d,
        "width": width,
        "layers": sum(name.startswith("hidden.") and name.endswith(".weight") for name in tensors),
        "classes": len(tensors["output.bias"]),
        "dtype": str(tensors["output.bias"].dtype),
    }


def load_tensors(checkpoint: Path, d: int, classes: int) -> Tensors:
    """The tensors of a checkpoint folder, checked to be an MLP for this task.

    Raises:
        UserError: the folder is damaged, holds another kind of model or one of another d or number of classes, or
            its tensors are not those that its config.json describes, in float32 or float64.
    """
    config, tensors = read_checkpoint(checkpoint)
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{checkpoint} holds a {config.get('model_type')!r} model, not {MODEL_TYPE!r}")
    with torch.device("meta"):
        expected = MLP(*(config.get(name, 1) for name in ("d", "width", "classes", "layers"))).state_dict()
    check_shapes(checkpoint, {name: tuple(value.shape) for name, value in expected.items()}, tensors)
    if {tensor.dtype for tensor in tensors.values()} - {np.dtype(np.float32), np.dtype(np.float64)}:
        raise UserError(f"{checkpoint}: the tensors must be float32 or float64")
    for name, here in (("d", d), ("classes", classes)):
        if config.get(name) != here:
            raise UserError(f"the network in {checkpoint} has {name} = {config.get(name)}, but this task has {here}")
    return tensors


def check_shapes(checkpoint: Path, expected: Mapping[str, tuple[int, ...]], tensors: Tensors) -> None:
    """Refuse a checkpoint whose tensors are not those of its config.json.

    Raises:
        UserError: names the first that is missing or of another shape.
    """
    for name, shape in expected.items():
        if name not in tensors or tensors[name].shape != shape:
            found = tensors[name].shape if name in tensors else "missing"
            raise UserError(f"{checkpoint}: the tensor {name} is {found}, its config.json means {shape}")


def load_model(checkpoint: Path) -> MLP:
    """The network in a checkpoint folder as a torch module."""
    config, tensors = read_checkpoint(checkpoint)
    with torch.device("meta"):
        model = MLP(config["d"], config["width"], config["classes"], config["layers"])
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    model.load_state_dict(state, assign=True)
    return model
