"""What a checkpoint's directory says about its weights without loading them: files, headers, digests of tensors.

A safetensors file begins with the length of its header, in 8 bytes, and the header in JSON: name, dtype, shape and
position of every tensor, which together fill the rest of the file. A digest covers `SAMPLE` elements at the start,
middle and end of a tensor, or all elements.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError, listed
from common.runs.files import read_json

SAMPLE = 1024
"""Number of elements compared at each of three places of a tensor."""
BLOCK = 1 << 22
"""Bytes read at a time when a whole tensor is read."""
MOST_HEADER_BYTES = 100_000_000
"""Length of the longest header, as in safetensors."""
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "C64": 8, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
"""Bytes of a number of each dtype."""

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
    has_config = (directory / "config.json").is_file()
    if lacking := [*["config.json"][has_config:], *["model.safetensors"][has_weights:]]:
        raise UserError(
            f"{directory} lacks {listed(lacking)}: finish saving or copying it, move it away, or leave it out with "
            "--teacher-pattern"
        )
    if single.is_file():
        return [single]
    advice = "copy or download it again, or choose others with --teacher-pattern"
    parts = read_json(index, advice).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index} is damaged (no weight_map): {advice}")
    names = sorted(set(map(str, parts.values())))
    if outside := [f"{name:.80}" for name in names if not is_beside(name, ".safetensors")]:
        raise UserError(f"{index} names {listed(outside)}, not a safetensors file beside it: {advice}")
    files = [directory / name for name in names]
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(f"{directory} lacks {listed(missing)}, which its index names: {advice}")
    return files


def is_beside(name: str, suffix: str) -> bool:
    """Whether a name in an index is that of a file with this suffix in the index's own directory."""
    return Path(name).name == name and name.endswith(suffix) and len(name) < 256


ADVICE = "save or download it again"
"""On files that are damaged."""
ADAPTER = (
    "is a PEFT adapter without the weights of its base model: "
    "merge them with PEFT's merge_and_unload() and give the result, saved with save_pretrained"
)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter but not the weights of a whole model."""
    return (directory / "adapter_config.json").is_file() and not any(directory.glob("model*.safetensors"))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, in the order of their positions, without their values.

    Raises:
        UserError: the file is truncated or damaged, or its header is inconsistent: names that occur twice, positions
            that overlap or leave gaps, a shape that does not have the tensor's bytes.
    """
    with path.open("rb") as file:
        return header_of(file, path)


def header_of(file: BinaryIO, path: Path) -> dict[str, StoredTensor]:
    """Like `read_header`, from the beginning of an open file."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length) if length <= min(size - 8, MOST_HEADER_BYTES) else b""
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_without_duplicates)
        metadata = entries.pop("__metadata__", None)
        tensors = {name: _stored(path, 8 + length, name, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is truncated or damaged: it has no safetensors header; {ADVICE}") from None
    if metadata is not None and not _is_text(metadata):
        raise UserError(f"{path} is damaged: its metadata is not text; {ADVICE}")
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 8 + length
    for name, tensor in tensors.items():
        if tensor.dtype not in ITEM_BYTES:
            raise UserError(f"{path} has {name} in the dtype {tensor.dtype}: save it in float32")
        needed = tensor.elements * ITEM_BYTES[tensor.dtype]
        if tensor.end - tensor.begin != needed:
            has = f"has {tensor.end - tensor.begin:,} bytes, but {tensor.kind} needs {needed:,}"
            raise UserError(f"{path} is damaged: {name} {has}; {ADVICE}")
        if tensor.begin != end:
            raise UserError(f"{path} is damaged: tensors in it overlap or leave gaps, such as {name}; {ADVICE}")
        end = tensor.end
    if size != end:
        what = "is truncated" if size < end else "is damaged"
        raise UserError(f"{path} {what}: it has {size:,} bytes, but its header describes {end:,}; {ADVICE}")
    return tensors


def _is_text(metadata: object) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _stored(path: Path, data: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    """An entry of a header whose data begins at byte `data`; raises ValueError if it is not one."""
    (begin, end), dtype, shape = entry["data_offsets"], entry["dtype"], entry["shape"]
    name.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
    is_list = isinstance(shape, list) and isinstance(entry["data_offsets"], list)
    if not is_list or not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise ValueError(name)
    if math.prod(max(n, 1) for n in shape) >= 2**60:  # also of an empty tensor
        raise ValueError(name)
    return StoredTensor(path, data + begin, data + end, dtype, tuple(shape))


def digest(tensor: StoredTensor, full: bool = False) -> str:
    """A digest of a tensor's dtype, shape and values at the sampled places, or everywhere."""
    hashed = hashlib.blake2b(tensor.kind.encode(), digest_size=16)
    for piece in _all_of(tensor) if full else _samples(tensor):
        hashed.update(piece)
    return hashed.hexdigest()


def is_finite(tensor: StoredTensor, full: bool = False) -> bool:
    """Whether no value is NaN or infinite, at the sampled places or everywhere; True for tensors of integers."""
    if tensor.dtype not in FLOATS:
        return True
    pieces = _all_of(tensor) if full else _samples(tensor)
    return all(np.isfinite(_numbers(piece, tensor.dtype)).all() for piece in pieces)


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
