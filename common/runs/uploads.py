"""Upload existing runs to Weights & Biases: the config, every record at its step, and the results.

Each goes to the wandb run with the id in its config.json, so what was tracked while it ran, or uploaded before, is
completed rather than duplicated.
"""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.errors import UserError, one_line
from common.runs.files import locked
from common.runs.finding import find_runs
from common.runs.run import Run
from common.runs.tracking import open_tracker


@dataclass(frozen=True, kw_only=True)
class SyncArguments:
    """Upload existing runs, complete or not, to Weights & Biases; idempotent."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories that contain runs, at any depth."""
    wandb: Literal["online", "offline"] = "online"
    """offline writes files into the runs' directories, for `wandb sync`."""
    group: str | None = None
    """Weights & Biases group; by default WANDB_RUN_GROUP, or the one that the runs' own command would set."""


@dataclass(frozen=True)
class _Upload:
    """What is uploaded of a run."""

    run: Run
    group: str | None
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None
    """None if the run is not complete."""


def sync(arguments: SyncArguments) -> None:
    """Upload the runs, or write wandb's files. A damaged run is left out with a warning, unless it is named itself.

    Raises:
        UserError: before anything is uploaded: a directory does not exist, contains no run or is itself a damaged run,
            or a run is open in another process; or wandb's reason.
    """
    runs = dict.fromkeys(run for directory in arguments.runs for run in _runs_in(directory))
    uploads = []
    for run in runs:
        try:
            uploads.append(_upload_of(run, arguments.group))
        except UserError as error:
            if run.directory in arguments.runs:
                raise
            print(one_line(f"warning: {error}"), file=sys.stderr)
    for upload in uploads:
        with _locked(upload.run):
            pass
    for upload in uploads:
        with _locked(upload.run):
            _send(upload, arguments.wandb)
        print(one_line(f"{upload.run.directory}: {len(upload.records)} records"))


def _runs_in(directory: Path) -> list[Run]:
    runs = find_runs(directory)
    if not runs:
        raise UserError(f"there is no run in {directory}")
    return runs


def _locked(run: Run) -> Any:
    return locked(run.directory, f"another process is using {run.directory}: wait until it ends")


def _upload_of(run: Run, group: str | None) -> _Upload:
    arguments = run.config["arguments"]
    if "id" not in run.config:
        raise UserError(f"{run.directory / 'config.json'} has no id, by which wandb knows the run: add 16 hex digits")
    own_group = arguments.get("preset") if "methods" in arguments else None  # as distill.py
    group = group or os.environ.get("WANDB_RUN_GROUP") or own_group
    return _Upload(run, group, run.records(), run.summary if run.complete else None)


def _send(upload: _Upload, mode: Literal["online", "offline"]) -> None:
    directory, config = upload.run.directory, upload.run.config
    run = replace(upload.run, tracker=open_tracker(directory, config, mode, upload.group, silent=True))
    for record in upload.records:
        run.track(record)
    if upload.summary is not None:
        run.tracker.summary.update(upload.summary)
    run.tracker.finish(exit_code=1 if upload.summary is None else 0)
