"""Sums over labels from which a trainer's metrics are computed, kept on the device until they are needed."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from common.distillation.schedules import unused_segments


class TrainingSums:
    """Sums of the objective, the divergence, correct predictions and labels, since the last log and the last record."""

    def __init__(self, device: torch.device) -> None:
        self.since_log = torch.zeros(4, dtype=torch.float64, device=device)
        self.since_record = torch.zeros_like(self.since_log)

    def add(self, means: Tensor, labels: int) -> None:
        """Add a micro-batch: the means of objective, divergence and correct predictions (3,) over `labels` labels."""
        self.since_log += torch.cat([means, torch.ones_like(means[:1])]).double() * labels

    def log(self, accelerator: Any) -> tuple[float, float, float]:
        """Objective, divergence and accuracy per label since the last log, over all processes; NaN without labels."""
        means = _means(accelerator.reduce(self.since_log, "sum"))
        self._move()
        return means

    def record(self, accelerator: Any) -> tuple[float, float, float]:
        """The same since the last record."""
        self._move()
        means = _means(accelerator.reduce(self.since_record, "sum"))
        self.since_record.zero_()
        return means

    def _move(self) -> None:
        self.since_record += self.since_log
        self.since_log.zero_()


def evaluation_sums(values: Tensor, positions: Tensor, samples: int, length: int) -> Tensor:
    """Cross entropy, correct predictions, labels and 1 for each sample, of shape (samples, 4), in float64.

    Args:
        values: (labelled, 2), cross entropy and whether the prediction is correct.
        positions: (labelled,), in the flattened samples.
        samples: number of samples.
        length: positions per sample.
    """
    values = torch.cat([values, torch.ones_like(values[:, :1])], -1).double()
    sums = torch.zeros(samples, 3, dtype=torch.float64, device=values.device)
    sums.index_add_(0, positions // length, values)
    return torch.cat([sums, torch.ones_like(sums[:, :1])], -1)


def _means(sums: Tensor) -> tuple[float, float, float]:
    loss, kl, correct, labels = sums.tolist()
    return (loss / labels, kl / labels, correct / labels) if labels else (math.nan, math.nan, math.nan)


class RestoreRecords(TrainerCallback):
    """Restores the records of the evaluations before the Trainer's checkpoint that training resumes from.

    Also warns of a schedule that is longer than the training.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.records = [
            {"step": entry["step"], "loss": entry["eval_loss"], "accuracy": entry["eval_accuracy"]}
            for entry in state.log_history
            if "eval_accuracy" in entry and "eval_loss" in entry
        ]
        self._trainer.update_schedule()
        if note := unused_segments(self._trainer.segments, state.max_steps):
            warnings.warn(note, stacklevel=2)
