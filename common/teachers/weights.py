"""What a checkpoint's directory says of its weights without loading them: files, headers, digests of tensors.

A safetensors file begins with the length of its header, in 8 bytes, and the header in JSON: name, dtype, shape and
place of every tensor. A digest covers `SAMPLE` elements at the start, in the middle and at the end of a tensor, or all.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError, listed
from common.runs.files import read_json

SAMPLE = 1024
"""Elements at each of the three places of a tensor that are compared."""
BLOCK = 1 << 22
"""Bytes that are read at a time when all of a tensor is."""

FLOATS = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
"""Distance from 1 to the next number of each dtype that is compared with another one."""
SMALLEST = 2.0**-24
"""Numbers below the smallest one of float16 are rounded to it or to zero."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and of what kind."""

    file: Path
    begin: int
    end: int
    dtype: str
    """As in safetensors: F32, BF16, ..."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """Dtype and shape, as a message names them."""
        return f"{self.dtype} {list(self.shape)}"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all of which exist.

    Raises:
        UserError: it has no config.json or no weights, they are a pickle or an adapter, or a shard is missing.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    shards = sorted(path.name for path in directory.glob("model-*-of-*.safetensors"))
    pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    has_weights = single.is_file() or index.is_file() or bool(shards)
    if is_adapter(directory):
        raise UserError(f"{directory} {ADAPTER}")
    if pickles and not has_weights:
        raise UserError(
            f"{directory} has its weights only as pickles ({listed(pickles)}): "
            f"`python -m common.teachers import {directory.parent} --out TEACHER` converts them"
        )
    if not (directory / "config.json").is_file() or not has_weights:
        raise UserError(
            f"{directory} lacks config.json or model.safetensors: "
            "let its run finish it, or choose others with --teacher-pattern"
        )
    if single.is_file():
        return [single]
    advice = "complete it by a copy or a download, or choose others with --teacher-pattern"
    parts = read_json(index, advice).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index} is damaged, it has no weight_map: {advice}")
    files = [directory / name for name in sorted(set(parts.values()))]
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(f"{directory} lacks {listed(missing)}, which its index names: {advice}")
    return files


ADAPTER = (
    "is a PEFT adapter without the weights of its model: give a model, "
    "such as what PEFT's merge_and_unload() makes of it, saved with save_pretrained"
)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter and not all of a model's weights."""
    return (directory / "adapter_config.json").is_file() and not any(directory.glob("model*.safetensors"))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, without their values.

    Raises:
        UserError: the file is cut or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size - 8 else b""
    tensors = {}
    try:
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                tensors[name] = StoredTensor(path, begin, end, entry["dtype"], tuple(entry["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is cut or damaged: it has no header of safetensors") from None
    wanted = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != wanted:
        what = "is cut" if size < wanted else "is damaged"
        raise UserError(f"{path} {what}: it has {size:,} bytes, and its header describes {wanted:,}")
    return tensors


def digest(tensor: StoredTensor, full: bool = False) -> str:
    """A digest of a tensor's dtype, shape and values at the sampled places, or everywhere."""
    hashed = hashlib.blake2b(tensor.kind.encode(), digest_size=16)
    for piece in _all_of(tensor) if full else _samples(tensor):
        hashed.update(piece)
    return hashed.hexdigest()


def same_up_to_rounding(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors differ by no more, at the sampled places, than by rounding to one of their dtypes."""
    if one.kind == other.kind:
        return digest(one) == digest(other)
    if one.shape != other.shape or not {one.dtype, other.dtype} <= FLOATS.keys():
        return False
    tolerance = (FLOATS[one.dtype] + FLOATS[other.dtype]) / 2
    pairs = zip(_samples(one), _samples(other), strict=True)
    values = ((_numbers(a, one.dtype), _numbers(b, other.dtype)) for a, b in pairs)
    return all(np.allclose(a, b, rtol=tolerance, atol=SMALLEST, equal_nan=True) for a, b in values)


def _samples(tensor: StoredTensor) -> Iterator[bytes]:
    """The first elements of a tensor, those in its middle and the last ones; all, if they are few."""
    count = tensor.elements
    if count == 0:
        return
    width = max(1, (tensor.end - tensor.begin) // count)
    firsts = [0] if count <= 3 * SAMPLE else [0, (count - SAMPLE) // 2, count - SAMPLE]
    length = (count if len(firsts) == 1 else SAMPLE) * width
    descriptor = os.open(tensor.file, os.O_RDONLY)
    try:
        for first in firsts:
            yield os.pread(descriptor, length, tensor.begin + first * width)
    finally:
        os.close(descriptor)


def _all_of(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.begin)
        for at in range(tensor.begin, tensor.end, BLOCK):
            yield file.read(min(BLOCK, tensor.end - at))


def _numbers(piece: bytes, dtype: str) -> NDArray[np.float64]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(piece, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(piece, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)
