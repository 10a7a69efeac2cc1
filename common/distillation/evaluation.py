"""A teacher on the student's data: the curve of its checkpoints, and the report on one of them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.distillation.batches import batch_tensors
from common.distillation.chance import teacher_report
from common.distillation.chunks import evaluation_values
from common.distillation.labelled_head import LabelledHead, argument_names, labelled_positions
from common.errors import UserError
from common.runs.progress import progress
from common.teachers.curves import Curve
from common.teachers.discovery import Checkpoint, local_path
from common.teachers.objective import Objective, objective_of


def evaluate_checkpoints(
    checkpoints: Sequence[Checkpoint],
    load: Callable[[Path], nn.Module],
    batches: Sequence[Any],
    objective: Objective,
    device: torch.device | str,
) -> Curve:
    """The training curve of a teacher without a log: cross entropy and accuracy per label on the student's data.

    One model is in memory at a time.

    Args:
        checkpoints: of the teacher, in any order.
        load: makes a model from a checkpoint's directory.
        batches: a few held-out batches, each a mapping or a dataclass of tensors by the names of the model's arguments,
            and `labels`.
        objective: whether logits predict the label of the next position (causal) or of their own.
        device: of the model.

    Raises:
        UserError: there is no label, or a checkpoint's logits or loss are not finite.
    """
    device = torch.device(device)
    checkpoints = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    tensors = [batch_tensors(batch) for batch in batches]
    samples = sum(len(batch["labels"]) for batch in tensors)
    losses, accuracies = [], []
    with progress(len(checkpoints), 0, "evaluating the teacher", samples) as show:
        for i, checkpoint in enumerate(checkpoints):
            model = load(local_path(checkpoint)).to(device).eval()
            loss, accuracy = _evaluate(model, checkpoint, tensors, objective == "causal", device)
            del model  # before the next one is loaded
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss of teacher step {checkpoint.step} on the student's data is {loss}: leave that step out"
                )
            losses.append(loss)
            accuracies.append(accuracy)
            show(i + 1, teacher=checkpoint.step, loss=loss, accuracy=accuracy)
    return Curve(
        steps=tuple(checkpoint.step for checkpoint in checkpoints),
        losses=tuple(losses),
        source=f"of the checkpoints on {samples:,} samples of the student's data",
        accuracies=tuple(accuracies),
    )


def report_on(
    model: nn.Module, checkpoint: Checkpoint, batches: Sequence[Any], objective: Objective, device: torch.device | str
) -> str:
    """`teacher_report` of a model.

    Args:
        model: it is moved to the device and put into evaluation mode.
        checkpoint: whose model it is.
        batches: as for `evaluate_checkpoints`.
        objective: what its logits predict.
        device: to evaluate on.

    Raises:
        UserError: there is no label, or logits are not finite.
    """
    shift = objective == "causal"
    tensors = [batch_tensors(batch) for batch in batches]
    labels = [batch["labels"][:, shift:] for batch in tensors]
    _, accuracy = _evaluate(model.to(device).eval(), checkpoint, tensors, shift, torch.device(device))
    return teacher_report(checkpoint.step, accuracy, labels)


@torch.no_grad()
def _evaluate(
    model: nn.Module, checkpoint: Checkpoint, batches: Sequence[dict[str, Tensor]], shift: bool, device: torch.device
) -> tuple[float, float]:
    """Cross entropy and accuracy per label."""
    head, names = LabelledHead(model), argument_names(model)
    sums = torch.zeros(2, dtype=torch.float64)
    count = 0
    for i, batch in enumerate(batches):
        positions = labelled_positions(batch["labels"], shift).to(device)
        labels = batch["labels"].flatten().to(device)[positions + shift]
        taken = batch.keys() - {"labels"} if names is None else batch.keys() & names - {"labels"}
        inputs = {name: batch[name].to(device) for name in taken}
        if i == 0:
            head.check(inputs)
        output = head(model, inputs, positions, chunked=True)
        if i == 0:
            output.require_finite(checkpoint.location)
        sums += evaluation_values(output, labels).double().sum(0).cpu()
        count += len(labels)
    head.remove()
    if not count:
        raise UserError("the student's evaluation data has no labels: give batches with labels")
    loss, accuracy = (sums / count).tolist()
    return loss, accuracy


@torch.inference_mode()
def logits_at(model: PreTrainedModel, chosen: Sequence[tuple[Any, Tensor]]) -> Tensor:
    """Logits of a model in evaluation mode, on its own device, for the labels of some batches: (labels, vocabulary)."""
    model.eval()
    shift, head, found = objective_of(model) == "causal", LabelledHead(model), []
    try:
        for batch, labels in chosen:
            tensors = batch_tensors(batch)
            inputs = {key: tensor.to(model.device) for key, tensor in tensors.items() if key != "labels"}
            positions = labelled_positions(labels, shift).to(model.device)
            found.append(head(model, inputs, positions, chunked=False).logits().cpu())
    finally:
        head.remove()
    return torch.cat(found)
