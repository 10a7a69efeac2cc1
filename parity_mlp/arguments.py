"""Arguments that `train.py` and `distill.py` share."""

from dataclasses import dataclass
from typing import Any, Literal

from common.parity import arguments
from common.parity.arguments import LearningRateSchedule

SMOKE: dict[str, Any] = dict(preset="smoke", d=24, k=4, steps=20_000, eval_every=500)
LAPTOP: dict[str, Any] = dict(preset="laptop", d=100, k=4, steps=600_000, eval_every=5_000)
PAPER: dict[str, Any] = dict(preset="paper", d=100, k=6, steps=8_000_000, eval_every=20_000)
"""What `train.py` and `distill.py` share of each preset."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments):
    """Shared by `train.py` and `distill.py`."""

    layers: int = 1
    """Hidden layers. More than one are trained by plain PyTorch."""
    batch_size: int = 1
    """Samples per step. More than one are trained by plain PyTorch."""
    lr_schedule: LearningRateSchedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    """Weight decay on all weights and biases, as an L2 penalty."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the weights."""
