"""Arguments of this setting's commands."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from common.text import arguments

SMOKE: dict[str, Any] = {**arguments.SMOKE, "tokenizer": "wordpiece"}
LAPTOP: dict[str, Any] = {**arguments.LAPTOP, "tokenizer": "wordpiece"}
PAPER: dict[str, Any] = {**arguments.PAPER, "tokenizer": "bert-base-uncased", "lr": 1e-4}
"""What `train.py` and `distill.py` share of each preset."""


@dataclass(frozen=True, kw_only=True)
class MaskArguments:
    """What is predicted."""

    mask_rate: float = 0.3
    """Fraction of positions to predict: 0.3 in the paper, 0.15 in BERT."""
    hide_masked: bool = True
    """Hide the positions to predict from attention, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments, MaskArguments):
    """Shared by `train.py` and `distill.py`."""


@dataclass(frozen=True, kw_only=True)
class TaskArguments(arguments.TaskArguments):
    """Shared by all probes."""

    mask_rate: float | None = None
    """Fraction of positions to predict (a teacher that is not a run); by default 0.3."""
    hide_masked: bool | None = None
    """Whether the positions to predict are hidden from attention (a teacher that is not a run); by default True."""

    defaults = MappingProxyType({**arguments.TaskArguments.defaults, "mask_rate": 0.3, "hide_masked": True})


@dataclass(frozen=True, kw_only=True)
class NgramArguments(TaskArguments, arguments.NgramArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""


@dataclass(frozen=True, kw_only=True)
class KneserNeyArguments(TaskArguments, arguments.KneserNeyArguments):
    """Measure how far every checkpoint's predictions are from those of n-gram models fitted to its training text."""
