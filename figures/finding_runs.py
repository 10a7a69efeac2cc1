"""Find the runs and probes behind a figure by the names that the commands give them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.checkpoints import find_checkpoints
from common.errors import UserError
from common.runs import Run


def complete_run(directory: Path, made_by: str) -> Run:
    """The run in a directory.

    Args:
        directory: of the run.
        made_by: the command that makes it.

    Raises:
        UserError: there is no complete run; the message names the command.
    """
    run = Run(directory)
    if not run.complete:
        raise UserError(f"there is no complete run in {directory}; make it by {made_by}")
    return run


def runs_of_all_seeds(root: Path, prefix: str, made_by: str, suffix: str = "") -> list[Run]:
    """The runs `root/<prefix>-seed<n><suffix>`, by seed: made with the preset as it is but for what the suffix says.

    Args:
        root: directory of runs.
        prefix: of their names.
        made_by: the command that makes them.
        suffix: of their names.

    Raises:
        UserError: there is none, or one is not complete; the message names the command.
    """
    found = {
        int(match[1]): path
        for path in root.glob(f"{prefix}-seed*")
        if (match := re.fullmatch(rf"-seed(\d+){re.escape(suffix)}", path.name[len(prefix) :]))
    }
    if not found:
        raise UserError(f"no run {root / prefix}-seed*{suffix}; make it by {made_by}")
    return [complete_run(found[seed], made_by) for seed in sorted(found)]


def final_accuracies(root: Path, prefixes: Mapping[int, str], made_by: str, suffix: str = "") -> dict[str, Any]:
    """What students end with that differ in one number, all with the same seeds.

    Args:
        root: directory of runs.
        prefixes: of their names, by that number.
        made_by: the command that makes them.
        suffix: of their names, after the seed.

    Returns:
        `seeds`, and `accuracy` of shape (seeds, prefixes).

    Raises:
        UserError: a run is missing or incomplete; the message names the command.
    """
    runs = {
        number: {run.config["arguments"]["seeds"][0]: run for run in runs_of_all_seeds(root, prefix, made_by, suffix)}
        for number, prefix in prefixes.items()
    }
    seeds = sorted(set().union(*runs.values()))
    for number, prefix in prefixes.items():
        if missing := [seed for seed in seeds if seed not in runs[number]]:
            raise UserError(f"no run {root / prefix}-seed{missing[0]}{suffix}; make it by {made_by}")
    final = [[runs[number][seed].records()[-1]["accuracy"] for number in prefixes] for seed in seeds]
    return {"seeds": seeds, "accuracy": [[round(accuracy, 5) for accuracy in row] for row in final]}


def probe_result(run: Run, name: str, made_by: str) -> dict[str, Any]:
    """What is in the only file that a probe wrote, whatever its arguments.

    Args:
        run: that was probed.
        name: of the probe.
        made_by: the command that probes.

    Raises:
        UserError: there is no file or several, or checkpoints are missing; the message names the command.
    """
    found = [*run.directory.glob(f"probes/{name}.json"), *run.directory.glob(f"probes/{name}-*.json")]
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise UserError(f"{run.directory / 'probes'} has {names}: leave the one there that is to be drawn")
    if not found:
        raise UserError(f"{run.directory} was not probed; do it by {made_by}")
    content = json.loads(found[0].read_bytes())
    probed = [entry["step"] for entry in content.get("checkpoints", ())]
    if "checkpoints" in content and probed != [checkpoint.step for checkpoint in find_checkpoints(run.directory)]:
        raise UserError(f"{found[0]} lacks checkpoints; go on by {made_by}")
    return content
