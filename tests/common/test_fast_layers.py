"""The fast layers of a GPT-2, against the formula and transformers' own."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from common.attention import ATTENTION
from common.fast_layers import use_fast_layers
from common.pcfg.grammar_files import load_grammar
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_autoregressive.models import load_model, new_model


def activations(model):
    return [type(block.mlp.act) for block in model.transformer.h]


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=9, n_embd=8, n_layer=2, n_head=2)).eval()


def test_the_activation_is_the_formula(plain):
    use_fast_layers(plain)
    model = plain.transformer.h[0].mlp.act
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = x / 2 * (1 + torch.tanh(inner))
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-15)
    found, wanted = (torch.autograd.grad(y.sum(), x)[0] for y in (model(x), expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_a_gpt2_computes_the_same(plain):
    tokens = torch.arange(9).unsqueeze(0)
    before, config = plain(tokens).logits, plain.config.to_dict()
    assert activations(plain) == [NewGELUActivation] * 2
    use_fast_layers(plain)
    assert activations(plain) == [torch.nn.GELU] * 2
    assert plain.config._attn_implementation == ATTENTION
    torch.testing.assert_close(plain(tokens).logits, before, rtol=1e-5, atol=1e-6)
    assert plain.config.to_dict() == config


def test_new_models_and_those_of_the_settings_on_grammars_have_it(tmp_path):
    task = NextTokenTask(load_grammar("small"), "all")
    new = new_model(task, layers=2, heads=2, head_dim=4, dropout=0.0, seed=0)
    new.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, task)
    assert activations(new) == activations(loaded) == [torch.nn.GELU] * 2
    expected = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert activations(expected) == [NewGELUActivation] * 2
    tokens = torch.arange(4).unsqueeze(0)
    torch.testing.assert_close(loaded.eval()(tokens).logits, expected(tokens).logits, rtol=1e-5, atol=1e-6)
