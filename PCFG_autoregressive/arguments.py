"""Arguments of this setting's commands."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from common.pcfg import arguments

LabelLevel = Literal[1, 2, 3, "all"]

SMOKE: dict[str, Any] = dict(
    preset="smoke", grammar="small", layers=1, batch_size=16, lr=5e-3, eval_every=5, eval_samples=128
)
LAPTOP: dict[str, Any] = dict(
    preset="laptop",
    grammar="cfg3f",
    start="18",
    label_level=1,
    layers=2,
    dropout=0.0,
    batch_size=64,
    eval_samples=1024,
)
PAPER: dict[str, Any] = dict(preset="paper", grammar="cfg3f", layers=4, batch_size=512, lr=5e-3, eval_every=100)
"""What `train.py` and `distill.py` share of each preset."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments):
    """Shared by `train.py` and `distill.py`."""

    label_level: LabelLevel = "all"
    """Predict the tokens that close a span of a nonterminal at this depth of the tree (the root is at depth 0), or
    all."""


@dataclass(frozen=True, kw_only=True)
class TaskArguments(arguments.TaskArguments):
    """Shared by all probes."""

    label_level: LabelLevel | None = None
    """What is predicted: the tokens that close a span at this depth of the tree, or all (a teacher that is not a run);
    by default all."""

    defaults = MappingProxyType({"start": None, "label_level": "all"})


@dataclass(frozen=True, kw_only=True)
class NgramArguments(TaskArguments, arguments.NgramArguments):
    """Measure how much every checkpoint relies on n-grams: M_robust and M_close."""


@dataclass(frozen=True, kw_only=True)
class NonterminalArguments(TaskArguments, arguments.NonterminalArguments):
    """Measure what every checkpoint knows about the nonterminals above each token."""


@dataclass(frozen=True, kw_only=True)
class WindowArguments(TaskArguments, arguments.WindowArguments):
    """Measure how far every checkpoint is from the best predictors that see only the last few tokens."""

    sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 9, 13, 21)
    """Tokens of the windows: one to predict and those before it; all tokens before it are always the last window."""


@dataclass(frozen=True, kw_only=True)
class BayesOptimalArguments(TaskArguments, arguments.BayesOptimalArguments):
    """Loss and accuracy of the Bayes-optimal predictor on the run's evaluation sentences; checkpoints are not
    needed."""


@dataclass(frozen=True, kw_only=True)
class GenerationArguments(TaskArguments, arguments.ProbeArguments):
    """Measure which continuations by every checkpoint the grammar accepts."""

    continuations: int = 1000
    """Number of fresh sentences whose prefixes the model continues."""
    given: int | None = None
    """Tokens in each prefix; by default 50, or half the expected sentence length if that is less."""
    tokens: int = 100
    """Maximum number of tokens to generate."""
    batch_size: int = 250
    """Continuations per batch."""
