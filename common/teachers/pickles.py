"""State dicts read from pickles: tensors only (`torch.load(weights_only=True)`), checked before they are used."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.resources import free_memory, size_text
from common.teachers.tensors import DTYPES, require_finite_weights

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training code saves a state dict along with other things."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, which are finite and can be converted in the memory that there is.

    Raises:
        UserError: the file is damaged, needs unpickling or is not a state dict, or its tensors are not such.
    """
    require_memory(path, unpacked_size(path))
    try:
        with warnings.catch_warnings(action="ignore"):  # only an error should be seen
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read without running code that it may contain: save only the model's state_dict() "
            "where it was made"
        ) from error
    except Exception as error:  # whatever a damaged file makes torch do
        raise UserError(f"{path} is damaged or not a torch file ({_first_line(error)})") from error
    if isinstance(loaded, Mapping):
        loaded = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str | int) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise UserError(f"{path} is not a state dict of tensors: save only the model's state_dict()")
    tensors = {str(name): tensor.detach() for name, tensor in loaded.items()}
    for name, tensor in tensors.items():
        _require_dense(path, name, tensor)
    if tensors:
        largest = max(tensors, key=lambda name: _bytes(tensors[name]))
        what = f" with {largest} of shape {list(tensors[largest].shape)}"
        require_memory(path, 2 * size_of(tensors), what)  # the tensors as they are stored, and the file's content
    require_finite_weights({name: _comparable(tensor) for name, tensor in tensors.items()}, path)
    return tensors


def _require_dense(path: Path, name: str, tensor: Tensor) -> None:
    """Reject what no safetensors file of a teacher holds."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        kind = f"{tensor.layout}, {tensor.device}".removeprefix("torch.")
        raise UserError(f"{path} has {name}, which is not a dense tensor with values ({kind}): save it as one")
    if tensor.dtype not in DTYPES.values():
        raise UserError(f"{path} has {name} in the dtype {tensor.dtype}: save it in float32")
    if name == "__metadata__" or any("\ud800" <= character <= "\udfff" for character in name):
        raise UserError(f"{path} has a tensor with the name {name!r}, which no file of weights can hold: rename it")


def _comparable(tensor: Tensor) -> Tensor:
    """The tensor in a dtype in which torch compares numbers."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that tensors need; those that share all of their memory count once."""
    different = {
        (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype): tensor for tensor in tensors.values()
    }
    return sum(_bytes(tensor) for tensor in different.values())


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, which may share memory."""
    return tensor.numel() * tensor.itemsize


def unpacked_size(path: Path) -> int:
    """Bytes of a file's content: torch's files are zip archives, which may be compressed."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except Exception as error:
        raise UserError(f"{path} is damaged or not a torch file ({_first_line(error)})") from error


def require_memory(path: Path, needed: int, what: str = "") -> None:
    """Reject what needs more bytes than are free, in one file or folder."""
    free, where = free_memory()
    if needed > free:
        raise UserError(
            f"{path}{what} needs at least {size_text(needed)} of memory to be converted, but {size_text(free)} are "
            f"free {where}: free some memory, or leave it out"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
