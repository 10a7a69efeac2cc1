"""The arguments that `train.py` and `distill.py` have in common, for each model, and what they must satisfy."""

import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import tyro

from common.arguments import require_at_least, require_seed
from common.errors import UserError
from common.parity.task import ParityTask, make_task
from common.runs.processes import Processes, join_processes
from common.runs.tracking import WandbMode

Model = Literal["mlp", "gpt2"]
ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "parity_mlp"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What both commands and both models have in common."""

    preset: Annotated[str, tyro.conf.Suppress]
    model: Model
    """mlp is trained by SGD, gpt2 by Adam; each has presets and arguments of its own."""
    d: int
    """Number of coordinates."""
    k: int
    """Coordinates in the hidden support (of each node, if there are more than two labels)."""
    steps: int
    """Optimiser steps."""
    eval_every: int
    """Steps between two evaluations."""
    checkpoint_every: int
    """Steps between two checkpoints; 0 saves the final one only."""
    checkpoint_from: int = 0
    """Save no checkpoint before this step."""
    labels: int = 2
    """Number of classes, a power of two; above 2 the parity is hierarchical."""
    support: str = "first"
    """Hidden support: first, random, or comma-separated coordinates (k for each node in heap order)."""
    support_seed: int = 0
    """Seed of a random support."""
    layers: int
    """Hidden layers, or Transformer blocks. An MLP of more than one is trained by plain PyTorch."""
    batch_size: int
    """Samples per step. An MLP with more than one is trained by plain PyTorch."""
    lr_schedule: Literal["constant", "linear", "cosine"]
    """Course of the learning rate after the warm-up; linear and cosine end at zero."""
    warmup: float
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """Weight decay on all weights and biases: with SGD as L2 penalty, with Adam decoupled, as in AdamW."""
    label_temperature: float = 0.0
    """Without a teacher, learn from softmax(one-hot label / temperature); 0 is the plain label."""
    end_label_temperature: float | None = None
    """Label temperature at the last step, if it is annealed linearly."""
    adaptive_checkpoints: bool = False
    """Save at the evaluations at which the loss has moved, and else every --checkpoint-every steps."""
    eval_samples: int = 4096
    """Held-out samples per evaluation."""
    device: str = "cpu"
    """Torch device."""
    out: Path | None = None
    """Run directory; by default runs/parity_mlp/ and a name made of all arguments that differ from the preset."""
    wandb: WandbMode = "disabled"
    """Weights & Biases logging."""
    force: bool = False
    """Remove what an earlier run wrote there and start over."""


@dataclass(frozen=True, kw_only=True)
class MLPArguments(Arguments):
    """The MLP's."""

    model: Model = "mlp"
    layers: int = 1
    batch_size: int = 1
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the weights."""


@dataclass(frozen=True, kw_only=True)
class GPT2Arguments(Arguments):
    """GPT-2's."""

    model: Model = "gpt2"
    layers: int = 2
    batch_size: int = 32
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = 0.06
    head_dim: int = 8
    """Dimensions per attention head."""
    positions: int | None = None
    """Positions that a network has; by default as many as the task needs."""
    initial_std: float = 0.02
    """Standard deviation of the initial weights."""
    dropout: float = 0.0
    """Share of embeddings, attention and what a block adds that is dropped in training."""
    causal: bool = True
    """Whether a position sees only those before it."""
    feed_forward: Literal["gelu", "linear", "skip"] = "gelu"
    """Feed-forward layers as in GPT-2, without their activation, or none."""
    average_heads: bool = False
    """Average the heads instead of concatenating them."""
    class_token: bool = False
    """Append a token of its own, at which the class is predicted."""
    tie_embeddings: bool = False
    """Let the output share the weights of the token embedding."""
    beta1: float = 0.9
    """Adam's decay of the mean gradient."""
    beta2: float = 0.999
    """Adam's decay of the mean squared gradient."""
    accumulate: int = 1
    """Parts into which a batch is cut to save memory."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 computes matrix products in bfloat16; the weights stay in float32."""
    compile: bool = False
    """Compile the loss with torch.compile; on a GPU with CUDA graphs."""


def model_of_command_line() -> Model:
    """The value of --model, which decides on all other arguments; an unknown one is left for the parser to refuse."""
    words = [word for argument in sys.argv[1:] for word in argument.split("=", 1)]
    given = [value for flag, value in pairwise(words) if flag == "--model"]
    return next((model for model in get_args(Model) if given[-1:] == [model]), "mlp")


def run_name(model: Model, preset: str) -> str:
    """The name of a preset's run, and the beginning of its students' names."""
    return preset if model == "mlp" else f"{model}-{preset}"


def task_of(arguments: Arguments) -> ParityTask:
    return make_task(arguments.d, arguments.k, arguments.labels, arguments.support, arguments.support_seed)


def check(arguments: Arguments, rates: tuple[float, ...]) -> None:
    """Refuse arguments that no run could have.

    Args:
        arguments: of the command.
        rates: its learning rates.

    Raises:
        UserError: a number out of its range, or a device that is not there.
    """
    require_at_least(1, arguments, "steps", "eval_every", "eval_samples", "batch_size", "layers")
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
        raise UserError(f"--warmup is a share of the steps, between 0 and 1; got {arguments.warmup}")
    if isinstance(arguments, GPT2Arguments):
        _check_gpt2(arguments)
    check_device(arguments.device)


def join_processes_of(arguments: Arguments) -> tuple[Processes, str]:
    """Join the processes that torchrun started for a command; this one among them, and its device.

    Raises:
        UserError: several processes for an MLP, or a batch that cannot be cut into equal parts.
    """
    processes, device = join_processes(arguments.device)
    if processes.count > 1 and not isinstance(arguments, GPT2Arguments):
        raise UserError("an MLP is trained by one process: start the command without torchrun")
    processes.micro_batch_size(
        arguments.batch_size, arguments.accumulate if isinstance(arguments, GPT2Arguments) else 1
    )
    return processes, device


def check_device(device: str) -> None:
    """Refuse a torch device that is not there.

    Raises:
        UserError: torch's reason.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def _check_gpt2(arguments: GPT2Arguments) -> None:
    require_at_least(1, arguments, "head_dim", "accumulate")
    if not 0 < arguments.initial_std < math.inf:
        raise UserError(f"--initial-std must be positive and finite, got {arguments.initial_std}")
    if not 0 <= arguments.dropout < 1:
        raise UserError(f"--dropout must be at least 0 and below 1, got {arguments.dropout}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 0 and below 1, got {getattr(arguments, name)}")
    needed = arguments.d + arguments.class_token
    if arguments.positions is not None and arguments.positions < needed:
        raise UserError(f"--positions must be at least {needed}, one for each token; got {arguments.positions}")
