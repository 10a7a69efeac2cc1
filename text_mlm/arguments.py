"""Arguments of this setting's commands."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from common.text import arguments

SMOKE: dict[str, Any] = dict(
    preset="smoke",
    tokenizer="wordpiece",
    vocabulary=1024,
    length=32,
    layers=1,
    batch_size=16,
    eval_samples=128,
    lr=5e-3,
    eval_every=5,
)
LAPTOP: dict[str, Any] = dict(
    preset="laptop",
    tokenizer="wordpiece",
    vocabulary=4096,
    length=64,
    layers=2,
    head_dim=16,
    dropout=0.0,
    batch_size=64,
    eval_samples=512,
)
PAPER: dict[str, Any] = dict(
    preset="paper",
    corpus=("wikipedia-books",),
    tokenizer="bert-base-uncased",
    length=512,
    layers=12,
    head_dim=64,
    batch_size=256,
    lr=1e-4,
    eval_every=500,
)
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

    defaults = MappingProxyType({**arguments.TASK_DEFAULTS, "mask_rate": 0.3, "hide_masked": True})


@dataclass(frozen=True, kw_only=True)
class NgramArguments(TaskArguments, arguments.NgramArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""


@dataclass(frozen=True, kw_only=True)
class KneserNeyArguments(TaskArguments, arguments.KneserNeyArguments):
    """Measure how far every checkpoint's predictions are from those of n-gram models fitted to its training text."""
