"""A model's logits at labelled positions only.

Positions index the flattened samples: position `sample * length + token` of inputs of shape (samples, length).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import BertForMaskedLM, GPT2LMHeadModel

from common.distillation.losses import IGNORED_LABEL

HEADS: dict[type, str] = {BertForMaskedLM: "cls", GPT2LMHeadModel: "lm_head"}
"""Models whose forward applies this module, and nothing else, to the last hidden states."""


class LabelledHead:
    """Restricts the head of a model to `positions` by a hook that selects among its inputs."""

    def __init__(self, head: nn.Module) -> None:
        self.positions: Tensor | None = None
        head.register_forward_pre_hook(self)

    @staticmethod
    def of(model: nn.Module) -> "LabelledHead | None":
        """None for a model whose head is unknown."""
        name = HEADS.get(type(model))
        return LabelledHead(getattr(model, name)) if name else None

    def __call__(self, head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Hidden states (samples, length, hidden) to (labelled, hidden)."""
        return inputs if self.positions is None else (inputs[0].flatten(0, 1)[self.positions],)


def labelled_logits(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, head: LabelledHead | None
) -> Tensor:
    """A model's logits at `positions`, of shape (labelled, classes), in float32.

    Args:
        model: maps `inputs` to an output with logits of shape (samples, length, classes) or (samples, classes).
        inputs: the model's arguments.
        positions: (labelled,).
        head: of this model; None computes the logits everywhere and selects afterwards.
    """
    if head is None:
        return model(**inputs)["logits"].flatten(0, -2)[positions].float()
    head.positions = positions
    try:
        return model(**inputs)["logits"].float()
    finally:
        head.positions = None


def labelled_positions(labels: Tensor, shift: bool) -> Tensor:
    """Positions whose logits predict a label, of shape (labelled,).

    Args:
        labels: (samples, length) or (samples,), with `IGNORED_LABEL` where there is no label.
        shift: whether logits predict the label of the next position.
    """
    if labels.ndim == 1:
        return (labels != IGNORED_LABEL).nonzero()[:, 0]
    rows, columns = (labels[:, int(shift) :] != IGNORED_LABEL).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns
