"""Arguments of the commands that the settings on text share.

Importing this must stay cheap, as every command starts with it: see `common.cli.prepare_process`.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from common.language_models import arguments
from common.probes.arguments import ProbedArguments

SMOKE: dict[str, Any] = dict(
    preset="smoke", vocabulary=1024, length=32, layers=1, batch_size=16, eval_samples=128, lr=5e-3, eval_every=5
)
LAPTOP: dict[str, Any] = dict(
    preset="laptop",
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
    length=512,
    layers=12,
    head_dim=64,
    batch_size=256,
    eval_every=500,
)
"""What both settings share of each preset."""


@dataclass(frozen=True, kw_only=True)
class TextArguments:
    """Which text a model is trained on."""

    corpus: tuple[str, ...] = ("docs",)
    """docs, wikipedia-books, a dataset on the hub, or .txt, .jsonl and .parquet files; several are mixed."""
    weights: tuple[float, ...] = ()
    """Shares of several corpora; by default their sizes."""
    text_column: str = "text"
    """Column with the documents, of JSON, parquet and hub datasets."""
    tokenizer: str
    """wordpiece or bpe, to be trained on the corpora; or a directory, such as a teacher's, or a model on the hub."""
    vocabulary: int = 8192
    """Tokens of a tokenizer that is trained."""
    length: int
    """Tokens per sample."""
    held_out: float = 0.03
    """Fraction of the documents that is held out."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments, TextArguments):
    """Shared by `train.py` and `distill.py`."""


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(TextArguments):
    """Make blocks of tokens from documents."""

    tokenizer: str = "wordpiece"
    """wordpiece or bpe, to be trained on the corpora; or a directory, such as a teacher's, or a model on the hub."""
    vocabulary: int = 4096
    """Tokens of a tokenizer that is trained."""
    length: int = 64
    """Tokens per sample."""


@dataclass(frozen=True, kw_only=True)
class TaskArguments(ProbedArguments):
    """Shared by all probes."""

    corpus: tuple[str, ...] | None = None
    """As in train.py (a teacher that is not a run)."""
    weights: tuple[float, ...] | None = None
    """As in train.py (a teacher that is not a run); by default the sizes of the corpora."""
    text_column: str | None = None
    """As in train.py (a teacher that is not a run); by default text."""
    tokenizer: str | None = None
    """The teacher's tokenizer (a teacher that is not a run)."""
    vocabulary: int | None = None
    """As in train.py (a teacher that is not a run); by default 8192."""
    length: int | None = None
    """Tokens per sample (a teacher that is not a run); by default 128."""
    held_out: float | None = None
    """As in train.py (a teacher that is not a run); by default 0.03."""

    required = ("corpus", "tokenizer")
    defaults = MappingProxyType(
        {"weights": (), "text_column": "text", "vocabulary": 8192, "length": 128, "held_out": 0.03}
    )


@dataclass(frozen=True, kw_only=True)
class ProbeArguments(TaskArguments):
    """Shared by the probes of checkpoints."""

    samples: int = 512
    """Held-out samples, at equal distances."""
    seed: int = 0
    """Of everything that is random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class NgramArguments(ProbeArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""

    unit: Literal["token", "word"] = "token"
    """What n-grams consist of; with word, all tokens of a word are masked together."""
    sizes: tuple[int, ...] = (2, 3, 4, 5)
    """Lengths of the n-grams."""
    values: bool = False
    """Also write the value at every position, in the order of the (sample, position) pairs in `positions`."""
    columns: int = 8192
    """Tokens per batch."""


@dataclass(frozen=True, kw_only=True)
class KneserNeyArguments(ProbeArguments):
    """Measure how far every checkpoint's predictions are from those of n-gram models fitted to its training text."""

    order: int = 5
    """Length of the longest n-grams."""
    tokens: int = 8_000_000
    """Training tokens that the n-gram models are fitted to, at most."""
    rows: int = 64
    """Positions per batch."""
