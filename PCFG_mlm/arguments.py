"""Arguments of this setting's commands."""

from dataclasses import dataclass

from common.pcfg import arguments


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
    """Sentences for the Bayes-optimal values; 0 skips these."""
