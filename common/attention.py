"""Attention with dropout on a CPU, where PyTorch's scaled_dot_product_attention has no fast way of it.

There it writes out all weights of a batch, draws a number for each of them, and takes several more passes over them for
the case that a query sees nothing. Here the weights are written out too, but of a few samples at a time, with 16 random
bits for one of them and fewer passes. In all other cases, without dropout, on a GPU or compiled, attention is
scaled_dot_product_attention.

    model = BertForMaskedLM(BertConfig(..., attn_implementation=ATTENTION))
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_unless_dropout_on_cpu"
"""Name of `attention` for transformers."""

LEVELS = 2**16
"""A dropout rate is rounded to a multiple of one part in so many."""
PART = 16 * 2**20
"""Bytes of weights that are computed together: larger tensors come from the system each time, which takes longer than
what is computed with them."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the layer that attends.
        query: (samples, heads, queries, dimensions).
        key: (samples, heads, keys, dimensions).
        value: like `key`.
        attention_mask: True where a query sees a key, broadcast to (samples, heads, queries, keys); without one, a
            causal layer sees no later positions. What a query that sees nothing gets is not defined.
        dropout: share of the weights that is dropped, here rounded to a multiple of 1 / `LEVELS`.
        scaling: of the products of queries and keys; by default dimensions^-1/2.
        options: whatever else transformers hands over.

    Returns:
        (samples, queries, heads, dimensions), and no weights.
    """
    threshold = round(dropout * LEVELS)
    elsewhere = query.device.type != "cpu" or torch.compiler.is_compiling()
    if threshold == 0 or elsewhere or options.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    samples, heads, queries, _ = query.shape
    if attention_mask is None and getattr(module, "is_causal", True) and queries > 1:
        attention_mask = torch.ones(queries, key.shape[2], dtype=torch.bool).tril()[None, None]
    part = max(PART // (heads * queries * key.shape[2] * query.element_size()), 1)
    masks: Iterable[Tensor | None]
    masks = repeat(None) if attention_mask is None else attention_mask.expand(samples, -1, -1, -1).split(part)
    parts = zip(query.split(part), key.split(part), value.split(part), masks, strict=False)
    output = torch.cat([_attend(*tensors, threshold) for tensors in parts])
    return output.transpose(1, 2).contiguous(), None


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, threshold: int) -> Tensor:
    """Of some samples, with a query that is scaled already: (samples, heads, queries, dimensions)."""
    scores = torch.matmul(query, key.transpose(2, 3))
    if seen is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores + torch.zeros_like(seen, dtype=scores.dtype).masked_fill(~seen, lowest)
    weights = scores.softmax(-1)
    kept = _random_bits(weights.shape) >= threshold - LEVELS // 2
    return torch.matmul(weights * kept.to(weights.dtype), value) / (1 - threshold / LEVELS)


def _random_bits(shape: torch.Size) -> Tensor:
    """Uniform int16 numbers from torch's generator, which gives 64 bits at a time."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count].view(shape)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
