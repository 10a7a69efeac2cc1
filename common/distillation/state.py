"""The state of a training: weights, optimiser, learning rate schedule and random numbers; saved and restored."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, set_seed

from common.errors import UserError
from common.runs.resume import Resume, save_resume


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and persistent buffers by name; shared ones under one name, bfloat16 as float32."""
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names = {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    return {name: _array(tensor) for name, tensor in state.items() if name in names or name not in aliases}


def set_weights(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy what `weights` gave into a model of the same shape."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(torch.from_numpy(tensor))


def configuration(model: nn.Module) -> dict[str, Any]:
    """What `from_pretrained` needs to build the model, as JSON values.

    Raises:
        UserError: the model is not a `PreTrainedModel`.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"{type(model).__name__} has no configuration to save: train without a run")
    return {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__]}


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
    """Restore what `random_state` gave, directly or after a round trip through JSON."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8), device)


def save_training_state(trainer: Trainer, run: Path, sums: Mapping[str, Tensor]) -> None:
    """Write everything that a run needs to resume from the current step; every process must call this.

    Args:
        trainer: in training.
        run: the run's directory.
        sums: the process's sums of metrics, by name.
    """
    mine = {"random": random_state(trainer.args.device), **{name: tensor.tolist() for name, tensor in sums.items()}}
    states = [mine] * trainer.args.world_size
    if trainer.args.world_size > 1:
        torch.distributed.all_gather_object(states, mine)
    if trainer.is_world_process_zero():
        model, optimizer, scheduler = _parts(trainer)
        tensors = {f"model.{name}": tensor for name, tensor in weights(model).items()}
        for i, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": _array(value) for name, value in values.items()}
        state = {"scheduler": scheduler.state_dict(), "processes": states}
        save_resume(run, trainer.state.global_step, tensors, state)


def restore_training_state(trainer: Trainer, resume: Resume | None, sums: Mapping[str, Tensor]) -> None:
    """Restore what `save_training_state` wrote; without a state, seed the random numbers of the first step.

    Args:
        trainer: at the beginning of training.
        resume: the state that was saved.
        sums: zeros, to which the saved sums are added.
    """
    if resume is None:
        _seed_random_numbers(trainer.args.seed, trainer.args.process_index)
        return
    model, optimizer, scheduler = _parts(trainer)
    set_weights(
        model, {name.removeprefix("model."): t for name, t in resume.tensors.items() if name.startswith("model.")}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in resume.tensors.items():
        if name.startswith("optimizer."):
            _, i, kind = name.split(".", 2)
            moments.setdefault(int(i), {})[kind] = torch.from_numpy(tensor)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    scheduler.load_state_dict(resume.state["scheduler"])
    for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    _restore_process(trainer, resume, sums)
    trainer.state.global_step = trainer._globalstep_last_logged = trainer._initial_global_step = resume.step


def _parts(trainer: Trainer) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Model, optimiser and learning rate schedule, which a Trainer has once training has begun."""
    assert isinstance(trainer.model, nn.Module)
    assert trainer.optimizer is not None
    assert trainer.lr_scheduler is not None
    return trainer.model, trainer.optimizer, trainer.lr_scheduler


def _restore_process(trainer: Trainer, resume: Resume, sums: Mapping[str, Tensor]) -> None:
    """Restore a process's random numbers and sums; the sums of processes that have left are added to the others'."""
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


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
