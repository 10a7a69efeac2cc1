"""Networks as checkpoints hold them: a configuration and arrays by name, whatever their architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from common.errors import UserError
from common.teachers.tensors import read_weights, require_finite_weights

Tensors = dict[str, NDArray]


@dataclass(frozen=True)
class Network:
    """A network of any architecture."""

    config: Mapping[str, Any]
    """The content of its checkpoints' config.json, with `model_type`."""
    tensors: Tensors
    """Weights by name; in a resume state, also the optimiser's moments."""


def read_arrays(checkpoint: Path) -> Tensors:
    """The weights in a checkpoint's directory, by name.

    Raises:
        UserError: they are damaged, not finite, or of a dtype that NumPy does not have, such as bfloat16.
    """
    weights = read_weights(checkpoint)
    for name, tensor in weights.items():
        if tensor.dtype in (torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn):
            raise UserError(f"{checkpoint}: {name} is {str(tensor.dtype).removeprefix('torch.')}: save it in float32")
    require_finite_weights(weights, checkpoint)
    return {name: tensor.numpy() for name, tensor in weights.items()}


def require_shapes(checkpoint: Path, expected: Mapping[str, tuple[int, ...]], tensors: Tensors) -> None:
    """Refuse a checkpoint whose tensors lack some of the expected names and shapes; further tensors are ignored.

    Raises:
        UserError: names the first that is missing or has another shape.
    """
    for name, shape in expected.items():
        if name not in tensors or tensors[name].shape != shape:
            found = tensors[name].shape if name in tensors else "missing"
            raise UserError(f"{checkpoint}: the tensor {name} is {found}, but its config.json implies {shape}")
