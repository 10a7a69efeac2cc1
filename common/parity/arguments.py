"""Arguments of the commands that both settings on parity share, and what they must satisfy.

Importing this must stay cheap, as every command starts with it: see `common.cli.prepare_process`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import tyro

from common.arguments import require_at_least, require_seed, require_steps
from common.distillation.arguments import DistillationArguments
from common.errors import UserError
from common.probes.arguments import ProbedArguments
from common.runs.tracking import WandbMode

SETTINGS = ("parity_mlp", "parity_gpt2")
"""Names of the settings whose runs can be probed by either, and whose networks can teach each other."""

LearningRateSchedule = Literal["constant", "linear", "cosine"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Shared by `train.py` and `distill.py`."""

    preset: Annotated[str, tyro.conf.Suppress]
    d: int
    """Number of coordinates."""
    k: int
    """Coordinates in the hidden support (of each node, with more than two labels)."""
    steps: int
    """Optimiser steps."""
    eval_every: int
    """Steps between evaluations."""
    checkpoint_every: int
    """Steps between checkpoints; 0 saves only the final one."""
    checkpoint_from: int = 0
    """Save no checkpoint before this step."""
    labels: int = 2
    """Number of classes, a power of two; above 2 the parity is hierarchical."""
    support: str = "first"
    """Hidden support: first, random, or comma-separated coordinates (k for each node in heap order)."""
    support_seed: int = 0
    """Seed of a random support."""
    layers: int
    """Layers."""
    batch_size: int
    """Samples per step."""
    lr_schedule: LearningRateSchedule
    """Learning rate schedule after the warm-up; linear and cosine decay to zero."""
    warmup: float
    """Fraction of the steps used for linear warm-up of the learning rate."""
    weight_decay: float = 0.0
    """Weight decay."""
    label_temperature: float = 0.0
    """Without a teacher, learn from softmax(one-hot label / temperature); 0 is the plain label."""
    end_label_temperature: float | None = None
    """Label temperature at the last step, annealed linearly; by default it stays constant."""
    adaptive_checkpoints: bool = False
    """Save checkpoints at evaluations where the loss has changed, and at least every --checkpoint-every steps."""
    eval_samples: int = 4096
    """Held-out samples per evaluation."""
    device: str = "cpu"
    """Torch device."""
    out: Path | None = None
    """Run directory; by default one in runs/<setting>/, named after all arguments that differ from the preset."""
    wandb: WandbMode = "disabled"
    """Weights & Biases logging."""
    force: bool = False
    """Remove an existing run and start over."""


@dataclass(frozen=True, kw_only=True)
class StudentArguments(DistillationArguments):
    """How students on parity are supervised; see `common.parity.designed`."""

    design_defaults = MappingProxyType({"monomials": ("1:0.16",), "coordinates": "support", "then": "teacher"})

    monomials: tuple[str, ...] | None = None
    """Targets (designed), one run each: degree:weight, or several joined by +, such as 1:0.16+2:0.1. The log odds of
    class 0 are the sum of all monomials of these degrees, times the weight. By default 1:0.16."""
    coordinates: str | None = None
    """Coordinates of the monomials (designed): support; others, which draws as many outside the support for
    each seed; or comma-separated ones. By default support."""
    then: Literal["teacher", "labels"] | None = None
    """What the student learns from after the designed target (designed): the final teacher, which is the default, or
    the labels."""


@dataclass(frozen=True, kw_only=True)
class ProbeArguments(ProbedArguments):
    """Arguments of `probe.py`."""

    d: int | None = None
    """Number of coordinates (a teacher that is not a run)."""
    k: int | None = None
    """Coordinates in the hidden support, of each node (a teacher that is not a run)."""
    support: str | None = None
    """Hidden support: first, random, or comma-separated coordinates (a teacher that is not a run)."""
    labels: int | None = None
    """Number of classes (a teacher that is not a run); by default 2."""
    support_seed: int | None = None
    """Seed of a random support (a teacher that is not a run); by default 0."""
    samples: int = 100_000
    """Number of fresh samples."""
    degrees: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Degrees of the monomials."""
    outside: int = 100
    """Random monomials of each degree outside the support."""
    seed: int = 0
    """Seed of the samples and of the random monomials."""
    output: int = 1
    """Class whose probability is correlated."""
    node: int = 0
    """Inner node of the tree, in heap order, whose support is probed (hierarchical parity)."""
    device: str = "cpu"
    """Torch device."""

    required = ("d", "k", "support")
    defaults = MappingProxyType({"labels": 2, "support_seed": 0})


def check(arguments: Arguments, rates: tuple[float, ...]) -> None:
    """Reject arguments that are invalid for any run.

    Args:
        arguments: of the command.
        rates: its learning rates.

    Raises:
        UserError: a number is out of range, or the device cannot be used.
    """
    require_steps(arguments)
    require_at_least(1, arguments, "eval_every", "eval_samples", "batch_size", "layers")
    require_at_least(0, arguments, "checkpoint_every", "checkpoint_from", "label_temperature")
    require_seed(arguments, "support_seed")
    if arguments.end_label_temperature is not None:
        require_at_least(0, arguments, "end_label_temperature")
    for lr in rates:
        if not 0 < lr < math.inf:
            raise UserError(f"--lr must be positive and finite, got {lr}")
        if not 0 <= lr * arguments.weight_decay <= 0.5:
            raise UserError(f"--weight-decay must be at least 0 and at most 0.5 / lr, got {arguments.weight_decay}")
    if not 0 <= arguments.warmup <= 1:
        raise UserError(f"--warmup is a fraction of the steps, from 0 to 1; got {arguments.warmup}")
    check_device(arguments.device)


def check_device(device: str) -> None:
    """Reject a torch device that cannot be used.

    Raises:
        UserError: with torch's reason.
    """
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
