"""Find the runs behind a figure by the names that the commands give them."""

import re
from pathlib import Path

from common.errors import UserError
from common.runs import Run


def complete_run(directory: Path, made_by: str) -> Run:
    """The run in a directory.

    Args:
        directory: of the run.
        made_by: the command that makes it.

    Raises:
        UserError: there is no complete run; the message names the command.
    """
    run = Run(directory)
    if not run.complete:
        raise UserError(f"there is no complete run in {directory}; make it by {made_by}")
    return run


def runs_of_all_seeds(root: Path, prefix: str, made_by: str) -> list[Run]:
    """The runs `root/<prefix>-seed<n>`, by seed: made with the preset as it is, as their name ends there.

    Args:
        root: directory of runs.
        prefix: of their names.
        made_by: the command that makes them.

    Raises:
        UserError: there is none, or one is not complete; the message names the command.
    """
    found = {
        int(match[1]): path
        for path in root.glob(f"{prefix}-seed*")
        if (match := re.fullmatch(r"-seed(\d+)", path.name[len(prefix) :]))
    }
    if not found:
        raise UserError(f"no run {root / prefix}-seed*; make it by {made_by}")
    return [complete_run(found[seed], made_by) for seed in sorted(found)]
