"""The command that checks a teacher's checkpoints: whether they can be read, and belong to their steps."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from transformers import CONFIG_MAPPING

from common.errors import UserError, listed
from common.teachers.configs import config_of
from common.teachers.discovery import named_checkpoints
from common.teachers.trajectory import Contents, Finding, findings, named, read_contents


@dataclass(frozen=True, kw_only=True)
class CheckArguments:
    """Check a teacher's checkpoints without loading or downloading them: truncated or missing files, a config.json that
    is invalid or changes, tensors that change their shapes, weights that repeat those of another step, and another step
    in trainer_state.json. Two weight files that were exchanged are not recognised.

    The exit code is 0 if nothing is found, else 2.
    """

    teacher: Annotated[str, tyro.conf.Positional]
    """A directory, or a model's id on the Hugging Face hub."""
    full: bool = False
    """Compare every value of the tensors in local checkpoints, not only samples."""
    teacher_pattern: str | None = None
    """Regular expression for checkpoint names, with a group named step."""


def check(arguments: CheckArguments) -> None:
    """Print a summary and the findings.

    Raises:
        UserError: there are findings, or no checkpoints.
    """
    contents = read_contents(named_checkpoints(arguments.teacher, arguments.teacher_pattern), arguments.full)
    found = [*findings(contents), *_of_configs(contents)]
    print("\n".join([*summary(contents), *(finding.line for finding in found)]), flush=True)
    if found:
        raise UserError(f"{arguments.teacher}: {len(found):,} finding{'s' * (len(found) > 1)} in its checkpoints")


def _of_configs(contents: Sequence[Contents]) -> Iterator[Finding]:
    """Why transformers can make no model by a config.json of a model type that it knows."""
    refused: dict[str, list[int]] = defaultdict(list)
    for entry in contents:
        kind = entry.config.get("model_type")
        if not entry.problem and isinstance(kind, str) and kind in CONFIG_MAPPING:
            try:
                config_of(entry.config, "config.json")
            except UserError as error:
                refused[str(error)].append(entry.step)
    for reason, steps in refused.items():
        yield Finding(tuple(steps), f"{named(steps)}: {reason}")


def summary(contents: Sequence[Contents]) -> list[str]:
    """Lines that describe the checkpoints, and the model in the last one that can be read."""
    last = next((entry for entry in reversed(contents) if not entry.problem), Contents(contents[-1].step))
    architectures = last.config.get("architectures") or [last.config.get("model_type", "unknown")]
    parameters = sum(last.parameters.values())
    described = {
        "checkpoints": f"{len(contents):,}",
        "steps": " to ".join(map(str, sorted({contents[0].step, contents[-1].step}))),
        "architecture": listed(architectures),
        "dtype": listed(last.parameters) or "unknown",
        "parameters": f"{parameters:,}" if parameters else "unknown",
        "vocabulary": str(last.config.get("vocab_size", "none")),
    }
    return [f"{name:12}  {value}" for name, value in described.items()]
