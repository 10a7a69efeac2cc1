"""Checkpoints that are damaged in ways that a teacher must not have."""

import json
import pickle

import safetensors.torch
import torch


def change_weights(checkpoint, change):
    """Replace the weights of a checkpoint by `change` of each of them."""
    path = checkpoint / "model.safetensors"
    weights = {name: change(tensor) for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(weights, path, {"format": "pt"})


def fill(value):
    """A change of one number of every weight."""

    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


def enlarge(tensor):
    """Finite weights with which a model predicts NaN."""
    return torch.full_like(tensor, torch.finfo(tensor.dtype).max / 4)


class Executed(BaseException):
    """A pickle was loaded."""


def raise_executed():
    raise Executed


class Evil:
    """Code that runs when a pickle is loaded."""

    def __reduce__(self):
        return raise_executed, ()


def point_elsewhere(checkpoint, name):
    """Replace the weights by an index that names another file, which is a pickle, or safetensors outside."""
    weights = checkpoint / "model.safetensors"
    names = list(safetensors.torch.load_file(weights))
    if name.endswith(".safetensors"):
        weights.rename(checkpoint / name)
    else:
        (checkpoint / name).write_bytes(pickle.dumps(Evil()))
        weights.rename(checkpoint / "model_other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
