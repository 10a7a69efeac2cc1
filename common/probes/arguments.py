"""Arguments that all probes of checkpoints have. Importing this must stay cheap, as every command starts with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class ProbedArguments:
    """Whose checkpoints are probed. A run says what its task is; for any other teacher, it is given."""

    run: Path
    """Directory of a run of train.py or distill.py; or any other teacher, a directory with checkpoints or a hub id,
    whose task must then be given."""
    teacher_pattern: str | None = None
    """Regular expression of the names of checkpoints, with a group step; by default the usual names are known."""
    out: Path | None = None
    """File of the results; by default one in the run's directory, or in runs/<setting>/probes-of-<teacher>/."""

    required: ClassVar[tuple[str, ...]] = ()
    """Arguments of a task that must be given for a teacher that is not a run."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Its other arguments, and what they are unless they are given."""
