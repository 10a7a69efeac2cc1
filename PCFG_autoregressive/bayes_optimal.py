"""The Bayes-optimal predictor of next tokens: no model can have a lower expected loss or a higher expected accuracy.

It knows the grammar and the tokens before, and gives the exact posterior of the next token, by prefix probabilities.

With labels at one depth of the tree there are two optima. A model trained on labelled tokens only learns a token's
distribution given the tokens before and that it ends a span of that depth; this is the best for such labels. A model of
all tokens does not know where labels are; at the same tokens its best prediction is the posterior given the tokens
before.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arguments import worker_threads
from common.pcfg.bayes_optimal import BayesOptimal, score
from common.pcfg.prefix import next_token_posteriors, span_end_posteriors
from PCFG_autoregressive.batches import Batch, NextTokenTask, sentences_of


def bayes_optimal(task: NextTokenTask, batches: Sequence[Batch], label_is_known: bool = True) -> BayesOptimal:
    """Loss and accuracy of the Bayes-optimal predictor at the labelled tokens.

    Args:
        task: which tokens have labels.
        batches: such as those of `evaluation_batches`.
        label_is_known: whether the predictor knows that a token has a label. If it does not, and only some tokens have
            labels, `expected_accuracy` is not an estimate of its accuracy.
    """
    sentences = sentences_of(task, batches)
    known = label_is_known and task.label_level != "all"
    with ThreadPoolExecutor(worker_threads()) as pool:
        answers = pool.map(lambda sentence: posteriors(task, sentence[0], sentence[1], known), sentences)
        probabilities = np.concatenate(list(answers))
    truth = [np.append(tokens, task.terminals)[labelled] for tokens, labelled in sentences]
    return score(probabilities, np.concatenate(truth))


def bayes_optimal_values(task: NextTokenTask, batches: Sequence[Batch]) -> dict[str, Any]:
    """What `probe.py bayes-optimal` writes, as JSON values: `bayes_optimal`, and `without_label` where that differs."""
    best = asdict(bayes_optimal(task, batches))
    if task.label_level == "all":
        return best
    unknown = bayes_optimal(task, batches, label_is_known=False)
    return {**best, "without_label": {"loss": unknown.loss, "accuracy": unknown.accuracy}}


def window_posteriors(
    task: NextTokenTask, tokens: NDArray[np.integer], position: int, sizes: Sequence[int]
) -> NDArray[np.float64]:
    """Probabilities of a labelled token given its position and only the last few tokens before it.

    With labels at one depth of the tree, it is known that the token has one. The sentence's length is not known.

    Args:
        task: which tokens have labels.
        tokens: (length,), the terminals.
        position: of the token; the length for EOS.
        sizes: tokens of the windows, this one included; one may reach beyond the beginning.

    Returns:
        (windows + 1, terminals + 1), the last column for EOS, and the last row for all tokens before.
    """
    is_labelled = np.arange(position + 1) == position
    known = task.label_level != "all"
    unseen = [*(max(position + 1 - size, 0) for size in sizes), 0]
    rows = {count: posteriors(task, tokens[:position], is_labelled, known, count)[0] for count in set(unseen)}
    return np.stack([rows[count] for count in unseen])


def window_posteriors_of_label(
    task: NextTokenTask, batch: Batch, row: int, column: int, sizes: Sequence[int]
) -> NDArray[np.float64]:
    """`window_posteriors` of a label, with zeros for other tokens: (windows + 1, vocabulary)."""
    found = window_posteriors(task, batch.input_ids[row, 1:column].numpy(), column - 1, sizes)
    result = np.zeros((len(found), task.vocabulary))
    result[:, [*range(task.terminals), task.eos]] = found
    return result


def posteriors(
    task: NextTokenTask,
    tokens: NDArray[np.integer],
    labelled: NDArray[np.bool_],
    label_is_known: bool,
    unseen: int = 0,
) -> NDArray[np.float64]:
    """Probabilities at the labelled tokens of a sentence, given those before, and optionally that they have a label.

    Args:
        task: which tokens have labels.
        tokens: (length,), the terminals.
        labelled: (length + 1,), the last one for EOS.
        label_is_known: only with labels at a depth of the tree.
        unseen: number of tokens at the beginning that are not known.

    Returns:
        (labels, terminals + 1), the last column for EOS.
    """
    if label_is_known:
        assert task.label_level != "all"
        joint = span_end_posteriors(task.grammar, tokens, task.label_level, unseen)[labelled]
        return np.pad(joint / joint.sum(axis=1, keepdims=True), ((0, 0), (0, 1)))
    return next_token_posteriors(task.grammar, tokens, unseen)[labelled]
