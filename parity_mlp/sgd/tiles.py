"""How the CPU engine lays out a network, in tiles of neurons, and the samples of its blocks."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from common.parity.networks import Tensors
from parity_mlp.sgd.simd import LANES, popcount

DEFAULT_BLOCK = 32
MAX_BLOCK = 64
"""As many as a word has bits."""
CORRECTED_TOGETHER = 4
"""Steps of a sub-block whose pre-activations share a read of the earlier updates."""
CACHE_LINE = 64
"""Bytes."""


class Network(NamedTuple):
    """A network in tiles of `LANES` neurons; the last tile is padded with neurons that are zero and stay so."""

    hidden: NDArray
    """(tiles * columns, LANES): row tile * columns + k is column k of W for the tile's neurons; column d is the bias;
    columns d + 1 and up, zeros, fill the last group of four."""
    output: NDArray
    """(tiles * classes, LANES): row tile * classes + c is V[c] for the tile's neurons."""
    bias: NDArray
    """(classes,)"""


class Inputs(NamedTuple):
    """The samples of a range of n steps in the three forms that the engine reads; shared by all students."""

    bits: NDArray[np.uint64]
    """(n, words): packed inputs, with room for the constant coordinate d (bit 0: +1)."""
    transposed: NDArray[np.uint64]
    """(blocks, d + 1): bit t is coordinate k of the block's sample t."""
    gram: NDArray
    """(n, block): gram[t, s] = <x_t, x_s> with sample s of t's block, for s < t; the constant is counted."""


def pack(tensors: Tensors) -> Network:
    """A one-hidden-layer network, by the names of a checkpoint's tensors, in tiles."""
    hidden = np.concatenate([tensors["hidden.0.weight"], tensors["hidden.0.bias"][:, None]], axis=1)
    output = tensors["output.weight"]
    width, columns = hidden.shape
    tiles = -(-width // LANES)
    pad_width, pad_columns = tiles * LANES - width, -columns % 4
    hidden = np.pad(hidden, ((0, pad_width), (0, pad_columns))).reshape(tiles, LANES, -1).transpose(0, 2, 1)
    output = np.pad(output, ((0, 0), (0, pad_width))).reshape(len(output), tiles, LANES).transpose(1, 0, 2)
    return Network(aligned(hidden), aligned(output), tensors["output.bias"].copy())


def unpack(network: Network, d: int, width: int) -> Tensors:
    """The inverse of `pack`, for a network with d inputs and `width` neurons."""
    classes = len(network.bias)
    tiles = len(network.output) // classes
    hidden = network.hidden.reshape(tiles, -1, LANES).transpose(0, 2, 1).reshape(tiles * LANES, -1)[:width]
    output = network.output.reshape(tiles, classes, LANES).transpose(1, 0, 2).reshape(classes, -1)[:, :width]
    return {
        "hidden.0.weight": np.ascontiguousarray(hidden[:, :d]),
        "hidden.0.bias": np.ascontiguousarray(hidden[:, d]),
        "output.weight": np.ascontiguousarray(output),
        "output.bias": network.bias.copy(),
    }


def prepare(bits: NDArray[np.uint64], d: int, dtype: str, block: int = DEFAULT_BLOCK) -> Inputs:
    """Everything about the samples `bits` (n, words), at least one, that does not depend on a network.

    Raises:
        ValueError: a block of less than 1 or more than `MAX_BLOCK` steps.
    """
    if not 1 <= block <= MAX_BLOCK:
        raise ValueError(f"a block has 1 to {MAX_BLOCK} steps, got {block}")
    words = d // 64 + 1
    bits = np.pad(bits, ((0, 0), (0, words - bits.shape[1])))
    transposed = np.zeros((-(-len(bits) // block), d + 1), np.uint64)
    gram = np.zeros((len(bits) + CORRECTED_TOGETHER, block), dtype)
    _fill_inputs(bits, transposed, gram)
    return Inputs(bits, transposed, gram)


@njit(cache=True, nogil=True)
def _fill_inputs(bits, transposed, gram):  # type: ignore[no-untyped-def]
    columns = transposed.shape[1]
    block = gram.shape[1]
    for start in range(0, len(bits), block):
        for t in range(start, min(start + block, len(bits))):
            for k in range(columns):
                bit = (bits[t, k // 64] >> np.uint64(k % 64)) & np.uint64(1)
                transposed[start // block, k] |= bit << np.uint64(t - start)
            for s in range(start, t):
                different = 0
                for word in range(bits.shape[1]):
                    different += popcount(bits[t, word] ^ bits[s, word])
                gram[t, s - start] = columns - 2 * different


@njit(cache=True, nogil=True)
def row_buffer(like, rows):  # type: ignore[no-untyped-def]
    """Zeros of shape (rows, LANES) that start on a cache line; rows that straddle lines take half as long again."""
    room = np.zeros(rows * LANES + CACHE_LINE // like.itemsize, like.dtype)
    first = -room.ctypes.data % CACHE_LINE // like.itemsize
    return room[first : first + rows * LANES].reshape(rows, LANES)


def aligned(array: NDArray) -> NDArray:
    """A copy as rows of `LANES`, starting on a cache line."""
    raw = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    offset = -raw.ctypes.data % CACHE_LINE
    rows = raw[offset : offset + array.nbytes].view(array.dtype).reshape(-1, LANES)
    rows[:] = array.reshape(-1, LANES)
    return rows
