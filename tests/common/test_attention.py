"""Attention with many dimensions per head, against a computation in float64, PyTorch's own, and statistics."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from common import attention as module
from common.attention import ATTENTION, attention

LAYER = nn.Module()
LAYER.is_causal = False
CAUSAL = nn.Module()


def tensors(samples, heads, queries, keys, dimensions, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(samples, heads, length, dimensions) for length in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def seen_by_queries(samples, keys):
    seen = torch.rand(samples, 1, 1, keys, generator=torch.Generator().manual_seed(1)) < 0.7
    seen[..., 0] = True
    return seen


def dropped_weights(query, key, seen, dropout, scaling):
    """The weights after dropout: with one-hot values they are what attention returns."""
    samples, heads, keys, _ = key.shape
    value = torch.eye(keys, dtype=key.dtype).expand(samples, heads, keys, keys)
    return attention(LAYER, query, key, value, seen, dropout=dropout, scaling=scaling)[0].transpose(1, 2)


@pytest.mark.parametrize("part", [1, 5000, 2**24])
@pytest.mark.parametrize("masked", [True, False])
def test_kept_weights_and_gradients_against_float64(monkeypatch, part, masked):
    monkeypatch.setattr(module, "MAX_PART_BYTES", part)
    monkeypatch.setattr(module, "sdpa_attention_forward", None)
    query, key, value = tensors(5, 3, 7, 11, 12)
    seen = seen_by_queries(5, 11) if masked else None
    torch.manual_seed(0)
    weights = dropped_weights(query, key, seen, 0.25, 0.3)
    torch.manual_seed(0)
    output, _ = attention(LAYER, query, key, value, seen, dropout=0.25, scaling=0.3)
    direction = torch.randn(output.shape)
    gradients = torch.autograd.grad((output * direction).sum(), (query, key, value))

    query, key, value = (tensor.detach().double().requires_grad_() for tensor in (query, key, value))
    scores = 0.3 * torch.einsum("bhqd,bhkd->bhqk", query, key)
    full = scores.masked_fill(~seen, -math.inf).softmax(-1) if masked else scores.softmax(-1)
    expected = full / 0.75 * (weights > 0)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
    expected_output = torch.einsum("bhqk,bhkd->bqhd", expected, value)
    torch.testing.assert_close(output.double(), expected_output, rtol=1e-5, atol=1e-6)
    expected_gradients = torch.autograd.grad((expected_output * direction).sum(), (query, key, value))
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_the_share_of_dropped_weights_is_the_rate_everywhere(dropout):
    torch.manual_seed(0)
    query, key, _ = tensors(8, 4, 64, 96, 12)
    dropped = (dropped_weights(query, key, None, dropout, None) == 0).double()
    for dimensions in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (1, 2, 3)):
        share = dropped.mean(dimensions)
        deviation = math.sqrt(dropout * (1 - dropout) * share.numel() / dropped.numel())
        assert (share - dropout).abs().max() < 5 * deviation
    both = (dropped[..., 1:] * dropped[..., :-1]).mean()
    assert abs(both - dropout**2) < 5 * math.sqrt(dropout**2 * (1 - dropout**2) / dropped.numel())


def test_every_call_drops_other_weights_and_the_seed_repeats_them():
    query, key, _ = tensors(2, 2, 9, 9, 12)
    torch.manual_seed(3)
    first, second = (dropped_weights(query, key, None, 0.5, None) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(dropped_weights(query, key, None, 0.5, None), first)
    assert not torch.equal(second, first)


def test_bfloat16_is_float32_up_to_its_rounding():
    query, key, value = tensors(2, 2, 30, 30, 12, torch.bfloat16)
    seen = seen_by_queries(2, 30)
    torch.manual_seed(0)
    output, _ = attention(LAYER, query, key, value, seen, dropout=0.1)
    assert output.dtype == torch.bfloat16
    torch.manual_seed(0)
    exact, _ = attention(LAYER, query.float(), key.float(), value.float(), seen, dropout=0.1)
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_gradients_are_refused(dtype):
    inputs = tensors(2, 1, 5, 5, 8, dtype)
    output, _ = attention(LAYER, *inputs, None)
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (4, 3, 6, 6), (4, 1, 3, 6), (4, 1, 9, 6), (0, 1, 6, 6)])
def test_a_mask_of_another_shape_is_refused(shape):
    inputs = tensors(4, 2, 6, 6, 8)
    with pytest.raises(RuntimeError, match="expand"):
        attention(LAYER, *inputs, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("dimensions", [8, 16])
def test_the_largest_dropout_is_below_one(dimensions):
    inputs = tensors(2, 1, 6, 6, dimensions)
    output, _ = attention(LAYER, *inputs, None, dropout=1 - 1e-7)
    output.sum().backward()
    assert all(tensor.isfinite().all() for tensor in (output, *(each.grad for each in inputs)))


def test_without_dropout_it_is_that_of_torch():
    query, key, value = tensors(3, 2, 8, 8, 12)
    seen = seen_by_queries(3, 8)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)
    torch.testing.assert_close(attention(LAYER, query, key, value, seen)[0], expected)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(attention(CAUSAL, query, key, value, None)[0], expected)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (75, 75), (33, 40)])
@pytest.mark.parametrize("part", [1, 20_000, 2**24])
def test_a_causal_layer_and_its_gradients_against_float64(monkeypatch, part, queries, keys, dropout):
    monkeypatch.setattr(module, "MAX_PART_BYTES", part)
    monkeypatch.setattr(module, "sdpa_attention_forward", None)
    query, key, value = tensors(4, 3, queries, keys, 12)
    one_hot = torch.eye(keys).expand(4, 3, keys, keys)
    torch.manual_seed(0)
    weights = attention(CAUSAL, query, key, one_hot, None, dropout=dropout, scaling=0.3)[0].transpose(1, 2)
    torch.manual_seed(0)
    output, _ = attention(CAUSAL, query, key, value, None, dropout=dropout, scaling=0.3)
    direction = torch.randn(output.shape)
    gradients = torch.autograd.grad((output * direction).sum(), (query, key, value))

    query, key, value = (tensor.detach().double().requires_grad_() for tensor in (query, key, value))
    seen = torch.ones(queries, keys, dtype=torch.bool).tril()
    full = (0.3 * torch.einsum("bhqd,bhkd->bhqk", query, key)).masked_fill(~seen, -math.inf).softmax(-1)
    kept = weights > 0
    count = 12 * int(seen.sum())
    share = float(kept.sum()) / count
    assert abs(share - (1 - dropout)) <= 5 * math.sqrt(dropout * (1 - dropout) / count)
    expected = full / (1 - dropout) * kept
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-7)
    expected_output = torch.einsum("bhqk,bhkd->bqhd", expected, value)
    torch.testing.assert_close(output.double(), expected_output, rtol=1e-5, atol=1e-6)
    expected_gradients = torch.autograd.grad((expected_output * direction).sum(), (query, key, value))
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-5)


def test_a_causal_layer_whose_weights_would_take_much_memory_is_left_to_torch(monkeypatch):
    query, key, value = tensors(3, 2, 8, 8, 12)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    monkeypatch.setattr(module, "MAX_SAVED_BYTES", 3 * 2 * 8 * 8 * 4 // 2 - 1)
    monkeypatch.setattr(module, "by_queries", None)
    torch.testing.assert_close(attention(CAUSAL, query, key, value, None)[0], expected)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_SAVED_BYTES", 0)
    monkeypatch.setattr(module, "sdpa_attention_forward", None)
    with torch.no_grad():
        torch.testing.assert_close(attention(CAUSAL, query, key, value, None)[0], expected)


def test_in_bert_hidden_tokens_get_no_attention_and_evaluation_is_eager_attention():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=8, **sizes, attn_implementation=ATTENTION))
    eager = BertForMaskedLM(BertConfig(vocab_size=8, **sizes, attn_implementation="eager"))
    eager.load_state_dict(model.state_dict())
    tokens = torch.randint(8, (3, 12))
    attention_mask = (torch.arange(12) < torch.tensor([12, 9, 5])[:, None]).long()
    with torch.no_grad():
        arguments = {"input_ids": tokens, "attention_mask": attention_mask}
        torch.testing.assert_close(model.eval()(**arguments).logits, eager.eval()(**arguments).logits)
        model.train()
        torch.manual_seed(1)
        logits = model(**arguments).logits
        torch.manual_seed(1)
        changed = model(tokens.where(attention_mask == 1, 7 - tokens), attention_mask=attention_mask).logits
    assert torch.equal(logits[attention_mask == 1], changed[attention_mask == 1])
    assert not torch.equal(logits[attention_mask == 0], changed[attention_mask == 0])


def test_a_compiled_model_trains_with_dropout():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForMaskedLM(BertConfig(vocab_size=8, **sizes, attn_implementation=ATTENTION)).train()
    compiled = torch.compile(model, backend="aot_eager")
    for length in (9, 7):
        tokens = torch.randint(8, (2, length))
        compiled(tokens, labels=tokens).loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
        assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
