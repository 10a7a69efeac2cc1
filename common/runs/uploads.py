"""Give past runs to Weights & Biases: the config, every record of metrics.jsonl at its step, and the results.

Each goes to the wandb run that has the id in its config.json, so that what was tracked while it ran, or uploaded
before, is completed and not doubled.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.errors import UserError
from common.runs.files import locked
from common.runs.finding import find_runs
from common.runs.run import Run
from common.runs.tracking import open_tracker

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


@dataclass(frozen=True)
class _Past:
    """What wandb is to get of a run."""

    run: Run
    group: str | None
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None
    """None if the run is not complete."""


def sync(arguments: SyncArguments) -> None:
    """Upload the runs, or write wandb's files.

    Raises:
        UserError: no such directory, no run in it, a damaged run or one at which another process is at work (before
            anything is done), or wandb refuses.
    """
    runs = dict.fromkeys(run for directory in arguments.runs for run in _runs_in(directory))
    pasts = [_past(run, arguments.group) for run in runs]
    for past in pasts:
        with locked(past.run.directory, BUSY):
            pass
    for past in pasts:
        with locked(past.run.directory, BUSY):
            _upload(past, arguments.wandb)
        print(f"{past.run.directory}: {len(past.records)} records")


def _runs_in(directory: Path) -> list[Run]:
    runs = find_runs(directory)
    if not runs:
        raise UserError(f"there is no run in {directory}")
    return runs


def _past(run: Run, group: str | None) -> _Past:
    arguments = run.config["arguments"]
    own_group = arguments["preset"] if "methods" in arguments else None  # as the settings' distill.py
    group = group or os.environ.get("WANDB_RUN_GROUP") or own_group
    return _Past(run, group, run.records(), run.summary if run.complete else None)


def _upload(past: _Past, mode: Literal["online", "offline"]) -> None:
    run = replace(past.run, tracker=open_tracker(past.run.directory, past.run.config, mode, past.group, silent=True))
    for record in past.records:
        run.track(record)
    if past.summary is not None:
        run.tracker.summary.update(past.summary)
    run.tracker.finish(exit_code=1 if past.summary is None else 0)
