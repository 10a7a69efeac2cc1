"""What a killed run resumes from: `resume/<step>` in its directory, with state.json and tensors.safetensors."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.runs.files import NUMBER, read_json, read_safetensors, remove, to_json, to_safetensors, write_directory

RESUME_SECONDS = 10.0
"""Least time between two writes of the resume state. It only affects how much a killed run repeats, not results."""
RESUME_SHARE = 0.02
"""Largest fraction of the time that these writes may take."""


@dataclass(frozen=True)
class Resume:
    """A resume state as it was saved."""

    step: int
    """Steps done when it was saved."""
    tensors: dict[str, np.ndarray]
    """Weights and optimiser moments, by name."""
    state: dict[str, Any]
    """Everything else that training depends on: counters, states of random number generators."""


class ResumeClock:
    """Says when a resume state is due: every `RESUME_SECONDS`, or less often if writing it takes long."""

    def __init__(self) -> None:
        self._saved, self._cost = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= max(RESUME_SECONDS, self._cost / RESUME_SHARE)

    def saved(self, seconds: float) -> None:
        """To be called after a state was written, with the time it took."""
        self._saved, self._cost = time.monotonic(), seconds


def save_resume(run: Path, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, object]) -> None:
    """`add_resume`, then `keep_resume`: write the resume state of `step`, and remove those of other steps."""
    add_resume(run, step, tensors, state)
    keep_resume(run, step)


def add_resume(run: Path, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, object]) -> None:
    """Write the resume state of `step`, next to those of other steps, which `keep_resume` removes.

    Runs that share a pass first add their states, one after another, and then remove the earlier ones, so that at any
    moment there is a step for which all of them have a state.

    Args:
        run: its directory.
        step: steps done, the name of the state's directory.
        tensors: arrays by name, of any shape and memory order.
        state: JSON values; numbers are restored exactly, tuples as lists.

    Raises:
        OSError: the previous states are intact.
    """
    files = {"state.json": to_json(state), "tensors.safetensors": to_safetensors(tensors)}
    write_directory(run / "resume" / str(step), files)


def keep_resume(run: Path, step: int) -> None:
    """Remove the resume states of all other steps."""
    for other in _resume_directories(run):
        if int(other.name) != step:
            remove(other)


def resume_steps(run: Path) -> list[int]:
    """Steps with a complete resume state, in increasing order."""
    complete = {"state.json", "tensors.safetensors"}
    return sorted(int(path.name) for path in _resume_directories(run) if complete <= set(os.listdir(path)))


def load_resume(run: Path, step: int | None = None) -> Resume | None:
    """The resume state of `step`, by default the newest; None if there is no complete one.

    Raises:
        UserError: one of its files is damaged.
    """
    steps = resume_steps(run)
    if not steps or step not in (None, *steps):
        return None
    chosen = run / "resume" / str(steps[-1] if step is None else step)
    advice = "start over with --force"
    tensors = read_safetensors(chosen / "tensors.safetensors", advice)
    return Resume(int(chosen.name), tensors, read_json(chosen / "state.json", advice))


def _resume_directories(run: Path) -> list[Path]:
    return [path for path in run.glob("resume/*") if re.fullmatch(NUMBER, path.name)]
