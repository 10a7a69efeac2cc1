"""GPT-2 and its variants against the formula, and checkpoints from and for transformers."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from common.parity.frozen import load_network
from common.parity.gpt2 import Shape, configuration, initial_network, load_model, shape_of
from common.parity.task import make_task
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from parity_gpt2.train import PRESETS, train
from tests.commands import cut
from tests.gpt2 import PLAIN, SHAPES, STOCK, random_model, tokens_of, written_out

TASK = make_task(6, 2)
TINY = {"d": 6, "steps": 2, "batch_size": 4, "eval_every": 2, "checkpoint_every": 0, "eval_samples": 8, "head_dim": 3}
TRAINED = {
    "plain": {},
    "linear": {"feed_forward": "linear"},
    "tied-class-token": {"tie_embeddings": True, "class_token": True},
    "hierarchical": {"labels": 4, "positions": 9, "layers": 1},
    "dropout": {"dropout": 0.1},
}
"""Arguments of train.py whose networks a stock GPT-2 has."""


def some_tokens(shape):
    return tokens_of(shape, TASK.sample(0, "train", 0, 20), 6)


def parameters(model):
    return dict(model.named_parameters())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_variant_is_the_formula(name, implementation):
    shape = SHAPES[name]
    model = random_model(shape, 0)
    model.set_attn_implementation(implementation)
    tokens = some_tokens(shape)
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).logits, written_out(shape, parameters(model), tokens), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("name", SHAPES)
def test_a_saved_network_comes_back_and_its_config_describes_it(tmp_path, name):
    shape = replace(SHAPES[name], dropout=0.25)
    network = initial_network(shape, 0.3, 1)
    save_checkpoint(tmp_path, 5, network.tensors, network.config)
    checkpoint = tmp_path / "checkpoint-5"
    task = make_task(6, 1, shape.classes)
    found = load_network(checkpoint, task)
    assert shape_of(found.config) == shape
    assert found.tensors.keys() == network.tensors.keys()
    weights = {name: torch.from_numpy(value).double() for name, value in network.tensors.items()}
    tokens = some_tokens(shape)
    expected = written_out(shape, weights, tokens)
    with torch.no_grad():
        torch.testing.assert_close(load_model(checkpoint).eval().double()(tokens).logits, expected, atol=1e-9, rtol=0)
        if name in STOCK:
            stock = GPT2LMHeadModel.from_pretrained(checkpoint).eval().double()
            torch.testing.assert_close(stock(tokens).logits, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_a_stock_gpt2_reads_what_train_writes(tmp_path, name):
    arguments = replace(PRESETS["smoke"], **TINY, **TRAINED[name], out=tmp_path / "run")
    train(arguments)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    config, tensors = read_checkpoint(checkpoint)
    shape = shape_of(config)
    stock, report = GPT2LMHeadModel.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report.values())
    weights = {name: torch.from_numpy(tensor).double() for name, tensor in tensors.items()}
    tokens = some_tokens(shape)
    with torch.no_grad():
        logits = stock.eval().double()(tokens).logits
    torch.testing.assert_close(logits, written_out(shape, weights, tokens), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "words",
    [
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False, "activation_function": "linear", "n_inner": 7, "resid_pdrop": 0.0},
    ],
)
def test_a_checkpoint_of_a_stock_gpt2_is_a_network(tmp_path, words):
    torch.manual_seed(0)
    sizes = {"vocab_size": 2, "n_positions": 8, "n_embd": 6, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    stock = GPT2LMHeadModel(GPT2Config(**sizes, **words, bos_token_id=None, eos_token_id=None)).eval()
    stock.save_pretrained(tmp_path / "checkpoint-1")
    network = load_network(tmp_path / "checkpoint-1", TASK)
    shape = shape_of(network.config)
    assert shape.tied == words["tie_word_embeddings"]
    assert (shape.feed_forward == "linear") == ("activation_function" in words)
    weights = {name: torch.from_numpy(tensor).double() for name, tensor in network.tensors.items()}
    tokens = some_tokens(shape)
    with torch.no_grad():
        expected = stock.double()(tokens).logits
    torch.testing.assert_close(written_out(shape, weights, tokens), expected, rtol=0, atol=1e-9)


# Checkpoints that are not networks for this task


def remake(directory, config=None, drop=(), **tensors):
    """Change the config.json and the tensors of a checkpoint."""
    found, weights = read_checkpoint(directory)
    weights = {name: value for name, value in weights.items() if name not in drop}
    shutil.rmtree(directory)
    save_checkpoint(directory.parent, 1, {**weights, **tensors}, {**found, **(config or {})})


def halve(directory):
    _, weights = read_checkpoint(directory)
    remake(directory, **{name: value.astype(np.float16) for name, value in weights.items()})


def bfloat16(directory):
    GPT2LMHeadModel.from_pretrained(directory).bfloat16().save_pretrained(directory)


WRONG = {
    "other-model": (lambda path: remake(path, {"model_type": "bert"}), "holds a 'bert' model"),
    "no-model": (lambda path: remake(path, {"model_type": None}), "holds a None model"),
    "vocabulary": (lambda path: remake(path, {"vocab_size": 4}), "has 4 classes (vocabulary 4), but this task has 2"),
    "class-token": (lambda path: remake(path, {"class_token": True}), "has 1 classes (vocabulary 2)"),
    "positions": (lambda path: remake(path, {"n_positions": 5}), "has 5 positions, but d = 6 needs 6"),
    "one-position-too-few": (
        lambda path: remake(path, {"class_token": True, "vocab_size": 3}),
        "has 6 positions, but d = 6 needs 7",
    ),
    "missing": (lambda path: remake(path, drop=["lm_head.weight"]), "the tensor lm_head.weight is missing"),
    "layers": (lambda path: remake(path, {"n_layer": 3}), "the tensor transformer.h.2.ln_1.weight is missing"),
    "shape": (
        lambda path: remake(path, **{"transformer.ln_f.bias": np.zeros(7, np.float32)}),
        "the tensor transformer.ln_f.bias is (7,), but its config.json implies (6,)",
    ),
    "transposed": (
        lambda path: remake(path, **{"transformer.h.0.attn.c_attn.weight": np.zeros((18, 6), np.float32)}),
        "the tensor transformer.h.0.attn.c_attn.weight is (18, 6)",
    ),
    "activation": (
        lambda path: remake(path, {"activation_function": "relu"}),
        "activation_function 'relu' is none of gelu_new, linear",
    ),
    "scale": (lambda path: remake(path, {"scale_attn_weights": False}), "scale_attn_weights must be True"),
    "inverse-layer": (
        lambda path: remake(path, {"scale_attn_by_inverse_layer_idx": True}),
        "scale_attn_by_inverse_layer_idx",
    ),
    "cross": (lambda path: remake(path, {"add_cross_attention": True}), "add_cross_attention must be False"),
    "heads": (lambda path: remake(path, {"n_head": 4}), "hidden size of 6"),
    "no-heads": (lambda path: remake(path, {"n_head": 0}), "config.json: n_head must be a positive integer, got 0"),
    "no-layers": (lambda path: remake(path, {"n_layer": 0}), "config.json: n_layer must be a positive integer, got 0"),
    "words": (lambda path: remake(path, {"n_embd": "six"}), "n_embd must be a positive integer, got 'six'"),
    "float16": (halve, "the tensors must be float32"),
    "bfloat16": (bfloat16, "bfloat16"),
    "cut-weights": (lambda path: cut(path / "model.safetensors"), "model.safetensors is truncated: it has"),
    "cut-config": (lambda path: cut(path / "config.json"), "config.json is truncated or damaged"),
    "no-weights": (lambda path: (path / "model.safetensors").unlink(), "lacks model.safetensors: finish saving"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_a_network_for_this_task_is_one_line_that_names_the_checkpoint(tmp_path, name):
    damage, message = WRONG[name]
    network = initial_network(PLAIN, 0.02, 0)
    save_checkpoint(tmp_path, 1, network.tensors, network.config)
    load_network(tmp_path / "checkpoint-1", TASK)
    damage(tmp_path / "checkpoint-1")
    with pytest.raises(UserError) as error:
        load_network(tmp_path / "checkpoint-1", TASK)
    (line,) = str(error.value).splitlines()
    assert message in line
    assert str(tmp_path / "checkpoint-1") in line


def test_entries_that_a_config_lacks_are_as_in_transformers():
    config = {"model_type": "gpt2", "vocab_size": 2, "n_embd": 6, "n_head": 2}
    stock = GPT2Config()
    assert shape_of(config) == Shape(
        layers=stock.n_layer,
        heads=2,
        head_dim=3,
        vocabulary=2,
        positions=stock.n_positions,
        tied=True,
        dropout=stock.resid_pdrop,
    )


# Initial weights


@pytest.mark.parametrize(("std", "layers"), [(0.02, 2), (0.1, 3)])
def test_initial_weights_have_the_statistics_of_gpt2(std, layers):
    shape = Shape(layers=layers, heads=8, head_dim=8, vocabulary=4, positions=50)
    tensors = initial_network(shape, std, 0).tensors
    for name, value in tensors.items():
        assert value.dtype == np.float32
        if ".ln_" in name:
            np.testing.assert_array_equal(value, 1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            np.testing.assert_array_equal(value, 0)
        else:  # what a block adds is scaled down by the root of the number of additions
            expected = std / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else std
            assert abs(value.mean()) < 5 * expected / math.sqrt(value.size), name
            assert value.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * value.size)), name
            assert (value**4).mean() == pytest.approx(3 * expected**4, rel=60 / math.sqrt(value.size)), name


def test_averaged_heads_are_initialised_as_the_other_projections():
    shape = Shape(layers=2, heads=4, head_dim=16, vocabulary=2, positions=6, average_heads=True)
    tensors = initial_network(shape, 0.2, 0).tensors
    for layer in range(2):
        weight = tensors[f"transformer.h.{layer}.attn.c_proj.weight"]
        assert weight.shape == (16, 64)
        assert weight.std() == pytest.approx(0.1, rel=5 / math.sqrt(2 * weight.size))


@pytest.mark.parametrize("name", ["plain", "all"])
def test_initial_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initial_network(SHAPES[name], 0.02, 5).tensors
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (initial_network(SHAPES[name], 0.02, seed).tensors for seed in (5, 6))
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
        assert value.std() == 0 or not np.array_equal(value, other[key])


@pytest.mark.parametrize("name", STOCK)
def test_initial_weights_are_those_that_transformers_draws(name):
    torch.manual_seed(3)
    stock = GPT2LMHeadModel(configuration(STOCK[name], 0.07))
    tensors = initial_network(STOCK[name], 0.07, 3).tensors
    assert tensors.keys() == parameters(stock).keys()
    for key, value in parameters(stock).items():
        np.testing.assert_array_equal(tensors[key], value.detach().numpy())


@pytest.mark.parametrize("tied", [0, 1])
def test_truth_values_that_are_numbers_as_published(tmp_path, tied):
    network = initial_network(replace(PLAIN, tied=bool(tied)), 0.02, 0)
    save_checkpoint(tmp_path, 1, network.tensors, {**network.config, "tie_word_embeddings": tied})
    assert shape_of(load_network(tmp_path / "checkpoint-1", TASK).config).tied == bool(tied)
    assert load_model(tmp_path / "checkpoint-1").config.tie_word_embeddings is bool(tied)


def test_a_config_that_is_refused_is_refused_with_the_cause(tmp_path):
    network = initial_network(PLAIN, 0.02, 0)
    save_checkpoint(tmp_path, 1, network.tensors, {**network.config, "n_ctx": 0, "summary_use_proj": "two"})
    with pytest.raises(UserError, match=r"config.json does not .*'summary_use_proj' expected bool, got str \(value"):
        load_network(tmp_path / "checkpoint-1", TASK)
