"""Weights, configuration and random numbers of a model in training."""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    set_seed,
)

from common.errors import UserError


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and persistent buffers by name, each once where several names share it; bfloat16 becomes float32."""
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names = {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    return {name: _array(tensor) for name, tensor in state.items() if name in names or name not in aliases}


def set_weights(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy what `weights` gave into a model of the same shape."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(torch.from_numpy(tensor))


def configuration(model: nn.Module) -> dict[str, Any]:
    """What `from_pretrained` needs to build the model, as JSON values.

    Raises:
        UserError: the model is not of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"{type(model).__name__} has no configuration to save: train without a run")
    return {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__]}


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the random number generators of Python, NumPy and torch, as JSON values."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {name: np.asarray(value).tolist() for name, value in numpy["state"].items()}},
        "torch": torch.get_rng_state().tolist(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).tolist()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_state` gave, also after it went through JSON."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8), device)


def _seed_random_numbers(*key: int) -> None:
    """Those of dropout, apart from what the weights were drawn with."""
    set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
