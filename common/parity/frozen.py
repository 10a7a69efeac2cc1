"""Frozen networks of either kind: loaded from a checkpoint, and turned into functions from samples to logits.

GPT-2 is imported only when it is needed, as importing transformers takes seconds.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.parity import mlp
from common.parity.arguments import Precision
from common.parity.networks import Network
from common.parity.task import ParityTask
from common.runs.checkpoints import read_checkpoint

Logits = Callable[[NDArray[np.uint64]], NDArray[np.float64]]
"""From packed bits (samples, words) to logits (samples, classes)."""


def load_network(checkpoint: Path, task: ParityTask) -> Network:
    """The network in a checkpoint's directory, checked to be one for this task.

    Raises:
        UserError: the directory is damaged, holds a model of another kind or one for another task, or its tensors are
            not those that its config.json describes.
    """
    config, tensors = read_checkpoint(checkpoint)
    kind = config.get("model_type")
    if kind == mlp.MODEL_TYPE:
        return mlp.checked_network(checkpoint, config, tensors, task)
    if kind == "gpt2":
        from common.parity import gpt2

        return gpt2.checked_network(checkpoint, config, tensors, task)
    raise UserError(f"{checkpoint} holds a {kind!r} model, not {mlp.MODEL_TYPE!r} or 'gpt2'")


def frozen_logits(network: Network, d: int, device: str, precision: Precision = "float32") -> Logits:
    """The logits of a network for inputs with d coordinates, by plain torch operations in batches.

    The precision is that of a GPT-2's matrix products; an MLP computes in the precision of its weights.
    """
    if network.config["model_type"] == mlp.MODEL_TYPE:
        model = mlp.module_of(network.tensors, device)
        return lambda bits: mlp.batched_logits(model, bits)
    from common.parity import last_position

    return last_position.frozen_logits(network, d, device, precision)
