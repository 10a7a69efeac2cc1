"""Arguments that `train.py` and `distill.py` share, and what they must satisfy."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from common.arguments import require_at_least
from common.errors import UserError
from common.parity import arguments
from common.parity.arguments import LearningRateSchedule, Precision

SMOKE: dict[str, Any] = dict(preset="smoke", d=8, k=2, initial_std=0.1, steps=400, eval_every=20, eval_samples=512)
LAPTOP: dict[str, Any] = dict(
    preset="laptop", d=20, k=4, initial_std=0.1, steps=6_000, lr_schedule="constant", eval_every=50
)
PAPER: dict[str, Any] = dict(preset="paper", d=100, k=6, steps=250_000, eval_every=1_000)
"""What `train.py` and `distill.py` share of each preset."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments):
    """Shared by `train.py` and `distill.py`."""

    layers: int = 2
    """Transformer blocks."""
    batch_size: int = 32
    """Samples per step."""
    lr_schedule: LearningRateSchedule = "cosine"
    warmup: float = 0.06
    weight_decay: float = 0.0
    """Weight decay on all weights and biases, decoupled from the gradient as in AdamW."""
    head_dim: int = 8
    """Dimensions per attention head."""
    positions: int | None = None
    """Positions of a network; by default as many as the task needs."""
    initial_std: float = 0.02
    """Standard deviation of the initial weights."""
    dropout: float = 0.0
    """Dropout probability of embeddings, attention and residual branches."""
    causal: bool = True
    """Whether a position attends only to itself and those before it."""
    feed_forward: Literal["gelu", "linear", "skip"] = "gelu"
    """Feed-forward layers as in GPT-2, without the activation, or omitted."""
    average_heads: bool = False
    """Average the heads instead of concatenating them."""
    class_token: bool = False
    """Append a class token, at which the class is predicted."""
    tie_embeddings: bool = False
    """Share the weights of the token embedding with the output layer."""
    beta1: float = 0.9
    """Adam's decay of the mean gradient."""
    beta2: float = 0.999
    """Adam's decay of the mean squared gradient."""
    accumulate: int = 1
    """Gradient accumulation steps: micro-batches into which a batch is split to save memory."""
    precision: Precision = "float32"
    """bf16 computes matrix products in bfloat16; the weights stay in float32."""
    compile: bool = False
    """Compile the loss with torch.compile; on a GPU with CUDA graphs."""


def check(arguments: Arguments) -> None:
    """Reject arguments that no GPT-2 could have.

    Raises:
        UserError: a number is out of range.
    """
    require_at_least(1, arguments, "head_dim", "accumulate")
    if not 0 < arguments.initial_std < math.inf:
        raise UserError(f"--initial-std must be positive and finite, got {arguments.initial_std}")
    for name in ("dropout", "beta1", "beta2"):
        if not 0 <= getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 0 and below 1, got {getattr(arguments, name)}")
    needed = arguments.d + arguments.class_token
    if arguments.positions is not None and arguments.positions < needed:
        raise UserError(f"--positions must be at least {needed}, one for each token; got {arguments.positions}")
