"""The head of a model at labelled positions only."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    GPT2LMHeadModel,
)

HEADS: dict[type, str] = {BertForMaskedLM: "cls", GPT2LMHeadModel: "lm_head"}
"""Models whose forward applies this module, and nothing else, to the last hidden states."""


class LabelledHead:
    """Makes the head of a model compute at chosen positions only, by choosing among its inputs."""

    def __init__(self, head: nn.Module) -> None:
        self.positions: Tensor | None = None
        head.register_forward_pre_hook(self)

    @staticmethod
    def of(model: nn.Module) -> "LabelledHead | None":
        """None for a model of which it is not known where its head begins."""
        name = HEADS.get(type(model))
        return LabelledHead(getattr(model, name)) if name else None

    def __call__(self, head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """(samples, length, hidden) to (labelled, hidden)."""
        return inputs if self.positions is None else (inputs[0].flatten(0, 1)[self.positions],)


def labelled_logits(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, head: LabelledHead | None
) -> Tensor:
    """A model's logits at `positions` of its flattened samples, in float32, of shape (labelled, classes).

    Args:
        model: maps `inputs` to an output with logits of shape (samples, length, classes) or (samples, classes).
        inputs: the model's arguments.
        positions: (labelled,).
        head: of this model; None computes everywhere and chooses afterwards.
    """
    if head is None:
        return model(**inputs)["logits"].flatten(0, -2)[positions].float()
    head.positions = positions
    try:
        return model(**inputs)["logits"].float()
    finally:
        head.positions = None


def _places(chosen: Tensor, length: int) -> Tensor:
    """Flat places, in rows of `length`, of what is chosen in (samples, length or less) or (samples,)."""
    if chosen.ndim == 1:
        return chosen.nonzero()[:, 0]
    rows, columns = chosen.nonzero(as_tuple=True)
    return rows * length + columns
