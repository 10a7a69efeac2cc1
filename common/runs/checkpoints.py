"""Checkpoints of a run: `checkpoint-<step>` directories that `from_pretrained` reads."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.runs.files import (
    NUMBER,
    digest_of,
    read_json,
    read_safetensors,
    sampled_digest,
    to_json,
    to_safetensors,
    write_directory,
)


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, object],
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Write `checkpoint-<step>` into a run's directory.

    An existing checkpoint is replaced; it is there if the run was stopped after it and resumed from an earlier state.

    Args:
        tensors: the model's weights by name, of any shape and memory order.
        config: what is needed to build the model, as JSON values.
        more: other files, such as a tokenizer's.

    Raises:
        OSError: an existing checkpoint of this step is intact.
    """
    files = {"config.json": to_json(config), "model.safetensors": to_safetensors(tensors)}
    write_directory(run / f"checkpoint-{step}", {**files, **(more or {})})


def number_of_checkpoints(steps: int, every: int, first: int = 0) -> int:
    """How many checkpoints a run saves: one `every` steps, from step `first` on, and the final one; 0 is only that."""
    return 1 + (max(steps - 1, 0) // every - max(first - 1, 0) // every if every > 0 and first < steps else 0)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and weights of the checkpoint in directory `path`, as a run of ours saved them.

    Those of teachers, which may come from elsewhere, are read by `common.teachers`.

    Raises:
        UserError: a file is missing, truncated, damaged, or of a type that NumPy does not have (bfloat16).
    """
    advice = f"remove {path} and save the checkpoint again"
    return read_json(path / "config.json", advice), read_safetensors(path / "model.safetensors", advice)


def saved_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints in a run's directory, by step."""
    found = ((re.fullmatch(f"checkpoint-{NUMBER}", path.name), path) for path in run.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in found if match}


CONFIGS = ("config.json", "adapter_config.json")
"""Files of a checkpoint that say what its weights are of."""


def checkpoint_digests(run: Path, step: int) -> dict[str, str]:
    """A digest of each checkpoint up to a step, by its directory's name: of the names of its weights and configs, and
    the `file_digest` of each."""
    digests = {}
    for saved, path in sorted(saved_checkpoints(run).items()):
        if saved <= step:
            own = sorted(file for file in path.glob("*") if file.suffix == ".safetensors" or file.name in CONFIGS)
            digests[path.name] = digest_of([[file.name, file_digest(file)] for file in own if file.is_file()])
    return digests


def file_digest(file: Path) -> str:
    """The `sampled_digest` of a file, computed again only if it was modified."""
    state = file.stat()
    return _digest(file, state.st_ino, state.st_mtime_ns)


@functools.cache
def _digest(path: Path, inode: int, modified: int) -> str:
    return sampled_digest(path)
