"""Whether a teacher is better than chance. This module does not import transformers, which takes seconds."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError


def chance_accuracy(labels: Sequence[Tensor]) -> float:
    """The accuracy of always predicting the most frequent label.

    Args:
        labels: of any shapes, with `IGNORED_LABEL` where there is no label.

    Raises:
        UserError: there is no label.
    """
    flat = torch.cat([tensor.flatten().cpu() for tensor in labels]) if labels else torch.empty(0)
    _, counts = flat[flat != IGNORED_LABEL].unique(return_counts=True)
    if not len(counts):
        raise UserError("the evaluation data has no labels: give data with labels")
    return int(counts.max()) / int(counts.sum())


def is_at_chance(accuracy: float, chance: float, count: int) -> bool:
    """Whether an accuracy is at or below chance level: at most three standard errors above it.

    Args:
        accuracy: in [0, 1].
        chance: `chance_accuracy` of the same labels.
        count: number of these labels.
    """
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / count)


def teacher_report(step: int, accuracy: float, labels: Sequence[Tensor]) -> str:
    """A line with a teacher's accuracy on the student's evaluation data, a warning if it is at chance level.

    Args:
        step: of the checkpoint.
        accuracy: on these labels, in [0, 1].
        labels: of any shapes, with `IGNORED_LABEL` where there is no label.

    Raises:
        UserError: there is no label.
    """
    chance = chance_accuracy(labels)
    count = sum(int((tensor != IGNORED_LABEL).sum()) for tensor in labels)
    line = f"teacher step {step:,}: accuracy {accuracy:.3f} on the student's evaluation data"
    if is_at_chance(accuracy, chance, count):
        return f"warning: {line}, at chance ({chance:.3f}, {count:,} labels): was it trained on this task?"
    return f"{line} (chance {chance:.3f}, {count:,} labels)"
