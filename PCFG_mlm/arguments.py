"""Arguments of this setting's commands."""

from dataclasses import dataclass
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
class NgramArguments(arguments.NgramArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""

    exact: int = 64
    """Sentences for the Bayes-optimal values; 0 omits them."""
