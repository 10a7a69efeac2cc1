"""Arguments of the commands that the settings on grammars share.

Importing this must stay cheap, as every command starts with it: see `common.cli.prepare_process`.
"""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from common.language_models import arguments
from common.probes.arguments import ProbedArguments

WORKSTATION_TEACHER: dict[str, Any] = dict(
    preset="workstation", steps=12_000, eval_every=50, checkpoint_every=100, seed=1
)
WORKSTATION_STUDENTS: dict[str, Any] = dict(
    preset="workstation",
    steps=(500, 1_000, 2_000),
    seeds=(10, 11, 12, 13, 14),
    stream_seed=3000,
    teacher_range=(400, 1_200),
    teacher_every=40,
    first_steps=400,
)
"""What the preset `workstation` changes of `laptop`."""


Known = Literal["position", "length"]
"""What a designed target may depend on beside the tokens of a window."""


@dataclass(frozen=True, kw_only=True)
class GrammarArguments:
    """Which sentences a model is trained on."""

    grammar: str
    """Name of a grammar, or a grammar file."""
    start: str | None = None
    """Start symbol; by default the grammar's own."""
    dataset: Path | None = None
    """Dataset written by data.py export to train on, each sentence once, instead of sampling."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments, GrammarArguments):
    """Shared by `train.py` and `distill.py`."""


@dataclass(frozen=True, kw_only=True)
class StudentArguments(arguments.DistillArguments):
    """How students on a grammar are trained; see `common.pcfg.window_targets`."""

    design_defaults = MappingProxyType(
        {"windows": ("5",), "windows_of": "grammar", "windows_with": ("position",), "then": "teacher"}
    )
    windows: tuple[str, ...] | None = None
    """Designed targets (designed), one run each: tokens of a window, or several windows in turn joined by +, such as
    3+5+7. The target is the distribution of a token given those of the window, and at --temperature 0 its arg-max. By
    default 5."""
    windows_of: str | None = None
    """What the targets are of (designed): grammar, which is the default; permuted, in which contexts have each other's
    distributions; or another grammar, as its name or name:start."""
    windows_with: tuple[Known, ...] | None = None
    """What the targets depend on beside the tokens of the window (designed): the token's position in the sentence,
    which is the default, the sentence's length, both, or neither."""
    then: Literal["teacher", "labels"] | None = None
    """What students learn from after the designed targets (designed): the final teacher, which is the default, or the
    labels."""


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
class EvaluationArguments(TaskArguments):
    """Shared by the probes of evaluation sentences."""

    eval_samples: int | None = None
    """Evaluation sentences (a teacher that is not a run); by default 4096."""


@dataclass(frozen=True, kw_only=True)
class BayesOptimalArguments(EvaluationArguments):
    """Loss and accuracy of the Bayes-optimal predictor on the run's evaluation sentences; checkpoints are not
    needed."""


@dataclass(frozen=True, kw_only=True)
class WindowArguments(EvaluationArguments, ProbeArguments):
    """Measure how far every checkpoint is from the best predictors that see only a window of the sentence."""

    sizes: tuple[int, ...]
    """Tokens of the windows; the whole input is always the last one."""
    positions: int = 512
    """Labelled positions of the evaluation sentences, drawn at random; 0 takes all of them."""
