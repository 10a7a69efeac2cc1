"""GPT-2's logits at the last position, for several networks in one pass, with no more work than they need.

The result is that of `model.ParityGPT2`, up to rounding. Less work is done in three places:

- A token is one of two, so the first block sees 2 T different inputs only (T positions): its layer normalisation,
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

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from parity_mlp.transformer.model import Shape

Weights = Mapping[str, Tensor]
"""By the names of `ParityGPT2.named_parameters()`; a matrix is (networks, rows, columns), a vector (networks, 1, n)."""


def last_logits(shape: Shape, weights: Weights, tokens: Tensor, dropout: float = 0.0) -> Tensor:
    """Logits of the classes at the last position.

    Args:
        shape: of all networks.
        weights: of all networks.
        tokens: (d, samples, 2), one-hot: 1 at 0 for x_i = +1 and 1 at 1 for x_i = -1.
        dropout: share that is dropped, with torch's generator.

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
        hidden = F.dropout(_pick(embedded.unsqueeze(3), tokens)[..., 0, :], dropout)
        middle = range(shape.layers - 1)
    for layer in middle:
        hidden = _block(shape, weights, layer, hidden, dropout)
    last = _last_block(shape, weights, shape.layers - 1, hidden, dropout)
    normalised = _normalise(shape, weights, "transformer.ln_f", last)
    head = weights["transformer.wte.weight" if shape.tied else "lm_head.weight"]
    return torch.bmm(normalised, head[:, : shape.classes].transpose(1, 2))


def _embeddings(shape: Shape, weights: Weights, d: int) -> Tensor:
    """Embedding of either token at every position, (networks, 2, T, hidden); the class token's stands there twice."""
    words, places = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    embedded = words[:, :2, None] + places[:, None, :d]
    if not shape.class_token:
        return embedded
    class_token = (words[:, -1] + places[:, d])[:, None, None].expand(-1, 2, -1, -1)
    return torch.cat([embedded, class_token], 2)


def _pick(table: Tensor, tokens: Tensor) -> Tensor:
    """The entries of every sample's tokens.

    Args:
        table: (networks, 2, T, parts, hidden).
        tokens: (T, samples, 2), weights of the two entries.

    Returns:
        (networks, samples, T, parts, hidden), of which (T, samples, parts, networks, hidden) lies in order.
    """
    networks, _, length, parts, hidden = table.shape
    flat = table.permute(2, 1, 3, 0, 4).reshape(length, 2, parts * networks * hidden)
    with torch.autocast(flat.device.type, enabled=False):  # nothing is to be rounded
        picked = torch.bmm(tokens, flat.to(tokens.dtype))
    return picked.view(length, -1, parts, networks, hidden).permute(3, 1, 0, 2, 4)


def _first_block(shape: Shape, weights: Weights, embedded: Tensor, tokens: Tensor) -> Tensor:
    """The first block without dropout: (networks, samples, T, hidden)."""
    networks, _, length, hidden = embedded.shape
    normalised = _normalise(shape, weights, "transformer.h.0.ln_1", embedded.reshape(networks, -1, hidden))
    projected = _linear(weights, "transformer.h.0.attn.c_attn", normalised).view(networks, 2, length, 3, hidden)
    picked = _pick(torch.cat([embedded.unsqueeze(3), projected], 3), tokens)
    return _after_queries(shape, weights, 0, picked[..., 0, :], picked[..., 1:, :], 0.0)


def _block(shape: Shape, weights: Weights, layer: int, hidden: Tensor, dropout: float) -> Tensor:
    """A block for all positions: (networks, samples, T, hidden) to the same."""
    flat = hidden.flatten(1, 2)
    normalised = _normalise(shape, weights, f"transformer.h.{layer}.ln_1", flat)
    projected = _linear(weights, f"transformer.h.{layer}.attn.c_attn", normalised)
    return _after_queries(shape, weights, layer, hidden, projected.view(*hidden.shape[:3], 3, shape.hidden), dropout)


def _after_queries(
    shape: Shape, weights: Weights, layer: int, hidden: Tensor, projected: Tensor, dropout: float
) -> Tensor:
    """A block once queries, keys and values, (networks, samples, T, 3, hidden), are there."""
    networks, samples, length = hidden.shape[:3]
    by_head = projected.unflatten(-1, (shape.heads, shape.head_dim)).permute(3, 1, 0, 4, 2, 5)
    query, key, value = by_head.reshape(3, samples, networks * shape.heads, length, shape.head_dim)
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=shape.causal)
    heads = mixed.transpose(1, 2).reshape(samples * length, networks, shape.heads, shape.head_dim).transpose(0, 1)
    hidden = (_project_heads(shape, weights, layer, heads, dropout).view(hidden.shape) + hidden).flatten(1, 2)
    return _feed_forward(shape, weights, layer, hidden, dropout).view(networks, samples, length, shape.hidden)


def _last_block(shape: Shape, weights: Weights, layer: int, hidden: Tensor, dropout: float) -> Tensor:
    """A block for the last position: (networks, samples, T, hidden) to (networks, samples, hidden)."""
    networks, samples, length, size = hidden.shape
    heads, head_dim = shape.heads, shape.head_dim
    normalised = _normalise(shape, weights, f"transformer.h.{layer}.ln_1", hidden.flatten(1, 2)).view_as(hidden)
    matrices = weights[f"transformer.h.{layer}.attn.c_attn.weight"]
    biases = weights[f"transformer.h.{layer}.attn.c_attn.bias"]
    query = torch.baddbmm(biases[..., :size], normalised[:, :, -1], matrices[..., :size])
    of_heads = matrices.view(networks, size, 3, heads, head_dim)
    keys = of_heads[:, :, 1].permute(0, 2, 3, 1).reshape(networks * heads, head_dim, size)
    values = of_heads[:, :, 2].transpose(1, 2).reshape(networks * heads, size, head_dim)

    query = query.view(networks, samples, heads, head_dim).transpose(1, 2).reshape(-1, samples, head_dim)
    asked = torch.bmm(query, keys).view(networks, heads, samples, size).transpose(1, 2)
    seen = normalised.reshape(-1, length, size)
    scores = torch.bmm(asked.reshape(-1, heads, size), seen.transpose(1, 2)) * head_dim**-0.5
    attention = F.dropout(scores.softmax(-1), dropout)
    found = torch.bmm(attention, seen).view(networks, samples, heads, size).transpose(1, 2)
    mixed = torch.bmm(found.reshape(-1, samples, size), values).view(networks, heads, samples, head_dim).transpose(1, 2)
    kept = attention.sum(-1).view(networks, samples, heads, 1)  # 1 without dropout
    mixed = mixed + kept * biases[..., 2 * size :].view(networks, 1, heads, head_dim)

    last = hidden[:, :, -1] + _project_heads(shape, weights, layer, mixed, dropout)
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
