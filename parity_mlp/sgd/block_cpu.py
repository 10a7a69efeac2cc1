"""Exact batch-1 SGD on the CPU: blocks of steps on tiles of neurons, compiled by numba.

The network is o = V relu(W x) + c, with x in {-1, +1}^d and a constant 1 appended for the bias. A step at sample t is a
rank-1 update W += D_t x_t^T, D_t = -lr (V^T delta_t) * (W x_t > 0), so B steps can be taken without touching W: the
pre-activation of sample t under the updated weights is

    h_t = W x_t + sum_{s < t} D_s <x_s, x_t>,                                                              (1)

and W += sum_t D_t x_t^T once per block. This is the same arithmetic as B single steps, up to rounding. Weight decay
multiplies W by f_t = 1 - lr_t * decay before each update (0 < f_t); with S_t = f_1 ... f_{t-1} the block stores
D_t / S_{t+1}, and h_t and, at the end, W are multiplied by S.

Three things make it fast:

* Every row x is signs, so W x needs no multiplication, and neither does the update sum_t D_t x_t^T (tables.py).
* Neurons are kept in tiles of 64 (`simd.LANES`), each with its slice of W, V and of the block's h (tiles.py), so that
  the update for one block and the products for the next read a tile of W once, in the first-level cache. The slot of
  h_t becomes the slot of D_t. The sum in (1) is split in two levels: sub-blocks of `SUB_BLOCK` steps are corrected
  together by all earlier sub-blocks, a small matrix product; inside a sub-block a step adds its predecessors one by
  one.
* Neurons depend on each other only through the logits. Threads own fixed ranges of tiles and meet once per step at a
  spin barrier. Logits are summed over fixed partitions of the tiles in a fixed order, so the number of threads does not
  change a single bit.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from common.parity.objective import Objective
from parity_mlp.sgd.gradient import logit_gradient
from parity_mlp.sgd.simd import (
    LANES,
    atomic_add,
    atomic_load,
    load,
    multiply_add,
    splat,
    store,
    where_positive,
    yield_processor,
    zeros,
)
from parity_mlp.sgd.tables import TABLES, add_entries, tabulate
from parity_mlp.sgd.tiles import CORRECTED_TOGETHER, DEFAULT_BLOCK, Inputs, Network, aligned, row_buffer

SUB_BLOCK = 8
JOINT_WIDTH = 4096
"""Networks at least this wide are split over the threads; narrower ones get a thread each if there are enough."""
MIN_PARTITION, MAX_PARTITIONS = 4, 64
"""Fewest tiles whose logits are summed together, unless there are fewer, and most partitions of a network."""
FORWARD_BLOCK = 256
"""Samples that share the tables of a tile in `network_logits`."""
SPINS_BEFORE_YIELD = 10_000


class Workspace(NamedTuple):
    """What a network needs besides its weights while it is trained."""

    tiles: int
    columns: int
    """Rows of `Network.hidden` per tile."""
    partition: int
    """Tiles whose logits are summed together."""
    steps: NDArray
    """(sub-blocks * tiles * SUB_BLOCK, LANES): row `_slot(work, tile, t)` is h_t, then D_t. A sub-block of all tiles is
    contiguous, so that it fills the second-level cache evenly."""
    lanes: NDArray
    """(partitions * classes, LANES): sums of logits, lane by lane."""
    logits: NDArray[np.float64]
    """(2, partitions, classes): sums of logits of even and of odd steps."""
    arrivals: NDArray[np.int64]
    """(1,): how often a thread has reached a barrier."""


def sgd_steps(
    networks: list[Network], workspaces: list[Workspace], objectives: list[Objective], inputs: Inputs, threads: int
) -> None:
    """Take one SGD step per sample, in order, on every network, in place.

    A network is either split over all threads or trained by one of them; the result is bit-identical.

    Args:
        networks: as `pack` makes them, all with the d, the number of classes and the dtype of `inputs`.
        workspaces: one for each network, as `workspace` makes them for the block size of `inputs`.
        objectives: one for each network, each with n labels, targets, weights and learning rates.
        inputs: the n samples, as `prepare` makes them.
        threads: processor threads.
    """
    narrow = []
    for i, network in enumerate(networks):
        if len(networks) < threads or len(network.output) // len(network.bias) * LANES >= JOINT_WIDTH:
            _train_jointly(network, workspaces[i], objectives[i], inputs, threads)
        else:
            narrow.append(i)
    narrow.sort(key=lambda i: -networks[i].output.size)

    def train_share(thread: int) -> None:
        for i in narrow[thread::threads]:
            _train_jointly(networks[i], workspaces[i], objectives[i], inputs, 1)

    _in_threads(threads, train_share)


def _train_jointly(network: Network, work: Workspace, objective: Objective, inputs: Inputs, threads: int) -> None:
    work.arrivals[0] = 0
    partitions = work.logits.shape[1]
    threads = min(threads, partitions)
    bounds = [partitions * i // threads for i in range(threads + 1)]
    _in_threads(
        threads,
        lambda thread: _train_tiles(network, objective, inputs, work, bounds[thread], bounds[thread + 1], threads),
    )


def workspace(network: Network, block: int = DEFAULT_BLOCK) -> Workspace:
    """Memory for a block of steps. Keep it from call to call: for a wide network, making it takes long."""
    classes = len(network.bias)
    tiles = len(network.output) // classes
    partition = max(MIN_PARTITION, -(-tiles // MAX_PARTITIONS))
    partitions = -(-tiles // partition)
    dtype = network.hidden.dtype
    return Workspace(
        tiles=tiles,
        columns=len(network.hidden) // tiles,
        partition=partition,
        steps=aligned(np.zeros((-(-block // SUB_BLOCK) * tiles * SUB_BLOCK, LANES), dtype)),
        lanes=aligned(np.zeros((partitions * classes, LANES), dtype)),
        logits=np.zeros((2, partitions, classes)),
        arrivals=np.zeros(1, np.int64),
    )


@njit(cache=True, nogil=True)
def _train_tiles(network, objective, inputs, work, first, last, threads):  # type: ignore[no-untyped-def]
    """The share of one thread: all steps, for the tiles of some partitions.

    Args:
        network: `Network`; hidden (tiles * columns, LANES), output (tiles * classes, LANES), bias (classes,).
        objective: `Objective`; labels (n,), targets (n, classes), alpha (n,), lr (n,).
        inputs: `Inputs`; bits (n, words), transposed (blocks, d + 1), gram (n + CORRECTED_TOGETHER, block).
        work: `Workspace`; steps (sub-blocks * tiles * SUB_BLOCK, LANES), lanes (partitions * classes, LANES),
            logits (2, partitions, classes), arrivals (1,).
        first: first partition, of `work.partition` tiles each.
        last: partition after the last.
        threads: how many threads call this with partitions of their own, and meet at each step.
    """
    samples, block = len(inputs.bits), inputs.gram.shape[1]
    classes = len(network.bias)
    first_tile, last_tile = first * work.partition, min(last * work.partition, len(network.output) // classes)
    number = network.hidden.dtype.type
    tables = row_buffer(network.hidden, TABLES * 16)
    bias = network.bias.astype(np.float64)
    logits, gradient = np.empty(classes), np.empty(classes)
    pull = np.zeros(classes, network.bias.dtype)  # -lr * gradient of the step before
    negligible = np.finfo(number).tiny / np.finfo(number).eps  # its products would be denormal, a hundred times slower
    keep = 1.0  # f of the step before
    scale = 1.0  # S of the step at hand

    for start in range(0, samples, block):
        size = min(block, samples - start)
        for t in range(size):
            for tile in range(first_tile, last_tile):
                if t > 0:
                    _finish_step(network, work, tile, t - 1, pull, number(keep), number(1 / scale))
                elif start > 0:
                    _finish_step(network, work, tile, block - 1, pull, number(keep), number(1 / scale))
                    _apply_updates(network, inputs, work, tables, tile, start // block - 1, block, number(scale))
                if t == 0:
                    _multiply(network, inputs, work, tables, tile, start, size)
                elif t % SUB_BLOCK == 0:
                    _correct(inputs, work, tile, start, t, min(t + SUB_BLOCK, size))
                _begin_step(network, inputs, work, tile, start, t, number(scale if t > 0 else 1))
            if t == 0:
                scale = 1.0

            step = start + t
            _sum_lanes(work, step % 2, first, last)
            if threads > 1:
                _meet(work.arrivals, (step + 1) * threads)
            for c in range(classes):
                logits[c] = bias[c]
                for p in range(work.logits.shape[1]):
                    logits[c] += work.logits[step % 2, p, c]
            logit_gradient(
                logits,
                objective.targets[step],
                objective.labels[step],
                objective.alpha[step],
                objective.divergence,
                objective.beta,
                gradient,
            )
            keep = 1 - objective.lr[step] * objective.decay
            scale *= keep
            for c in range(classes):
                bias[c] = keep * bias[c] - objective.lr[step] * gradient[c]
                pull[c] = -objective.lr[step] * gradient[c]
                if abs(pull[c]) < negligible:
                    pull[c] = 0

    last_size = (samples - 1) % block + 1
    for tile in range(first_tile, last_tile):
        _finish_step(network, work, tile, last_size - 1, pull, number(keep), number(1 / scale))
        _apply_updates(network, inputs, work, tables, tile, (samples - 1) // block, last_size, number(scale))
    if first == 0:
        network.bias[:] = bias


@njit(inline="always")
def _slot(work, tile, t):  # type: ignore[no-untyped-def]
    """Row of `Workspace.steps` for step t of a block; the steps of a sub-block follow each other."""
    return (t // SUB_BLOCK * work.tiles + tile) * SUB_BLOCK + t % SUB_BLOCK


@njit(inline="always")
def _finish_step(network, work, tile, t, pull, keep, inverse_scale):  # type: ignore[no-untyped-def]
    """Turn h_t into D_t and update V, for one tile."""
    classes = len(network.bias)
    slot = _slot(work, tile, t)
    h = load(work.steps, slot)
    activation = where_positive(h, h)
    back = zeros(work.steps)
    for c in range(classes):
        row = tile * classes + c
        v = load(network.output, row)
        rate = splat(network.output, pull[c])
        back = multiply_add(v, rate, back)
        store(network.output, row, multiply_add(activation, rate, v * splat(network.output, keep)))
    store(work.steps, slot, where_positive(h, back) * splat(work.steps, inverse_scale))


@njit(inline="always")
def _begin_step(network, inputs, work, tile, start, t, scale):  # type: ignore[no-untyped-def]
    """Complete h_t with the updates of its own sub-block and add the tile's share of the logits."""
    classes = len(network.bias)
    slot, first = _slot(work, tile, t), t - t % SUB_BLOCK
    h = load(work.steps, slot)
    for s in range(first, t):
        h = multiply_add(load(work.steps, slot - t + s), splat(work.steps, inputs.gram[start + t, s]), h)
    h = h * splat(work.steps, scale)
    store(work.steps, slot, h)
    activation = where_positive(h, h)
    for c in range(classes):
        lane = tile // work.partition * classes + c
        product = activation * load(network.output, tile * classes + c)
        store(work.lanes, lane, product if tile % work.partition == 0 else load(work.lanes, lane) + product)


@njit(cache=True, nogil=True)
def _correct(inputs, work, tile, start, first, last):  # type: ignore[no-untyped-def]
    """Add the updates of steps 0 .. first - 1 of a block to the pre-activations of its steps first .. last - 1."""
    for t in range(first, last, CORRECTED_TOGETHER):
        slot = _slot(work, tile, t)
        h0, h1 = load(work.steps, slot), load(work.steps, slot + 1)
        h2, h3 = load(work.steps, slot + 2), load(work.steps, slot + 3)
        for s in range(first):
            update = load(work.steps, _slot(work, tile, s))
            h0 = multiply_add(update, splat(work.steps, inputs.gram[start + t, s]), h0)
            h1 = multiply_add(update, splat(work.steps, inputs.gram[start + t + 1, s]), h1)
            h2 = multiply_add(update, splat(work.steps, inputs.gram[start + t + 2, s]), h2)
            h3 = multiply_add(update, splat(work.steps, inputs.gram[start + t + 3, s]), h3)
        store(work.steps, slot, h0)
        store(work.steps, slot + 1, h1)
        store(work.steps, slot + 2, h2)
        store(work.steps, slot + 3, h3)


@njit(cache=True, nogil=True)
def _multiply(network, inputs, work, tables, tile, start, size):  # type: ignore[no-untyped-def]
    """h_t = W x_t for the `size` samples of a block, for one tile."""
    groups = work.columns // 4
    for group in range(0, groups, TABLES):
        count = min(TABLES, groups - group)
        for i in range(count):
            tabulate(tables, i, network.hidden, tile * work.columns + 4 * (group + i))
        for t in range(size):
            slot = _slot(work, tile, t)
            h = zeros(work.steps) if group == 0 else load(work.steps, slot)
            codes = inputs.bits[start + t, group // 16] >> np.uint64(4 * (group % 16))
            store(work.steps, slot, add_entries(h, tables, codes, count))


@njit(cache=True, nogil=True)
def _apply_updates(network, inputs, work, tables, tile, block, size, scale):  # type: ignore[no-untyped-def]
    """W = scale * (W + sum_t D_t x_t^T) over the `size` steps of a block, for one tile."""
    groups = -(-size // 4)
    for t in range(size, 4 * groups):
        store(work.steps, _slot(work, tile, t), zeros(work.steps))
    for group in range(0, groups, TABLES):
        count = min(TABLES, groups - group)
        for i in range(count):
            tabulate(tables, i, work.steps, _slot(work, tile, 4 * (group + i)))
        factor = splat(network.hidden, scale if group + count == groups else network.hidden.dtype.type(1))
        for k in range(inputs.transposed.shape[1]):
            row = tile * work.columns + k
            codes = inputs.transposed[block, k] >> np.uint64(4 * group)
            store(network.hidden, row, add_entries(load(network.hidden, row), tables, codes, count) * factor)


@njit(cache=True, nogil=True)
def _sum_lanes(work, half, first, last):  # type: ignore[no-untyped-def]
    """Add up the lanes of partitions first .. last - 1 into the half of `work.logits` for even or for odd steps."""
    classes = work.logits.shape[2]
    lanes = work.lanes
    for row in range(first * classes, last * classes):
        width = LANES // 2
        while width > 0:
            for i in range(width):
                lanes[row, i] += lanes[row, i + width]
            width //= 2
        work.logits[half, row // classes, row % classes] = lanes[row, 0]


@njit(cache=True, nogil=True)
def _meet(arrivals, expected):  # type: ignore[no-untyped-def]
    """Wait until threads have arrived `expected` times in all."""
    atomic_add(arrivals, 0, 1)
    spins = 0
    while atomic_load(arrivals, 0) < expected:
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            yield_processor()


def network_logits(network: Network, bits: NDArray[np.uint64], threads: int) -> NDArray[np.float64]:
    """Logits (n, classes) of a network with its current weights, for packed inputs (n, words)."""
    tiles = len(network.output) // len(network.bias)
    columns = len(network.hidden) // tiles
    bits = np.pad(bits, ((0, 0), (0, -(-columns // 64) - bits.shape[1])))
    logits = np.empty((len(bits), len(network.bias)))
    share = -(-len(bits) // threads)
    _in_threads(
        threads,
        lambda thread: _forward(
            network,
            columns,
            bits[thread * share : (thread + 1) * share],
            logits[thread * share : (thread + 1) * share],
        ),
    )
    return logits


@njit(cache=True, nogil=True)
def _forward(network, columns, bits, logits):  # type: ignore[no-untyped-def]
    classes = len(network.bias)
    tiles = len(network.output) // classes
    groups = columns // 4
    tables = row_buffer(network.hidden, TABLES * 16)
    hidden = row_buffer(network.hidden, FORWARD_BLOCK)
    lanes = row_buffer(network.hidden, FORWARD_BLOCK * classes)
    for start in range(0, len(bits), FORWARD_BLOCK):
        size = min(FORWARD_BLOCK, len(bits) - start)
        lanes[:] = 0
        for tile in range(tiles):
            for group in range(0, groups, TABLES):
                count = min(TABLES, groups - group)
                for i in range(count):
                    tabulate(tables, i, network.hidden, tile * columns + 4 * (group + i))
                for t in range(size):
                    h = zeros(hidden) if group == 0 else load(hidden, t)
                    codes = bits[start + t, group // 16] >> np.uint64(4 * (group % 16))
                    h = add_entries(h, tables, codes, count)
                    store(hidden, t, h)
                    if group + count == groups:
                        activation = where_positive(h, h)
                        for c in range(classes):
                            lane = load(lanes, t * classes + c)
                            v = load(network.output, tile * classes + c)
                            store(lanes, t * classes + c, multiply_add(activation, v, lane))
        for t in range(size):
            for c in range(classes):
                logits[start + t, c] = network.bias[c] + lanes[t * classes + c].sum()


def _in_threads(threads: int, work: Callable[[int], object]) -> None:
    """Call work(0), ..., work(threads - 1) at the same time and wait for all."""
    if threads == 1:
        work(0)
    else:
        list(_pool(threads).map(work, range(threads)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
