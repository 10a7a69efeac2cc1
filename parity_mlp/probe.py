"""Correlations of every checkpoint of a run with monomials inside and outside the hidden support.

    python probe.py --run ../runs/parity_mlp/laptop

Writes probes/monomials.json in the run's directory (arguments other than the defaults become part of the name), after
each checkpoint, so that a probe that is cut off goes on.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from common.arguments import require_at_least, require_seed
from common.cli import command
from common.errors import UserError
from common.parity.arguments import check_device
from common.parity.networks import engine_for_logits, load_network
from common.parity.task import make_task
from common.probes.monomials import probe_monomials
from common.runs.files import write_file
from common.runs.names import default_name
from common.runs.progress import progress
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints, local_path


@dataclass(frozen=True)
class ProbeArguments:
    """Arguments of `probe.py`."""

    run: Path
    """Run directory of train.py or distill.py."""
    samples: int = 100_000
    """Fresh samples."""
    degrees: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Degrees of the monomials."""
    outside: int = 100
    """Random monomials of each degree that are not inside the support."""
    seed: int = 0
    """Seed of the samples and of the random monomials."""
    output: int = 1
    """Class whose probability is correlated."""
    node: int = 0
    """Inner node of the tree, in heap order, whose support is probed (hierarchical parity)."""
    device: str = "cpu"
    """Torch device."""


def probe(arguments: ProbeArguments) -> None:
    """Probe every checkpoint that is not in the file yet."""
    config = Run(arguments.run).config["arguments"]
    task = make_task(*(config[name] for name in ("d", "k", "labels", "support", "support_seed")))
    if not 0 <= arguments.output < task.classes or not 0 <= arguments.node < len(task.supports):
        raise UserError(
            f"--output is a class, 0 to {task.classes - 1}, and --node an inner node, 0 to {len(task.supports) - 1}; "
            f"got {arguments.output} and {arguments.node}"
        )
    require_at_least(1, arguments, "samples")
    require_at_least(0, arguments, "outside")
    require_seed(arguments, "seed")
    check_device(arguments.device)
    checkpoints = find_checkpoints(arguments.run)
    where = ("run", "device")
    name = default_name(arguments, ProbeArguments(run=arguments.run), "monomials", exclude=where)
    path = arguments.run / "probes" / f"{name}.json"
    settings = {name: value for name, value in asdict(arguments).items() if name not in where}
    found = json.loads(path.read_text())["checkpoints"] if path.exists() else []
    done = {entry["step"]: entry for entry in found}

    bits = task.sample(arguments.seed, "probe", 0, arguments.samples)
    with progress(len(checkpoints), len(done), f"probing {arguments.run.name}", arguments.samples) as show:
        for checkpoint in checkpoints:
            if checkpoint.step in done:
                continue
            network = load_network(local_path(checkpoint), task)
            logits = engine_for_logits(network, task.d, arguments.device).logits(0, bits)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            probability = odds[:, arguments.output] / odds.sum(axis=1)
            result = probe_monomials(
                bits,
                probability,
                task.supports[arguments.node],
                task.d,
                degrees=arguments.degrees,
                outside=arguments.outside,
                seed=arguments.seed,
            )
            done[checkpoint.step] = {"step": checkpoint.step, **asdict(result)}
            entries = [done[step] for step in sorted(done)]
            write_file(path, json.dumps({"settings": settings, "checkpoints": entries}).encode())
            show(len(done), checkpoint=checkpoint.step)
    print(path)


def main() -> None:
    """Parse the command line."""
    probe(tyro.cli(ProbeArguments, description=__doc__))


if __name__ == "__main__":
    command(main)
