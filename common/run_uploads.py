"""Give past runs to Weights & Biases: the config, every record of metrics.jsonl at its step, and the results.

Each goes to the wandb run that has the id in its config.json, so that what was tracked while it ran, or uploaded
before, is completed and not doubled.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.errors import UserError
from common.run_tables import find_runs
from common.runs import Run, locked, open_tracker

BUSY = "let it end first"


@dataclass(frozen=True, kw_only=True)
class SyncArguments:
    """Give past runs, complete or not, to Weights & Biases; what it has of them is not doubled."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories with runs in them, at any depth."""
    wandb: Literal["online", "offline"] = "online"
    """offline writes files into the runs' directories, which `wandb sync` uploads."""
    group: str | None = None
    """Under which wandb shows the runs together; by default WANDB_RUN_GROUP, or what their own command would give."""


def sync(arguments: SyncArguments) -> None:
    """Upload the runs, or write wandb's files.

    Raises:
        UserError: no such directory, no run in it, a damaged run or one at which another process is at work (before
            anything is done), or wandb refuses.
    """
    runs = list(dict.fromkeys(run for directory in arguments.runs for run in _runs_in(directory)))
    records = [run.records() for run in runs]
    for run in runs:
        with locked(run.directory, BUSY):
            pass
    for run, past in zip(runs, records, strict=True):
        with locked(run.directory, BUSY):
            _upload(run, past, arguments)
        print(f"{run.directory}: {len(past)} records")


def _runs_in(directory: Path) -> list[Run]:
    runs = find_runs(directory)
    if not runs:
        raise UserError(f"there is no run in {directory}")
    return runs


def _upload(run: Run, records: Sequence[Mapping[str, Any]], arguments: SyncArguments) -> None:
    group = arguments.group or os.environ.get("WANDB_RUN_GROUP") or _own_group(run)
    tracked = replace(run, tracker=open_tracker(run, arguments.wandb, group))
    for record in records:
        tracked.track(record)
    if run.complete:
        tracked.tracker.summary.update(run.summary)
    tracked.tracker.finish(exit_code=0 if run.complete else 1)


def _own_group(run: Run) -> str | None:
    """Students are grouped by their preset, see the settings' distill.py."""
    arguments = run.config["arguments"]
    return arguments["preset"] if "methods" in arguments else None
