"""Seconds to check a teacher of the size of Pythia-70M, 154 checkpoints of 166 MB, against hashing all of its bytes.

    python benchmarks/trajectory.py [--out benchmarks/results/NAME.json]

The checkpoints are made in a temporary directory, with the shapes and dtypes of EleutherAI/pythia-70m, as sparse files:
random numbers at the places that `common.teachers.weights` samples and nothing in between, 0.2 GB in all. They are in
the system's cache when they are read, and what is in between need not come from a disk at all, which favours the plain
way: one SHA-256 per file. It is timed on a few checkpoints. Before, both must find that one is there twice.
"""

import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from measuring import Arguments, best, processor, row, seconds, write

from common.cli import command
from common.teachers.discovery import Checkpoint, find_checkpoints
from common.teachers.trajectory import check_trajectory
from common.teachers.weights import SAMPLE

HIDDEN, LAYERS, VOCABULARY, POSITIONS = 512, 6, 50304, 2048
CONFIG = {"model_type": "gpt_neox", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
ITEM_SIZE = {"F16": 2, "BOOL": 1}


@dataclass(frozen=True)
class TrajectoryArguments(Arguments):
    """Sizes."""

    repetitions: int = 3
    """Each time is the best of so many."""
    checkpoints: int = 154
    """Number of checkpoints."""
    hashed: int = 4
    """Checkpoints that are hashed as a whole."""


def main(arguments: TrajectoryArguments) -> None:
    """Measure, print and, if asked to, write."""
    print(processor())
    with tempfile.TemporaryDirectory() as folder:
        for step in range(arguments.checkpoints):
            make_checkpoint(Path(folder) / f"step{step}", step)
        checkpoints = find_checkpoints(folder)
        few = checkpoints[: arguments.hashed]
        repeated = few[0].location
        assert isinstance(repeated, Path)
        assert check_trajectory(few) == []
        again = [*few, Checkpoint(arguments.checkpoints, repeated)]
        assert len(check_trajectory(again)) == 1
        assert len(hashes(few)) == len(hashes(again)) == len(few)
        plain, here = best(
            arguments.repetitions,
            lambda: seconds(lambda: hashes(few)) / len(few),
            lambda: seconds(lambda: check_trajectory(checkpoints)) / len(checkpoints),
        )
    total = here * len(checkpoints)
    rows = [row("one checkpoint of Pythia-70M", "seconds", plain, here, plain / here, seconds_for_all=total)]
    write(arguments.out, 2, rows, checkpoints=len(checkpoints))


def hashes(checkpoints: Sequence[Checkpoint]) -> set[str]:
    """The plain way: a hash of each file as a whole."""
    found = set()
    for checkpoint in checkpoints:
        with (Path(checkpoint.location) / "model.safetensors").open("rb") as file:
            found.add(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def make_checkpoint(directory: Path, seed: int) -> None:
    """A checkpoint whose samples are random."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    sizes = [ITEM_SIZE[dtype] * math.prod(shape) for dtype, shape in SHAPES.values()]
    ends = list(itertools.accumulate(sizes))
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [end - size, end]}
        for (name, (dtype, shape)), end, size in zip(SHAPES.items(), ends, sizes, strict=True)
    }
    header = json.dumps(entries).encode()
    numbers = np.random.default_rng(seed)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        start = file.tell()
        file.truncate(start + ends[-1])
        for (dtype, _), end, size in zip(SHAPES.values(), ends, sizes, strict=True):
            sample = min(size, SAMPLE * ITEM_SIZE[dtype])
            for place in {end - size, end - size + (size - sample) // 2, end - sample} if dtype == "F16" else ():
                file.seek(start + place)
                file.write(numbers.bytes(sample))


def shapes() -> dict[str, tuple[str, list[int]]]:
    """Dtype and shape of each tensor of Pythia-70M, by a short name."""
    maps = {"qkv": (3, 1), "dense": (1, 1), "up": (4, 1), "down": (1, 4)}
    found: dict[str, tuple[str, list[int]]] = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in maps.items():
            found[f"{layer}.{name}.weight"] = "F16", [rows * HIDDEN, columns * HIDDEN]
            found[f"{layer}.{name}.bias"] = "F16", [rows * HIDDEN]
        for name in ("before", "after"):
            found |= {f"{layer}.{name}.{kind}": ("F16", [HIDDEN]) for kind in ("weight", "bias")}
        found[f"{layer}.mask"] = "BOOL", [1, 1, POSITIONS, POSITIONS]
    for name in ("embed_in", "embed_out"):
        found[name] = "F16", [VOCABULARY, HIDDEN]
    return found | {f"final.{kind}": ("F16", [HIDDEN]) for kind in ("weight", "bias")}


SHAPES = shapes()

if __name__ == "__main__":
    command(lambda: main(tyro.cli(TrajectoryArguments, description=__doc__)))
