"""Save and restore the state of training: weights, optimiser, learning rate schedule and random numbers."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.utils import SAFE_WEIGHTS_NAME

from common.distillation.adapters import is_adapted, load_adapter
from common.distillation.sharding import like, whole
from common.errors import UserError
from common.runs.resume import Resume, save_resume
from common.teachers.objective import class_of


def named_tensors(model: nn.Module, trained_only: bool = False) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name.

    A shared parameter appears under each of its names except those that `from_pretrained` ties by itself.

    Args:
        model: unwrapped.
        trained_only: leave out frozen parameters.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    left_out = set()
    for names in _aliases(model):
        if trained_only and names[0] in frozen:
            left_out |= set(names)
        elif not tied.keys() >= set(names):
            left_out |= tied.keys() & set(names)
        else:
            left_out |= set(names[1:])
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


def weights(model: nn.Module, trained_only: bool = False, wanted: bool = True) -> dict[str, np.ndarray]:
    """`named_tensors` as arrays, bfloat16 as float32; of a sharded model, every process must call this.

    Args:
        model: unwrapped.
        trained_only: leave out frozen parameters.
        wanted: False in a process that only helps others; there, nothing is returned.
    """
    return _arrays(named_tensors(model, trained_only), wanted)


def set_weights(
    model: nn.Module,
    tensors: Mapping[str, np.ndarray] | Mapping[str, Tensor],
    place: object,
    trained_only: bool = False,
) -> None:
    """Copy what `named_tensors` or `weights` returned into a model of the same shape; on an error nothing is copied.

    Args:
        model: unwrapped.
        tensors: by name; for a shared parameter, any of its names is enough.
        place: where the tensors were read from, for the error.
        trained_only: as the tensors were saved.

    Raises:
        UserError: a tensor of the model is missing or has another shape, or the model does not have one of them.
    """
    state, wanted = model.state_dict(), named_tensors(model, trained_only)
    names = {name: group for group in _aliases(model) for name in group}
    sources = {name: next((n for n in (name, *names.get(name, ())) if n in tensors), None) for name in wanted}
    missing = [name for name, source in sources.items() if source is None]
    foreign = [name for name in tensors if name not in state]
    if missing or foreign:
        what = f"lacks {missing[0]} of the model" if missing else f"has {foreign[0]}, which the model lacks"
        has = f" (it has {foreign[0]})" if missing and foreign else ""
        raise UserError(
            f"{place} {what}{has}: it was saved from another model or under other names; resume with the same model"
        )
    for name, source in sources.items():
        shape = tuple(tensors[str(source)].shape)
        if shape != tuple(state[name].shape):
            raise UserError(
                f"{name} has shape {shape} in {place}, but {tuple(state[name].shape)} in the model: "
                "resume with the same model"
            )
    with torch.no_grad():
        for name, source in sources.items():
            state[name].copy_(like(torch.as_tensor(tensors[str(source)]), state[name]))


def save_weights(model: nn.Module, directory: Path, writes: bool = True) -> None:
    """Write `named_tensors` to a Trainer's checkpoint; `from_pretrained` and `load_weights` read them.

    Args:
        model: unwrapped; if it is sharded, every process must call this.
        directory: of the checkpoint.
        writes: False in a process that only helps the one that writes.
    """
    tensors: dict[str, Tensor] = {}
    stored = set()
    for name, part in named_tensors(model).items():
        tensor = whole(part)
        if not writes:
            continue
        tensor = tensor.cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in stored else tensor  # safetensors does not save shared memory
        stored.add(place)
    if writes:
        save_file(tensors, directory / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def load_weights(model: nn.Module, directory: Path) -> None:
    """Restore a model from a Trainer's checkpoint.

    Raises:
        UserError: a tensor of the model is missing.
    """
    if is_adapted(model):
        load_adapter(model, directory)
        return
    file = directory / SAFE_WEIGHTS_NAME
    if not file.exists():
        raise UserError(f"{file} is missing: resume from a checkpoint of this trainer")
    set_weights(model, load_file(file), file)


def _aliases(model: nn.Module) -> list[list[str]]:
    """The names of each parameter, in the model's order."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def configuration(model: nn.Module) -> dict[str, Any]:
    """What `from_pretrained` needs to build the model, as JSON values.

    Raises:
        UserError: the model is not a `PreTrainedModel`.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"{class_of(model).__name__} has no configuration to save: train without a run")
    config = {**json.loads(model.config.to_json_string()), "architectures": [class_of(model).__name__]}
    if model.dtype != torch.float32:
        config["dtype"] = str(model.dtype).removeprefix("torch.")
    return config


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the random number generators of Python, NumPy and torch, as JSON values."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {name: np.asarray(value).tolist() for name, value in numpy["state"].items()}},
        "torch": torch.get_rng_state().tolist(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).tolist()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned, directly or after a round trip through JSON."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8), device)


def save_training_state(trainer: Trainer, run: Path, sums: Mapping[str, Tensor], more: Mapping[str, Any]) -> None:
    """Write everything that a run needs to resume from the current step; every process must call this.

    Args:
        trainer: in training.
        run: the run's directory.
        sums: the process's sums of metrics, by name.
        more: further JSON values to save.
    """
    mine = {"random": random_state(trainer.args.device), **{name: tensor.tolist() for name, tensor in sums.items()}}
    states = [mine] * trainer.args.world_size
    if trainer.args.world_size > 1:
        torch.distributed.all_gather_object(states, mine)
    model, optimizer, scheduler = _parts(trainer)
    named = {f"model.{name}": tensor for name, tensor in named_tensors(model, is_adapted(model)).items()}
    numbers: dict[str, Any] = {}
    for i, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            (named if isinstance(value, Tensor) else numbers)[f"optimizer.{i}.{name}"] = value
    tensors = _arrays(named, trainer.is_world_process_zero())
    if trainer.is_world_process_zero():
        state = {"scheduler": scheduler.state_dict(), "processes": states, "optimizer": numbers, **more}
        save_resume(run, trainer.state.global_step, tensors, state)


def restore_training_state(trainer: Trainer, resume: Resume | None, sums: Mapping[str, Tensor]) -> None:
    """Restore what `save_training_state` wrote; without a saved state, seed the random number generators.

    Args:
        trainer: at the beginning of training.
        resume: the state that was saved.
        sums: zeros, to which the saved sums are added.

    Raises:
        UserError: the state is from another model.
    """
    if resume is None:
        _seed_random_numbers(trainer.args.seed, trainer.args.process_index)
        return
    model, optimizer, scheduler = _parts(trainer)
    tensors = {name.removeprefix("model."): t for name, t in resume.tensors.items() if name.startswith("model.")}
    set_weights(model, tensors, f"the resume state of step {resume.step:,}", is_adapted(model))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for name, value in (resume.tensors | resume.state.get("optimizer", {})).items():
        if name.startswith("optimizer."):
            _, i, kind = name.split(".", 2)
            if isinstance(value, np.ndarray):
                tensor, parameter = torch.from_numpy(value), parameters[int(i)]
                value = like(tensor, parameter) if tensor.shape == parameter.shape else tensor
            moments.setdefault(int(i), {})[kind] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    scheduler.load_state_dict(resume.state["scheduler"])
    for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    _restore_process(trainer, resume, sums)
    trainer.state.global_step = trainer._globalstep_last_logged = trainer._initial_global_step = resume.step


def _parts(trainer: Trainer) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Model, optimiser and learning rate schedule of a Trainer that has begun training."""
    assert isinstance(trainer.model, nn.Module)
    assert trainer.optimizer is not None
    assert trainer.lr_scheduler is not None
    return trainer.model, trainer.optimizer, trainer.lr_scheduler


def _restore_process(trainer: Trainer, resume: Resume, sums: Mapping[str, Tensor]) -> None:
    """Restore a process's random numbers and sums; the sums of processes that are gone are added to the others."""
    states, index = resume.state["processes"], trainer.args.process_index
    if index < len(states):
        set_random_state(states[index]["random"], trainer.args.device)
    else:
        _seed_random_numbers(trainer.args.seed, resume.step, index)
    for state in states[index :: trainer.args.world_size]:
        for name, total in sums.items():
            total += torch.tensor(state[name], dtype=total.dtype, device=total.device)


def _seed_random_numbers(*key: int) -> None:
    """Seed dropout, independently of the seed that the weights were drawn with."""
    set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _arrays(tensors: Mapping[str, Tensor], wanted: bool) -> dict[str, np.ndarray]:
    """Whole tensors as arrays, made one at a time, or nothing if they are not wanted in this process."""
    arrays = {}
    for name, part in tensors.items():
        tensor = whole(part)
        if wanted:
            arrays[name] = _array(tensor)
    return arrays


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
