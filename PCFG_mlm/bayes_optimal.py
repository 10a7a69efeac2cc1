"""The Bayes-optimal predictor of masked tokens: no model can have a lower expected loss or a higher expected accuracy.

What a token x_p shows in the input depends on it and on chance alone (see batches.py), so the input is evidence on each
token apart, and inside-outside gives the posterior of every token exactly. The predictor knows the grammar, the masking
and the sentence's length.

* A position that carries no information - MASK, or any chosen position while these are hidden - is no evidence for the
  others. With chosen positions hidden, every other position shows its token as it is.
* Otherwise a terminal may be an unchosen token, or a chosen one that is unchanged or replaced. The predictor does not
  know which, and treats it as noisy evidence.
* A position to predict is known to be chosen: a terminal there is as likely to be unchanged as to be replaced.
  This is the position's own evidence, which a model has as well, in its embedding.

BOS is always at the first position, so that its prediction costs nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common.distillation.losses import IGNORED_LABEL
from common.pcfg.bayes_optimal import BayesOptimal, score
from common.pcfg.inside_outside import cavities, cavity_at
from common.probes.ngrams import NgramQueries, Predictor
from PCFG_mlm.batches import Batch, MaskedTask

UNCHANGED_SHARE = RANDOM_SHARE = 0.1
"""Of the chosen positions."""


def bayes_optimal(task: MaskedTask, batches: Sequence[Batch]) -> BayesOptimal:
    """Loss and accuracy of the Bayes-optimal predictor on masked sentences.

    Args:
        task: what was masked, and how.
        batches: such as those of `evaluation_batches`.
    """
    shown, labels = zip(*(sentence for batch in batches for sentence in _sentences(task, batch)), strict=True)
    predicted = [row != IGNORED_LABEL for row in labels]
    probabilities = posteriors(task, shown, predicted)
    of_predicted = np.concatenate([row[where] for row, where in zip(probabilities, predicted, strict=True)])
    truth = np.concatenate([row[where] for row, where in zip(labels, predicted, strict=True)])
    bos = sum(int((batch.labels == task.bos).sum()) for batch in batches)
    return score(of_predicted, truth, certain=bos)


def bayes_optimal_predictor(task: MaskedTask) -> Predictor:
    """The posterior of a token, given all visible ones and the sentence's length.

    Queries must be whole: every position of the sentence in its column, only padding hidden from attention.
    """

    def predict(queries: NgramQueries) -> torch.Tensor:
        evidence = []
        for row, length in zip(queries.input_ids.numpy(), queries.attention_mask.sum(dim=1).tolist(), strict=True):
            tokens = row[1:length]
            seen = np.eye(task.vocabulary, task.terminals)[tokens]
            evidence.append(np.where(tokens[:, None] == task.mask, 1.0, seen))
        columns = queries.columns.tolist()
        answers = zip(cavities(task.grammar, evidence), columns, strict=True)
        return torch.from_numpy(np.stack([others[column - 1] for (_, others), column in answers]))

    return predict


def posteriors(
    task: MaskedTask, shown: Sequence[NDArray[np.int64]], predicted: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.float64]]:
    """Probabilities of the terminals at every position of every sentence, given the input.

    Args:
        task: what was masked, and how.
        shown: for every sentence the input without BOS: terminals and MASK, of shape (length,).
        predicted: for every sentence whether a position is to be predicted, of shape (length,).

    Returns:
        For every sentence (length, terminals). At positions that are not to be predicted, the terminal shown there is
        ignored, so that the result depends on all other positions only.

    Raises:
        UserError: the grammar cannot make a sentence.
    """
    evidence = [_evidence(task, row, where) for row, where in zip(shown, predicted, strict=True)]
    results = []
    for (_, others), row, where in zip(cavities(task.grammar, evidence), shown, predicted, strict=True):
        own = np.where(where[:, None], _likelihood(task, row, UNCHANGED_SHARE, RANDOM_SHARE), 1.0)
        joint = others * own
        results.append(joint / joint.sum(axis=1, keepdims=True))
    return results


def window_posteriors(
    task: MaskedTask,
    shown: NDArray[np.int64],
    predicted: NDArray[np.bool_],
    position: int,
    sizes: Sequence[int],
) -> NDArray[np.float64]:
    """Probabilities of the terminals at one position, given only the input in windows around it.

    Where the window and the sentence are, and the sentence's length, is known.

    Args:
        task: what was masked, and how.
        shown: the input of a sentence, as for `posteriors`, (length,).
        predicted: whether a position is to be predicted, (length,).
        position: which is to be predicted.
        sizes: tokens of the windows, odd; one may reach beyond the sentence.

    Returns:
        (windows + 1, terminals), the last row for the whole input.

    Raises:
        UserError: the grammar cannot make the sentence.
    """
    evidence = _evidence(task, shown, predicted)
    distances = np.abs(np.arange(len(shown)) - position)
    reach = int(distances.max())
    radii = [*(min(size // 2, reach) for size in sizes), reach]
    others = {
        radius: cavity_at(task.grammar, np.where(distances[:, None] <= radius, evidence, 1.0), position)
        for radius in set(radii)
    }
    own = _likelihood(task, shown[[position]], UNCHANGED_SHARE, RANDOM_SHARE)
    joint = np.stack([others[radius] for radius in radii]) * own
    return joint / joint.sum(axis=1, keepdims=True)


def window_posteriors_of_label(
    task: MaskedTask, batch: Batch, row: int, column: int, sizes: Sequence[int]
) -> NDArray[np.float64]:
    """`window_posteriors` of a label other than BOS, with zeros for other tokens: (windows + 1, vocabulary)."""
    ((shown, labels),) = _sentences(task, Batch(*(tensor[[row]] for tensor in vars(batch).values())))
    found = window_posteriors(task, shown, labels != IGNORED_LABEL, column - 1, sizes)
    return np.pad(found, ((0, 0), (0, task.vocabulary - task.terminals)))


def _evidence(task: MaskedTask, shown: NDArray[np.int64], predicted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each position and terminal, up to a factor of the position, the probability that the position shows this."""
    if task.hide_masked:
        return np.where(predicted[:, None], 1.0, _likelihood(task, shown, 1.0, 0.0))
    chosen = task.mask_rate
    return _likelihood(task, shown, 1 - chosen + chosen * UNCHANGED_SHARE, chosen * RANDOM_SHARE)


def _likelihood(task: MaskedTask, shown: NDArray[np.int64], unchanged: float, replaced: float) -> NDArray[np.float64]:
    """Probability that a token is shown unchanged, or replaced by what is shown; 1 where MASK is shown."""
    table = unchanged * np.eye(task.terminals) + replaced / task.terminals
    likelihood = np.ones((len(shown), task.terminals))
    is_terminal = shown < task.terminals
    likelihood[is_terminal] = table[shown[is_terminal]]
    return likelihood


def _sentences(task: MaskedTask, batch: Batch) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Input and labels of each sentence, without BOS and PAD."""
    lengths = (batch.input_ids != task.pad).sum(dim=1).tolist()
    return [
        (batch.input_ids[row, 1:length].numpy(), batch.labels[row, 1:length].numpy())
        for row, length in enumerate(lengths)
    ]
