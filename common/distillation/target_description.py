"""targets.json of a cache of targets: what the targets depend on, compared with what a student needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, listed
from common.runs.files import read_json, to_json

DESCRIPTION = "targets.json"
FORMAT = 1


def described(facts: Mapping[str, Any]) -> bytes:
    """The content of the file."""
    return to_json({"format": FORMAT, **facts})


def require_same(directory: Path, facts: Mapping[str, Any]) -> None:
    """Refuse the targets of a directory, if there are any, that are not described by these facts.

    Raises:
        UserError: says what differs; or the description is damaged.
    """
    path = directory / DESCRIPTION
    if not path.exists():
        return
    there = read_json(path, "restore it, or give another directory")
    if there.get("format") != FORMAT:
        raise UserError(f"{path} is of another version: give another directory")
    if there != {"format": FORMAT, **facts}:
        raise UserError(f"{directory} holds other targets: {differing(there, facts)}; give another directory")


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs in two descriptions, in words."""
    pairs = [(name, there.get(name), here.get(name)) for name in here if name != "data"]
    theirs, ours = (values.get("data") for values in (there, here))
    if isinstance(theirs, dict) and isinstance(ours, dict):
        pairs += [(name, theirs.get(name), ours.get(name)) for name in {**ours, **theirs}]
    lines = [f"{name} is {_short(was)} there and {_short(now)} here" for name, was, now in pairs if was != now]
    return listed(lines, 3) or "their description differs"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
