"""Students of one teacher, three methods with several seeds each: trained together, and one after another.

    python benchmarks/sweep.py [--out benchmarks/results/NAME.json]
    python benchmarks/sweep.py --settings PCFG_mlm --seeds 9                        # 27 students
    python benchmarks/sweep.py --settings PCFG_mlm --preset paper --batch-size 32 --steps 6 --repetitions 1

Both ways are `distill.py` of a setting on the same machine in the same process, with a short training of a preset's
sizes; evaluations are left to the beginning and the end. The teacher has three checkpoints from the first steps of its
training, which take as long as later ones. Times are those of the processor, over all threads, and include everything,
such as reading the teacher. Before they are compared, the students' final weights must be bit-identical.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

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
    preset: Literal["laptop", "paper"] = "laptop"
    """Whose sizes teacher and students have."""
    seeds: int = 3
    """Of each method."""
    steps: int = 60
    """Of each student."""
    batch_size: int | None = None
    """Samples per step; by default those of the preset."""
    eval_samples: int = 256
    """Held-out samples."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the matrix products."""
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
            what = f"{name} {arguments.preset} {arguments.precision}, {3 * arguments.seeds} students"
            rows.append(row(what, "seconds", alone, together, alone / together))
    write(arguments.out, threads, rows, steps=arguments.steps, batch_size=arguments.batch_size)


def processor_times(name: SettingName, place: Path, arguments: Arguments) -> list[float]:
    """Seconds of the processor for all students, one after another and together."""
    train, distill = (import_module(f"{name}.{kind}") for kind in ("train", "distill"))
    changes: dict[str, Any] = {"eval_samples": arguments.eval_samples, "precision": arguments.precision}
    if arguments.batch_size is not None:
        changes["batch_size"] = arguments.batch_size
    teacher = train.PRESETS[arguments.preset]
    train.train(replace(teacher, steps=3, checkpoint_every=1, eval_every=3, out=place / "teacher", **changes))
    students = replace(
        distill.PRESETS[arguments.preset],
        teacher=str(place / "teacher"),
        methods=("ce", "one-shot", "progressive"),
        seeds=tuple(range(arguments.seeds)),
        steps=(arguments.steps,),
        teacher_range=None,
        teacher_every=arguments.steps // 3,
        eval_every=arguments.steps,
        force=True,
        **changes,
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
