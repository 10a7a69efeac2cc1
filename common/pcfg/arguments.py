"""Arguments of the commands that the settings on grammars share, and what they must satisfy.

Importing this must stay cheap, as every command starts with it: see `common.cli.prepare_process`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import tyro

from common.arguments import require_at_least
from common.distillation.arguments import DistillationArguments
from common.errors import UserError
from common.probes.arguments import ProbedArguments
from common.runs.tracking import WandbMode


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Shared by `train.py` and `distill.py`."""

    preset: Annotated[str, tyro.conf.Suppress]
    grammar: str
    """Name of a grammar, or a grammar file."""
    start: str | None = None
    """Start symbol; by default the grammar's own."""
    layers: int
    """Transformer blocks."""
    head_dim: int = 8
    """Dimensions per attention head."""
    batch_size: int
    """Sentences per step."""
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
    """Held-out sentences per evaluation."""
    dataset: Path | None = None
    """Dataset written by data.py export to train on, each sentence once, instead of sampling."""
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


def check(arguments: Arguments) -> None:
    """Reject arguments that are invalid for any run.

    Raises:
        UserError: names the option.
    """
    require_at_least(1, arguments, "layers", "head_dim", "batch_size", "eval_every", "eval_samples", "accumulate")
    require_at_least(0, arguments, "checkpoint_every")
    require_positive_lr(arguments.lr)
    if not 0 <= arguments.warmup <= 1:
        raise UserError(f"--warmup is a fraction of the steps, between 0 and 1; got {arguments.warmup}")
    if not 0 <= arguments.dropout < 1:
        raise UserError(f"--dropout must be at least 0 and below 1, got {arguments.dropout}")


def require_positive_lr(lr: float) -> None:
    """Reject a learning rate that is not positive and finite.

    Raises:
        UserError: names the option.
    """
    if not 0 < lr < math.inf:
        raise UserError(f"--lr must be positive and finite, got {lr}")


@dataclass(frozen=True)
class ExportArguments:
    """Write sentences of a grammar to a dataset on disk."""

    sentences: int
    """Training sentences."""
    out: Path
    """Directory of the dataset."""
    grammar: str = "cfg3b"
    """Name of a grammar, or a grammar file."""
    start: str | None = None
    """Start symbol; by default the grammar's own."""
    validation: int = 4096
    """Held-out sentences, the first of those that runs are evaluated on."""
    seed: int = 0
    """Seed of the training sentences."""
    trees: bool = False
    """Also write which tokens end a span of a nonterminal, for labels at one depth of the tree."""
    shard: int = 100_000
    """Sentences per file."""


@dataclass(frozen=True, kw_only=True)
class TaskArguments(ProbedArguments):
    """Shared by all probes."""

    grammar: str | None = None
    """Name of a grammar, or a grammar file (a teacher that is not a run)."""
    start: str | None = None
    """Start symbol (a teacher that is not a run); by default the grammar's own."""

    required = ("grammar",)
    defaults = MappingProxyType({"start": None})


@dataclass(frozen=True, kw_only=True)
class ProbeArguments(TaskArguments):
    """Shared by the probes of checkpoints."""

    seed: int = 0
    """Seed of the sentences and of everything else that is random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class NgramArguments(ProbeArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""

    sentences: int = 1024
    """Fresh sentences."""
    positions: int = 1
    """Positions per sentence, drawn from the multiples of --spacing; 0 takes all of them."""
    spacing: int | None = None
    """Distance between positions; by default 30, or half the expected sentence length if that is less."""
    limit: int = 420
    """Largest position."""
    sizes: tuple[int, ...] = (2, 3, 4, 5)
    """Lengths of the n-grams."""
    values: bool = False
    """Also write the value at every position, in the order of the (sentence, position) pairs in `positions`."""
    columns: int = 8192
    """Tokens per batch."""


@dataclass(frozen=True, kw_only=True)
class NonterminalArguments(ProbeArguments):
    """Measure what every checkpoint knows about the nonterminals above each token."""

    training: int = 10_240
    """Fresh sentences to train the probe on."""
    heldout: int = 4096
    """Fresh sentences to test it on."""
    exact: int = 256
    """Held-out sentences for the Bayes-optimal values; 0 omits them."""
    levels: int | None = None
    """Levels of the tree, from the root; by default all, if the grammar has all tokens at one depth."""
    heads: int = 16
    """Pairs of position embeddings and linear maps."""
    dimension: int = 256
    """Dimensions of the position embeddings."""
    lr: float = 1e-2
    """Peak learning rate."""
    epochs: int = 4
    """Passes over the training sentences."""
    batch_size: int = 64
    """Sentences per step."""


@dataclass(frozen=True, kw_only=True)
class BayesOptimalArguments(TaskArguments):
    """Loss and accuracy of the Bayes-optimal predictor on the run's evaluation sentences; checkpoints are not
    needed."""

    eval_samples: int | None = None
    """Evaluation sentences (a teacher that is not a run); by default 4096."""
