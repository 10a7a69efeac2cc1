"""Whether the files of a run are what this code wrote: a config.json that can be used, and records with numbers."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.files import NUMBER, find_json

OWN_FILES = (
    rf"(config|done)\.json|metrics\.jsonl|checkpoint-{NUMBER}|resume|probes|wandb|\.(probes\.)?lock|\..*\.unfinished"
)
"""Names in the directory of a run."""

MOST_SECONDS = 1e12
"""Time beyond what Python can show."""


def is_damaged(directory: Path) -> bool:
    """Whether a directory is a run, by its config.json or by the names of all its files, but config.json is damaged."""
    if not (directory / "config.json").is_file():
        return False
    config = find_json(directory / "config.json")
    if config is not None:
        return "arguments" in config and not is_valid_config(config)
    names = {path.name for path in directory.iterdir()}
    return "metrics.jsonl" in names and all(re.fullmatch(OWN_FILES, name) for name in names)


def require_undamaged(directory: Path) -> None:
    """Reject a run whose config.json is damaged.

    Raises:
        UserError: names the file.
    """
    if is_damaged(directory):
        raise UserError(f"{directory / 'config.json'} is damaged: to start over, rerun its command with --force")


def is_valid_config(config: Mapping[str, Any]) -> bool:
    """Whether the entries of a run's config, those that there are, have the right types."""
    kinds: dict[str, Any] = {"setting": str, "argv": list, "arguments": dict, "versions": dict, "id": str}
    kinds |= {"commit": str | None, "seconds": int | float, "teacher_checkpoints": dict}
    if not all(isinstance(config[name], kind) for name, kind in kinds.items() if name in config):
        return False
    return (
        all(isinstance(word, str) for word in config.get("argv", ()))
        and all(step.isdecimal() for step in config.get("teacher_checkpoints", ()))
        and 0 <= config.get("seconds", 0) < MOST_SECONDS
    )


def is_valid_record(record: Mapping[str, Any]) -> bool:
    """Whether a record has a step, and numbers or null for its loss and its accuracy."""
    step = record.get("step")
    measured = [record[name] for name in ("loss", "accuracy") if record.get(name) is not None]
    return isinstance(step, int) and step >= 0 and all(map(_is_number, [step, *measured]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
