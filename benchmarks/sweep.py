"""Nine students of one teacher, three methods with three seeds each: trained together, and one after another.

    python benchmarks/sweep.py [--out benchmarks/results/NAME.json]

Both ways are `distill.py` of a setting on the same machine in the same process, with a short training of the laptop
preset's sizes; evaluations are left to the beginning and the end. The teacher has three checkpoints from the first
steps of its training, which take as long as later ones. Times are those of the processor, over all threads, and include
everything, such as reading the teacher. Before they are compared, the students' final weights must be bit-identical.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import measuring
import torch
import tyro
from measuring import best, row, write

from common.arguments import worker_threads
from common.cli import command
from common.teachers.discovery import find_checkpoints
from common.teachers.tensors import read_weights

SettingName = Literal["PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive"]
APART = 1e-9
"""Gigabytes that no two students fit into."""


@dataclass(frozen=True)
class Arguments(measuring.Arguments):
    settings: tuple[SettingName, ...] = ("PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive")
    steps: int = 60
    """Of each student."""
    repetitions: int = 3
    """Each time is the best of so many."""


def main(arguments: Arguments) -> None:
    """Measure each setting, print a line for it, and write the results."""
    threads = worker_threads()
    torch.set_num_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.settings:
            alone, together = processor_times(name, Path(directory) / name, arguments)
            rows.append(row(f"{name}, nine students", "seconds", alone, together, alone / together))
    write(arguments.out, threads, rows, steps=arguments.steps)


def processor_times(name: SettingName, place: Path, arguments: Arguments) -> list[float]:
    """Seconds of the processor for nine students, one after another and together."""
    train, distill = (import_module(f"{name}.{kind}") for kind in ("train", "distill"))
    train.train(replace(train.PRESETS["laptop"], steps=30, checkpoint_every=10, eval_every=30, out=place / "teacher"))
    students = replace(
        distill.PRESETS["laptop"],
        teacher=str(place / "teacher"),
        methods=("ce", "one-shot", "progressive"),
        seeds=(0, 1, 2),
        steps=(arguments.steps,),
        teacher_range=None,
        teacher_every=arguments.steps // 3,
        eval_every=arguments.steps,
        force=True,
    )

    def timed(memory: float | None) -> float:
        begin = time.process_time()
        distill.distill(replace(students, out=place / ("together" if memory is None else "alone"), memory=memory))
        return time.process_time() - begin

    times = best(arguments.repetitions, lambda: timed(APART), lambda: timed(None))
    require_same_students(place / "alone", place / "together")
    return times


def require_same_students(one: Path, other: Path) -> None:
    """Check that the final weights are bit-identical.

    Raises:
        RuntimeError: names a student whose are not.
    """
    for run in sorted(one.iterdir()):
        ours, theirs = (read_weights(find_checkpoints(place / run.name)[-1].location) for place in (one, other))
        if not all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()):
            raise RuntimeError(f"{run.name} is not the same when it is trained with others")


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
