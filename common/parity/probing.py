"""`probe.py` of the settings on parity: correlations of a run's checkpoints with monomials."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from common.arguments import require_at_least, require_seed
from common.errors import UserError
from common.parity.arguments import SETTINGS, ProbeArguments, check_device
from common.parity.frozen import load_network
from common.parity.task import task_of
from common.parity.training import Setting
from common.probes.monomials import probe_monomials
from common.runs.files import write_file
from common.runs.names import default_name
from common.runs.progress import progress
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints, local_path


def probe(arguments: ProbeArguments, setting: Setting, argv: Sequence[str] = ()) -> None:
    """Probe every checkpoint that is not in the probe's file yet, write the file after each, and print its name.

    Args:
        arguments: of the command; the run may be of either setting.
        setting: whose command this is.
        argv: the command, for the probe's file.

    Raises:
        UserError: an argument is out of range, the directory is not a run of a setting on parity, or it has no
            checkpoint.
    """
    run = Run(arguments.run)
    if run.setting not in SETTINGS:
        raise UserError(f"{arguments.run} is a run of {run.setting}: give a run of {' or '.join(SETTINGS)}")
    task = task_of(run.config["arguments"])
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
    unnamed = ("run", "device")
    name = default_name(arguments, ProbeArguments(run=arguments.run), "monomials", exclude=unnamed)
    path = arguments.run / "probes" / f"{name}.json"
    settings = {name: value for name, value in asdict(arguments).items() if name not in unnamed}
    content: dict[str, Any] = {"argv": list(argv), "settings": settings, "checkpoints": []}
    if path.exists():
        content = json.loads(path.read_text())
    done = {entry["step"]: entry for entry in content["checkpoints"]}

    bits = task.sample(arguments.seed, "probe", 0, arguments.samples)
    with progress(len(checkpoints), len(done), f"probing {arguments.run.name}", arguments.samples) as show:
        for checkpoint in checkpoints:
            if checkpoint.step in done:
                continue
            network = load_network(local_path(checkpoint), task)
            logits = setting.frozen_logits(network, task.d, arguments.device)(bits)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            result = probe_monomials(
                bits,
                odds[:, arguments.output] / odds.sum(axis=1),
                task.supports[arguments.node],
                task.d,
                degrees=arguments.degrees,
                outside=arguments.outside,
                seed=arguments.seed,
            )
            done[checkpoint.step] = {"step": checkpoint.step, **asdict(result)}
            content["checkpoints"] = [done[step] for step in sorted(done)]
            write_file(path, json.dumps(content).encode())
            show(len(done), checkpoint=checkpoint.step)
    print(path)
