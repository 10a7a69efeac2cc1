"""Networks as checkpoints hold them: a configuration and arrays by name, whatever their architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.errors import UserError

Tensors = dict[str, NDArray]


@dataclass(frozen=True)
class Network:
    """A network of any architecture."""

    config: Mapping[str, Any]
    """The content of its checkpoints' config.json, with `model_type`."""
    tensors: Tensors
    """Weights by name; in a resume state, also the optimiser's moments."""


def require_shapes(checkpoint: Path, expected: Mapping[str, tuple[int, ...]], tensors: Tensors) -> None:
    """Refuse a checkpoint whose tensors lack some of the expected names and shapes; further tensors are ignored.

    Raises:
        UserError: names the first that is missing or has another shape.
    """
    for name, shape in expected.items():
        if name not in tensors or tensors[name].shape != shape:
            found = tensors[name].shape if name in tensors else "missing"
            raise UserError(f"{checkpoint}: the tensor {name} is {found}, but its config.json implies {shape}")
