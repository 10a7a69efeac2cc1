"""Runs below a directory, identified by their config.json whatever their directories are called."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.files import find_json
from common.runs.run import Run

TRANSITION_ACCURACY = 0.95
"""Accuracy above which a run has passed its transition."""

OF_A_RUN = {"setting", "argv", "arguments"}
"""Entries of a config.json by which it is known to be a run's."""


def find_runs(directory: Path) -> list[Run]:
    """All runs at or below a directory, at any depth, in the order of their paths; links are not followed.

    Runs whose config.json is damaged are included.

    Raises:
        UserError: there is no such directory.
    """
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}: give one that contains runs")
    found = []
    for path, below, files in os.walk(directory, onerror=_raise):
        below.sort()
        if {"config.json", "metrics.jsonl"} <= set(files) and _is_run(Path(path)):
            found.append(Run(Path(path)))
            below[:] = [name for name in below if not re.fullmatch("checkpoint-[0-9]+|resume|probes|wandb", name)]
    return found


def passed_at(records: Iterable[Mapping[str, Any]]) -> int | None:
    """First evaluated step with accuracy above `TRANSITION_ACCURACY`."""
    return next((record["step"] for record in records if (record.get("accuracy") or 0) > TRANSITION_ACCURACY), None)


def _raise(error: OSError) -> None:
    raise error


def _is_run(directory: Path) -> bool:
    """By its config.json, which may be damaged."""
    try:
        config = find_json(directory / "config.json")
    except UserError:  # it is too large
        return True
    return config is None or not OF_A_RUN.isdisjoint(config)
