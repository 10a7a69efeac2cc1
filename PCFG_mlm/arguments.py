"""Arguments of this setting's commands."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from common.pcfg import arguments

SMOKE: dict[str, Any] = dict(
    preset="smoke", grammar="small", layers=1, batch_size=16, lr=5e-3, eval_every=5, eval_samples=128
)
LAPTOP: dict[str, Any] = dict(
    preset="laptop", grammar="cfg3b", start="16", layers=2, dropout=0.0, batch_size=64, eval_samples=1024
)
PAPER: dict[str, Any] = dict(preset="paper", grammar="cfg3b", layers=4, batch_size=512, lr=5e-3, eval_every=100)
"""What `train.py` and `distill.py` share of each preset."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments):
    """Shared by `train.py` and `distill.py`."""

    mask_rate: float = 0.3
    """Fraction of positions to predict."""
    hide_masked: bool = True
    """Hide the positions to predict from attention."""


@dataclass(frozen=True, kw_only=True)
class TaskArguments(arguments.TaskArguments):
    """Shared by all probes."""

    mask_rate: float | None = None
    """Fraction of positions to predict (a teacher that is not a run); by default 0.3."""
    hide_masked: bool | None = None
    """Whether the positions to predict are hidden from attention (a teacher that is not a run); by default True."""

    defaults = MappingProxyType({"start": None, "mask_rate": 0.3, "hide_masked": True})


@dataclass(frozen=True, kw_only=True)
class NgramArguments(TaskArguments, arguments.NgramArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""

    exact: int = 64
    """Sentences for the Bayes-optimal values; 0 omits them."""


@dataclass(frozen=True, kw_only=True)
class NonterminalArguments(TaskArguments, arguments.NonterminalArguments):
    """Measure what every checkpoint knows about the nonterminals above each token."""


@dataclass(frozen=True, kw_only=True)
class WindowArguments(TaskArguments, arguments.WindowArguments):
    """Measure how far every checkpoint is from the best predictors that see only a window of the sentence."""

    sizes: tuple[int, ...] = (1, 3, 5, 7, 9, 13, 21, 33)
    """Tokens of the windows, odd: a position and as many on each side; the whole input is always the last window."""


@dataclass(frozen=True, kw_only=True)
class BayesOptimalArguments(TaskArguments, arguments.BayesOptimalArguments):
    """Loss and accuracy of the Bayes-optimal predictor on the run's evaluation sentences; checkpoints are not
    needed."""
