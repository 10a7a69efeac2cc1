"""In which arguments a command differs from a run that it would resume, in words."""

from collections.abc import Mapping
from typing import Any

from common.runs.names import EXECUTION_ARGUMENTS

LONGEST = 60
"""Characters of a value within a line."""

CONTENT = {
    "teacher_id": ("teacher", "the teacher was trained again since"),
    "rules": ("grammar", "the grammar's rules have changed"),
    "dataset_digest": ("dataset", "the dataset has changed"),
    "documents": ("corpus", "the text of the corpus has changed"),
    "tokenizer_sha256": ("tokenizer", "the tokenizer has changed"),
}
"""Entries that stand for the content of what another argument names, and what it means that they alone differ."""


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs in two runs' arguments, `EXECUTION_ARGUMENTS` aside; one that a run lacks may be None in another.

    Args:
        there: of the run that exists, by name.
        here: of the command.
    """
    names = [
        name
        for name in {**here, **there}
        if name not in EXECUTION_ARGUMENTS and (name not in here or there.get(name) != here[name])
    ]
    lines = []
    for name in names:
        source, change = CONTENT.get(name, (name, ""))
        if change and source in names:  # that is the difference
            continue
        is_change = change and isinstance(there.get(name), str | list) and isinstance(here.get(name), str | list)
        was, now = (shortened(values.get(name, "absent")) for values in (there, here))
        lines.append(change if is_change else f"{name} is {was} there and {now} here")
    return lines


def shortened(value: object) -> str:
    """A value as text, cut if it is long."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
