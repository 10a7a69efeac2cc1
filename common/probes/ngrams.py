"""How much a model's prediction relies on the n-gram around the predicted position: M_robust and M_close.

Let p_0 be the model's distribution over tokens at position p where only p is masked. With the n-gram around p masked
(p_n), and with everything but that n-gram masked (q_n),

    M_robust(n) = |p_n - p_0|_1        large where the n-gram is needed
    M_close(n)  = |q_n - p_0|_1        small where the n-gram suffices

(Panigrahi et al. 2025, arXiv:2410.05464). In their teachers the median M_robust of short n-grams is largest inside the
sharp transition, which is what its checkpoints leak. Both are between 0 and 2.

Positions count from the first token of the sequence, 0, which is BOS or CLS and belongs to no n-gram. The n-gram around
p is p - n // 2 to p + (n - 1) // 2: [p - 1, p] for 2, [p - 1, p + 1] for 3, [p - 2, p + 1] for 4, [p - 2, p + 2] for 5.
In M_close, then, the n - 1 other tokens of the n-gram are visible, and BOS is masked like all the rest. Every n is
measured at the same positions: the multiples of a spacing around which the longest n-gram is whole.

A masked position shows MASK; for a model that was trained with masked positions hidden from attention, they are hidden
here as well. A hidden position influences no other one, so all hidden ones but p itself are then left out of the input,
and the others keep their position ids; that changes no prediction, and M_close(5) takes five columns.

A causal model sees only what is to the left of p, so that its n-gram is p - n + 1 to p. It knows no MASK, and its
prediction is computed at p - 1, which cannot be hidden from attention. Instead of being masked, tokens are replaced by
uniformly random ones, which carry no information about the sentence.

N-grams may also consist of words of one or more tokens, with the word of p in the place of p. Then p is a word of one
token, or for a causal model the first token of a word.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForMaskedLM, GPT2LMHeadModel

from common.distillation.labelled_head import LabelledHead
from common.errors import UserError
from common.probes.percentiles import percentiles_of


@dataclass(frozen=True)
class NgramQueries:
    """Masked sequences, each with one position to predict; int64 tensors."""

    input_ids: torch.Tensor
    """(rows, columns)"""
    attention_mask: torch.Tensor
    """(rows, columns): 0 at padding, and where masked positions are hidden at these."""
    position_ids: torch.Tensor
    """(rows, columns): where in its sequence a column is."""
    columns: torch.Tensor
    """(rows,): the column to predict."""


Predictor = Callable[[NgramQueries], torch.Tensor]
"""From queries to probabilities (rows, tokens) at their columns."""


@dataclass(frozen=True)
class NgramStatistics:
    """Of one measure and one n, over all (sequence, position)."""

    n: int
    median: float
    mean: float
    std: float
    percentiles: dict[str, float]
    """The 25th, 50th, 75th and 90th, by their number."""
    values: list[float] | None
    """One for each pair, if requested."""


@dataclass(frozen=True)
class NgramProbe:
    """Result for one model; `dataclasses.asdict` of it can be stored as JSON."""

    pairs: int
    """Number of (sequence, position)."""
    robust: list[NgramStatistics]
    close: list[NgramStatistics]


class NgramVariants:
    """All masked variants of some sequences, as queries to models.

    Args:
        sequences: token ids, BOS first, of shape (length,) each.
        mask: id of MASK.
        hide_masked: whether masked positions are hidden from attention.
        spacing: positions are multiples of this.
        limit: the largest position.
        positions: number of positions per sequence, drawn at random; by default all.
        sizes: the n.
        seed: of the positions.
        begins_word: for each sequence, whether a token begins a word, (length,); n-grams then consist of words.
        never: token ids that are not predicted.
        shorten: omit hidden positions from the input; no effect unless masked positions are hidden.

    Raises:
        UserError: a spacing below 1, an n below 2, or no position around which the longest n-gram is whole.
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[np.integer]],
        mask: int,
        hide_masked: bool,
        spacing: int = 30,
        limit: int = 420,
        positions: int | None = None,
        sizes: Sequence[int] = (2, 3, 4, 5),
        seed: int = 0,
        begins_word: Sequence[NDArray[np.bool_]] | None = None,
        never: NDArray[np.integer] | None = None,
        shorten: bool = True,
    ) -> None:
        _check(spacing, sizes)
        self.sizes = tuple(sizes)
        self._mask, self._hide_masked, self._shorten = mask, hide_masked, shorten and hide_masked
        self._lengths = np.array([len(sequence) for sequence in sequences])
        self._tokens = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
        self._starts = np.cumsum(self._lengths) - self._lengths
        units = _units(sequences, begins_word)
        allowed = [unit.positions_within(*ngram(0, max(sizes)), whole=True) for unit in units]
        if never is not None:
            allowed = [p[~np.isin(sequence[p], never)] for sequence, p in zip(sequences, allowed, strict=True)]
        self.pairs = _pairs(allowed, max(sizes), spacing, limit, positions, seed)
        """(pairs, 2): sequence and position."""
        spans = [[units[i].span(p, *ngram(0, n)) for n in self.sizes] for i, p in self.pairs.tolist()]
        self._spans = np.array(spans) - self.pairs[:, 1, None, None]
        """(pairs, sizes, 2): first and last position of each n-gram, from the position."""
        self.variants = 1 + 2 * len(sizes)
        """Queries per pair: p_0, then p_n for each n, then q_n for each n."""

    def batches(self, columns: int) -> Iterator[tuple[NDArray[np.int64], NgramQueries]]:
        """The queries by length, in batches of at most `columns` tokens, padding included (a single row may have more).

        Yields:
            The queries' indices, pair * variants + variant, and the queries.
        """
        widths = self._widths()
        order = np.argsort(widths, kind="stable")
        start = 0
        while start < len(order):
            # widths increase, so a batch is as wide as its last row
            ends = np.arange(start + 1, min(start + columns, len(order)) + 1)
            fitting = int(np.searchsorted((ends - start) * widths[order[ends - 1]], columns, side="right"))
            stop = start + max(fitting, 1)
            yield order[start:stop], self._queries(order[start:stop])
            start = stop

    def _widths(self) -> NDArray[np.int64]:
        lengths = np.repeat(self._lengths[self.pairs[:, 0], None], self.variants, axis=1)
        if self._shorten:
            tokens = self._spans[..., 1] - self._spans[..., 0] + 1
            lengths[:, 1 : 1 + len(self.sizes)] -= tokens - 1
            lengths[:, 1 + len(self.sizes) :] = tokens
        return lengths.ravel()

    def _queries(self, indices: NDArray[np.int64]) -> NgramQueries:
        pairs, variants = np.divmod(indices, self.variants)
        sequences, targets = self.pairs[pairs].T[..., None]
        close = variants[:, None] > len(self.sizes)
        spans = np.where(variants[:, None] > 0, self._spans[pairs, (variants - 1) % len(self.sizes)], 0)
        left, right = spans.T[..., None]
        lengths = self._lengths[sequences]
        columns = np.arange(lengths.max())
        inside = (columns >= targets + left) & (columns <= targets + right)
        masked = np.where(close, ~inside, inside) | (columns == targets)
        exists = columns < lengths
        attended = exists & ~masked if self._hide_masked else exists
        tokens = self._tokens[np.where(exists, self._starts[sequences] + columns, 0)]
        input_ids = np.where(masked, self._mask, tokens)
        position_ids = np.broadcast_to(columns, input_ids.shape)
        if self._shorten:
            kept = attended | (columns == targets)
            width = kept.sum(axis=1).max()
            position_ids = np.argsort(~kept, axis=1, kind="stable")[:, :width]
            input_ids, attended = (np.take_along_axis(array, position_ids, axis=1) for array in (input_ids, attended))
        target_columns = np.argmax(position_ids == targets, axis=1)
        arrays = (input_ids, attended, position_ids, target_columns)
        return NgramQueries(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))


class CausalNgramVariants:
    """All variants of some sequences, up to the position before the predicted one, as queries to causal models.

    Args:
        replacements: token ids that others are replaced by, each as often as any other.
        seed: of the positions and of the replacements.
        keeps_first: whether the first token, such as BOS, is never replaced.

    All other arguments, and the errors, are those of `NgramVariants`.
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[np.integer]],
        replacements: NDArray[np.integer],
        spacing: int = 30,
        limit: int = 420,
        positions: int | None = None,
        sizes: Sequence[int] = (2, 3, 4, 5),
        seed: int = 0,
        begins_word: Sequence[NDArray[np.bool_]] | None = None,
        keeps_first: bool = True,
    ) -> None:
        _check(spacing, sizes)
        self.sizes = tuple(sizes)
        self._sequences, self._replacements, self._seed = sequences, replacements, seed
        self._first = int(keeps_first)
        units = _units(sequences, begins_word)
        allowed = [unit.positions_within(1 - max(sizes), 0, whole=False) for unit in units]
        self.pairs = _pairs(allowed, max(sizes), spacing, limit, positions, seed)
        """(pairs, 2): sequence and position."""
        self._starts = [[units[i].span(p, 1 - n, 0)[0] for n in self.sizes] for i, p in self.pairs.tolist()]

    @property
    def variants(self) -> int:
        """Of each pair: the sequence as it is, for each n with the n-gram replaced, and with all else replaced."""
        return 1 + 2 * len(self.sizes)

    def batches(self, columns: int) -> Iterator[tuple[NDArray[np.int64], NgramQueries]]:
        """As `NgramVariants.batches`; variants of one pair stay together."""
        order = np.argsort(self.pairs[:, 1], kind="stable")
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * self.variants * self.pairs[order[stop], 1] <= columns:
                stop += 1
            pairs = order[start:stop]
            yield (pairs[:, None] * self.variants + np.arange(self.variants)).ravel(), self._queries(pairs)
            start = stop

    def _queries(self, pairs: NDArray[np.int64]) -> NgramQueries:
        width = int(self.pairs[pairs, 1].max())
        input_ids = np.zeros((len(pairs), self.variants, width), np.int64)
        positions = self.pairs[pairs, 1]
        for rows, pair in zip(input_ids, pairs, strict=True):
            sequence, position = self.pairs[pair]
            generator = np.random.Generator(np.random.Philox(key=[self._seed, pair], counter=[0, 0, 0, 1]))
            rows[:, :position] = self._sequences[sequence][:position]
            drawn = self._replacements[generator.integers(len(self._replacements), size=position)]
            for i, start in enumerate(self._starts[pair], 1):
                rows[i, start:position] = drawn[start:]
                rows[len(self.sizes) + i, self._first : start] = drawn[self._first : start]
        exists = np.arange(width) < positions.repeat(self.variants)[:, None]
        arrays = (
            input_ids.reshape(-1, width),
            exists,
            np.broadcast_to(np.arange(width), exists.shape),
            positions.repeat(self.variants) - 1,
        )
        return NgramQueries(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))


class Units:
    """What n-grams of a sequence consist of: its tokens, or its words.

    Args:
        length: of the sequence.
        begins: whether a token begins a word, (length,); None for tokens.
    """

    def __init__(self, length: int, begins: NDArray[np.bool_] | None) -> None:
        starts = np.arange(length) if begins is None else np.flatnonzero(begins)
        self._starts = np.append(starts, length)
        self._unit = np.searchsorted(self._starts, np.arange(length), side="right") - 1

    def positions_within(self, left: int, right: int, whole: bool) -> NDArray[np.int64]:
        """Positions whose unit has at least `-left` units before it, not counting the first, and `right` after it.

        Args:
            left: of the n-gram, at most 0.
            right: of the n-gram, at least 0.
            whole: only units of one token; else the first token of any.
        """
        units = np.arange(max(1 - left, 0), len(self._starts) - 1 - right)
        if whole:
            units = units[self._starts[units + 1] - self._starts[units] == 1]
        return self._starts[units]

    def span(self, position: int, left: int, right: int) -> tuple[int, int]:
        """First and last position of the n-gram from `left` to `right` units around a position."""
        unit = self._unit[position]
        return int(self._starts[unit + left]), int(self._starts[unit + right + 1]) - 1


def _units(sequences: Sequence[NDArray[np.integer]], begins_word: Sequence[NDArray[np.bool_]] | None) -> list[Units]:
    begins = [None] * len(sequences) if begins_word is None else begins_word
    return [Units(len(sequence), of_sequence) for sequence, of_sequence in zip(sequences, begins, strict=True)]


def ngram(position: int, n: int) -> tuple[int, int]:
    """First and last position of the n-gram around `position`."""
    return position - n // 2, position + (n - 1) // 2


def _check(spacing: int, sizes: Sequence[int]) -> None:
    if spacing < 1 or not sizes or min(sizes) < 2:
        raise UserError(f"positions are at least 1 apart and n-grams have at least 2 tokens; got {spacing}, {sizes}")


def _pairs(
    allowed: Sequence[NDArray[np.int64]], longest: int, spacing: int, limit: int, positions: int | None, seed: int
) -> NDArray[np.int64]:
    """(pairs, 2), sequences and positions: those allowed that are multiples of the spacing, up to the limit."""
    pairs: list[tuple[int, int]] = []
    for i, of_sequence in enumerate(allowed):
        multiples = of_sequence[(of_sequence % spacing == 0) & (of_sequence <= limit)]
        if positions is not None and positions < len(multiples):
            generator = np.random.Generator(np.random.Philox(key=[seed, i]))
            multiples = np.sort(generator.choice(multiples, positions, replace=False))
        pairs.extend((i, p) for p in multiples.tolist())
    if not pairs:
        raise UserError(
            f"no sequence has a whole {longest}-gram around a multiple of {spacing}: give a smaller "
            "--spacing or --sizes, or a larger --limit"
        )
    return np.array(pairs)


def probe_ngrams(
    variants: NgramVariants | CausalNgramVariants, predictor: Predictor, columns: int = 8192, values: bool = False
) -> NgramProbe:
    """M_robust and M_close of one model, in batches of so many tokens; optionally with the value of every pair."""
    probabilities: torch.Tensor | None = None
    for indices, queries in variants.batches(columns):
        predictions = predictor(queries).double().cpu()
        if probabilities is None:
            probabilities = predictions.new_empty(len(variants.pairs) * variants.variants, predictions.shape[1])
        probabilities[torch.from_numpy(indices)] = predictions
    assert probabilities is not None
    by_variant = probabilities.view(len(variants.pairs), variants.variants, -1)
    distances = (by_variant[:, 1:] - by_variant[:, :1]).abs().sum(dim=2).numpy()
    statistics = [_statistics(n, distances[:, i], values) for i, n in enumerate((*variants.sizes, *variants.sizes))]
    return NgramProbe(len(variants.pairs), statistics[: len(variants.sizes)], statistics[len(variants.sizes) :])


def bert_predictor(model: BertForMaskedLM) -> Predictor:
    """A BERT, in evaluation mode and on its own device; its head, and what follows the attention of its last block, are
    applied at the queried columns only."""
    head = LabelledHead(model)

    @torch.inference_mode()
    def predict(queries: NgramQueries) -> torch.Tensor:
        device = model.device
        inputs = {
            "input_ids": queries.input_ids.to(device),
            "attention_mask": queries.attention_mask.to(device),
            "position_ids": queries.position_ids.to(device),
        }
        rows, columns = queries.input_ids.shape
        positions = torch.arange(0, rows * columns, columns, device=device) + queries.columns.to(device)
        return head(model, inputs, positions, chunked=False).logits().softmax(dim=-1)

    model.eval()
    return predict


def gpt2_predictor(model: GPT2LMHeadModel) -> Predictor:
    """A GPT-2, in evaluation mode and on its own device; its head is applied at the queried columns only."""

    @torch.inference_mode()
    def predict(queries: NgramQueries) -> torch.Tensor:
        device = model.device
        hidden = model.transformer(input_ids=queries.input_ids.to(device)).last_hidden_state
        rows = torch.arange(len(hidden), device=device)
        return model.lm_head(hidden[rows, queries.columns.to(device)]).float().softmax(dim=-1)

    model.eval()
    return predict


def _statistics(n: int, distances: NDArray[np.float64], values: bool) -> NgramStatistics:
    return NgramStatistics(
        n=n,
        median=float(np.median(distances)),
        mean=float(distances.mean()),
        std=float(distances.std()),
        percentiles=percentiles_of(distances),
        values=distances.tolist() if values else None,
    )
