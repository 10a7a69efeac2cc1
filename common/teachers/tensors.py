"""The weights of a teacher's checkpoint, read into memory, and what is required of them and of what they predict.

This is the only way from a checkpoint's files to its weights: safetensors files in its directory, never a pickle. Files
are read, not mapped: a file that another process truncates while it is mapped kills this process.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from common.errors import UserError
from common.teachers.weights import header_of, weight_files

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "I64": torch.int64, "I32": torch.int32},
    **{"I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16},
    "U8": torch.uint8,
}
"""Of safetensors, in torch."""
ADVICE = "leave this checkpoint out, with --teacher-pattern, or save it again"


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, each in memory of its own, in the dtypes in which they were saved.

    Raises:
        UserError: a file is missing, truncated or damaged, changes while it is read, or holds a name of another one; or
            the weights are pickled.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory):
        more = _read(file)
        if twice := tensors.keys() & more.keys():
            raise UserError(f"{file} has {min(twice)}, which another file of {directory} has too: save it again")
        tensors |= more
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    changed = UserError(f"{path} changes while it is read: wait until it is saved, and start again")
    with path.open("rb", buffering=0) as file:
        before = _state(file)
        header = header_of(file, path)
        tensors = {}
        for name, stored in header.items():
            if stored.dtype not in DTYPES:
                raise UserError(f"{path} has {name} in the dtype {stored.dtype}: save it in float32")
            tensors[name] = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
            if stored.end > stored.begin and not _fill(tensors[name], file, stored.begin):
                raise changed
        if _state(file) != before or header_of(file, path) != header:
            raise changed
    return tensors


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _fill(tensor: Tensor, file: BinaryIO, position: int) -> bool:
    """Fill a tensor with a file's bytes from a position on; whether the file has that many."""
    rest = tensor.reshape(-1).view(torch.uint8).numpy().data
    while rest:
        count = os.preadv(file.fileno(), [rest], position)
        if count == 0:
            return False
        rest, position = rest[count:], position + count
    return True


def require_finite_weights(tensors: Mapping[str, Tensor], owner: object) -> None:
    """Reject weights that are NaN or infinite.

    Args:
        tensors: by name.
        owner: the checkpoint, for the message.

    Raises:
        UserError: names the checkpoint and the first of them.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise UserError(f"{owner} has weights that are NaN or infinite, such as {name}: {ADVICE}")


def require_finite_logits(logits: Tensor, owner: object) -> None:
    """Reject predictions (..., classes) with a NaN, with +inf, or with -inf for all classes.

    Args:
        logits: at least one class; -inf for some of the classes means that they are impossible.
        owner: whose they are, for the message.

    Raises:
        UserError: names the owner.
    """
    if not logits.amax(-1).isfinite().all():
        raise UserError(f"{owner} predicts NaN or infinity: its weights are damaged; {ADVICE}")
