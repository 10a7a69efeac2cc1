"""The objective over many positions and classes, one chunk of positions at a time.

Student and teacher logits exist for one chunk at a time. The gradient with respect to the student's logits is computed
while they exist, and immediately backpropagated to the hidden states and the output layer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.distillation.labelled_head import LabelledOutput, chunks
from common.distillation.losses import LossArguments, label_cross_entropy, objective
from common.errors import UserError

ChunkObjective = Callable[[Tensor, slice], Tensor]
"""Maps a chunk's logits (rows, classes) and its rows to sums over the rows; the first one is minimised."""


def objective_sums(
    student: LabelledOutput,
    labels: Tensor,
    teacher: LabelledOutput | None,
    arguments: LossArguments,
    step: int,
    last: int,
) -> Tensor:
    """What the student minimises at `step`, the divergence from the teacher, and correct predictions, summed: (3,).

    Args:
        student: its output at the labels.
        labels: (labelled,).
        teacher: its output at the labels; without one the student minimises the cross entropy with the labels.
        arguments: of the loss.
        step: from 0.
        last: step at which the temperature reaches its last value.

    Raises:
        UserError: student and teacher predict different numbers of classes.
    """
    if teacher is not None and teacher.number_of_classes != student.number_of_classes:
        raise UserError(
            f"the student predicts {student.number_of_classes:,} classes and the teacher "
            f"{teacher.number_of_classes:,}: give classes=N if the first N are the same tokens"
        )

    def sums(logits: Tensor, rows: slice) -> Tensor:
        if teacher is None:
            loss = label_cross_entropy(logits, labels[rows])
            kl = torch.zeros_like(loss)
        else:
            loss, kl = objective(logits, labels[rows], teacher.logits(rows), arguments, step, last)
        correct = (logits.argmax(-1) == labels[rows]).float()
        return torch.stack([loss.sum(), kl.sum(), correct.sum()])

    return summed_over_chunks(student, sums)


def evaluation_values(output: LabelledOutput, labels: Tensor) -> Tensor:
    """Cross entropy and whether the prediction is correct at each label (labelled,): (labelled, 2)."""
    values = [
        torch.stack([label_cross_entropy(logits, labels[rows]), logits.argmax(-1) == labels[rows]], -1)
        for rows in output.chunks()
        for logits in [output.logits(rows)]
    ]
    return torch.cat(values) if values else labels.new_zeros(0, 2, dtype=torch.float32)


def summed_over_chunks(student: LabelledOutput, objective: ChunkObjective) -> Tensor:
    """The sums of `objective` over all positions; the first one has the same gradient as without chunks.

    Args:
        student: its output at labelled positions.
        objective: called for each chunk, or once for all positions if they are few.
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
    """Maps hidden states and the weights of the output layer, or logits, to sums of shape (sums,)."""

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
            classes = values.shape[1] if layer is None else len(layer)
            for rows in chunks(len(values), classes, values.device):
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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients, times that of the first sum; the other sums have none."""
        scaled = [kept if kept is None else kept.mul_(gradients[0][0]) for kept in ctx.gradients]
        ctx.gradients = ()
        return (*scaled, None, None)
