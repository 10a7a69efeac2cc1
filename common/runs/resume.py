"""What a killed run resumes from: `resume/<step>` in its directory, with state.json and tensors.safetensors.

state.json also has the step, a digest of the tensors, the length and a digest of the records so far, a digest of each
checkpoint so far, and one of all this. A run whose files do not match them is not resumed: it would end with other
results.
"""

import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.runs.checkpoints import checkpoint_digests, saved_checkpoints
from common.runs.files import (
    NUMBER,
    digest_of,
    open_to_read,
    read_file,
    read_json,
    read_safetensors,
    remove,
    to_json,
    to_safetensors,
    write_directory,
)

ADVICE = "start over with --force"

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
    length: int
    """Bytes of metrics.jsonl when it was saved."""


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
    moment there is a step for which all of them have a state. A state of this step that exists is left as it is: the
    run was resumed from it.

    Args:
        run: its directory, with the records and checkpoints up to this step.
        step: steps done, the name of the state's directory.
        tensors: arrays by name, of any shape and memory order.
        state: JSON values; numbers are restored exactly, tuples as lists.

    Raises:
        OSError: the previous states are intact.
    """
    if step in resume_steps(run):
        return
    content, records = to_safetensors(tensors), _records(run)
    facts = {
        "step": step,
        "state": dict(state),
        "tensors": hashlib.sha256(content).hexdigest(),
        "records": {"length": len(records), "digest": hashlib.sha256(records).hexdigest()},
        "checkpoints": checkpoint_digests(run, step),
    }
    files = {"state.json": to_json({"digest": digest_of(facts), **facts}), "tensors.safetensors": content}
    remove(run / "resume" / str(step))  # incomplete, if it exists
    write_directory(run / "resume" / str(step), files)


def keep_resume(run: Path, step: int) -> None:
    """Remove the resume states of all other steps."""
    for other in _resume_directories(run):
        if int(other.name) != step:
            remove(other)


def drop_later(run: Path, step: int) -> None:
    """Remove the resume states and the checkpoints after a step; -1 removes all."""
    for state in _resume_directories(run):
        if int(state.name) > step:
            remove(state)
    for saved, checkpoint in saved_checkpoints(run).items():  # later, as a state needs its checkpoints
        if saved > step:
            remove(checkpoint)


def resume_steps(run: Path) -> list[int]:
    """Steps with a complete resume state, in increasing order."""
    complete = {"state.json", "tensors.safetensors"}
    return sorted(int(path.name) for path in _resume_directories(run) if complete <= set(os.listdir(path)))


def load_resume(run: Path, step: int | None = None) -> Resume | None:
    """The resume state of `step`, by default the newest; None if there is no complete one.

    Raises:
        UserError: there are only incomplete ones, a file is damaged or of another step, or the records or the
            checkpoints up to this step are not those that the run had when it was saved.
    """
    steps = resume_steps(run)
    if not steps and (incomplete := _resume_directories(run)):
        raise UserError(f"{incomplete[0]} lacks state.json or tensors.safetensors: restore it, or {ADVICE}")
    if not steps or step not in (None, *steps):
        return None
    chosen = run / "resume" / str(steps[-1] if step is None else step)
    facts = read_json(chosen / "state.json", ADVICE)
    file = chosen / "state.json"
    if "digest" not in facts:
        raise UserError(f"{file} is damaged, or an earlier version wrote it: {ADVICE}")
    if facts.pop("digest") != digest_of(facts) or facts["step"] != int(chosen.name):
        raise UserError(f"{file} is damaged: {ADVICE}")
    with open_to_read(chosen / "tensors.safetensors") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != facts["tensors"]:
            raise UserError(f"{chosen / 'tensors.safetensors'} is damaged: {ADVICE}")
    length = facts["records"]["length"]
    if hashlib.sha256(_records(run)[:length]).hexdigest() != facts["records"]["digest"]:
        raise UserError(f"{run / 'metrics.jsonl'} has lost records or was edited: {ADVICE}")
    saved, found = facts["checkpoints"], checkpoint_digests(run, facts["step"])
    for name in sorted(saved.keys() | found.keys()):
        if name not in found:
            raise UserError(f"{run / name} is missing: restore it, or {ADVICE}")
        if found[name] != saved.get(name):
            raise UserError(f"{run / name} is not the checkpoint that this run saved: restore it, or {ADVICE}")
    tensors = read_safetensors(chosen / "tensors.safetensors", ADVICE)
    return Resume(facts["step"], tensors, facts["state"], length)


def _records(run: Path) -> bytes:
    """The content of metrics.jsonl, which may not exist yet."""
    path = run / "metrics.jsonl"
    return read_file(path, ADVICE) if path.exists() else b""


def _resume_directories(run: Path) -> list[Path]:
    return [path for path in run.glob("resume/*") if path.is_dir() and re.fullmatch(NUMBER, path.name)]
