"""Time of a batch-1 SGD step on parity: the block engine against the plain PyTorch loop, in one process.

    python benchmarks/parity_sgd.py [--out benchmarks/results/NAME.json]

The plain loop is `nn.Sequential`, `cross_entropy` and `torch.optim.SGD` with one sample a step and all tensors in
memory; for distillation, a forward pass of the teacher without gradients comes before each step. The engine's time
contains everything it does with packed samples: unpacking, products between samples, the teacher's logits and its
softmax. Each figure is the best of several repetitions, engine and plain loop taking turns.

Printed beside it: the time in which the processor could do the arithmetic. A step has 4 * width * (d + 1)
multiplications and additions in the textbook form. The engine needs fewer, see `parity_mlp.sgd.block_cpu`; they are
counted per row of 64 neurons, at one addition or fused multiply-add each, and the rate of both is measured as that of
a large matrix product.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tyro
from measuring import Arguments, best, multiply_add_rate, processor, seconds, write
from numba import njit
from numpy.typing import NDArray
from torch import nn

from common.arguments import worker_threads
from common.cli import command
from common.distillation.losses import teacher_probabilities
from common.parity.mlp import initial_tensors
from common.parity.objective import FORWARD_KL, Objective
from common.parity.task import make_task
from parity_mlp.data import signs
from parity_mlp.sgd import block_cpu, tiles
from parity_mlp.sgd.engine import CPUBlockEngine
from parity_mlp.sgd.simd import LANES
from parity_mlp.sgd.tables import TABLES

D, K, LR = 100, 6, 0.005
TASK = make_task(D, K)


def main(arguments: Arguments) -> None:
    """Measure, print and, if asked to, write."""
    threads = worker_threads()
    torch.set_num_threads(threads)
    rate = multiply_add_rate()
    print(f"{processor()}, {threads} threads, {2e-9 * rate:.0f} GFLOP/s in a large float32 matrix product")
    rows: list[dict[str, Any]] = []
    for width, plain_steps, engine_steps in ((100, 1000, 16384), (1000, 1000, 8192), (50_000, 60, 1024)):
        times = best(
            arguments.repetitions,
            _plain_steps(width, plain_steps),
            _engine_steps(width, engine_steps, threads),
        )
        rows.append(_row(f"train, width {width:,}", *times, width, rate))
    plain, single, nine = best(
        arguments.repetitions,
        _plain_distillation(60),
        _engine_distillation(1, 4096, threads),
        _engine_distillation(9, 4096, threads),
    )
    rows.append(_row("distill, width 100 from 50,000", plain, single))
    rows.append(_row("distill, nine of width 100", 9 * plain, nine))
    parts = _parts(50_000 // threads)
    parts["barrier and contention"] = round(rows[2]["engine_us"] - sum(parts.values()), 2)
    print(f"\nwhere a step at width 50,000 goes (one thread's share of the neurons, us): {parts}")
    write(arguments.out, threads, rows, multiply_adds_per_second=rate, parts_us=parts)


def _row(name: str, plain: float, engine: float, width: int = 0, rate: float = 1) -> dict[str, Any]:
    """Print and return one line; times are seconds per step."""
    row = {"what": name, "plain_us": 1e6 * plain, "engine_us": 1e6 * engine, "ratio": plain / engine}
    text = f"{name:32} plain {row['plain_us']:9.2f} us  engine {row['engine_us']:8.3f} us  ratio {row['ratio']:6.1f}"
    if width:
        row["textbook_limit_us"] = 1e6 * 2 * width * (D + 1) / rate
        row["engine_limit_us"] = 1e6 * width * _operations_per_neuron() / rate
        text += f"  limits: textbook {row['textbook_limit_us']:7.3f}, engine {row['engine_limit_us']:7.3f} us"
    print(text, flush=True)
    return row


def _operations_per_neuron(classes: int = 2) -> float:
    """Additions and fused multiply-adds of the engine per neuron and step."""
    block, groups, sub = tiles.DEFAULT_BLOCK, -(-(D + 1) // 4), block_cpu.SUB_BLOCK
    tables = 20 * (groups / block + 1 / 4)
    entries = groups + (D + 1) / 4
    corrections = (block - sub) / 2 + (sub - 1) / 2
    scaling = 2 * (D + 1) / block + 1
    return tables + entries + corrections + scaling + 3 * classes + 3


def _timed(function: Callable[[], object], steps: int) -> float:
    return seconds(function) / steps


def _network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, 2))


def _samples(steps: int) -> tuple[NDArray[np.uint64], torch.Tensor, torch.Tensor]:
    """Packed bits, and what the plain loop reads: (steps, 1, d) and (steps, 1)."""
    bits = TASK.sample(0, "train", 0, steps)
    return bits, torch.from_numpy(signs(bits, D)).unsqueeze(1), torch.from_numpy(TASK.labels(bits)).unsqueeze(1)


def _plain_steps(width: int, steps: int) -> Callable[[], float]:
    model = _network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    _, x, y = _samples(steps)

    def run() -> None:
        for input_, label in zip(x, y, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(input_), label).backward()
            optimizer.step()

    return lambda: _timed(run, steps)


def _plain_distillation(steps: int) -> Callable[[], float]:
    teacher, student = _network(50_000), _network(100)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR)
    _, x, _ = _samples(steps)

    def run() -> None:
        for input_ in x:
            with torch.no_grad():
                target = teacher(input_).softmax(-1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(student(input_), target).backward()
            optimizer.step()

    return lambda: _timed(run, steps)


def _engine(width: int, copies: int, threads: int) -> CPUBlockEngine:
    return CPUBlockEngine([initial_tensors(D, width, 2, 1, seed, "float32") for seed in range(copies)], threads)


def _objective(labels: NDArray[np.int64], targets: NDArray[np.float64], alpha: float) -> Objective:
    steps = len(labels)
    return Objective(labels, targets, np.full(steps, alpha), np.full(steps, LR), 0.0, FORWARD_KL, 0.5)


def _engine_steps(width: int, steps: int, threads: int) -> Callable[[], float]:
    engine = _engine(width, 1, threads)
    bits = TASK.sample(0, "train", 0, steps)
    objective = _objective(TASK.labels(bits), np.zeros((steps, 2)), 1.0)
    return lambda: _timed(lambda: engine.train(bits, {0: objective}), steps)


def _engine_distillation(students: int, steps: int, threads: int) -> Callable[[], float]:
    teacher, engine = _engine(50_000, 1, threads), _engine(100, students, threads)
    bits = TASK.sample(0, "train", 0, steps)
    labels = TASK.labels(bits)

    def run() -> None:
        targets = teacher_probabilities(torch.from_numpy(teacher.logits(0, bits)), 1.0).numpy()
        engine.train(bits, {i: _objective(labels, targets, 0.0) for i in range(students)})

    return lambda: _timed(run, steps)


def _parts(width: int) -> dict[str, float]:
    """Microseconds per step of the engine's parts, in one thread, each alone; what is left is the sequence of steps."""
    network = tiles.pack(initial_tensors(D, width, 2, 1, 0, "float32"))
    steps = 8 * tiles.DEFAULT_BLOCK
    bits = TASK.sample(0, "train", 0, steps)
    inputs = tiles.prepare(bits, D, "float32")
    work = block_cpu.workspace(network)
    objective = _objective(TASK.labels(bits), np.zeros((steps, 2)), 1.0)
    whole = lambda: block_cpu.sgd_steps([network], [work], [objective], inputs, 1)  # noqa: E731
    parts = {
        "products": lambda: _all_products(network, inputs, work, steps),
        "corrections": lambda: _all_corrections(network, inputs, work, steps),
        "updates": lambda: _all_updates(network, inputs, work, steps),
    }
    for function in (whole, *parts.values()):
        function()
    total = 1e6 * min(_timed(whole, steps) for _ in range(7))
    times = {name: 1e6 * min(_timed(part, steps) for _ in range(7)) for name, part in parts.items()}
    times["sequence of steps"] = total - sum(times.values())
    return {name: round(value, 2) for name, value in times.items()}


@njit
def _all_products(network, inputs, work, steps):  # type: ignore[no-untyped-def]
    tables = np.zeros((TABLES * 16, LANES), network.hidden.dtype)
    for start in range(0, steps, tiles.DEFAULT_BLOCK):
        for tile in range(len(network.output) // 2):
            block_cpu._multiply(network, inputs, work, tables, tile, start, tiles.DEFAULT_BLOCK)


@njit
def _all_corrections(network, inputs, work, steps):  # type: ignore[no-untyped-def]
    for start in range(0, steps, tiles.DEFAULT_BLOCK):
        for first in range(block_cpu.SUB_BLOCK, tiles.DEFAULT_BLOCK, block_cpu.SUB_BLOCK):
            for tile in range(len(network.output) // 2):
                block_cpu._correct(inputs, work, tile, start, first, first + block_cpu.SUB_BLOCK)


@njit
def _all_updates(network, inputs, work, steps):  # type: ignore[no-untyped-def]
    tables = np.zeros((TABLES * 16, LANES), network.hidden.dtype)
    work.steps[:] = 0
    for block in range(steps // tiles.DEFAULT_BLOCK):
        for tile in range(len(network.output) // 2):
            block_cpu._apply_updates(network, inputs, work, tables, tile, block, tiles.DEFAULT_BLOCK, np.float32(1))


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
