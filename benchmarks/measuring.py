"""What the benchmarks share: their arguments, timing in turns, rows of results, and what is known of the processor."""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Arguments:
    """What the benchmarks' arguments have in common."""

    out: Path | None = None
    """JSON file for the results."""
    repetitions: int = 7
    """Each time is the best of so many."""


def best(repetitions: int, *functions: Callable[[], float]) -> list[float]:
    """Smallest result of each function; they take turns, after one turn that does not count."""
    times = [[function() for function in functions] for _ in range(repetitions + 1)]
    return [min(column) for column in zip(*times[1:], strict=True)]


def seconds(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def processor_milliseconds(function: Callable[[], object]) -> float:
    """Milliseconds of the processor that one call takes, in all threads."""
    begin = time.process_time()
    function()
    return 1000 * (time.process_time() - begin)


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Watches the process's resident set, every two milliseconds.

    Gives a function that returns by how many bytes the largest so far exceeds that at the beginning.
    """
    page, done = os.sysconf("SC_PAGE_SIZE"), threading.Event()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    peak = begin = resident()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: peak - begin
    finally:
        done.set()
        watcher.join()


def row(name: str, unit: str, plain: float, engine: float, ratio: float, **more: float) -> dict[str, Any]:
    """Print and return one line.

    Args:
        name: what was measured.
        unit: of `plain` and `engine`.
        plain: the plain way.
        engine: the way of this project.
        ratio: how many times faster the latter is.
        more: further numbers by name.
    """
    others = "".join(f"  {key.replace('_', ' ')} {value:.3g}" for key, value in more.items())
    print(
        f"{name:40} {unit.replace('_', ' ')}: plain {plain:.4g}  here {engine:.4g}  ratio {ratio:.2f}{others}",
        flush=True,
    )
    return {"what": name, f"plain_{unit}": plain, f"engine_{unit}": engine, "ratio": ratio, **more}


def write(path: Path | None, threads: int, rows: Sequence[dict[str, Any]], **more: object) -> None:
    """Write the results, and what they were measured on, if a file is given."""
    if path is not None:
        result = {"processor": processor(), "threads": threads, **more, "rows": rows}
        path.write_text(json.dumps(result, indent=2) + "\n")


def multiply_add_rate(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Multiply-adds per second in a large matrix product, in as many threads as torch uses."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return size**3 / min(seconds(lambda: torch.mm(a, b)) for _ in range(10))


def processor() -> str:
    """The processor's name and the number of processors that the machine has."""
    name = _described("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} processors"


def bf16_instructions() -> list[str]:
    """The processor's instructions for matrix products in bfloat16, by the names that Linux gives them."""
    flags = _described("flags") or _described("Features") or ""
    return [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags.split()]


def _described(what: str) -> str | None:
    """What Linux says of the first processor; None on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith(what)), None)
