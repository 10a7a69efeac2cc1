"""Attention with few dimensions per head, against a computation in float64, and statistics of its dropout."""

import math

import pytest
import torch
from torch import nn

from common import attention as module
from common.attention import attention
from common.kernels.attention import DIMENSIONS

LAYER = nn.Module()
LAYER.is_causal = False
CAUSAL = nn.Module()


@pytest.fixture(autouse=True)
def only_the_kernel(monkeypatch):
    for name in ("sdpa_attention_forward", "by_queries", "_attend"):
        monkeypatch.setattr(module, name, None)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tensors(samples, heads, queries, keys, dimensions, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(samples, heads, length, dimensions) for length in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def mask(*shape):
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[..., 2] = True
    return seen


def run(layer, query, key, value, seen, dropout=0.0, scaling=0.3):
    torch.manual_seed(5)
    return attention(layer, query, key, value, seen, dropout=dropout, scaling=scaling)[0].transpose(1, 2)


def dropped_weights(layer, query, key, seen, dropout):
    """The weights after dropout: with one-hot values of a few keys at a time they are what attention returns."""
    keys, dimensions = key.shape[2:]
    values = torch.eye(-(-keys // dimensions) * dimensions)[:keys].split(dimensions, 1)
    with torch.no_grad():
        parts = [run(layer, query, key, value.expand_as(key), seen, dropout) for value in values]
    return torch.cat(parts, -1)[..., :keys]


MASKS = {
    "everything": lambda samples, heads, queries, keys: None,
    "keys": lambda samples, heads, queries, keys: mask(samples, 1, 1, keys),
    "the same keys": lambda samples, heads, queries, keys: mask(1, 1, 1, keys),
    "materialised": lambda samples, heads, queries, keys: mask(samples, 1, 1, keys).repeat(1, 1, queries, 1),
    "expanded": lambda samples, heads, queries, keys: mask(samples, 1, 1, keys).expand(-1, heads, queries, -1),
    "queries": lambda samples, heads, queries, keys: mask(samples, 1, queries, keys),
    "heads": lambda samples, heads, queries, keys: mask(samples, heads, queries, keys),
    "a broadcast key": lambda samples, heads, queries, keys: torch.ones(samples, 1, queries, 1, dtype=torch.bool),
}


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("queries", "keys", "dimensions"), [(37, 37, 8), (6, 50, 5), (33, 7, 1)])
@pytest.mark.parametrize("seen", [*MASKS, "causal"])
def test_weights_outputs_and_gradients_against_float64(threads, seen, queries, keys, dimensions, dropout):
    layer = CAUSAL if seen == "causal" else LAYER
    allowed = None if seen == "causal" else MASKS[seen](5, 3, queries, keys)
    query, key, value = tensors(5, 3, queries, keys, dimensions)
    weights = dropped_weights(layer, query, key, allowed, dropout)
    output = run(layer, query, key, value, allowed, dropout)
    direction = torch.randn(output.shape)
    gradients = torch.autograd.grad((output * direction).sum(), (query, key, value))

    query, key, value = (tensor.detach().double().requires_grad_() for tensor in (query, key, value))
    scores = 0.3 * torch.einsum("bhqd,bhkd->bhqk", query, key)
    visible = torch.ones(queries, keys, dtype=torch.bool)
    visible = visible.tril() if seen == "causal" else visible if allowed is None else allowed
    kept = weights > 0
    count = int(visible.expand_as(kept).sum())
    assert abs(int(kept.sum()) / count - (1 - dropout)) <= 5 * math.sqrt(dropout * (1 - dropout) / count)
    expected = scores.masked_fill(~visible, -math.inf).softmax(-1) / (1 - dropout) * kept
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
    expected_output = expected @ value
    torch.testing.assert_close(output.double(), expected_output, rtol=1e-5, atol=1e-6)
    expected_gradients = torch.autograd.grad((expected_output * direction).sum(), (query, key, value))
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-5)


def test_results_do_not_depend_on_the_number_of_threads():
    before, results = torch.get_num_threads(), []
    for number in (1, 2, 3, 9):
        torch.set_num_threads(number)
        query, key, value = tensors(7, 2, 21, 21, 8)
        output = run(LAYER, query, key, value, mask(7, 1, 1, 21), 0.1)
        results.append([output, *torch.autograd.grad(output.square().sum(), (query, key, value))])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_the_share_of_dropped_weights_is_the_rate_everywhere(dropout):
    query, key, _ = tensors(8, 4, 64, 96, 8)
    dropped = (dropped_weights(LAYER, query, key, None, dropout) == 0).double()
    for dimensions in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (1, 2, 3), (0, 2, 3)):
        share = dropped.mean(dimensions)
        deviation = math.sqrt(dropout * (1 - dropout) * share.numel() / dropped.numel())
        assert (share - dropout).abs().max() < 5 * deviation
    for both in (
        dropped[..., 1:] * dropped[..., :-1],
        dropped[:, :, 1:] * dropped[:, :, :-1],
        dropped[1:] * dropped[:-1],
    ):
        assert abs(both.mean() - dropout**2) < 5 * math.sqrt(dropout**2 * (1 - dropout**2) / both.numel())


def test_every_call_drops_other_weights_and_the_seed_repeats_them():
    query, key, value = tensors(2, 2, 9, 9, 4)
    torch.manual_seed(3)
    first, second = (attention(LAYER, query, key, value, None, dropout=0.5)[0] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(attention(LAYER, query, key, value, None, dropout=0.5)[0], first)
    assert not torch.equal(second, first)


def test_no_random_number_is_drawn_without_dropout():
    state = torch.get_rng_state()
    attention(LAYER, *tensors(2, 2, 9, 9, 4), None)
    assert torch.equal(torch.get_rng_state(), state)


def test_keys_that_nobody_sees_have_no_effect_and_a_gradient_of_zero():
    query, key, value = tensors(3, 2, 20, 20, 8)
    seen = mask(3, 1, 1, 20)
    hidden = ~seen[:, 0, 0, :, None].expand(3, 20, 8)[:, None].expand_as(key)
    output = run(LAYER, query, key, value, seen, 0.3)
    other_key, other_value = (tensor.masked_fill(hidden, math.nan) for tensor in (key, value))
    assert torch.equal(run(LAYER, query, other_key, other_value, seen, 0.3), output)
    for gradient in torch.autograd.grad(output.sum(), (key, value)):
        assert (gradient[hidden] == 0).all()
        assert (gradient[~hidden] != 0).any()


def test_a_query_that_sees_no_key_has_an_output_of_zero():
    query, key, value = tensors(2, 2, 6, 6, 8)
    seen = mask(2, 1, 6, 6)
    seen[0, 0, 1], seen[1] = False, False
    output = run(LAYER, query, key, value, seen)
    assert (output[0, :, 1] == 0).all()
    assert (output[1] == 0).all()
    gradients = torch.autograd.grad(output.sum(), (query, key, value))
    assert all(gradient.isfinite().all() and (gradient[1] == 0).all() for gradient in gradients)


def test_large_scores_neither_overflow_nor_vanish():
    query, key, value = (tensor.detach() for tensor in tensors(2, 2, 30, 30, 8))
    for factor in (1e3, 1e-6):
        scores = 0.3 * torch.einsum("bhqd,bhkd->bhqk", query.double() * factor, key.double())
        expected = scores.softmax(-1) @ value.double()
        output = run(LAYER, query * factor, key, value, None)
        torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("which", range(3))
def test_nan_is_not_hidden(which):
    inputs = [tensor.detach() for tensor in tensors(1, 1, 5, 5, 8)]
    inputs[which][0, 0, 3, 0] = math.nan
    inputs = [tensor.requires_grad_() for tensor in inputs]
    output = run(LAYER, *inputs, None)
    assert output[0, 0, 3].isnan().any()
    assert all(gradient.isnan().any() for gradient in torch.autograd.grad(output.sum(), inputs[:2]))


def test_bfloat16_is_float32_up_to_its_rounding():
    query, key, value = tensors(2, 2, 30, 30, 8, torch.bfloat16)
    seen = mask(2, 1, 1, 30)
    output = run(LAYER, query, key, value, seen, 0.1)
    assert output.dtype == torch.bfloat16
    exact = run(LAYER, query.float(), key.float(), value.float(), seen, 0.1)
    torch.testing.assert_close(output.float(), exact, rtol=0.01, atol=0.01)
    assert all(gradient.dtype == torch.bfloat16 for gradient in torch.autograd.grad(output.sum(), (query, key, value)))


def grouped(inputs):
    query, key, value = inputs
    return query, key[:, :1], value[:, :1]


@pytest.mark.parametrize(
    ("inputs", "seen"),
    [
        (tensors(1, 2, 3, 3, DIMENSIONS + 1), None),
        (tensors(1, 2, 3, 3, DIMENSIONS, torch.float64), None),
        (tensors(1, 2, 3, 3, DIMENSIONS, torch.float16), None),
        (grouped(tensors(1, 2, 3, 3, DIMENSIONS)), None),
        (tensors(1, 2, 3, 3, DIMENSIONS), torch.zeros(1, 1, 3, 3)),
    ],
)
def test_other_attention_is_left_to_torch(monkeypatch, inputs, seen):
    calls = []
    monkeypatch.setattr(module, "sdpa_attention_forward", lambda *inputs, **options: calls.append(inputs))
    attention(LAYER, *inputs, seen)
    assert len(calls) == 1
