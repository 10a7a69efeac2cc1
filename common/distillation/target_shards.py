"""Shards of a cache of targets: safetensors files with the targets of one checkpoint at consecutive training steps."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from common.distillation.targets import Fields, Stored, TargetKind, is_valid
from common.errors import UserError
from common.runs.files import json_object, open_to_read, read_file, to_safetensors

SHARD_BYTES = 1 << 25
"""Bytes of targets from which on those of all checkpoints are written."""
MOST_SHARD = 1 << 31
"""Bytes of the largest shard."""
MOST_HEADER = 1 << 16
"""Bytes of the largest header of a shard."""
ENTRY = "targets"
"""Of a shard's metadata."""
HASH_BYTES = 16
REMOVE = "remove it, and its targets are computed again"

StoredBatches = Mapping[tuple[int, int], tuple[bytes, Stored]]
"""By the training step and the number of the micro-batch: the hash of the batch, and the targets."""


class Shard:
    """Targets of one checkpoint at consecutive training steps, in memory.

    Args:
        digest: of the checkpoint.
        first: the first training step.
    """

    def __init__(self, digest: str, first: int) -> None:
        self.digest, self.steps = digest, range(first, first)
        self.nbytes = 0
        self.stored: dict[tuple[int, int], tuple[bytes, Stored]] = {}

    def extend(self, step: int) -> None:
        """Have the last step, or the one after it; it may have no targets."""
        self.steps = range(self.steps.start, step + 1)

    def add(self, step: int, part: int, batch: bytes, stored: Stored) -> None:
        """Add targets of a micro-batch of the last step, or of the one after it."""
        self.extend(step)
        self.stored[step, part] = batch, stored
        self.nbytes += stored.nbytes


def least_memory(step: int, steps: int) -> int:
    """Bytes of targets that a cache has in memory at a time, at least.

    Args:
        step: bytes of a training step.
        steps: number of steps.
    """
    return step * min(steps, 1 + SHARD_BYTES // max(step, 1))


def batch_hash(batch: Mapping[str, Any], positions: Tensor) -> bytes:
    """A hash of what a teacher's output on a micro-batch depends on.

    Args:
        batch: the model's arguments, preferably on the host; labels do not count.
        positions: of the labels.
    """
    hashed = hashlib.blake2b(digest_size=HASH_BYTES)
    for name, value in sorted({**batch, "positions": positions}.items()):
        if name != "labels":
            is_tensor = isinstance(value, Tensor)
            hashed.update(repr((name, tuple(value.shape), value.dtype) if is_tensor else (name, value)).encode())
            if is_tensor:
                hashed.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.digest()


def shard_content(kind: TargetKind, shard: Shard, identity: str, weights: str) -> bytes:
    """A shard as a file.

    Args:
        kind: of the targets.
        shard: of at least one step.
        identity: of the cache.
        weights: a digest of all values of the checkpoint's weights.
    """
    tensors = _joined(kind, shard.stored)
    classes = next((stored.classes for _, stored in shard.stored.values()), 0)
    metadata = {"identity": identity, "teacher": shard.digest, "weights": weights, "classes": classes}
    metadata |= {"steps": [shard.steps.start, shard.steps.stop], "checksum": _checksum(tensors)}
    return to_safetensors(tensors, {ENTRY: json.dumps(metadata)})  # as the order of several entries would vary


def read_shard(path: Path, metadata: Mapping[str, Any], kind: TargetKind, steps: range) -> StoredBatches:
    """The targets in a shard's file, checked.

    Args:
        path: of the file.
        metadata: from `read_metadata`.
        kind: of the targets.
        steps: that its name says.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    try:
        tensors = safetensors.numpy.load(read_file(path, REMOVE, MOST_SHARD))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError):
        raise damaged(path) from None
    if _checksum(tensors) != metadata.get("checksum"):
        raise damaged(path)
    stored = _separated(kind, metadata["classes"], tensors)
    if stored is None or any(step not in steps for step, _ in stored):
        raise damaged(path)
    return stored


def damaged(path: Path) -> UserError:
    """The error for a shard that is damaged."""
    return UserError(f"{path} is truncated or damaged: {REMOVE}")


def read_metadata(path: Path) -> dict[str, Any]:
    """What a shard says it is: `identity` of its cache, digests of the `teacher` and of all its `weights`, number of
    `classes`, first and last of the `steps`, `checksum`.

    The number of classes is 0 if it has no targets.

    Raises:
        UserError: it says nothing, or is truncated.
    """
    try:
        with open_to_read(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json_object(file.read(length)) if length <= MOST_HEADER else None
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise UserError(f"{path} has been removed: start again") from None
    entries = (header or {}).get("__metadata__")
    text = entries.get(ENTRY) if isinstance(entries, dict) else None
    metadata = json_object(text.encode()) if isinstance(text, str) and text.isascii() else None
    if metadata is None or type(metadata.get("classes")) is not int or size != 8 + length + _end(header or {}):
        raise damaged(path)
    return metadata


def _end(header: Mapping[str, Any]) -> int:
    """Bytes of all tensors, as a header says; -1 if it cannot be read."""
    try:
        return max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (TypeError, KeyError, IndexError):
        return -1


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.blake2b(digest_size=HASH_BYTES)
    for name, tensor in sorted(tensors.items()):
        hashed.update(repr((name, tensor.dtype.str, tensor.shape)).encode())
        hashed.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def _joined(kind: TargetKind, stored: StoredBatches) -> dict[str, np.ndarray]:
    """The tensors of a shard: the fields of all micro-batches one after another, and where each of them ends.

    None, if no micro-batch has a position.
    """
    if not stored:
        return {}
    every = [each for _, each in stored.values()]
    return {
        "places": np.array(list(stored), np.int64),
        "batches": np.frombuffer(b"".join(batch for batch, _ in stored.values()), np.uint8).reshape(-1, HASH_BYTES),
        "positions": np.array([each.positions for each in every], np.int64),
        "lengths": np.array([[len(each.fields[name]) for name in kind.fields] for each in every], np.int64),
        **{f"field.{name}": np.concatenate([each.fields[name] for each in every]) for name in kind.fields},
    }


def _separated(kind: TargetKind, classes: int, tensors: Fields) -> StoredBatches | None:
    """The inverse of `_joined`, for any tensors; None if they are not what it makes."""
    if not tensors:
        return {}
    names = [f"field.{name}" for name in kind.fields]
    if set(tensors) != {"places", "batches", "positions", "lengths", *names}:
        return None
    places, batches, positions, lengths = (tensors[name] for name in ("places", "batches", "positions", "lengths"))
    count = len(places) if places.ndim else 0
    shapes = {"places": (count, 2), "positions": (count,), "lengths": (count, len(names))}
    if any(tensors[name].dtype != np.int64 or tensors[name].shape != shape for name, shape in shapes.items()):
        return None
    if batches.dtype != np.uint8 or batches.shape != (count, HASH_BYTES) or any(not tensors[n].ndim for n in names):
        return None
    most = max(len(tensors[name]) for name in names)
    if not count or (lengths < 0).any() or (lengths > most).any() or (places < 0).any():
        return None
    ends = lengths.cumsum(0)
    if [len(tensors[name]) for name in names] != ends[-1].tolist():
        return None
    stored: dict[tuple[int, int], tuple[bytes, Stored]] = {}
    for i, (step, part) in enumerate(places.tolist()):
        starts = ends[i] - lengths[i]
        slices = zip(kind.fields, starts.tolist(), ends[i].tolist(), strict=True)
        fields = {name: tensors[f"field.{name}"][start:end] for name, start, end in slices}
        stored[step, part] = batches[i].tobytes(), Stored(kind, classes, int(positions[i]), fields)
        if not is_valid(stored[step, part][1]):
            return None
    return stored
