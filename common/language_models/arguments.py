"""Arguments of `train.py` and `distill.py` that all settings with language models share, and what they must satisfy.

Importing this must stay cheap, as every command starts with it: see `common.cli.prepare_process`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.arguments import require_at_least
from common.distillation.arguments import TARGET_SAMPLES, DistillationArguments, Targets
from common.errors import UserError
from common.runs.tracking import WandbMode


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Shared by `train.py` and `distill.py`."""

    preset: Annotated[str, tyro.conf.Suppress]
    layers: int
    """Transformer blocks."""
    head_dim: int = 8
    """Dimensions per attention head."""
    batch_size: int
    """Samples per step."""
    lr: float
    """Peak learning rate."""
    eval_every: int
    """Steps between evaluations."""
    checkpoint_every: int
    """Steps between checkpoints; 0 saves only the final one."""
    dropout: float = 0.1
    """Dropout rate of hidden states and attention."""
    warmup: float = 0.06
    """Fraction of the steps used for linear warm-up of the learning rate; a cosine decay to zero follows."""
    eval_samples: int = 4096
    """Held-out samples per evaluation."""
    accumulate: int = 1
    """Gradient accumulation steps: micro-batches into which a batch is split to save memory."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 computes matrix products in bfloat16; the weights stay in float32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a GPU if there is one; to use several GPUs, start the command with torchrun."""
    out: Path | None = None
    """Run directory; by default one in runs/<setting>/, named after all arguments that differ from the preset."""
    wandb: WandbMode = "disabled"
    """Weights & Biases logging."""
    force: bool = False
    """Remove an existing run and start over."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """Arguments of `train.py`."""

    heads: int
    """Attention heads."""
    steps: int
    """Optimiser steps."""
    seed: int = 0
    """Seed of the initial weights, of dropout and of the data stream."""


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, DistillationArguments):
    """Arguments of `distill.py`."""

    student_heads: tuple[int, ...]
    """Attention heads of the students."""
    steps: tuple[int, ...]
    """Optimiser steps, one run for each."""
    temperature: float = 0.0
    """Temperature of the teacher's logits; 0 is the arg-max."""
    cache_teacher: Path | None = None
    """Directory for the teacher's targets: existing ones are read, missing ones computed and added, so that later
    students need no teacher in memory."""
    targets: Targets = "exact"
    """What --cache-teacher stores. exact: the teacher's logits, or their arg-max at temperature 0; results are those
    without a cache. sampled: classes sampled from the teacher, an unbiased estimate of the loss and its gradient.
    top-k: the classes that --top-k keeps."""
    samples: int = TARGET_SAMPLES
    """Samples of each position, for `--targets sampled`."""
    memory: float | None = None
    """Gigabytes that students which are trained together may need; by default half of what is free."""


def check(arguments: Arguments) -> None:
    """Reject arguments that are invalid for any run.

    Raises:
        UserError: names the option.
    """
    require_at_least(1, arguments, "layers", "head_dim", "batch_size", "eval_every", "eval_samples", "accumulate")
    require_at_least(0, arguments, "checkpoint_every")
    require_positive_lr(arguments.lr)
    if not 0 <= arguments.warmup <= 1:
        raise UserError(f"--warmup is a fraction of the steps, from 0 to 1; got {arguments.warmup}")
    if isinstance(arguments, DistillArguments) and arguments.memory is not None and not 0 < arguments.memory < math.inf:
        raise UserError(f"--memory must be a positive number of gigabytes, got {arguments.memory}")
    if isinstance(arguments, DistillArguments) and arguments.cache_teacher is None:
        for option, is_given in (
            ("--targets", arguments.targets != "exact"),
            ("--samples", arguments.samples != TARGET_SAMPLES),
        ):
            if is_given:
                raise UserError(f"{option} says what a cache of the teacher's targets holds: give --cache-teacher too")
    if not 0 <= arguments.dropout < 1:
        raise UserError(f"--dropout must be at least 0 and below 1, got {arguments.dropout}")


def require_positive_lr(lr: float) -> None:
    """Reject a learning rate that is not positive and finite.

    Raises:
        UserError: names the option.
    """
    if not 0 < lr < math.inf:
        raise UserError(f"--lr must be positive and finite, got {lr}")
