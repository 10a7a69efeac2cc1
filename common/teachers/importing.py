"""The command that converts a teacher with pickled weights to checkpoints that the other commands read.

Only tensors are read from pickles (`torch.load(weights_only=True)`); a file that needs anything else is rejected. A
file with the state dict of an MLP becomes a checkpoint for the parity settings; a folder with config.json becomes the
same folder with model.safetensors.

All that is to be converted is read and checked first, and then read again and written, so that a refused import writes
nothing. `RECORD` has a digest of each file: what has changed since is converted again.
"""

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
from common.resources import free_disk, size_text
from common.runs.files import (
    json_object,
    locked,
    read_json,
    remove,
    remove_unfinished,
    sampled_digest,
    to_json,
    write_directory,
    write_file,
)
from common.teachers.configs import read_config
from common.teachers.discovery import NO_WEIGHTS, step_in
from common.teachers.pickles import read_pickle, require_memory, size_of, unpacked_size
from common.teachers.tensors import require_finite_weights
from common.teachers.weights import is_beside

PICKLES = (".bin", ".pt", ".pth")
"""Suffixes of the files that are converted."""
RECORD = "imported.json"
"""File in the converted teacher that says what it was converted from: the source, and digests of each checkpoint's
files."""
TEXT = (".json", ".jinja", ".model", ".txt")
"""Suffixes of the files that are copied along with a folder's weights."""
INDEX = "pytorch_model.bin.index.json"
"""File that names the files among which a folder's weights are divided."""
MOST_INDEX_BYTES = 100_000_000
"""Size of the largest index, as of the longest header of safetensors."""

LEFT_BY_A_KILL = (".lock", f".{RECORD}.")
"""How the names begin of what an import may have written before its record."""

Digests = dict[str, dict[str, str]]
"""By the name of a checkpoint in the converted teacher, a digest of each file that it is made from, by the file's path
in the source."""


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Convert pickled checkpoints, without changing the originals: files with state dicts of MLPs, and folders with
    pytorch_model.bin. Rerun the command to resume, or to convert again what has changed; of files above 4 MB, samples
    are compared."""

    source: Annotated[Path, tyro.conf.Positional]
    """Directory with the files or folders."""
    out: Path
    """Directory for the converted teacher."""
    teacher_pattern: str | None = None
    """Regular expression for file names without suffix, with a group named step; by default the only number in them."""


def import_teacher(arguments: ImportArguments) -> None:
    """Convert what is not converted yet or has changed since, and print where it is.

    Raises:
        UserError: there is nothing to convert, two files have the same step, a file is damaged, needs unpickling, is
            not an MLP, is too large, or has weights that are not finite, or --out holds something else.
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
    sources = {f"checkpoint-{step}": path for step, path in sorted(files.items())}
    if twice := [folder for folder in folders if folder.name in sources and folder != source]:
        raise UserError(f"{twice[0]} and {sources[twice[0].name].name} have the same step: move one of them elsewhere")
    sources |= {str(folder.relative_to(source)): folder for folder in folders}
    _require_ours(out, source)
    digests = {name: _digests(path, source) for name, path in sources.items()}
    _require_same_files(out, source, digests)
    _require_disk(out, {name: _checked_size(sources[name]) for name in _to_convert(out, digests)})
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, f"another process is using {arguments.out}: wait until it ends"):
        remove_unfinished(out)
        names = _to_convert(out, digests)
        for name in names:  # from here on, what exists is what the record says
            if out / name == out:
                (out / "config.json").unlink(missing_ok=True)
            else:
                remove(out / name)
        write_file(out / RECORD, to_json({"source": str(source), "files": {**_recorded(out), **digests}}))
        for name in names:
            converted = _converted(sources[name])
            if _digests(sources[name], source) != digests[name]:
                raise UserError(f"{sources[name]} changes while it is read: wait until it is saved, and start again")
            write_directory(out / name, converted)
    left = [path.name for path in sorted(source.iterdir()) if _is_weights(path) and path not in files.values()]
    if left := [name for name in left if not name.startswith("pytorch_model")]:
        print(f"skipped, as their names have no step: {listed(left)}")
    print(f"{arguments.out}: {len(files) + len(folders):,} checkpoints")


def _require_ours(out: Path, source: Path) -> None:
    """Reject a directory that holds anything other than a conversion of the same source."""
    if not out.exists() or (out.is_dir() and all(path.name.startswith(LEFT_BY_A_KILL) for path in out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise UserError(f"--out {out} exists and is not a converted teacher: give another --out")
    theirs = read_json(out / RECORD, "give another --out").get("source")
    if theirs != str(source):
        raise UserError(f"--out {out} was converted from {theirs}: give another --out")


def _recorded(out: Path) -> Digests:
    """The digests in the record; empty if there is none, or one of an earlier version."""
    record = json_object((out / RECORD).read_bytes()) if (out / RECORD).is_file() else None
    files = (record or {}).get("files")
    if not isinstance(files, dict):
        return {}
    return {name: digests for name, digests in files.items() if isinstance(digests, dict)}


def _require_same_files(out: Path, source: Path, digests: Digests) -> None:
    """Reject a conversion of weights that are still there, but are another checkpoint now, or none."""
    for name, files in _recorded(out).items():
        weights = [file for file in files if file.endswith(PICKLES)]
        if name not in digests and (there := [file for file in weights if (source / file).is_file()]):
            raise UserError(
                f"{out / name} was converted from {there[0]}, which is no longer that checkpoint: give another --out, "
                "or the --teacher-pattern of before"
            )


def _to_convert(out: Path, digests: Digests) -> list[str]:
    """The checkpoints that are not converted yet, or whose files have changed."""
    recorded = _recorded(out)
    parts = ("config.json", "model.safetensors")
    return [
        name
        for name, files in digests.items()
        if recorded.get(name) != files or not all((out / name / part).is_file() for part in parts)
    ]


def _require_disk(out: Path, sizes: Mapping[str, int]) -> None:
    """Reject checkpoints that do not fit on the disk, with those that they replace removed."""
    old = [path.stat().st_size for name in sizes if (path := out / name / "model.safetensors").is_file()]
    free = free_disk(out) + sum(old)
    if sum(sizes.values()) > free:
        raise UserError(
            f"--out {out} needs at least {size_text(sum(sizes.values()))}, but {size_text(free)} are free there: free "
            "some space, or give --out on another disk"
        )


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


def _digests(path: Path, source: Path) -> dict[str, str]:
    """A digest of each file that is read for a checkpoint."""
    files = [*_parts(path), *_texts(path), *filter(Path.is_file, [path / INDEX])] if path.is_dir() else [path]
    return {str(file.relative_to(source)): sampled_digest(file) for file in files}


def _converted(path: Path) -> dict[str, bytes]:
    return _folder(path) if path.is_dir() else _mlp(path)


def _checked_size(path: Path) -> int:
    """Bytes of a checkpoint's tensors, after all checks of its weights."""
    return size_of(_tensors(path) if path.is_dir() else _mlp_tensors(path)[0])


def _mlp(path: Path) -> dict[str, bytes]:
    """The files of an MLP's checkpoint."""
    tensors, config = _mlp_tensors(path)
    return {"config.json": to_json(config), "model.safetensors": _stored(tensors)}


def _mlp_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """An MLP's weights and config, whatever its tensors are called: hidden layers, then the output layer.

    Raises:
        UserError: it is not an MLP with ReLU layers of one width.
    """
    layers = list(_linear_layers(path, list(read_pickle(path).items())))
    shapes = [tuple(weight.shape) for weight, _ in layers]
    width, d = shapes[0] if shapes else (0, 0)
    hidden = [(width, width)] * (len(shapes) - 2)
    if len(shapes) < 2 or min(width, d) < 1 or shapes[1:-1] != hidden or shapes[-1][1] != width:
        raise UserError(f"{path} is not an MLP with hidden layers of one width: its weights are {shapes}")
    if shapes[-1][0] < 2:
        raise UserError(f"{path} is an MLP with one output, but a teacher needs one per class")
    dtype = torch.float64 if layers[0][0].dtype == torch.float64 else torch.float32
    tensors: dict[str, Tensor] = {}
    for i, (weight, bias) in enumerate(layers):
        name = "output" if i == len(layers) - 1 else f"hidden.{i}"
        tensors |= {f"{name}.weight": weight.to(dtype), f"{name}.bias": bias.to(dtype)}
    require_finite_weights(tensors, path)  # also in this dtype
    config: dict[str, object] = {
        "model_type": "parity_mlp",
        "d": d,
        "width": width,
        "layers": len(layers) - 1,
        "classes": shapes[-1][0],
        "dtype": str(dtype).removeprefix("torch."),
    }
    return tensors, config


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
        if not bias.is_floating_point():
            raise UserError(f"{path} is not an MLP: the bias after {name} has the dtype {bias.dtype}")
        if bias.shape != weight.shape[:1]:
            raise UserError(f"{path} is not an MLP: the bias after {name} has {len(bias)} entries, not {len(weight)}")
        yield weight, bias


def _folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder in the transformers layout, with its weights in model.safetensors."""
    files = {"model.safetensors": _stored(_tensors(folder))}
    files |= {path.name: path.read_bytes() for path in _texts(folder) if path.name != "config.json"}
    return {**files, "config.json": (folder / "config.json").read_bytes()}  # last: without it, there is no checkpoint


def _texts(folder: Path) -> list[Path]:
    """The files of a folder that are copied."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in TEXT and path.name not in (INDEX, RECORD))
    return [path for path in paths if path.is_file()]


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder in the transformers layout.

    Raises:
        UserError: a weight file is damaged, missing or needs unpickling, two have a tensor of the same name, or the
            folder is too large.
    """
    parts = _parts(folder)
    require_memory(folder, sum(map(unpacked_size, parts)) + sum(path.stat().st_size for path in _texts(folder)))
    tensors: dict[str, Tensor] = {}
    for path in parts:
        more = read_pickle(path)
        if twice := tensors.keys() & more.keys():
            raise UserError(f"{path} has {min(twice)}, which another file of {folder} has too: save it again")
        tensors |= more
    if not tensors:
        raise UserError(f"{folder} has no weights in {listed(path.name for path in parts)}: save it again")
    require_memory(folder, 2 * size_of(tensors))
    for name, source in _tied(folder).items():
        if name in tensors and source in tensors and _is_same(tensors[name], tensors[source]):
            del tensors[name]
    return tensors


def _parts(folder: Path) -> list[Path]:
    """The weight files of a folder: those beside its index that this names, or else all.

    Raises:
        UserError: the index is damaged, or names something else; or a file is missing.
    """
    index, advice = folder / INDEX, "copy or download it again"
    if not index.is_file():
        paths = _pickles_of(folder)
    elif (size := index.stat().st_size) > MOST_INDEX_BYTES:
        raise UserError(f"{index} has {size_text(size)}, more than {size_text(MOST_INDEX_BYTES)}: {advice}")
    else:
        parts = read_json(index, advice, MOST_INDEX_BYTES).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise UserError(f"{index} is damaged (no weight_map): {advice}")
        names = sorted(set(map(str, parts.values())))
        if outside := [f"{name:.80}" for name in names if not is_beside(name, ".bin")]:
            raise UserError(f"{index} names {listed(outside)}, not a .bin file beside it: {advice}")
        paths = [folder / name for name in names]
        if missing := [path.name for path in paths if not path.exists()]:
            raise UserError(f"{folder} lacks {listed(missing)}, which its index names")
    if other := [path for path in paths if not path.is_file()]:
        raise UserError(f"{other[0]} is not a file: {advice}")
    return paths


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


def _stored(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; tensors that share memory are stored separately."""
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return save(copies, metadata={"format": "pt"})
