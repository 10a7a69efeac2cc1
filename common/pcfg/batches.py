"""Which sentences of a grammar make up each batch of training and evaluation.

Sentences differ in length, and padding is wasted work. The training stream is therefore cut into groups of
`GROUP_BATCHES` batches; a group's sentences are ordered by length and split into batches, which come in random order.

Evaluation sentences come from a separate stream and do not depend on any run's seed. Of course, a grammar with few,
short sentences repeats them in training.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.pcfg.dataset import EVALUATION_SEED, SentenceDataset, too_few
from common.pcfg.grammar import Grammar
from common.pcfg.sampler import Sentences, Stream, sample

GROUP_BATCHES = 16
"""Batches per group."""

_ORDER_STREAM = 0x6D61736E
"""Differs from the sampler's stream numbers, so that the order does not reuse its random bits."""


class Chosen(NamedTuple):
    """The sentences of a batch."""

    sentences: Sentences
    """Consecutive ones of a stream."""
    first: int
    """Index of their first one in the stream."""
    rows: NDArray[np.int64]
    """Which of them are in the batch, in its order."""


class TrainingSentences:
    """The sentences of each batch of a training run; they depend on the arguments and the step alone.

    Args:
        grammar: whose sentences.
        seed: of the sentences, unless they come from a dataset, and of the order of batches.
        batch_size: sentences per batch.
        dataset: used instead of the sampler, in its order, each sentence once. The last group may have fewer batches; a
            remainder that does not fill a batch is not used.
        levels: number of tree levels to sample with the sentences; 0 samples no trees. A dataset has its own.
    """

    def __init__(
        self, grammar: Grammar, seed: int, batch_size: int, dataset: SentenceDataset | None = None, levels: int = 0
    ) -> None:
        self._grammar, self._seed, self._batch_size, self._dataset = grammar, seed, batch_size, dataset
        self._levels = levels
        self._group = -1
        self._sentences: Sentences
        self._batches: list[NDArray[np.int64]]

    def batch(self, step: int) -> Chosen:
        """The sentences of step `step`, from 0; cheap if the step before was of the same group.

        Raises:
            UserError: the dataset has too few sentences.
        """
        group, place = divmod(step, GROUP_BATCHES)
        if group != self._group:
            self._read(group)
        if self._dataset is not None and place >= len(self._batches):
            raise too_few(self._dataset, (step + 1) * self._batch_size)
        return Chosen(self._sentences, group * GROUP_BATCHES * self._batch_size, self._batches[place])

    def _read(self, group: int) -> None:
        size = GROUP_BATCHES * self._batch_size
        if self._dataset is None:
            self._sentences = _drawn(self._grammar, self._seed, "train", group * size, size, self._levels)
        else:
            left = max(len(self._dataset) - group * size, 0)
            self._sentences = self._dataset.sentences(group * size, min(size, left - left % self._batch_size))
        by_length = np.argsort(self._sentences.lengths, kind="stable").reshape(-1, self._batch_size)
        generator = np.random.Generator(np.random.Philox(key=[self._seed, _ORDER_STREAM], counter=[0, 0, 0, group]))
        self._batches = list(by_length[generator.permutation(len(by_length))])
        self._group = group


def evaluation_sentences(grammar: Grammar, samples: int, batch_size: int, levels: int = 0) -> list[Chosen]:
    """The held-out sentences, ordered by length; the last batch may be smaller than the others.

    Args:
        grammar: whose sentences.
        samples: their number.
        batch_size: sentences per batch.
        levels: number of tree levels to sample with the sentences; 0 samples no trees.
    """
    sentences = _drawn(grammar, EVALUATION_SEED, "evaluation", 0, samples, levels)
    by_length = np.argsort(sentences.lengths, kind="stable")
    return [Chosen(sentences, 0, by_length[start : start + batch_size]) for start in range(0, samples, batch_size)]


def _drawn(grammar: Grammar, seed: int, stream: Stream, first: int, count: int, levels: int) -> Sentences:
    return sample(grammar, seed, stream, first, count, trees=levels > 0, levels=levels or None)
