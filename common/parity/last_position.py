"""GPT-2's logits at the last position, for several networks in one pass, with no unnecessary work.

The result is that of `ParityGPT2`, up to rounding. Work is saved in three places:

- A token is one of two, so the first block sees only 2 T different inputs (T positions): its layer normalisation,
  queries, keys and values are computed once for these, and every sample picks its own.
- In the last block the query, the projection of the heads, the feed-forward layer and the head of the model are
  computed for the last position alone.
- Its keys and values are not computed at all. With the query q of a head, the key matrix K and the value matrix V,
  q . (K z_j) = (K^T q) . z_j and sum_j a_j V z_j = V sum_j a_j z_j, so that K and V act once per sample and not once
  per position; what a bias adds to the scores is the same for all positions and leaves their softmax as it is.

All other products, per position of a network of hidden size h, are those of the first block's projection and
feed-forward layer, 9 h^2 multiply-adds of the 24 h^2 of a GPT-2 of two layers.

Weights carry a leading dimension, one entry for each network. In the attention of a block networks are further heads.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.attention import by_queries
from common.parity.arguments import Precision
from common.parity.gpt2 import Shape, shape_of
from common.parity.networks import Network
from common.parity.task import unpack_bits

LOGITS_BYTES = 2**22
"""Activations of a feed-forward layer in one pass without gradients on a CPU: few enough to stay in the cache."""
LOGITS_BATCH = 4096
"""Samples in such a pass on other devices."""

Weights = Mapping[str, Tensor]
"""By the names of `ParityGPT2.named_parameters()`; a matrix is (networks, rows, columns), a vector (networks, 1, n)."""


def last_logits(shape: Shape, weights: Weights, tokens: Tensor, dropout: float = 0.0) -> Tensor:
    """Logits of the classes at the last position.

    Args:
        shape: of all networks.
        weights: of all networks.
        tokens: (d, samples, 2), one-hot: 1 at 0 for x_i = +1 and 1 at 1 for x_i = -1.
        dropout: dropout probability; torch's generator is used.

    Returns:
        (networks, samples, classes).
    """
    embedded = _embeddings(shape, weights, len(tokens))
    if shape.class_token:
        tokens = F.pad(tokens, (0, 0, 0, 0, 0, 1), value=0.5)  # both entries of its row are the class token
    if shape.layers > 1 and dropout == 0:
        hidden = _first_block(shape, weights, embedded, tokens)
        middle = range(1, shape.layers - 1)
    else:
        hidden = F.dropout(_pick(embedded, tokens), dropout)
        middle = range(shape.layers - 1)
    for layer in middle:
        hidden = _block(shape, weights, layer, hidden, dropout)
    last = _last_block(shape, weights, shape.layers - 1, hidden, dropout)
    normalised = _normalise(shape, weights, "transformer.ln_f", last)
    head = weights["transformer.wte.weight" if shape.tied else "lm_head.weight"]
    return torch.bmm(normalised, head[:, : shape.classes].transpose(1, 2))


def one_hot_tokens(bits: NDArray[np.uint64], d: int, device: str) -> Tensor:
    """Packed bits (samples, words) to the tokens that `last_logits` takes: (d, samples, 2), on a device."""
    negative = unpack_bits(bits, d, device).T.float()
    return torch.stack([1 - negative, negative], -1)


def weight_views(flat: Tensor, sizes: Mapping[str, tuple[int, ...]], networks: int) -> dict[str, Tensor]:
    """Weights in one piece of memory, tensor by tensor and in each network by network, as `last_logits` takes them.

    Args:
        flat: (numbers,), all weights of all networks.
        sizes: of each tensor of a network, in the order of the memory.
        networks: how many there are.
    """
    parts = flat.split([networks * int(np.prod(size)) for size in sizes.values()])
    return {
        name: part.view(networks, *(size if len(size) == 2 else (1, *size)))
        for (name, size), part in zip(sizes.items(), parts, strict=True)
    }


def batched_logits(shape: Shape, weights: Weights, tokens: Tensor, precision: Precision) -> NDArray[np.float64]:
    """Logits (samples, classes) of one network for tokens (d, samples, 2), without dropout and gradients."""
    device = tokens.device.type
    samples = max(LOGITS_BYTES // (16 * len(tokens) * shape.hidden), 1) if device == "cpu" else LOGITS_BATCH
    with torch.inference_mode(), autocast(device, precision):
        parts = [last_logits(shape, weights, part)[0] for part in tokens.split(samples, 1)]
        return torch.cat(parts).double().cpu().numpy()


def frozen_logits(
    network: Network, d: int, device: str, precision: Precision
) -> Callable[[NDArray[np.uint64]], NDArray[np.float64]]:
    """The logits of a network as a function of packed bits; see `common.parity.frozen`."""
    shape = shape_of(network.config)
    sizes = {name: network.tensors[name].shape for name in sorted(network.tensors)}
    joined = np.concatenate([np.ravel(network.tensors[name]) for name in sizes])  # as the engine of parity_gpt2 does
    weights = weight_views(torch.tensor(joined, device=device), sizes, 1)
    return lambda bits: batched_logits(shape, weights, one_hot_tokens(bits, d, device), precision)


def autocast(device: str, precision: Precision) -> torch.autocast:
    """A context in which matrix products are computed in a precision."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def _embeddings(shape: Shape, weights: Weights, d: int) -> Tensor:
    """Embedding of either token at every position, (networks, 2, T, hidden); that of the class token twice."""
    words, places = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    embedded = words[:, :2, None] + places[:, None, :d]
    if not shape.class_token:
        return embedded
    class_token = (words[:, -1] + places[:, d])[:, None, None].expand(-1, 2, -1, -1)
    return torch.cat([embedded, class_token], 2)


def _pick(table: Tensor, tokens: Tensor) -> Tensor:
    """The entries of every sample's tokens.

    Args:
        table: (networks, 2, T, hidden).
        tokens: (T, samples, 2), weights of the two entries.

    Returns:
        (networks, samples, T, hidden), of which (T, samples, networks, hidden) lies in order.
    """
    networks, _, length, hidden = table.shape
    flat = table.permute(2, 1, 0, 3).reshape(length, 2, networks * hidden)
    with torch.autocast(flat.device.type, enabled=False):  # picking must not round
        picked = torch.bmm(tokens, flat.to(tokens.dtype))
    return picked.view(length, -1, networks, hidden).permute(2, 1, 0, 3)


def _first_block(shape: Shape, weights: Weights, embedded: Tensor, tokens: Tensor) -> Tensor:
    """The first block without dropout: (networks, samples, T, hidden)."""
    normalised = _normalise(shape, weights, "transformer.h.0.ln_1", embedded.flatten(1, 2))
    projected = _linear(weights, "transformer.h.0.attn.c_attn", normalised).chunk(3, -1)
    query, key, value = (_pick(part.view(embedded.shape), tokens) for part in projected)
    return _finish_block(shape, weights, 0, _pick(embedded, tokens), query, key, value, 0.0)


def _block(shape: Shape, weights: Weights, layer: int, hidden: Tensor, dropout: float) -> Tensor:
    """A block for all positions: (networks, samples, T, hidden) to the same."""
    normalised = _normalise(shape, weights, f"transformer.h.{layer}.ln_1", hidden.flatten(1, 2))
    projected = _linear(weights, f"transformer.h.{layer}.attn.c_attn", normalised).chunk(3, -1)
    query, key, value = (part.view(hidden.shape) for part in projected)
    return _finish_block(shape, weights, layer, hidden, query, key, value, dropout)


def _finish_block(
    shape: Shape,
    weights: Weights,
    layer: int,
    hidden: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
) -> Tensor:
    """A block from its queries, keys and values on; all (networks, samples, T, hidden)."""
    networks, samples, length, size = hidden.shape
    queries, keys, values = (
        part.unflatten(-1, (shape.heads, shape.head_dim)).permute(1, 0, 3, 2, 4).flatten(1, 2)
        for part in (query, key, value)
    )
    mixed = _attend(queries, keys, values, shape.causal, dropout)
    mixed = mixed.unflatten(1, (networks, shape.heads)).permute(1, 0, 3, 2, 4)
    heads = mixed.reshape(networks, samples * length, shape.heads, shape.head_dim)
    added = _project_heads(shape, weights, layer, heads, dropout).view(hidden.shape)
    return _feed_forward(shape, weights, layer, (added + hidden).flatten(1, 2), dropout).view(
        networks, samples, length, size
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, dropout: float) -> Tensor:
    """Attention; all (samples, heads, T, head_dim). On a CPU it is written out, see common/attention.py."""
    if query.device.type != "cpu" or dropout > 0 or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    return by_queries(query, key, value, causal, query.shape[-1] ** -0.5)


def _last_block(shape: Shape, weights: Weights, layer: int, hidden: Tensor, dropout: float) -> Tensor:
    """A block for the last position: (networks, samples, T, hidden) to (networks, samples, hidden)."""
    networks, samples, length, size = hidden.shape
    heads, head_dim = shape.heads, shape.head_dim
    last = hidden[:, :, -1]
    name = f"transformer.h.{layer}"
    seen = _normalise(shape, weights, f"{name}.ln_1", hidden.flatten(1, 2)).reshape(networks * samples, length, size)
    for_query, for_keys, for_values = weights[f"{name}.attn.c_attn.weight"].chunk(3, -1)
    query_bias, _, value_bias = weights[f"{name}.attn.c_attn.bias"].chunk(3, -1)
    keys = for_keys.unflatten(-1, (heads, head_dim)).permute(0, 2, 3, 1).flatten(0, 1)
    values = for_values.unflatten(-1, (heads, head_dim)).transpose(1, 2).flatten(0, 1)

    query = torch.baddbmm(query_bias, _normalise(shape, weights, f"{name}.ln_1", last), for_query)
    query = query.unflatten(-1, (heads, head_dim)).transpose(1, 2).flatten(0, 1)
    queries = torch.bmm(query, keys).view(networks, heads, samples, size).transpose(1, 2).reshape(-1, heads, size)
    scores = torch.bmm(queries, seen.transpose(1, 2)) * head_dim**-0.5
    attention = F.dropout(scores.softmax(-1), dropout)
    found = torch.bmm(attention, seen).view(networks, samples, heads, size).transpose(1, 2).flatten(0, 1)
    mixed = torch.bmm(found, values).view(networks, heads, samples, head_dim).transpose(1, 2)
    kept = attention.sum(-1).view(networks, samples, heads, 1)  # 1 without dropout
    mixed = mixed + kept * value_bias.unflatten(-1, (heads, head_dim))

    last = last + _project_heads(shape, weights, layer, mixed, dropout)
    return _feed_forward(shape, weights, layer, last, dropout)


def _project_heads(shape: Shape, weights: Weights, layer: int, heads: Tensor, dropout: float) -> Tensor:
    """What attention adds: (networks, rows, heads, head_dim) to (networks, rows, hidden)."""
    joined = heads.mean(2) if shape.average_heads else heads.flatten(2)
    return F.dropout(_linear(weights, f"transformer.h.{layer}.attn.c_proj", joined), dropout)


def _feed_forward(shape: Shape, weights: Weights, layer: int, hidden: Tensor, dropout: float) -> Tensor:
    """Hidden states (networks, rows, hidden) with what the feed-forward layer adds to them."""
    if shape.feed_forward == "skip":
        return hidden
    inner = _linear(
        weights,
        f"transformer.h.{layer}.mlp.c_fc",
        _normalise(shape, weights, f"transformer.h.{layer}.ln_2", hidden),
    )
    if shape.feed_forward == "gelu":
        inner = F.gelu(inner, approximate="tanh")
    return hidden + F.dropout(_linear(weights, f"transformer.h.{layer}.mlp.c_proj", inner), dropout)


def _normalise(shape: Shape, weights: Weights, name: str, x: Tensor) -> Tensor:
    """Layer normalisation of (networks, rows, hidden)."""
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if len(x) == 1:
        return F.layer_norm(x, (shape.hidden,), scale.flatten(), shift.flatten(), shape.epsilon)
    return torch.addcmul(shift, F.layer_norm(x, (shape.hidden,), eps=shape.epsilon), scale)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """(networks, rows, inputs) to (networks, rows, outputs)."""
    return torch.baddbmm(weights[f"{name}.bias"], x, weights[f"{name}.weight"])
