"""The objective over many positions and classes, one chunk of positions at a time.

Student and teacher logits exist for one chunk only. The gradient at the student's logits is computed while they exist,
and turned at once into the gradients of the hidden states and of the output layer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.distillation.labelled_head import LabelledOutput, chunks

ChunkObjective = Callable[[Tensor, slice], Tensor]
"""From a chunk's logits (rows, classes) and its rows to sums over them; the first one is minimised."""


def summed_over_chunks(student: LabelledOutput, objective: ChunkObjective) -> Tensor:
    """The sums of `objective` over all positions; their first one has the gradient of the plain computation.

    Args:
        student: its output at labelled positions.
        objective: called for each chunk; at once for all positions if they are few.
    """
    if student.is_one_chunk:
        return objective(student.logits(), slice(None))
    if student.layer is None:
        values = student.values if student.classes is None else student.values[:, : student.classes]
        result: Tensor = _SummedOverChunks.apply(values, None, None, values.dtype, objective)
    else:
        weight, bias = student.weights
        result = _SummedOverChunks.apply(student.values, weight, bias, student.dtype or weight.dtype, objective)
    return result


class _SummedOverChunks(torch.autograd.Function):
    """From hidden states and the weights of the output layer, or from logits, to sums of shape (sums,)."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
        objective: ChunkObjective,
    ) -> Tensor:
        """The sums; the gradients of the first one are kept for `backward`."""
        needed = zip((values, weight, bias), ctx.needs_input_grad, strict=False)
        of_values, of_weight, of_bias = (
            torch.zeros_like(tensor) if tensor is not None and is_needed else None for tensor, is_needed in needed
        )
        layer = weight if weight is None else weight.to(dtype)
        offset = bias if bias is None else bias.to(dtype)
        totals: Tensor | float = 0.0
        with torch.autocast(values.device.type, enabled=False):
            for rows in chunks(*values.shape) if layer is None else chunks(len(values), len(layer)):
                hidden = values[rows].to(dtype)
                logits = hidden if layer is None else F.linear(hidden, layer, offset)
                logits = logits.detach().float().requires_grad_()
                with torch.enable_grad():
                    sums = objective(logits, rows)
                    (gradient,) = torch.autograd.grad(sums[0], logits)
                totals = totals + sums.detach()
                del sums, logits
                gradient = gradient.to(dtype)
                if of_values is not None:
                    of_values[rows] = gradient if layer is None else gradient @ layer
                if of_weight is not None:
                    if of_weight.dtype == dtype:
                        of_weight.addmm_(gradient.T, hidden)
                    else:
                        of_weight += gradient.T @ hidden
                if of_bias is not None:
                    of_bias += gradient.sum(0)
        ctx.gradients = of_values, of_weight, of_bias
        assert isinstance(totals, Tensor)
        return totals

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The kept gradients, times that of the first sum; the other sums have none."""
        scaled = [kept if kept is None else kept.mul_(gradients[0][0]) for kept in ctx.gradients]
        ctx.gradients = ()
        return (*scaled, None, None)
