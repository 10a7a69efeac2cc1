"""Arguments of this setting's commands."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from common.text import arguments

SMOKE: dict[str, Any] = dict(
    preset="smoke",
    tokenizer="bpe",
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
    tokenizer="bpe",
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
    tokenizer="EleutherAI/pythia-160m",
    length=512,
    layers=12,
    head_dim=64,
    batch_size=256,
    lr=6e-4,
    eval_every=500,
)
"""What `train.py` and `distill.py` share of each preset."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments):
    """Shared by `train.py` and `distill.py`."""

    architecture: Literal["gpt2", "gpt-neox"] = "gpt-neox"
    """Of new models; teachers may be of any."""


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(arguments.PrepareArguments):
    """Make blocks of tokens from documents."""

    tokenizer: str = "bpe"
    """wordpiece or bpe, to be trained on the corpora; or a directory or a model on the hub."""


@dataclass(frozen=True, kw_only=True)
class TaskArguments(arguments.TaskArguments):
    """Shared by all probes."""

    defaults = MappingProxyType(arguments.TASK_DEFAULTS)


@dataclass(frozen=True, kw_only=True)
class NgramArguments(TaskArguments, arguments.NgramArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""


@dataclass(frozen=True, kw_only=True)
class KneserNeyArguments(TaskArguments, arguments.KneserNeyArguments):
    """Measure how far every checkpoint's predictions are from those of n-gram models fitted to its training text."""
