"""`probe.py` of the settings on parity: correlations of a teacher's checkpoints with monomials."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.arguments import require_at_least, require_seed
from common.distillation.arguments import require_distinct
from common.errors import UserError
from common.parity.arguments import SETTINGS, ProbeArguments, check_device
from common.parity.frozen import teacher_logits
from common.parity.task import ParityTask, task_of
from common.parity.training import Setting
from common.probes.checkpoints import given_task, probe_checkpoints
from common.probes.monomials import probe_monomials
from common.resources import require_memory
from common.runs.run import Run

SAMPLE, SUBSET = 16, 64
"""Bytes of a sample's output and probability, and of a monomial, at least."""


def probe(arguments: ProbeArguments, setting: Setting, argv: Sequence[str] = ()) -> None:
    """Probe every checkpoint that is not in the probe's file yet.

    Raises:
        UserError: an argument is out of range, the directory is a run of a setting that is not on parity, it is no run
            and its task is not given, or it has no checkpoint or one whose weights or logits are not finite.
    """
    task = _probed_task(arguments)
    if not 0 <= arguments.output < task.classes or not 0 <= arguments.node < len(task.supports):
        raise UserError(
            f"--output is a class, 0 to {task.classes - 1}, and --node an inner node, 0 to {len(task.supports) - 1}; "
            f"got {arguments.output} and {arguments.node}"
        )
    require_at_least(1, arguments, "samples", "degrees")
    require_distinct(arguments, ["degrees"])
    require_at_least(0, arguments, "outside")
    require_seed(arguments, "seed")
    check_device(arguments.device)
    subsets = sum(min(arguments.outside, math.comb(task.d, degree)) for degree in arguments.degrees)
    require_memory(
        {
            f"--samples {arguments.samples}": arguments.samples * (SAMPLE + 8 * -(-task.d // 64)),
            f"--outside {arguments.outside}": subsets * SUBSET,
        }
    )
    bits = task.sample(arguments.seed, "probe", 0, arguments.samples)

    def measure(checkpoint: Path) -> dict[str, Any]:
        logits = teacher_logits(checkpoint, task, lambda net: setting.frozen_logits(net, task.d, arguments.device))(
            bits
        )
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probe = probe_monomials(
            bits,
            odds[:, arguments.output] / odds.sum(axis=1),
            task.supports[arguments.node],
            task.d,
            degrees=arguments.degrees,
            outside=arguments.outside,
            seed=arguments.seed,
        )
        return asdict(probe)

    probe_checkpoints(arguments, argv, setting.name, "monomials", measure, samples=arguments.samples)


def _probed_task(arguments: ProbeArguments) -> ParityTask:
    if (given := given_task(arguments)) is not None:
        return task_of(given)
    run = Run(arguments.run)
    if run.setting not in SETTINGS:
        raise UserError(f"{arguments.run} is a run of {run.setting}: give a run of {' or '.join(SETTINGS)}")
    return task_of(run.config["arguments"])
