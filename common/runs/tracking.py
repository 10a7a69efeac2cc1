"""Weights & Biases: the wandb run that mirrors one of our runs."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.runs.files import remove

WandbMode = Literal["offline", "online", "disabled"]


def open_tracker(
    directory: Path,
    config: Mapping[str, Any],
    mode: Literal["offline", "online"],
    group: str | None,
    silent: bool = False,
) -> AbstractContextManager[Any]:
    """The wandb run that mirrors a run, identified by the id in its config; it needs every record from the first on.

    Online, wandb keeps what it has, and `starting_step` is the first step that it lacks. An offline run replaces
    everything when it is uploaded, so there must be a single, complete one: those of earlier sessions are removed.

    Args:
        directory: the run's; wandb writes its files there.
        mode: over the network, or to files.
        group: under which wandb shows it together with other runs.
        silent: whether wandb prints nothing.

    Raises:
        UserError: with wandb's reason.
    """
    import wandb

    if mode == "offline":
        for earlier in directory.glob(f"wandb/offline-run-*-{config['id']}"):
            remove(earlier)
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "progressive-distillation"),
            group=group,
            name=directory.name,
            id=config["id"],
            resume="allow",
            reinit="create_new",
            config=config["arguments"],
            dir=directory,
            mode=mode,
            settings=wandb.Settings(console="off", silent=silent),
        )
    except wandb.Error as error:
        raise UserError(f"wandb: {str(error).rstrip('.')}; --wandb offline needs no connection") from error
