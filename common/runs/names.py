"""Where runs are stored, and the default name of a run: its preset and every argument that differs from the preset."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
RUNS = ROOT / "runs"

EXECUTION_ARGUMENTS = ("out", "force", "device", "wandb", "trust_trajectory", "memory", "cache_teacher")
"""Arguments that say where and how a run is executed, rather than what it computes."""


def default_name(
    arguments: "DataclassInstance",
    preset: "DataclassInstance",
    name: str,
    exclude: Collection[str] = EXECUTION_ARGUMENTS,
) -> str:
    """A run's name: the preset's, then each argument that differs from it; `laptop-lr0.01-method=one_shot-seed1`.

    Different arguments never give the same name, nor names that differ only in case. A name longer than 200 bytes is
    cut and ends in a hash of all of it.

    Args:
        arguments: None, numbers, strings, paths, and lists or tuples of these.
        preset: the same dataclass with the preset's values; field names are in lower case.
        name: the preset's.
        exclude: arguments that are left out.

    Raises:
        TypeError: an argument has another type.
    """
    for field in dataclasses.fields(arguments):
        value = _argument_text(getattr(arguments, field.name))
        if field.name not in exclude and value != _argument_text(getattr(preset, field.name)):
            bare = value[0].isdigit() and not re.search("[0-9]", field.name)
            name += f"-{field.name}{'' if bare else '='}{value}"
    if len(name) <= 200:
        return name
    return f"{name[:167]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _argument_text(value: object) -> str:
    """An argument within a run's name; sequences are joined by commas, with a trailing one if shorter than two."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_value_text, value)) + ("," if len(value) < 2 else "")
    return _value_text(value)


def _value_text(value: Any) -> str:
    """A single value within a run's name; different values give different texts.

    In strings `-` and `/` become `_` and `+`, and everything but a-z, 0-9 and `.` is written as %hex; so is the first
    letter of a string that would look like a number or a constant. The empty string is `%`.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return str(value).lower()
    text = re.sub("[^a-z0-9.]", lambda match: {"-": "_", "/": "+"}.get(match[0], _hex(match[0])), os.fspath(value))
    if text in ("none", "true", "false", "inf", "nan") or text[:1].isdigit():
        text = _hex(text[0]) + text[1:]
    return text or "%"


def _hex(letter: str) -> str:
    return "".join(f"%{byte:02x}" for byte in os.fsencode(letter))
