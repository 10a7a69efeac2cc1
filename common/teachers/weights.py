"""What a checkpoint's directory says about its weights without loading them: files, headers, digests of tensors.

A safetensors file begins with the length of its header, in 8 bytes, and the header in JSON: name, dtype, shape and
position of every tensor. A digest covers `SAMPLE` elements at the start, middle and end of a tensor, or all elements.
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
"""Number of elements compared at each of three places of a tensor."""
BLOCK = 1 << 22
"""Bytes read at a time when a whole tensor is read."""

FLOATS = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
"""Machine epsilon of each dtype that can be compared with another one."""
SMALLEST = 2.0**-24
"""Smallest positive number in float16; smaller ones are rounded to it or to zero."""


@dataclass(frozen=True)
class StoredTensor:
    """Location, dtype and shape of a tensor."""

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
        """Dtype and shape as text."""
        return f"{self.dtype} {list(self.shape)}"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all of which exist.

    Raises:
        UserError: it has no config.json or no weights, they are pickles or an adapter, or a shard is missing.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    shards = sorted(path.name for path in directory.glob("model-*-of-*.safetensors"))
    pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    has_weights = single.is_file() or index.is_file() or bool(shards)
    if is_adapter(directory):
        raise UserError(f"{directory} {ADAPTER}")
    if pickles and not has_weights:
        raise UserError(
            f"{directory} has only pickled weights ({listed(pickles)}): "
            f"convert them with `python -m common.teachers import {directory.parent} --out TEACHER`"
        )
    if not (directory / "config.json").is_file() or not has_weights:
        raise UserError(
            f"{directory} lacks config.json or model.safetensors: "
            "wait until it is saved, or choose others with --teacher-pattern"
        )
    if single.is_file():
        return [single]
    advice = "copy or download it again, or choose others with --teacher-pattern"
    parts = read_json(index, advice).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index} is damaged (no weight_map): {advice}")
    names = sorted(set(map(str, parts.values())))
    if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise UserError(f"{index} names {listed(outside)}, not a safetensors file beside it: {advice}")
    files = [directory / name for name in names]
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(f"{directory} lacks {listed(missing)}, which its index names: {advice}")
    return files


ADAPTER = (
    "is a PEFT adapter without the weights of its base model: "
    "merge them with PEFT's merge_and_unload() and give the result, saved with save_pretrained"
)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter but not the weights of a whole model."""
    return (directory / "adapter_config.json").is_file() and not any(directory.glob("model*.safetensors"))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, without their values.

    Raises:
        UserError: the file is truncated or damaged.
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
        raise UserError(f"{path} is truncated or damaged: it has no safetensors header") from None
    wanted = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != wanted:
        what = "is truncated" if size < wanted else "is damaged"
        raise UserError(f"{path} {what}: it has {size:,} bytes, but its header describes {wanted:,}")
    return tensors


def digest(tensor: StoredTensor, full: bool = False) -> str:
    """A digest of a tensor's dtype, shape and values at the sampled places, or everywhere."""
    hashed = hashlib.blake2b(tensor.kind.encode(), digest_size=16)
    for piece in _all_of(tensor) if full else _samples(tensor):
        hashed.update(piece)
    return hashed.hexdigest()


def same_up_to_rounding(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors differ only by rounding to one of their dtypes, at the sampled places."""
    if one.kind == other.kind:
        return digest(one) == digest(other)
    if one.shape != other.shape or not {one.dtype, other.dtype} <= FLOATS.keys():
        return False
    tolerance = (FLOATS[one.dtype] + FLOATS[other.dtype]) / 2
    pairs = zip(_samples(one), _samples(other), strict=True)
    values = ((_numbers(a, one.dtype), _numbers(b, other.dtype)) for a, b in pairs)
    return all(np.allclose(a, b, rtol=tolerance, atol=SMALLEST, equal_nan=True) for a, b in values)


def _samples(tensor: StoredTensor) -> Iterator[bytes]:
    """The first, middle and last elements of a tensor; all if they are few."""
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
