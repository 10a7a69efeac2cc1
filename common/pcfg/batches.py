"""Which sentences of a grammar make up each batch of training and evaluation.

Sentences differ in length, and padding is wasted work. The training stream is therefore cut into groups of
`GROUP_BATCHES` batches; a group's sentences are ordered by length and split into batches, which come in random order.

Evaluation sentences come from a separate stream and do not depend on any run's seed. Of course, a grammar with few,
short sentences repeats them in training.
"""

import numpy as np
from numpy.typing import NDArray

from common.pcfg.dataset import EVALUATION_SEED, SentenceDataset, too_few
from common.pcfg.models import require_room
from common.pcfg.sampler import Sentences, Stream, sample
from common.pcfg.task import Batch, GrammarTask, Selection

GROUP_BATCHES = 16
"""Batches per group."""

_ORDER_STREAM = 0x6D61736E
"""Differs from the sampler's stream numbers, so that the order does not reuse its random bits."""


class TrainingBatches:
    """The batches of a training run; each depends on the arguments and its step alone.

    Args:
        task: what a batch of sentences is.
        seed: of the sentences (unless they come from a dataset), of their masks and of the order of batches.
        batch_size: sentences per batch.
        dataset: used instead of the sampler, in its order, each sentence once. The last group may have fewer batches; a
            remainder that does not fill a batch is not used.
    """

    def __init__(self, task: GrammarTask, seed: int, batch_size: int, dataset: SentenceDataset | None = None) -> None:
        self.task = task
        self._seed, self._batch_size, self._dataset = seed, batch_size, dataset
        self._group = -1
        self._sentences: Sentences
        self._batches: list[NDArray[np.int64]]

    def batch(self, step: int) -> Batch:
        """The batch of step `step`, from 0; cheap if the step before was of the same group.

        Raises:
            UserError: the dataset has too few sentences, or a sentence is longer than models of the task have
                positions.
        """
        group, place = divmod(step, GROUP_BATCHES)
        if group != self._group:
            self._read(group)
        if self._dataset is not None and place >= len(self._batches):
            raise too_few(self._dataset, (step + 1) * self._batch_size)
        selection = Selection(self._sentences, group * GROUP_BATCHES * self._batch_size, self._batches[place])
        batch = self.task.batch(self._seed, "train", selection)
        require_room(batch.input_ids.shape[1], self.task)
        return batch

    def _read(self, group: int) -> None:
        size = GROUP_BATCHES * self._batch_size
        if self._dataset is None:
            self._sentences = _sample(self.task, self._seed, "train", group * size, size)
        else:
            left = max(len(self._dataset) - group * size, 0)
            self._sentences = self._dataset.sentences(group * size, min(size, left - left % self._batch_size))
        by_length = np.argsort(self._sentences.lengths, kind="stable").reshape(-1, self._batch_size)
        generator = np.random.Generator(np.random.Philox(key=[self._seed, _ORDER_STREAM], counter=[0, 0, 0, group]))
        self._batches = list(by_length[generator.permutation(len(by_length))])
        self._group = group


def evaluation_batches(task: GrammarTask, samples: int, batch_size: int) -> list[Batch]:
    """The held-out sentences, ordered by length; the last batch may be smaller than the others."""
    sentences = _sample(task, EVALUATION_SEED, "evaluation", 0, samples)
    by_length = np.argsort(sentences.lengths, kind="stable")
    rows = [by_length[start : start + batch_size] for start in range(0, samples, batch_size)]
    return [task.batch(EVALUATION_SEED, "evaluation", Selection(sentences, 0, chosen)) for chosen in rows]


def _sample(task: GrammarTask, seed: int, stream: Stream, first: int, count: int) -> Sentences:
    levels = task.tree_levels
    return sample(task.grammar, seed, stream, first, count, trees=levels > 0, levels=levels or None)
