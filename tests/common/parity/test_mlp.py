"""Initialisation as in nn.Linear, and checkpoints that other tools and later commands can read."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from common.errors import UserError
from common.parity.frozen import load_network
from common.parity.mlp import MLP, architecture, initial_tensors, load_model
from common.parity.task import make_task
from common.runs.checkpoints import save_checkpoint
from common.teachers.discovery import find_checkpoints, local_path


@pytest.mark.parametrize(("layers", "dtype"), [(1, "float32"), (1, "float64"), (3, "float32")])
def test_initialisation_is_that_of_nn_linear(layers, dtype):
    tensors = initial_tensors(50, 400, 4, layers, 0, dtype)
    torch.manual_seed(0)
    linears = [nn.Linear(50 if i == 0 else 400, 400) for i in range(layers)] + [nn.Linear(400, 4)]
    names = [f"hidden.{i}" for i in range(layers)] + ["output"]
    assert list(tensors) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    for name, linear in zip(names, linears, strict=True):
        for kind in ("weight", "bias"):
            value = tensors[f"{name}.{kind}"]
            assert value.dtype == dtype
            np.testing.assert_array_equal(value, getattr(linear, kind).detach().numpy())
    for i in range(layers):
        bound = 1 / math.sqrt(50 if i == 0 else 400)
        weight = tensors[f"hidden.{i}.weight"]
        assert 0.99 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
        assert abs(weight.mean()) < 5 * bound / math.sqrt(3 * weight.size)
        assert np.abs(tensors[f"hidden.{i}.bias"]).max() <= bound * (1 + 1e-6)


def test_initialisation_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initial_tensors(10, 20, 2, 1, 5, "float32")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = (initial_tensors(10, 20, 2, 1, seed, "float32") for seed in (5, 6))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_architecture_is_read_off_the_tensors(layers):
    assert architecture(initial_tensors(10, 20, 4, layers, 0, "float64")) == {
        "model_type": "parity_mlp",
        "d": 10,
        "width": 20,
        "layers": layers,
        "classes": 4,
        "dtype": "float64",
    }


@pytest.mark.parametrize(("layers", "dtype"), [(1, "float32"), (2, "float64")])
def test_checkpoints_come_back_the_same(tmp_path, layers, dtype):
    tensors = initial_tensors(10, 20, 4, layers, 0, dtype)
    save_checkpoint(tmp_path, 70, tensors, architecture(tensors))
    (found,) = find_checkpoints(tmp_path)
    checkpoint = local_path(found)
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))

    model = MLP(10, 20, 4, layers).to(x.dtype)
    model.load_state_dict(safetensors.torch.load_file(checkpoint / "model.safetensors"))
    hidden = x.numpy()
    for i in range(layers):
        hidden = np.maximum(hidden @ tensors[f"hidden.{i}.weight"].T + tensors[f"hidden.{i}.bias"], 0)
    expected = hidden @ tensors["output.weight"].T + tensors["output.bias"]
    np.testing.assert_allclose(model(x).detach(), expected, rtol=0, atol=1e-6)

    loaded = load_model(checkpoint)
    assert torch.equal(loaded(x), model(x))
    assert loaded(x).dtype == x.dtype
    again = load_network(checkpoint, make_task(10, 1, 4)).tensors
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == dtype
        np.testing.assert_array_equal(again[name], value)


def test_checkpoints_of_another_task_or_model_are_errors(tmp_path):
    tensors = initial_tensors(10, 20, 4, 1, 0, "float32")
    save_checkpoint(tmp_path, 0, tensors, architecture(tensors))
    save_checkpoint(tmp_path, 1, tensors, {"model_type": "bert"})
    save_checkpoint(tmp_path, 2, tensors, {})
    with pytest.raises(UserError, match="d = 10, but this task has 11"):
        load_network(tmp_path / "checkpoint-0", make_task(11, 1, 4))
    with pytest.raises(UserError, match="classes = 4, but this task has 2"):
        load_network(tmp_path / "checkpoint-0", make_task(10, 1, 2))
    with pytest.raises(UserError, match="'bert' model"):
        load_network(tmp_path / "checkpoint-1", make_task(10, 1, 4))
    with pytest.raises(UserError, match="None model"):
        load_network(tmp_path / "checkpoint-2", make_task(10, 1, 4))
    with pytest.raises(UserError, match="missing"):
        load_network(tmp_path / "checkpoint-3", make_task(10, 1, 4))


@pytest.mark.parametrize("name", ["d", "width", "layers", "classes"])
@pytest.mark.parametrize("value", ["ten", None, 0, -1, 2.5, True, 10**12, [10]])
def test_a_size_that_cannot_be_is_one_line(tmp_path, name, value):
    tensors = initial_tensors(10, 20, 4, 1, 0, "float32")
    save_checkpoint(tmp_path, 0, tensors, {**architecture(tensors), name: value})
    with pytest.raises(UserError, match=r"^.*checkpoint-0/config.json: d, width, classes and layers must be .*$"):
        load_network(tmp_path / "checkpoint-0", make_task(10, 1, 4))
