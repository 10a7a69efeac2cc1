"""Sparse and hierarchical parity as a counter-based stream of packed bits.

An input x is uniform on {-1, +1}^d. It is kept as d bits in 64-bit words, bit i set where x_i = -1, so that a product
of coordinates is the parity of a few bits. (d, k)-sparse parity has one hidden support of k coordinates and two
classes: class 0 where the product over the support is +1, class 1 where it is -1. Hierarchical parity with 2^D classes
has one support per inner node of a complete binary tree of depth D, in heap order; from the root the path goes left
where the node's product is +1, right where it is -1, and the leaf is the class (Panigrahi et al. 2025,
arXiv:2410.05464). Sparse parity is the tree of depth one.

Sample i of a stream depends on (seed, stream, i) alone: the words come from Philox, whose state is a counter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UserError

WORD = 64
MAX_D = 4096

TASK_ARGUMENTS = ("d", "k", "labels", "support", "support_seed")
"""Arguments of a command that describe its task, in the order of `make_task`."""

Stream = Literal["train", "evaluation", "probe"]
_STREAM_KEYS: dict[Stream, int] = {"train": 0, "evaluation": 1, "probe": 2}


@dataclass(frozen=True)
class ParityTask:
    """A parity problem: `supports[n]` are the coordinates whose product decides at inner node n of the tree."""

    d: int
    supports: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        _require_dimension(self.d)
        if not self.supports or (len(self.supports) + 1) & len(self.supports):
            raise UserError(f"a tree with 2^D classes has 2^D - 1 supports, got {len(self.supports)}")
        for support in self.supports:
            outside = [i for i in support if not 0 <= i < self.d]
            if outside:
                raise UserError(f"support index {outside[0]} is out of range; coordinates are 0 to {self.d - 1}")
            if len(set(support)) != len(support) or not support:
                raise UserError(f"a support needs distinct coordinates, at least one; got {list(support)}")

    @property
    def classes(self) -> int:
        return len(self.supports) + 1

    @property
    def words(self) -> int:
        """64-bit words per sample."""
        return -(-self.d // WORD)

    def labels(self, bits: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Class of every row of `bits` (samples, words)."""
        node = np.zeros(len(bits), np.int64)
        odd = np.stack([odd_parity(bits, support) for support in self.supports], axis=1)
        for _ in range(self.classes.bit_length() - 1):
            node = 2 * node + 1 + odd[np.arange(len(bits)), node]
        return node - len(self.supports)

    def sample(self, seed: int, stream: Stream, start: int, count: int) -> NDArray[np.uint64]:
        """Consecutive samples of a stream, as packed bits (count, words).

        Args:
            seed: of the stream, below 2^64.
            stream: which of the three independent streams of this seed.
            start: number of the first sample, from 0.
            count: number of samples.
        """
        generator = np.random.Philox(key=np.array([seed, _STREAM_KEYS[stream]], np.uint64))
        counter, skip = divmod(start * self.words, 4)  # one counter value yields four words
        generator.advance(counter)
        raw = generator.random_raw(skip + count * self.words)[skip:]
        bits = np.ascontiguousarray(raw.reshape(count, self.words))
        if self.d % WORD:
            bits[:, -1] &= np.uint64((1 << self.d % WORD) - 1)
        return bits


def make_task(d: int, k: int, labels: int = 2, support: str = "first", seed: int = 0) -> ParityTask:
    """The task that the command-line arguments describe.

    Args:
        d: number of coordinates.
        k: coordinates per support.
        labels: number of classes, a power of two.
        support: `first` takes coordinates 0, 1, ... in order, node after node; `random` draws them by `seed`; otherwise
            the coordinates themselves, comma-separated, k for each node in heap order.

    Raises:
        UserError: sizes that do not fit, or a support that cannot be read.
    """
    if labels < 2 or labels & (labels - 1):
        raise UserError(f"--labels must be a power of two, at least 2; got {labels}")
    needed = (labels - 1) * k
    if k < 1 or needed > d:
        raise UserError(f"{labels} labels with k = {k} need {needed} coordinates (at least 1), but d = {d}")
    _require_dimension(d)
    if support == "first":
        coordinates = list(range(needed))
    elif support == "random":
        coordinates = np.random.Generator(np.random.Philox(seed)).permutation(d)[:needed].tolist()
    else:
        try:
            coordinates = [int(i) for i in support.split(",")]
        except ValueError:
            raise UserError(f"--support is first, random or comma-separated coordinates; got {support!r}") from None
        if len(coordinates) != needed:
            raise UserError(
                f"--support names {len(coordinates)} coordinates; {labels} labels with k = {k} need {needed}"
            )
    return ParityTask(d, tuple(tuple(coordinates[n * k : (n + 1) * k]) for n in range(labels - 1)))


def _require_dimension(d: int) -> None:
    if not 1 <= d <= MAX_D:
        raise UserError(f"--d must be from 1 to {MAX_D:,}, got {d:,}")


def task_of(arguments: Mapping[str, Any]) -> ParityTask:
    """The task of a run, from its arguments by name: `vars` of the command's, or those in config.json.

    Raises:
        UserError: no task has these sizes or this support.
    """
    for name in TASK_ARGUMENTS:
        if not isinstance(arguments[name], str if name == "support" else int):
            raise UserError(f"{name} is {arguments[name]!r}: no parity task has it; restore the run's config.json")
    return make_task(*(arguments[name] for name in TASK_ARGUMENTS))


def odd_parity(bits: NDArray[np.uint64], coordinates: tuple[int, ...]) -> NDArray[np.int64]:
    """1 for every row of `bits` in which the product over `coordinates` is -1, and 0 elsewhere."""
    mask = np.zeros(bits.shape[1], np.uint64)
    for i in coordinates:
        mask[i // WORD] |= np.uint64(1 << i % WORD)
    used = np.flatnonzero(mask)
    return np.bitwise_count(bits[:, used] & mask[used]).sum(axis=1, dtype=np.int64) & 1


def unpack_bits(bits: NDArray[np.uint64], d: int, device: str | torch.device) -> Tensor:
    """Packed bits (samples, words) to 1 where x_i = -1 and 0 elsewhere, uint8 of shape (samples, d), on a device."""
    packed = torch.tensor(bits.view(np.uint8), device=device)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    return (packed[:, :, None] >> shifts & 1).flatten(1)[:, :d]


def unpack_signs(bits: NDArray[np.uint64], d: int, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """Packed bits (samples, words) to the inputs x, +1 and -1 of shape (samples, d), on a device."""
    return 1 - 2 * unpack_bits(bits, d, device).to(dtype)
