"""Interpolated modified Kneser-Ney n-gram models: which context length does a language model use at a checkpoint?

With c(g) the count of an n-gram g, the model of order n is

    P_k(w | h) = (c_k(h w) - D_k(c_k(h w))) / sum_v c_k(h v) + gamma_k(h) P_{k-1}(w | h without its first token)

for k = n, ..., 1, where h are the k - 1 tokens before w and P_0 is uniform over the vocabulary (Chen & Goodman 1999,
doi:10.1006/csla.1999.0128). At the highest order, c_n = c. At the lower ones, c_k(g) is the continuation count: how
many distinct tokens precede g somewhere (0 if g occurs at the beginning of blocks only). D_k is 0 for a count of 0, and
D1, D2 or D3+ for a count of 1, 2, or 3 and more; gamma_k(h) is the discounted mass. Contexts that no token follows, in
the sense of c_k, back off wholly: P_k = P_{k-1}.

With n_i the number of k-grams whose c_k is i, and Y = n_1 / (n_1 + 2 n_2),

    D1 = 1 - 2 Y n_2 / n_1        D2 = 2 - 3 Y n_3 / n_2        D3+ = 3 - 4 Y n_4 / n_3

never exceed 1, 2 and 3. Where n_1, n_2 or n_3 is 0 or a discount is not positive, as happens in small corpora, those of
that order are 0.5, 1 and 1.5 instead, as in KenLM with --discount_fallback. All discounts are then positive, and so
are all probabilities.

Both kinds of counts are stored, so that one fit serves all orders up to its own.

For 8M independent tokens of a Zipf distribution over 50,304 (27M distinct n-grams of 1 to 5 tokens), a fit takes 11
seconds of CPU time and at most 1.7 GiB of memory, of which the model keeps 0.7.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.probes import kneser_ney_kernels as kernels
from common.probes.kneser_ney_kernels import Trie
from common.probes.percentiles import percentiles_of

MOST = 5
"""The highest order."""
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of an order where the closed form fails."""


class KneserNey:
    """N-gram models of the orders 1 to `order`; made by `KneserNey.fit`."""

    def __init__(self, trie: Trie, order: int, vocabulary: int) -> None:
        self._trie = trie
        self.order = order
        self.vocabulary = vocabulary

    @classmethod
    def fit(
        cls,
        blocks: NDArray[np.integer],
        order: int,
        vocabulary: int,
        discounts: NDArray[np.floating] | None = None,
    ) -> "KneserNey":
        """Count the n-grams of a corpus.

        Args:
            blocks: (number, length) token ids, possibly memory-mapped; n-grams do not cross blocks.
            order: the highest order, 1 to 5.
            vocabulary: number of tokens; ids are below it.
            discounts: (order, 3), D1, D2 and D3+ of every order instead of the closed form, for both kinds of counts.
                Where one is 0, probabilities may be 0, and a window without any possible token NaN.

        Raises:
            UserError: an order outside 1 to 5, blocks that are empty or not a matrix of ids below `vocabulary`, more
                tokens than 32-bit indices can number, or discounts outside 0 <= D_k <= k.
        """
        _check_corpus(blocks, order, vocabulary, discounts)
        corpus = np.ascontiguousarray(blocks, np.int32)
        tokens = [np.zeros(1, np.int32), np.arange(vocabulary, dtype=np.int32)]
        raw = [np.array([corpus.size], np.int32), np.bincount(corpus.ravel(), minlength=vocabulary).astype(np.int32)]
        continuation = [np.zeros(1, np.int32)]
        children = [np.array([vocabulary])]
        ids = corpus  # of the n-gram that begins at each position, among those of its length
        for level in range(2, order + 1):
            keys = (ids[:, :-1].astype(np.int64) * vocabulary + corpus[:, level - 1 :]).ravel()
            permutation = np.argsort(keys)
            keys = keys[permutation]
            is_first = np.diff(keys, prepend=-1) > 0
            first = np.flatnonzero(is_first)
            parents, last = np.divmod(keys[first], vocabulary)
            suffixes = ids[:, 1:].ravel()[permutation[first]]
            tokens.append(last.astype(np.int32))
            raw.append(np.diff(first, append=len(keys)).astype(np.int32))
            continuation.append(np.bincount(suffixes, minlength=len(raw[-2])).astype(np.int32))
            children.append(np.bincount(parents, minlength=len(raw[-2])))
            shape = ids[:, 1:].shape
            ids = np.empty(len(keys), np.int32)
            ids[permutation] = np.cumsum(is_first, dtype=np.int32) - 1
            ids = ids.reshape(shape)
        first_child = np.cumsum(np.concatenate([[1], *children])).astype(np.int32)
        return cls(_assemble(tokens, first_child, raw, continuation, discounts), order, vocabulary)

    @property
    def discounts(self) -> NDArray[np.float64]:
        """(2, order, 3): D1, D2 and D3+ of every order, for raw and for continuation counts (unused at the highest)."""
        return self._trie.discounts[:, 1:, 1:].copy()

    def distributions(self, contexts: NDArray[np.integer], n: int) -> NDArray[np.float64]:
        """Probabilities of the next token in the model of order n.

        Args:
            contexts: (rows, columns) token ids, of which the last n - 1 count. Where there are fewer, as at the
                beginning of a block, the rest is taken as never seen.
            n: 1 to `order`.

        Returns:
            (rows, vocabulary) probabilities: positive, and each row sums to 1.

        Raises:
            UserError: an n or a token id out of range, or contexts that are not a matrix.
        """
        self._check_order(n)
        result = np.empty((len(contexts), self.vocabulary))
        kernels.distributions(self._trie, self._checked(contexts), n, result)
        return result

    def window_distributions(
        self, left: NDArray[np.integer], right: NDArray[np.integer], n: int
    ) -> NDArray[np.float64]:
        """Probabilities of a masked token x given both sides: P(x | left) prod_i P(right_i | ..., x, ...), normalised.

        These are the n factors of the joint probability that contain x; the others cancel. 1,000 positions and n = 5
        take 4 seconds of CPU time with a vocabulary of 8,192, and 12 with 50,304.

        Args:
            left: (rows, columns) token ids before the masked one, of which the last n - 1 count.
            right: (rows, columns) token ids after it, of which the first n - 1 count; fewer, possibly none, where the
                sequence ends.
            n: 1 to `order`.

        Returns:
            (rows, vocabulary) probabilities: each row sums to 1.

        Raises:
            UserError: as `distributions`, or sides with different numbers of rows.
        """
        self._check_order(n)
        if len(left) != len(right):
            raise UserError(f"both sides need the same number of rows; got {len(left)} and {len(right)}")
        result = np.empty((len(left), self.vocabulary))
        kernels.window_distributions(self._trie, self._checked(left), self._checked(right), n, result)
        return result

    def _check_order(self, n: int) -> None:
        if not 1 <= n <= self.order:
            raise UserError(f"the model has the orders 1 to {self.order}; got {n}")

    def _checked(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        if tokens.ndim != 2 or (tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary):
            raise UserError(f"contexts have the shape (rows, columns) and token ids below {self.vocabulary}")
        return np.ascontiguousarray(tokens, np.int64)


def closed_form_discounts(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """D1, D2 and D3+ from the counts of all n-grams of one order, (n-grams,), or the fallback; zeros do not matter.

    Returns:
        (3,), each 0 < D_k <= k.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5]
    if not n[1:4].all():
        return np.array(FALLBACK)
    k = np.arange(1, 4)
    discounts = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:] / n[1:4]
    return discounts if discounts.min() > 0 else np.array(FALLBACK)


@dataclass(frozen=True)
class DivergenceStatistics:
    """In nats, over all positions."""

    mean: float
    percentiles: dict[str, float]
    """The 25th, 50th, 75th and 90th, by their number."""


@dataclass(frozen=True)
class NgramDivergence:
    """Between a language model and an n-gram model; `dataclasses.asdict` of it can be stored as JSON."""

    positions: int
    model_to_ngram: DivergenceStatistics
    """KL(model || n-gram)"""
    ngram_to_model: DivergenceStatistics
    """KL(n-gram || model)"""


def divergences(log_probabilities: NDArray[np.floating], ngram: NDArray[np.floating]) -> NDArray[np.float64]:
    """KL(model || n-gram) and KL(n-gram || model) at each position.

    Args:
        log_probabilities: (rows, vocabulary), the language model's, natural and normalised; -inf is allowed.
        ngram: (rows, vocabulary) probabilities, as from `KneserNey.distributions`.

    Returns:
        (2, rows) in nats.

    Raises:
        UserError: different shapes, or rows that do not sum to 1.
    """
    if log_probabilities.shape != ngram.shape:
        raise UserError(f"the model has the shape {log_probabilities.shape} and the n-gram model {ngram.shape}")
    log_p, q = log_probabilities.astype(np.float64), ngram.astype(np.float64)
    p = np.exp(log_p)
    if not (np.allclose(p.sum(axis=1), 1, atol=1e-3) and np.allclose(q.sum(axis=1), 1, atol=1e-3)):
        raise UserError("each row of probabilities has to sum to 1; apply log_softmax to logits, in 32 bits or more")
    with np.errstate(divide="ignore"):
        log_q = np.log(q)
    difference = np.subtract(log_p, log_q, where=(p > 0) | (q > 0), out=np.zeros_like(p))
    forward = np.multiply(p, difference, where=p > 0, out=np.zeros_like(p)).sum(axis=1)
    reverse = -np.multiply(q, difference, where=q > 0, out=np.zeros_like(p)).sum(axis=1)
    return np.maximum(np.stack([forward, reverse]), 0)


def divergence_statistics(values: NDArray[np.floating]) -> NgramDivergence:
    """Mean and percentiles of what `divergences` returned, (2, rows), possibly of several batches concatenated.

    Raises:
        UserError: no positions.
    """
    if values.ndim != 2 or len(values) != 2 or not values.size:
        raise UserError(f"divergences have the shape (2, rows) with at least one row; got {values.shape}")
    forward, reverse = (DivergenceStatistics(mean=float(row.mean()), percentiles=percentiles_of(row)) for row in values)
    return NgramDivergence(values.shape[1], forward, reverse)


def _check_corpus(
    blocks: NDArray[np.integer], order: int, vocabulary: int, discounts: NDArray[np.floating] | None
) -> None:
    if not 1 <= order <= MOST:
        raise UserError(f"n-gram models have an order of 1 to {MOST}; got {order}")
    if blocks.ndim != 2 or not blocks.size or not np.issubdtype(blocks.dtype, np.integer):
        raise UserError(f"blocks are a matrix of token ids; got the shape {blocks.shape} and {blocks.dtype}")
    if blocks.size * (order - 1) + vocabulary + 1 > np.iinfo(np.int32).max:
        raise UserError(f"{blocks.size:,} tokens are too many for order {order}: fit on a part of the blocks")
    if not 0 <= blocks.min() <= blocks.max() < vocabulary:
        raise UserError(f"token ids are 0 to {vocabulary - 1}; got {blocks.min()} to {blocks.max()}")
    if discounts is not None and (
        discounts.shape != (order, 3) or not ((discounts >= 0) & (discounts <= [1, 2, 3])).all()
    ):
        raise UserError(f"discounts have the shape ({order}, 3), with 0 <= D_k <= k")


def _assemble(
    tokens: list[NDArray[np.int32]],
    first_child: NDArray[np.int32],
    raw: list[NDArray[np.int32]],
    continuation: list[NDArray[np.int32]],
    fixed: NDArray[np.floating] | None,
) -> Trie:
    """The trie of levels: element k of each list is of all k-grams."""
    order = len(tokens) - 1
    starts = np.cumsum([0, *map(len, tokens)])
    discounts = np.zeros((2, order + 1, 4))
    kinds = [
        _kind(levels, starts, first_child, discounts[kind], fixed) for kind, levels in enumerate((raw, continuation))
    ]
    (raw_counts, raw_totals, raw_backoffs), (counts, totals, backoffs) = kinds
    return Trie(
        token=np.concatenate(tokens),
        first_child=first_child,
        counts=(raw_counts, counts),
        totals=(raw_totals, totals),
        backoffs=(raw_backoffs, backoffs),
        discounts=discounts,
    )


def _kind(
    levels: list[NDArray[np.int32]],
    starts: NDArray[np.int64],
    first_child: NDArray[np.int32],
    discounts: NDArray[np.float64],
    fixed: NDArray[np.floating] | None,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """Counts, totals and gammas of one kind of counts; the discounts, (order + 1, 4), are filled in."""
    contexts = int(starts[len(levels) - 1])
    counts, totals, backoffs = np.concatenate(levels), np.empty(contexts, np.int32), np.empty(contexts)
    for level in range(1, len(levels)):
        discounts[level, 1:] = closed_form_discounts(levels[level]) if fixed is None else fixed[level - 1]
        own = slice(int(starts[level - 1]), int(starts[level]))
        bounds = first_child[own.start : own.stop + 1]
        kernels.discount(bounds, counts, discounts[level], totals[own], backoffs[own])
    return counts, totals, backoffs
