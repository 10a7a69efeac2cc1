"""The last position's logits and their gradients against the full model's, and dropout with masks made by hand."""

import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from common.parity import last_position
from common.parity.gpt2 import Shape
from common.parity.last_position import last_logits
from common.parity.task import make_task
from parity_mlp.data import signs
from tests.gpt2 import SHAPES, random_model, tokens_of, written_out


def one_hot(bits, d, dtype=torch.float64):
    """Tokens as `last_logits` takes them."""
    x = torch.from_numpy(signs(bits, d, np.float64)).to(dtype).T
    return torch.stack([(1 + x) / 2, (1 - x) / 2], -1)


def stacked(models, dtype=torch.float64, requires_grad=True):
    """The weights of several models as `last_logits` takes them."""
    weights = {}
    for name, first in models[0].named_parameters():
        rows = [dict(model.named_parameters())[name].detach() for model in models]
        matrices = [row if first.dim() == 2 else row[None] for row in rows]
        weights[name] = torch.stack(matrices).to(dtype).requires_grad_(requires_grad)
    return weights


def full_logits(shape, model, bits, d):
    """The classes' logits at the last of all positions of a model of transformers."""
    return model(tokens_of(shape, bits, d)).logits[:, -1, : shape.classes]


@st.composite
def cases(draw):
    """A shape, d, the number of networks and of samples, the scale of the weights, and a seed."""
    d, class_token = draw(st.integers(1, 7)), draw(st.booleans())
    shape = Shape(
        layers=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 4)),
        vocabulary=draw(st.sampled_from([2, 4])) + class_token,
        positions=d + class_token + draw(st.integers(0, 2)),
        causal=draw(st.booleans()),
        feed_forward=draw(st.sampled_from(["gelu", "linear", "skip"])),
        average_heads=draw(st.booleans()),
        class_token=class_token,
        tied=draw(st.booleans()),
        inner=draw(st.sampled_from([0, 3])),
        epsilon=draw(st.sampled_from([1e-5, 0.1])),
    )
    scale = draw(st.sampled_from([0.02, 0.3, 1.0, 3.0]))
    return shape, d, draw(st.integers(1, 3)), draw(st.integers(1, 6)), scale, draw(st.integers(0, 2**20))


AFTER_NORMALISATION = ("transformer.ln_f.bias", "lm_head.weight", "transformer.wte.weight")
"""The only weights that matter with one dimension, of which a layer normalisation leaves its bias; the last if tied."""


@given(cases())
@settings(max_examples=120, deadline=None)
def test_logits_and_gradients_are_those_of_the_full_model(case):
    shape, d, networks, samples, scale, seed = case
    bits = make_task(d, 1).sample(seed, "train", 0, samples)
    models = [random_model(shape, seed + i, scale) for i in range(networks)]
    weights = stacked(models)
    logits = last_logits(shape, weights, one_hot(bits, d))
    slopes = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (slopes * logits).sum().backward()
    for i, model in enumerate(models):
        expected = full_logits(shape, model, bits, d)
        torch.testing.assert_close(logits[i], expected, rtol=1e-10, atol=1e-10)
        (slopes[i] * expected).sum().backward()
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if shape.hidden == 1 and name not in AFTER_NORMALISATION:
                gradient = torch.zeros_like(parameter)  # exactly; the full model's is a rounding error
            mine = torch.zeros_like(weights[name]) if weights[name].grad is None else weights[name].grad
            size = max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(
                mine[i].view(parameter.shape),
                gradient,
                rtol=0,
                atol=1e-10 * size,
                msg=lambda text, n=name: f"{n} {text}",
            )


@pytest.mark.parametrize("scale", [0.02, 0.5, 2.0])
@pytest.mark.parametrize("name", SHAPES)
def test_float32_is_near_float64(name, scale):
    shape, bits = SHAPES[name], make_task(6, 1).sample(0, "train", 0, 30)
    models = [random_model(shape, i, scale) for i in range(2)]
    logits = last_logits(shape, stacked(models, torch.float32), one_hot(bits, 6, torch.float32))
    assert logits.dtype == torch.float32
    for i, model in enumerate(models):
        expected = full_logits(shape, model, bits, 6)
        assert (logits[i] - expected).abs().max() < 2e-4 * max(expected.abs().max(), 1e-2)


@pytest.mark.parametrize("queries", [1, 2, 5, 6, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_parts_is_that_of_pytorch(monkeypatch, causal, queries):
    monkeypatch.setattr("common.attention.QUERIES", queries)
    generator = torch.Generator().manual_seed(0)
    mine = [torch.randn(4, 3, 6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in mine]
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
        attended = last_position._attend(*mine, causal, 0.0)
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-12)
    slopes = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (attended * slopes).sum().backward()
    (expected * slopes).sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("name", ["three-layers", "no-mask", "class-token"])
def test_logits_do_not_depend_on_the_parts_of_the_attention(monkeypatch, name, queries):
    shape, bits = SHAPES[name], make_task(6, 1).sample(0, "train", 0, 9)
    model = random_model(shape, 0)
    monkeypatch.setattr("common.attention.QUERIES", queries)
    logits = last_logits(shape, stacked([model]), one_hot(bits, 6))[0]
    torch.testing.assert_close(logits, full_logits(shape, model, bits, 6), rtol=1e-10, atol=1e-10)


def test_networks_of_a_pass_do_not_touch_each_other():
    """One whose weights are not finite leaves the others their logits and gradients."""
    shape, bits = SHAPES["three-layers"], make_task(6, 1).sample(0, "train", 0, 9)
    models = [random_model(shape, i) for i in range(3)]
    broken = stacked(models)
    with torch.no_grad():
        for name in ("transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "lm_head.weight"):
            broken[name][1] = math.nan
    whole = stacked([models[0], models[2]])
    logits, expected = (last_logits(shape, weights, one_hot(bits, 6)) for weights in (broken, whole))
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[[0, 2]], expected, rtol=1e-12, atol=1e-12)
    logits.sum().backward()
    expected.sum().backward()
    for name, weight in whole.items():
        torch.testing.assert_close(broken[name].grad[[0, 2]], weight.grad, rtol=1e-10, atol=1e-10)


def test_bfloat16_is_near_float32():
    shape, bits = SHAPES["three-layers"], make_task(6, 1).sample(0, "train", 0, 200)
    weights = stacked([random_model(shape, i, 0.3) for i in range(2)], torch.float32)
    tokens = one_hot(bits, 6, torch.float32)
    expected = last_logits(shape, weights, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        logits = last_logits(shape, weights, tokens).float()
    difference = (logits - expected).abs()
    assert 1e-4 < difference.max() / expected.abs().max() < 0.1
    assert difference.mean() / expected.std() < 0.02


# Dropout


@contextmanager
def masks_by_hand(rate, seed):
    """Let the places that drop take masks (True: dropped) from a list, in the order in which they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    masks: list[Tensor] = []

    def dropout(x, p=0.5, training=True):
        assert p == rate
        assert training
        masks.append(torch.rand(x.shape, generator=generator) < rate)
        return x.masked_fill(masks[-1], 0) / (1 - rate)

    def attention(query, key, value, dropout_p=0.0, is_causal=False):
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
        return dropout(scores.softmax(-1), dropout_p) @ value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", dropout)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
        yield masks


def written_out_with_dropout(shape, weights, tokens, keep):
    """Logits at the last position; `keep` takes what may be dropped and returns what is left of it."""
    samples, length = tokens.shape
    names = iter(range(100))
    hidden = keep(next(names), weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:length])

    def normalise(name, x):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred**2).mean(-1, keepdim=True) + shape.epsilon
        return centred / spread.sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def affine(name, x):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    for layer in range(shape.layers):
        block = f"transformer.h.{layer}"
        parts = affine(f"{block}.attn.c_attn", normalise(f"{block}.ln_1", hidden)).chunk(3, -1)
        query, key, value = (part.view(samples, length, shape.heads, -1).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(2, 3) / math.sqrt(shape.head_dim)
        if shape.causal:
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        heads = keep(next(names), scores.softmax(-1)) @ value
        joined = heads.mean(1) if shape.average_heads else heads.transpose(1, 2).flatten(2)
        hidden = hidden + keep(next(names), affine(f"{block}.attn.c_proj", joined))
        if shape.feed_forward != "skip":
            inner = affine(f"{block}.mlp.c_fc", normalise(f"{block}.ln_2", hidden))
            if shape.feed_forward == "gelu":
                inner = torch.nn.functional.gelu(inner, approximate="tanh")
            hidden = hidden + keep(next(names), affine(f"{block}.mlp.c_proj", inner))
    head = weights["transformer.wte.weight" if shape.tied else "lm_head.weight"]
    return (normalise("transformer.ln_f", hidden) @ head.T)[:, -1, : shape.classes]


@pytest.mark.parametrize(
    "name", ["plain", "one-layer", "three-layers", "no-mask", "skip", "average", "class-token", "all"]
)
def test_dropout_drops_what_gpt2_drops(name):
    """The same masks at the same places: the embeddings, the attention and what each branch adds."""
    shape, rate, samples, networks = SHAPES[name], 0.3, 5, 2
    length = 6 + shape.class_token
    bits = make_task(6, 1).sample(0, "train", 0, samples)
    models = [random_model(shape, i) for i in range(networks)]
    with masks_by_hand(rate, 0) as masks:
        logits = last_logits(shape, stacked(models), one_hot(bits, 6), rate)
    of_a_block = 2 if shape.feed_forward == "skip" else 3
    assert len(masks) == 1 + shape.layers * of_a_block

    def mask_of(network, place, x):
        """The mask for all positions of what is named by its number in the order of the computation."""
        mask = masks[place]
        if place <= (shape.layers - 1) * of_a_block:  # all positions
            if x.dim() == 4:
                return mask.view(samples, networks, shape.heads, length, length)[:, network]
            return mask.view(networks, samples, length, -1)[network]
        full = torch.zeros(x.shape, dtype=torch.bool)  # the last position alone; the others reach no logit
        if x.dim() == 4:
            full[:, :, -1] = mask.view(networks, samples, shape.heads, length)[network]
        else:
            full[:, -1] = mask.view(networks, samples, -1)[network]
        return full

    for i, model in enumerate(models):

        def keep(place, x, i=i):
            return x.masked_fill(mask_of(i, place, x), 0) / (1 - rate)

        expected = written_out_with_dropout(shape, dict(model.named_parameters()), tokens_of(shape, bits, 6), keep)
        torch.testing.assert_close(logits[i], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["plain", "no-mask", "all"])
def test_without_dropout_the_formula_with_dropout_is_the_full_model(name):
    """Neither the formula of the test above nor the layers that need it may drop where nothing is dropped."""
    shape, bits = SHAPES[name], make_task(6, 1).sample(0, "train", 0, 5)
    weights, tokens = dict(random_model(shape, 0).named_parameters()), tokens_of(shape, bits, 6)
    expected = written_out(shape, weights, tokens)[:, -1, : shape.classes]
    whole = written_out_with_dropout(shape, weights, tokens, lambda place, x: x)
    torch.testing.assert_close(whole, expected, rtol=1e-10, atol=1e-10)


def test_attention_is_dropped_at_its_rate():
    """A hidden layer's attention is PyTorch's: with equal scores and values of 1 it is the share kept."""
    ones = torch.ones(50, 4, 16, 3)
    torch.manual_seed(0)
    seen = last_position._attend(ones, ones, ones, False, 0.25)[..., 0]
    shares = seen * 16 * 0.75  # of 16 keys
    torch.testing.assert_close(shares, shares.round(), rtol=0, atol=1e-4)
    count = shares.numel() * 16
    assert abs(float(shares.mean()) / 16 - 0.75) < 5 * math.sqrt(0.75 * 0.25 / count)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropped_shares_are_the_rate(rate):
    shape = replace(SHAPES["one-layer"], heads=8, head_dim=8)
    bits = make_task(6, 1).sample(0, "train", 0, 400)
    dropped = []
    real = torch.nn.functional.dropout

    def dropout(x, p=0.5, training=True):
        y = real(x, p, training)
        dropped.append(((y == 0).double().mean().item(), x.numel()))
        return y

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", dropout)
        last_logits(shape, stacked([random_model(shape, 0)]), one_hot(bits, 6), rate)
    assert len(dropped) == 4
    for share, count in dropped:
        assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / count)
