"""`probe.py` of the settings on grammars."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arguments import require_at_least, require_seed
from common.errors import UserError
from common.language_models.arguments import require_positive_lr
from common.language_models.probing import probe_models, probed_data, probed_task
from common.language_models.setting import Setting
from common.pcfg.arguments import (
    BayesOptimalArguments,
    EvaluationArguments,
    NgramArguments,
    NonterminalArguments,
)
from common.pcfg.batches import evaluation_batches
from common.pcfg.inside_outside import ancestor_posteriors
from common.pcfg.sampler import Sentences, sample
from common.pcfg.setting import EVALUATION_BATCH_SIZE
from common.pcfg.task import GrammarTask
from common.probes.checkpoints import identity, is_run, probe_file, read_probe, write_probe
from common.probes.ngrams import CausalNgramVariants, NgramVariants, Predictor, probe_ngrams
from common.probes.nonterminals import NO_SYMBOL, Encoder, LabelledSentences, probe_nonterminals
from common.resources import STATE, require_memory
from common.runs.run import Run

SPACING = 30
"""Default distance of n-gram positions, in tokens; less for a grammar of short sentences."""
EVAL_SAMPLES = 4096
"""Sentences for the Bayes-optimal predictor, of a teacher that is not a run."""


def ngrams(
    arguments: NgramArguments,
    argv: Sequence[str],
    setting: Setting,
    variants: Callable[..., NgramVariants | CausalNgramVariants],
    predictor: Callable[[Any], Predictor],
    optimal: Callable[..., tuple[NgramVariants, Predictor]] | None = None,
) -> None:
    """`probe.py ngrams`: M_robust and M_close of every checkpoint that is not in the probe's file yet.

    Args:
        arguments: of the command.
        argv: the command, for the probe's file.
        setting: of the run.
        variants: from the task, the sequences (token ids with BOS), and as keywords spacing, limit, positions, sizes
            and seed, to the variants of the sequences that models are run on.
        predictor: from a model of the setting.
        optimal: from the same as `variants`, to the variants for the Bayes-optimal predictor and that predictor.

    Raises:
        UserError: an argument is out of range, or the directory is not a run of the setting.
    """
    task = probed_task(arguments, setting)
    require_at_least(1, arguments, "sentences", "limit", "columns")
    require_at_least(0, arguments, "positions")
    require_at_least(2, arguments, "sizes")
    require_seed(arguments, "seed")
    spacing = arguments.spacing
    if spacing is None:
        spacing = int(min(SPACING, max(1, task.grammar.expected_length // 2)))
    require_memory({f"--sentences {arguments.sentences}": int(arguments.sentences * _sentence_bytes(task))})
    sequences = with_bos(task, sample(task.grammar, arguments.seed, "probe", 0, arguments.sentences))
    options = {
        "spacing": spacing,
        "limit": arguments.limit,
        "positions": arguments.positions or None,
        "sizes": arguments.sizes,
        "seed": arguments.seed,
    }

    def statistics(shown: NgramVariants | CausalNgramVariants, predict: Predictor) -> dict[str, Any]:
        return asdict(probe_ngrams(shown, predict, arguments.columns, arguments.values))

    shown = variants(task, sequences, **options)
    once: dict[str, Callable[[], object]] = {"spacing": lambda: spacing}
    if arguments.values:
        once["positions"] = shown.pairs.tolist
    if optimal is not None:
        once["bayes_optimal"] = lambda: statistics(*optimal(task, sequences, **options))
    probe_models(
        arguments,
        argv,
        "ngrams",
        setting,
        task,
        lambda model: statistics(shown, predictor(model)),
        once,
        arguments.device,
    )


def nonterminals(
    arguments: NonterminalArguments, argv: Sequence[str], setting: Setting, encoder: Callable[[Any], Encoder]
) -> None:
    """`probe.py nonterminals`: accuracy by level of every checkpoint that is not in the probe's file yet.

    `encoder` maps a model of the setting to a function that gives its last hidden states.

    Raises:
        UserError: an argument is out of range, or the directory is not a run of the setting.
    """
    require_at_least(1, arguments, "training", "heldout", "heads", "dimension", "epochs", "batch_size")
    require_at_least(0, arguments, "exact")
    require_seed(arguments, "seed")
    require_positive_lr(arguments.lr)
    task = probed_task(arguments, setting)
    levels = arguments.levels or len(task.grammar.nonterminals)
    if task.grammar.depth is not None:
        levels = min(levels, task.grammar.depth)
    require_memory(
        {
            f"--training {arguments.training}": int(arguments.training * _sentence_bytes(task, levels)),
            f"--heldout {arguments.heldout}": int(arguments.heldout * _sentence_bytes(task, levels)),
            f"--heads {arguments.heads} of --dimension {arguments.dimension}": STATE
            * (arguments.dimension * task.positions + arguments.heads),
        }
    )
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
    probe_models(arguments, argv, "nonterminals", setting, task, measure, once, arguments.device)


def bayes_optimal(
    arguments: BayesOptimalArguments,
    argv: Sequence[str],
    setting: Setting,
    values: Callable[[Any, Sequence[Any]], Mapping[str, Any]],
) -> None:
    """`probe.py bayes-optimal`: the best possible values on the run's evaluation sentences, unless the file exists.

    `values` maps the task and the evaluation batches to JSON values.

    Raises:
        UserError: the directory is not a run of the setting, or the file is damaged.
    """
    task = probed_task(arguments, setting)
    samples = evaluation_samples(arguments, task)
    data = probed_data(setting, task)
    path = probe_file(arguments, setting.name, "bayes_optimal", data)
    if path.exists():
        read_probe(path)
    else:
        result = values(task, evaluation_batches(task, samples, EVALUATION_BATCH_SIZE))
        whose = identity(arguments, path, data)
        write_probe(arguments, path, {"argv": list(argv), **whose, "eval_samples": samples, **result})
    print(path)


def evaluation_samples(arguments: EvaluationArguments, task: GrammarTask) -> int:
    """Number of evaluation sentences: those of the run or, for a teacher that is not one, as given.

    Raises:
        UserError: they are given for a run, are fewer than 1, or need more memory than there is.
    """
    samples = arguments.eval_samples
    if is_run(arguments.run):
        if samples is not None:
            raise UserError(f"{arguments.run} is a run, which says what its task is: leave out --eval-samples")
        samples = Run(arguments.run).config["arguments"]["eval_samples"]
    elif samples is None:
        samples = EVAL_SAMPLES
    else:
        require_at_least(1, arguments, "eval_samples")
    require_memory({f"--eval-samples {samples}": int(samples * _sentence_bytes(task))})
    return samples


def _sentence_bytes(task: GrammarTask, levels: int = 0) -> float:
    """Memory of a sentence on average: its tokens, a token id and BOS as 64-bit integers, and its trees."""
    return 8 + task.expected_length * (1 + 8 + 5 * levels)


def bayes_optimal_levels(task: GrammarTask, data: LabelledSentences) -> list[dict[str, float]]:
    """How well exact posteriors given whole sentences predict the ancestors of tokens, level by level.

    Args:
        task: its grammar has all tokens at one depth.
        data: sentences with BOS, and the index of each ancestor among the symbols of its level, without the root.

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
    """Sentences with BOS, and the index of each ancestor among the symbols of its level, without the root."""
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
