"""What the probes of settings on grammars share: their sentences, their arguments, and the files that they write.

A probe's file, in the run's directory, has one entry for each checkpoint, and what is measured without one. It is
written after each measurement, so that a probe that is cut off goes on, and only checkpoints that are new are probed.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from common.arguments import require_at_least, require_seed
from common.errors import UserError
from common.pcfg.inside_outside import ancestor_posteriors
from common.pcfg.sampler import Sentences, sample
from common.pcfg.task import GrammarTask
from common.pcfg.training import EVALUATION_BATCH, Setting, task_of_run
from common.probes.nonterminals import NO_SYMBOL, Encoder, LabelledSentences, probe_nonterminals
from common.runs.files import write_file
from common.runs.names import default_name
from common.runs.progress import progress
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints, local_path

SPACING = 30


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the probes of checkpoints have in common."""

    run: Path
    """Run directory of train.py or distill.py."""
    seed: int = 0
    """Seed of the sentences and of all that a probe draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class NgramArguments(Arguments):
    """Arguments of `probe.py ngrams`."""

    sentences: int = 1024
    """Fresh sentences."""
    positions: int = 1
    """Positions in each sentence, drawn from the multiples of the spacing; 0 takes all of them."""
    spacing: int | None = None
    """Distance of these multiples; by default 30, or half the expected sentence if that is less."""
    limit: int = 420
    """Largest position."""
    sizes: tuple[int, ...] = (2, 3, 4, 5)
    """Lengths of the n-grams."""
    values: bool = False
    """Write the value at every single position as well, in the order of `positions`: sentence, position."""
    columns: int = 8192
    """Tokens per batch."""


@dataclass(frozen=True, kw_only=True)
class NonterminalArguments(Arguments):
    """Arguments of `probe.py nonterminals`."""

    training: int = 10_240
    """Fresh sentences that the probe learns from."""
    heldout: int = 4096
    """Fresh sentences that it is tested on."""
    exact: int = 256
    """Held-out sentences for the Bayes-optimal values; 0 leaves these out."""
    levels: int | None = None
    """Levels of the tree, from the root; by default all, for a grammar whose tokens are all at one depth."""
    heads: int = 16
    """Pairs of position embeddings and linear maps."""
    dimension: int = 256
    """Dimensions of the position embeddings."""
    lr: float = 1e-2
    """Largest learning rate."""
    epochs: int = 4
    """Passes over the training sentences."""
    batch_size: int = 64
    """Sentences per step."""


@dataclass(frozen=True, kw_only=True)
class BayesOptimalArguments:
    """Arguments of `probe.py bayes-optimal`."""

    run: Path
    """Run directory of train.py or distill.py; it needs no checkpoint."""


def spacing_of(arguments: NgramArguments, task: GrammarTask) -> int:
    """Distance of the positions that are asked for.

    Raises:
        UserError: an argument is out of its range.
    """
    require_at_least(1, arguments, "sentences", "limit", "columns")
    require_at_least(0, arguments, "positions")
    require_at_least(2, arguments, "sizes")
    require_seed(arguments, "seed")
    if arguments.spacing is None:
        return int(min(SPACING, max(1, task.grammar.expected_length // 2)))
    return arguments.spacing


def nonterminals(arguments: NonterminalArguments, setting: Setting, encoder: Callable[[Any], Encoder]) -> None:
    """Accuracy of the probe for nonterminals, level by level, on every checkpoint that is not in the file yet.

    Args:
        arguments: of the command.
        setting: that the run is of.
        encoder: gives the last hidden states of a model of the setting.
    """
    require_at_least(1, arguments, "training", "heldout", "heads", "dimension", "epochs", "batch_size")
    require_at_least(0, arguments, "exact")
    require_seed(arguments, "seed")
    if not 0 < arguments.lr < math.inf:
        raise UserError(f"--lr must be positive and finite, got {arguments.lr}")
    task = task_of_run(arguments.run, setting)
    training, heldout = (
        labelled_sentences(task, arguments.seed, first, count, arguments.levels)
        for first, count in ((0, arguments.training), (arguments.training, arguments.heldout))
    )

    def measure(model: Any) -> dict[str, Any]:
        accuracies = probe_nonterminals(
            encoder(model),
            training,
            heldout,
            heads=arguments.heads,
            dimension=arguments.dimension,
            lr=arguments.lr,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            device=str(model.device),
        )
        return {"levels": [{"level": level, **asdict(result)} for level, result in enumerate(accuracies, 1)]}

    def optimal() -> object:
        few = LabelledSentences(heldout.sequences[: arguments.exact], heldout.labels[: arguments.exact])
        return {"levels": bayes_optimal_levels(task, few)}

    exact = arguments.exact > 0 and task.grammar.depth is not None
    once = {"bayes_optimal": optimal} if exact else {}
    defaults = NonterminalArguments(run=arguments.run)
    probe_checkpoints(arguments, defaults, "nonterminals", setting, task, measure, once)


def evaluation(
    arguments: BayesOptimalArguments, setting: Setting, bayes_optimal: Callable[[Any, Sequence[Any]], Mapping[str, Any]]
) -> None:
    """Loss and accuracy of the Bayes-optimal predictor on the run's evaluation sentences, unless the file is there.

    Args:
        arguments: of the command.
        setting: that the run is of.
        bayes_optimal: from the task and the evaluation batches to JSON values.
    """
    task = task_of_run(arguments.run, setting)
    path = arguments.run / "probes" / "bayes_optimal.json"
    if not path.exists():
        samples = Run(arguments.run).config["arguments"]["eval_samples"]
        result = bayes_optimal(task, setting.evaluation_batches(task, samples, EVALUATION_BATCH))
        write_file(path, json.dumps({"eval_samples": samples, **result}).encode())
    print(path)


def bayes_optimal_levels(task: GrammarTask, data: LabelledSentences) -> list[dict[str, float]]:
    """How well the ancestors of tokens can be told from whole sentences, level by level, by exact posteriors.

    Args:
        task: its grammar has all tokens at one depth.
        data: sentences with BOS, and the place of each ancestor among the symbols of its level, the root left out.

    Returns:
        For each level its number `level`, `tokens`, and two means over the tokens: `accuracy` of the most probable
        symbol, the first of several that are equally probable, and `expected_accuracy`, the probability of that symbol.
    """
    right, expected = np.zeros((2, data.labels[0].shape[1]))
    for sequence, labels in zip(data.sequences, data.labels, strict=True):
        posteriors = ancestor_posteriors(task.grammar, np.eye(task.terminals)[sequence[1:]])
        for i, places in enumerate(labels[1:].T):
            of_level = posteriors[:, task.grammar.levels[i + 1]]
            right[i] += (of_level.argmax(axis=1) == places).sum()
            expected[i] += of_level.max(axis=1).sum()
    tokens = sum(len(sequence) - 1 for sequence in data.sequences)
    return [
        {"level": level, "tokens": tokens, "accuracy": hits / tokens, "expected_accuracy": mean / tokens}
        for level, (hits, mean) in enumerate(zip(right.tolist(), expected.tolist(), strict=True), 1)
    ]


def labelled_sentences(task: GrammarTask, seed: int, first: int, count: int, levels: int | None) -> LabelledSentences:
    """Sentences with BOS, and the place of each ancestor among the symbols of its level; the root is left out."""
    grammar = task.grammar
    if levels is not None and grammar.depth is not None and levels > grammar.depth:
        raise UserError(f"--levels must be at most {grammar.depth}, as {grammar.name} has no more; got {levels}")
    drawn = sample(grammar, seed, "probe", first, count, trees=True, levels=levels)
    assert drawn.ancestors is not None
    labels = np.full((len(drawn.tokens), drawn.ancestors.shape[1] - 1), NO_SYMBOL, np.int16)
    if labels.shape[1] == 0:
        raise UserError(f"the trees of {grammar.name} from {grammar.start} have no nonterminal below the root to probe")
    for level in range(1, drawn.ancestors.shape[1]):
        symbols = range(len(grammar.nonterminals)) if grammar.depth is None else grammar.levels[level]
        place = np.full(len(grammar.nonterminals) + 1, NO_SYMBOL)  # the last entry is for an ancestor of -1
        place[list(symbols)] = np.arange(len(symbols))
        labels[:, level - 1] = place[drawn.ancestors[:, level]]
    bos = np.full((1, labels.shape[1]), NO_SYMBOL, np.int16)
    return LabelledSentences(
        sequences=with_bos(task, drawn),
        labels=[np.concatenate([bos, part]) for part in np.split(labels, drawn.offsets[1:-1])],
    )


def with_bos(task: GrammarTask, sentences: Sentences) -> list[NDArray[np.integer]]:
    """Token ids of each sentence, BOS first."""
    return [np.concatenate([[task.bos], sentences.sentence(i)]) for i in range(len(sentences))]


def probe_checkpoints(
    arguments: Arguments,
    defaults: Arguments,
    name: str,
    setting: Setting,
    task: GrammarTask,
    measure: Callable[[Any], dict[str, Any]],
    once: Mapping[str, Callable[[], object]],
) -> None:
    """Measure what is not in the probe's file yet, and print the file's name.

    Args:
        arguments: of the command.
        defaults: the same before any argument is given.
        name: of the probe.
        setting: that the run is of.
        task: that the run was trained on.
        measure: from a checkpoint to JSON values.
        once: what is measured without a checkpoint, by name.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda cannot be used: torch finds no GPU")
    device = "cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu"
    checkpoints = find_checkpoints(arguments.run)
    where = ("run", "device", "columns")
    path = arguments.run / "probes" / f"{default_name(arguments, defaults, name, exclude=where)}.json"
    settings = {key: value for key, value in asdict(arguments).items() if key not in where}
    content: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"settings": settings, "checkpoints": []}
    )
    done = {entry["step"]: entry for entry in content["checkpoints"]}
    for key, value in once.items():
        if key not in content:
            content[key] = value()
            write_file(path, json.dumps(content).encode())
    with progress(len(checkpoints), len(done), f"probing {arguments.run.name}", 1) as show:
        for checkpoint in checkpoints:
            if checkpoint.step in done:
                continue
            model = setting.load_model(local_path(checkpoint), task)
            model.to(device)  # type: ignore[arg-type]
            done[checkpoint.step] = {"step": checkpoint.step, **measure(model)}
            content["checkpoints"] = [done[step] for step in sorted(done)]
            write_file(path, json.dumps(content).encode())
            show(len(done), checkpoint=checkpoint.step)
    print(path)
