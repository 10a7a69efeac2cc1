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
from common.distillation.losses import (
    ARG_MAX_TEMPERATURE,
    LossArguments,
    annealed_temperature,
    label_cross_entropy,
    objective,
    sparse_objective,
    stepwise,
)
from common.distillation.sparse_targets import SparseTargets, arg_max_targets
from common.errors import UserError

ChunkObjective = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Maps a chunk's logits (rows, classes) and its rows to sums over the rows, the first of which is minimised, and to its
gradient at the logits."""


def objective_sums(
    student: LabelledOutput,
    labels: Tensor,
    teacher: LabelledOutput | SparseTargets | None,
    arguments: LossArguments,
    step: int,
    last: int,
) -> Tensor:
    """What the student minimises at `step`, the divergence from the teacher, and correct predictions, summed: (3,).

    Args:
        student: its output at the labels.
        labels: (labelled,).
        teacher: its output at the labels, or targets that stand for it; without a teacher the student minimises the
            cross entropy with the labels.
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

    if student.is_one_chunk:
        logits = student.logits()
        if teacher is None:
            loss = label_cross_entropy(logits, labels)
            kl = torch.zeros_like(loss)
        elif isinstance(teacher, SparseTargets):
            loss, kl = sparse_objective(logits, labels, teacher, arguments, step)
        else:
            loss, kl = objective(logits, labels, teacher.logits(), arguments, step, last)
        return _sums(loss, kl, logits.argmax(-1) == labels)

    def sums_and_gradient(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        losses, kl, gradient = objective_and_gradient(logits, labels[rows], teacher, rows, arguments, step, last)
        return _sums(losses, kl, correct(logits, labels[rows])), gradient

    if student.layer is None:
        values = student.values if student.classes is None else student.values[:, : student.classes]
        result: Tensor = _SummedOverChunks.apply(values, None, None, values.dtype, sums_and_gradient)
    else:
        weight, bias = student.weights
        result = _SummedOverChunks.apply(student.values, weight, bias, student.dtype or weight.dtype, sums_and_gradient)
    return result


def _sums(losses: Tensor, kl: Tensor, is_correct: Tensor) -> Tensor:
    return torch.stack([losses.sum(), kl.sum(), is_correct.float().sum()])


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label is the first of the largest logits, of shape (rows,).

    torch's argmax is slow on a CPU, so there it is left to the rows where the label's logit is the largest.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1) == labels
    found = logits.gather(-1, labels[:, None]) == logits.amax(-1, keepdim=True)
    rows = found.nonzero()[:, 0]
    is_correct = torch.zeros_like(labels, dtype=torch.bool)
    is_correct[rows] = logits[rows].argmax(-1) == labels[rows]
    return is_correct


def objective_and_gradient(
    student_logits: Tensor,
    labels: Tensor,
    teacher: LabelledOutput | SparseTargets | None,
    rows: slice,
    arguments: LossArguments,
    step: int,
    last: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `objective`, and the gradient of the sum of the losses at the student's logits (samples, classes).

    Without a teacher the student minimises the cross entropy with the labels, and the divergence is 0. With
    z the student's logits, p their softmax, m their maximum and l = m + log sum exp(z - m),

        CE(y, p) = l - z[y]                             gradient p - one_hot(y)
        KL(q, p) = l + sum q (log q - z)                gradient p - q

    which takes fewer passes over the logits than autograd; the other divergences are left to autograd.

    Args:
        student_logits: (samples, classes), without a gradient.
        labels: (samples,).
        teacher: its output, or targets that stand for it.
        rows: of the teacher's output that are the samples.
        arguments: of the loss.
        step: from 0.
        last: step at which the temperature reaches its last value.
    """
    if isinstance(teacher, LabelledOutput) and arguments.divergence != "forward-kl":
        with torch.enable_grad():
            logits = student_logits.detach().requires_grad_()
            losses, kl = objective(logits, labels, teacher.logits(rows), arguments, step, last)
            (gradient,) = torch.autograd.grad(losses.sum(), logits)
        return losses.detach(), kl, gradient
    largest = student_logits.amax(-1, keepdim=True)
    gradient = (student_logits - largest).exp_()
    total = gradient.sum(-1, keepdim=True)
    gradient.div_(total)
    normaliser = (largest + total.log())[:, 0]
    alpha, losses, kl = 1.0, torch.zeros_like(normaliser), torch.zeros_like(normaliser)
    if teacher is not None:
        alpha = float(stepwise(arguments.alpha, arguments.alpha_steps, step))
        temperature = float(annealed_temperature(step, *arguments.temperature, max(last, 1), arguments.annealing))
        if isinstance(teacher, SparseTargets):
            kl = normaliser - teacher.mean(student_logits, rows) - teacher.entropy
            teacher.subtract_from(gradient, rows, 1 - alpha)
        elif temperature <= ARG_MAX_TEMPERATURE:
            best = arg_max_targets(teacher.logits(rows))
            kl = normaliser - best.mean(student_logits, slice(None))
            best.subtract_from(gradient, slice(None), 1 - alpha)
        else:
            targets, log_targets = teacher.targets(rows, temperature, arguments.top_k)
            kl = normaliser + (log_targets - student_logits).mul_(targets).sum(-1)
            gradient.sub_(targets, alpha=1 - alpha)
        losses = (1 - alpha) * kl
    if alpha > 0:
        index = labels[:, None]
        losses = losses + alpha * (normaliser - student_logits.gather(-1, index)[:, 0])
        gradient.scatter_add_(-1, index, torch.full_like(largest, -alpha))
    return losses, kl, gradient


def evaluation_values(output: LabelledOutput, labels: Tensor) -> Tensor:
    """Cross entropy and whether the prediction is correct at each label (labelled,): (labelled, 2)."""
    values = [
        torch.stack([label_cross_entropy(logits, labels[rows]), correct(logits, labels[rows])], -1)
        for rows in output.chunks()
        for logits in [output.logits(rows)]
    ]
    return torch.cat(values) if values else labels.new_zeros(0, 2, dtype=torch.float32)


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
                sums, gradient = objective(logits.detach().float(), rows)
                totals = totals + sums
                del logits
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
