"""The command that converts a teacher with pickled weights to checkpoints that the other commands read.

Only tensors are read from pickles (`torch.load(weights_only=True)`); a file that needs anything else is rejected. A
file with the state dict of an MLP becomes a checkpoint for the parity settings; a folder with config.json becomes the
same folder with model.safetensors.
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from common.errors import UserError, listed
from common.runs.files import locked, read_json, remove_unfinished, to_json, write_directory, write_file
from common.teachers.configs import read_config
from common.teachers.discovery import NO_WEIGHTS, step_in

PICKLES = (".bin", ".pt", ".pth")
"""Suffixes of the files that are converted."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training code saves a state dict along with other things."""
RECORD = "imported.json"
"""File in the converted teacher that says what it was converted from."""
TEXT = (".json", ".jinja", ".model", ".txt")
"""Suffixes of the files that are copied along with a folder's weights."""


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Convert pickled checkpoints, without changing the originals: files with state dicts of MLPs, and folders with
    pytorch_model.bin. Rerun the command to resume."""

    source: Annotated[Path, tyro.conf.Positional]
    """Directory with the files or folders."""
    out: Path
    """Directory for the converted teacher."""
    teacher_pattern: str | None = None
    """Regular expression for file names without suffix, with a group named step; by default the only number in them."""


def import_teacher(arguments: ImportArguments) -> None:
    """Convert what is not converted yet, and print where it is.

    Raises:
        UserError: there is nothing to convert, two files have the same step, a file is damaged, needs unpickling or is
            not an MLP, or --out holds something else.
    """
    source, out = arguments.source.resolve(), arguments.out.resolve()
    if not source.is_dir():
        raise UserError(f"{arguments.source} is not a directory")
    if out.is_relative_to(source):
        raise UserError(
            f"--out {arguments.out} is inside {arguments.source}, which must not change: give another --out"
        )
    folders = [path for path in [source, *sorted(source.iterdir())] if _pickles_of(path)]
    files = _files_by_step(source, arguments.teacher_pattern)
    if not folders and not files:
        children = sorted(source.iterdir())
        if ready := [path.name for path in (source, *children) if any(path.glob("model*.safetensors"))]:
            raise UserError(
                f"{arguments.source} has its weights in safetensors already ({listed(ready, 3)}): nothing needs "
                "converting, use it as it is"
            )
        names = [path.name for path in children]
        raise UserError(
            f"{arguments.source} has no weight file ({listed(f'*{suffix}' for suffix in PICKLES)}) with a step in its "
            f"name, and no folder with pytorch_model.bin and config.json: found {listed(names) or 'nothing'}"
        )
    _require_ours(out, source)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, f"another process is using {arguments.out}: wait until it ends"):
        remove_unfinished(out)
        write_file(out / RECORD, to_json({"source": str(source)}))
        for step, path in sorted(files.items()):
            target = out / f"checkpoint-{step}"
            if not target.exists():
                write_directory(target, _mlp(path))
        for folder in folders:
            target = out / folder.relative_to(source)
            if not (target / "config.json").exists():
                write_directory(target, _folder(folder))
    left = [path.name for path in sorted(source.iterdir()) if _is_weights(path) and path not in files.values()]
    if left := [name for name in left if not name.startswith("pytorch_model")]:
        print(f"skipped, as their names have no step: {listed(left)}")
    print(f"{arguments.out}: {len(files) + len(folders):,} checkpoints")


def _require_ours(out: Path, source: Path) -> None:
    """Reject a directory that holds anything other than a conversion of the same source."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise UserError(f"--out {out} exists and is not a converted teacher: give another --out")
    theirs = read_json(out / RECORD, "give another --out").get("source")
    if theirs != str(source):
        raise UserError(f"--out {out} was converted from {theirs}: give another --out")


def _is_weights(path: Path) -> bool:
    return path.is_file() and path.suffix in PICKLES and not path.name.startswith(NO_WEIGHTS)


def _pickles_of(folder: Path) -> list[Path]:
    """The weight files of a folder in the transformers layout; empty if it is not one."""
    if not folder.is_dir() or not (folder / "config.json").is_file():
        return []
    return sorted(folder.glob("pytorch_model*.bin"))


def _files_by_step(source: Path, pattern: str | None) -> dict[int, Path]:
    """The weight files whose names contain a step."""
    found: dict[int, Path] = {}
    for path in sorted(filter(_is_weights, source.iterdir())):
        if path.name.startswith("pytorch_model"):
            continue
        step = step_in(path.stem, pattern)
        if step is None and pattern is None:
            numbers = re.findall("[0-9]+", path.stem)
            if len(numbers) > 1:
                raise UserError(
                    f"{path} has several numbers in its name: say which is the step with --teacher-pattern, such as "
                    "'.*_step(?P<step>[0-9]+).*'"
                )
            step = int(numbers[0]) if numbers else None
        if step is None:
            continue
        if found.setdefault(step, path) != path:
            raise UserError(
                f"{found[step]} and {path.name} both have step {step}: choose between them with --teacher-pattern"
            )
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict.

    Raises:
        UserError: the file is damaged, needs unpickling or is not a state dict.
    """
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} cannot be read without running code that it may contain: save only the model's state_dict() "
            "where it was made"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a torch file ({str(error).splitlines()[0]})") from error
    if isinstance(loaded, Mapping):
        loaded = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{path} is not a state dict of tensors: save only the model's state_dict()")
    return {str(name): tensor.detach() for name, tensor in loaded.items()}


def _mlp(path: Path) -> dict[str, bytes]:
    """The files of an MLP's checkpoint, whatever its tensors are called: hidden layers, then the output layer.

    Raises:
        UserError: it is not an MLP with ReLU layers of one width.
    """
    layers = list(_linear_layers(path, list(_read(path).items())))
    shapes = [tuple(weight.shape) for weight, _ in layers]
    width, d = shapes[0] if shapes else (0, 0)
    if len(shapes) < 2 or shapes[1:-1] != [(width, width)] * (len(shapes) - 2) or shapes[-1][1] != width:
        raise UserError(f"{path} is not an MLP with hidden layers of one width: its weights are {shapes}")
    if shapes[-1][0] < 2:
        raise UserError(f"{path} is an MLP with one output, but a teacher needs one per class")
    dtype = torch.float64 if layers[0][0].dtype == torch.float64 else torch.float32
    tensors: dict[str, Tensor] = {}
    for i, (weight, bias) in enumerate(layers):
        name = "output" if i == len(layers) - 1 else f"hidden.{i}"
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    config = {
        "model_type": "parity_mlp",
        "d": d,
        "width": width,
        "layers": len(layers) - 1,
        "classes": shapes[-1][0],
        "dtype": str(dtype).removeprefix("torch."),
    }
    return {"config.json": to_json(config), "model.safetensors": _stored(tensors, dtype)}


def _linear_layers(path: Path, tensors: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer, in the order of the state dict; a missing bias is zero."""
    rest = list(tensors)
    while rest:
        name, weight = rest.pop(0)
        if weight.ndim != 2 or not weight.is_floating_point():
            raise UserError(
                f"{path} is not an MLP: {name} of shape {list(weight.shape)} is not the weight of a linear layer"
            )
        has_bias = bool(rest) and rest[0][1].ndim == 1
        bias = rest.pop(0)[1] if has_bias else weight.new_zeros(len(weight))
        if bias.shape != weight.shape[:1]:
            raise UserError(f"{path} is not an MLP: the bias after {name} has {len(bias)} entries, not {len(weight)}")
        yield weight, bias


def _folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder in the transformers layout, with its weights in model.safetensors.

    Raises:
        UserError: a weight file is damaged, missing or needs unpickling.
    """
    pickles = _pickles_of(folder)
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        parts = read_json(index, "copy or download it again").get("weight_map", {})
        pickles = [folder / name for name in sorted(set(parts.values()))]
        if missing := [path.name for path in pickles if not path.is_file()]:
            raise UserError(f"{folder} lacks {listed(missing)}, which its index names")
    tensors = {name: tensor for path in pickles for name, tensor in _read(path).items()}
    for name, source in _tied(folder).items():
        if name in tensors and source in tensors and _is_same(tensors[name], tensors[source]):
            del tensors[name]
    texts = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in TEXT and path != index]
    files = {"model.safetensors": _stored(tensors)}
    files |= {path.name: path.read_bytes() for path in texts if path.name not in ("config.json", RECORD)}
    return {**files, "config.json": (folder / "config.json").read_bytes()}  # last: without it, there is no checkpoint


def _tied(folder: Path) -> Mapping[str, str]:
    """The tensors that `save_pretrained` leaves out, and those that a model has in their places; none if unknown."""
    try:
        config = read_config(folder)
    except UserError:  # the commands that use the teacher say why
        return {}
    mappings: list[Any] = [auto._model_mapping for auto in (AutoModelForCausalLM, AutoModelForMaskedLM)]
    models = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    if not getattr(config, "tie_word_embeddings", False):
        return {}
    return {name: source for model in models for name, source in (model._tied_weights_keys or {}).items()}


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def _stored(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> bytes:
    """A safetensors file; tensors that share memory are stored separately."""
    copies = {name: tensor.to(dtype=dtype or tensor.dtype, copy=True).contiguous() for name, tensor in tensors.items()}
    return save(copies, metadata={"format": "pt"})
