"""Blocks of text as batches: which blocks make up each batch, and the two tasks, masked and causal.

Every epoch visits the blocks of a corpus once, in an order that follows from (seed, corpus, epoch) alone. Of several
corpora, each group of `GROUP` successive samples has a number of each that is its weight's share, in an order that
follows from (seed, group). So the batch of any step is found without its predecessors: a run can resume anywhere, and
processes can share batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import UserError
from common.masking import MASK_STREAMS, MAX_MASK_RATE, fill_masked, threshold_of
from common.text.blocks import Blocks

Stream = Literal["train", "evaluation", "probe"]

EVALUATION_SEED = 0
"""Seed of the masks that all runs are evaluated with."""

GROUP = 4096
"""Samples in which each corpus has its share; weights are rounded to multiples of 1 / GROUP."""

MIN_MASK_RATE = 0.001

_ORDER_STREAM, _CORPUS_STREAM = 0x6F726465, 0x636F7270


class Selection(NamedTuple):
    """The blocks of a batch."""

    tokens: NDArray[np.int64]
    """(samples, length)"""
    seed: int
    """Of what the task draws, such as masks."""
    stream: Stream
    """Where the blocks are from, for the same."""
    rows: NDArray[np.int64]
    """(samples,) of the blocks, below 2^32."""
    epochs: NDArray[np.int64]
    """(samples,) in which they are visited, below 2^32."""


class TextTask(Protocol):
    """What a batch of blocks is."""

    def require_fit(self, blocks: Blocks) -> None:
        """Raise a `UserError` if the blocks do not suit the task."""

    def batch(self, blocks: Blocks, selection: Selection) -> Any:
        """Blocks as a dataclass of tensors, named as the model's arguments, and `labels`."""


@dataclass(frozen=True)
class MaskedBatch:
    """Masked blocks; all tensors are int64, of shape (samples, length)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """0 at chosen positions with `hide_masked`; 1 elsewhere."""
    labels: torch.Tensor
    """True token ids at chosen positions, `IGNORED_LABEL` elsewhere."""


@dataclass(frozen=True)
class MaskedText:
    """Masked prediction; see common/masking.py.

    Special tokens are never chosen. Of each block at least one position is chosen, unless it has special tokens only,
    and at least one is not. Masks depend on the seed, the stream, the block and the epoch alone.

    Raises:
        UserError: the mask rate is out of range.
    """

    mask_rate: float = 0.3
    """Fraction of the positions that are chosen: 0.3 in Panigrahi et al. (2025), 0.15 in BERT."""
    hide_masked: bool = True
    """Whether the chosen positions are hidden from attention, as in Panigrahi et al. (2025)."""

    def __post_init__(self) -> None:
        if not MIN_MASK_RATE <= self.mask_rate <= MAX_MASK_RATE:
            raise UserError(f"--mask-rate must be from {MIN_MASK_RATE} to {MAX_MASK_RATE}, got {self.mask_rate}")

    def require_fit(self, blocks: Blocks) -> None:
        """Raise a `UserError` if the tokenizer has no mask token, or uses it for something else as well."""
        advice = "give --tokenizer wordpiece, or one of a masked model"
        if blocks.mask is None:
            raise UserError(f"the tokenizer has no mask token: {advice}")
        if blocks.mask == blocks.separator:
            raise UserError(f"the tokenizer's mask token also ends a document: {advice}")

    def batch(self, blocks: Blocks, selection: Selection) -> MaskedBatch:
        """Masked blocks; see `TextTask.batch`."""
        assert blocks.mask is not None  # see `require_fit`
        samples, length = selection.tokens.shape
        input_ids, attention_mask, labels = (np.empty((samples, length), np.int64) for _ in range(3))
        fill_masked(
            np.ascontiguousarray(selection.tokens).reshape(-1),
            np.arange(samples) * length,
            np.full(samples, length),
            np.zeros(0, np.int64),
            (selection.rows + (selection.epochs << 32)).astype(np.uint64),
            np.uint64(selection.seed),
            np.uint64(MASK_STREAMS[selection.stream]),
            threshold_of(self.mask_rate),
            1,
            self.hide_masked,
            blocks.mask,
            blocks.is_special,
            blocks.ordinary,
            input_ids,
            attention_mask,
            labels,
        )
        return MaskedBatch(*(torch.from_numpy(array) for array in (input_ids, attention_mask, labels)))


@dataclass(frozen=True)
class CausalBatch:
    """Blocks; both tensors are int64, of shape (samples, length)."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    """The same token ids; the trainer shifts them."""


@dataclass(frozen=True)
class CausalText:
    """Prediction of each next token."""

    def require_fit(self, blocks: Blocks) -> None:
        """All blocks suit."""

    def batch(self, blocks: Blocks, selection: Selection) -> CausalBatch:
        """The blocks as they are; see `TextTask.batch`."""
        input_ids = torch.from_numpy(selection.tokens)
        return CausalBatch(input_ids, input_ids)


class TextBatches:
    """The batches of a training run, a `Source`; each depends on the arguments and its step alone.

    Args:
        blocks: what to train on.
        task: what a batch of blocks is.
        seed: of the order of blocks, and of the masks.
        batch_size: samples per step.
        weights: of the corpora, in the order of `blocks.corpora`; by default their numbers of blocks.

    Raises:
        UserError: the blocks do not suit the task, or the weights do not suit the corpora.
    """

    def __init__(
        self, blocks: Blocks, task: TextTask, seed: int, batch_size: int, weights: Sequence[float] | None = None
    ) -> None:
        task.require_fit(blocks)
        self.blocks, self.task = blocks, task
        self._seed, self._batch_size = seed, batch_size
        self._ranges = blocks.ranges("train")
        used = weights_of(blocks, weights)
        self._shares = shares_of(GROUP, used)
        for corpus, weight, share, rows in zip(blocks.corpora, used, self._shares, self._ranges, strict=True):
            if weight and not share:
                raise UserError(
                    f"{corpus.name} has less than 1/{GROUP} of the weight: leave it out, or raise --weights"
                )
            if share and not rows:
                raise UserError(f"{corpus.name} has too few documents for a block: leave it out, or give it weight 0")
        self._orders: dict[tuple[int, int], NDArray[np.uint32]] = {}
        self._groups: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def batch(self, step: int) -> Any:
        """The global batch of step `step`, from 0: a `MaskedBatch` or a `CausalBatch`."""
        rows, epochs = self.rows(step * self._batch_size, self._batch_size)
        tokens = self.blocks.samples("train", rows)
        return self.task.batch(self.blocks, Selection(tokens, self._seed, "train", rows, epochs))

    def rows(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which blocks samples first .. first + count - 1 are.

        Returns:
            Rows of `blocks.train` (count,), and the epochs of their corpora (count,).
        """
        corpora, ranks = self._drawn(np.arange(first, first + count))
        rows, epochs = np.empty(count, np.int64), np.empty(count, np.int64)
        used = set()
        for corpus in np.unique(corpora).tolist():
            chosen, blocks = corpora == corpus, self._ranges[corpus]
            epochs[chosen] = ranks[chosen] // len(blocks)
            for epoch in np.unique(epochs[chosen]).tolist():
                now = chosen & (epochs == epoch)
                rows[now] = blocks.start + self._order(corpus, epoch)[ranks[now] % len(blocks)]
                used.add((corpus, epoch))
        latest = {corpus: max(epoch for other, epoch in used if other == corpus) for corpus, _ in used}
        self._orders = {
            (corpus, epoch): order
            for (corpus, epoch), order in self._orders.items()
            if epoch == latest.get(corpus, epoch)
        }
        return rows, epochs

    def _drawn(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The corpus of each sample, and how many earlier samples are of that corpus."""
        if len(self._shares) == 1:
            return np.zeros_like(samples), samples
        corpora, ranks = np.empty_like(samples), np.empty_like(samples)
        groups = samples // GROUP
        present = np.unique(groups).tolist()
        self._groups = {group: self._group(group) for group in present}
        for group in present:
            now = groups == group
            for target, values in zip((corpora, ranks), self._groups[group], strict=True):
                target[now] = values[samples[now] % GROUP]
        return corpora, ranks

    def _group(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if group in self._groups:
            return self._groups[group]
        corpora = np.repeat(np.arange(len(self._shares)), self._shares)
        self._generator(_CORPUS_STREAM, 0, group).shuffle(corpora)
        ranks = np.empty(GROUP, np.int64)
        for corpus, share in enumerate(self._shares):
            ranks[corpora == corpus] = group * share + np.arange(share)
        return corpora, ranks

    def _order(self, corpus: int, epoch: int) -> NDArray[np.uint32]:
        """The corpus's blocks in the order of an epoch; takes 4 bytes per block."""
        if (corpus, epoch) not in self._orders:
            order = np.arange(len(self._ranges[corpus]), dtype=np.uint32)
            self._generator(_ORDER_STREAM, corpus, epoch).shuffle(order)
            self._orders[corpus, epoch] = order
        return self._orders[corpus, epoch]

    def _generator(self, stream: int, corpus: int, place: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._seed, stream], counter=[0, 0, corpus, place]))


def rows_at_equal_distances(
    blocks: Blocks, split: Literal["train", "held_out"], samples: int, weights: Sequence[float] | None = None
) -> NDArray[np.int64]:
    """Rows of `blocks.train` or `blocks.held_out`: of each corpus as many as its weight's share, or else all it has."""
    shares = shares_of(samples, weights_of(blocks, weights, split))
    found = []
    for share, rows in zip(shares, blocks.ranges(split), strict=True):
        count = min(share, len(rows))
        found.append(rows.start + np.arange(count) * len(rows) // max(count, 1))
    return np.concatenate(found)


def held_out_rows(
    blocks: Blocks, samples: int, weights: Sequence[float] | None = None, option: str = "--eval-samples"
) -> NDArray[np.int64]:
    """Rows (samples,) of `blocks.held_out` at equal distances; with the defaults, those that every run is evaluated on.

    Args:
        blocks: prepared ones.
        samples: how many.
        weights: of the corpora; by default their numbers of held-out blocks.
        option: that gives the number of samples, for messages.

    Raises:
        UserError: there are too few.
    """
    ranges = blocks.ranges("held_out")
    shares = shares_of(samples, weights_of(blocks, weights, "held_out"))
    for corpus, share, rows in zip(blocks.corpora, shares, ranges, strict=True):
        if share > len(rows):
            raise UserError(
                f"{corpus.name} has {len(rows):,} held-out blocks, but {share:,} are needed: give fewer "
                f"{option}, or a larger --held-out"
            )
    return rows_at_equal_distances(blocks, "held_out", samples, weights)


def evaluation_batches(
    blocks: Blocks, task: TextTask, samples: int, batch_size: int, weights: Sequence[float] | None = None
) -> list[Any]:
    """The blocks of `held_out_rows` in batches, whatever the seed of a run; the last may be smaller.

    Raises:
        UserError: there are too few, or they do not suit the task.
    """
    task.require_fit(blocks)
    rows = held_out_rows(blocks, samples, weights)
    tokens = blocks.samples("held_out", rows)
    cuts = [slice(start, start + batch_size) for start in range(0, samples, batch_size)]
    first = np.zeros_like(rows)
    return [
        task.batch(blocks, Selection(tokens[cut], EVALUATION_SEED, "evaluation", rows[cut], first[cut])) for cut in cuts
    ]


def weights_of(blocks: Blocks, weights: Sequence[float] | None, split: str = "train") -> tuple[float, ...]:
    """The weights of the corpora as given, or their numbers of blocks.

    Raises:
        UserError: not as many as corpora, negative, not finite, or all 0.
    """
    if weights is None:
        return tuple(float(getattr(corpus, split)) for corpus in blocks.corpora)
    require_weights(weights, len(blocks.corpora))
    return tuple(map(float, weights))


def require_weights(weights: Sequence[float], corpora: int) -> None:
    """Reject weights that do not suit a number of corpora.

    Raises:
        UserError: not as many as corpora, negative, not finite, or all 0.
    """
    if len(weights) != corpora:
        raise UserError(f"--weights has {len(weights)} numbers for {corpora} corpora: give one for each")
    if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < math.inf:
        raise UserError(f"--weights must be at least 0 and not all 0, got {' '.join(map(str, weights))}")


def shares_of(count: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `count` and are nearest to the weights' shares (largest remainder)."""
    exact = [count * (weight / sum(weights)) for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares
