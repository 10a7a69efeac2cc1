"""Frozen networks of either kind: loaded from a checkpoint, and turned into functions from samples to logits.

GPT-2 is imported only when it is needed, as importing transformers takes seconds.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import UserError
from common.parity import mlp
from common.parity.arguments import Precision
from common.parity.networks import Network, read_arrays
from common.parity.task import ParityTask
from common.runs.files import read_json
from common.teachers.tensors import require_finite_logits

Logits = Callable[[NDArray[np.uint64]], NDArray[np.float64]]
"""From packed bits (samples, words) to logits (samples, classes)."""


def load_network(checkpoint: Path, task: ParityTask) -> Network:
    """The network in a checkpoint's directory, checked to be one for this task.

    Raises:
        UserError: the directory is damaged, holds a model of another kind or one for another task, its tensors are not
            those that its config.json describes, or they are not finite.
    """
    config = read_json(checkpoint / "config.json", f"remove {checkpoint} and save the checkpoint again")
    kind = config.get("model_type")
    if kind not in (mlp.MODEL_TYPE, "gpt2"):
        raise UserError(f"{checkpoint} holds a {kind!r:.40} model, not {mlp.MODEL_TYPE!r} or 'gpt2'")
    tensors = read_arrays(checkpoint)
    if kind == mlp.MODEL_TYPE:
        return mlp.checked_network(checkpoint, config, tensors, task)
    from common.parity import gpt2

    return gpt2.checked_network(checkpoint, config, tensors, task)


def teacher_logits(checkpoint: Path, task: ParityTask, logits_of: Callable[[Network], Logits]) -> Logits:
    """The logits of a checkpoint as a function of samples.

    Args:
        checkpoint: its directory.
        task: what it must be for.
        logits_of: makes such a function of a network.

    Raises:
        UserError: as for `load_network`; and the function raises it if logits are not finite.
    """
    logits = logits_of(load_network(checkpoint, task))

    def checked(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
        predicted = logits(bits)
        require_finite_logits(torch.from_numpy(predicted), checkpoint)
        return predicted

    return checked


def frozen_logits(network: Network, d: int, device: str, precision: Precision = "float32") -> Logits:
    """The logits of a network for inputs with d coordinates, by plain torch operations in batches.

    The precision is that of a GPT-2's matrix products; an MLP computes in the precision of its weights.
    """
    if network.config["model_type"] == mlp.MODEL_TYPE:
        model = mlp.module_of(network.tensors, device)
        return lambda bits: mlp.batched_logits(model, bits)
    from common.parity import last_position

    return last_position.frozen_logits(network, d, device, precision)
