"""Attention for CPUs, where this is faster than PyTorch's scaled_dot_product_attention.

With up to 8 dimensions per head, as in the experiments on grammars, attention is common/kernels/attention.py: in
float32, with the samples split over torch's threads. With one thread, a forward and backward pass of 65 to 335
positions takes 0.2 to 0.45 of the time it takes with PyTorch's attention, with dropout 0.07 to 0.3
(benchmarks/attention.py).

With more dimensions and dropout PyTorch has no fused kernel: it computes all weights of a batch, draws a random number
for each, and makes several more passes over them to handle queries that see nothing. Here the weights are computed for
a few samples at a time, with 16 random bits each and fewer passes.

Causal attention with more dimensions is computed for a few queries at a time, with only the keys up to them, with or
without dropout.

In all other cases, on a GPU, and under torch.compile, attention is scaled_dot_product_attention.

    model = BertForMaskedLM(BertConfig(..., attn_implementation=ATTENTION))
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.kernels.attention import DIMENSIONS, LEVELS, backward, forward

ATTENTION = "written_out_on_cpu"
"""The name under which transformers knows `attention`."""

KERNEL_DTYPES = torch.float32, torch.bfloat16
"""Of the tensors that the kernel takes; it computes in float32."""
MAX_PART_BYTES = 16 * 2**20
"""Bytes of weights computed together: larger tensors are allocated by the system each time, which takes longer than the
computation."""
QUERIES = 32
"""Queries of causal attention computed together."""
MAX_SAVED_BYTES = 2**28
"""Bytes of weights that causal attention may save for the backward pass; PyTorch's saves none."""


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
        attention_mask: True where a query sees a key, broadcast to (samples, heads, queries, keys); without a mask,
            queries of a causal layer see no later keys. The output of a query that sees no key is undefined.
        dropout: dropout rate of the weights, rounded to a multiple of 1 / `LEVELS` below 1.
        scaling: factor of the products of queries and keys; by default dimensions^-1/2.
        options: additional arguments of transformers; `is_causal` overrides the layer's.

    Returns:
        (samples, queries, heads, dimensions), and None instead of the weights.
    """
    threshold = min(round(dropout * LEVELS), LEVELS - 1)
    samples, heads, queries, dimensions = query.shape
    keys = key.shape[2]
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(is_causal) and attention_mask is None and queries > 1
    saved = samples * heads * queries * keys * query.element_size() // 2 if torch.is_grad_enabled() else 0
    elsewhere = query.device.type != "cpu" or torch.compiler.is_compiling() or options.get("position_bias") is not None
    is_plain = key.shape == value.shape == (samples, heads, keys, dimensions) and query.dtype in KERNEL_DTYPES
    is_plain = is_plain and (attention_mask is None or attention_mask.dtype == torch.bool)
    if not elsewhere and is_plain and dimensions <= DIMENSIONS:
        scaling = dimensions**-0.5 if scaling is None else scaling
        seen = None if attention_mask is None else attention_mask.expand(samples, heads, queries, keys)
        return _CompiledAttention.apply(query, key, value, seen, causal, scaling, threshold), None
    if elsewhere or (threshold == 0 and not (causal and saved <= MAX_SAVED_BYTES)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    scaling = dimensions**-0.5 if scaling is None else scaling
    part = max(
        MAX_PART_BYTES // (heads * (min(QUERIES, queries) if causal else queries) * keys * query.element_size()), 1
    )
    tensors = zip(query.split(part), key.split(part), value.split(part), strict=True)
    if causal:
        output = torch.cat([by_queries(*tensor, True, scaling, threshold) for tensor in tensors])
    else:
        masks: Iterable[Tensor | None]
        masks = repeat(None) if attention_mask is None else attention_mask.expand(samples, -1, -1, -1).split(part)
        masked = zip(tensors, masks, strict=False)
        output = torch.cat([_attend(*tensor, mask, scaling, threshold) for tensor, mask in masked])
    return output.transpose(1, 2).contiguous(), None


class _CompiledAttention(torch.autograd.Function):
    """Attention with few dimensions: the inputs are those of `attention`, the output is its."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen: Tensor | None,
        causal: bool,
        scaling: float,
        threshold: int,
    ) -> Tensor:
        inputs = [tensor.detach().transpose(1, 2).float().contiguous() for tensor in (query, key, value)]
        output = torch.empty_like(inputs[0])
        normaliser = output.new_empty(2, *query.shape[:3])
        left, right = torch.empty(2, dtype=torch.int64).random_(2**32).tolist() if threshold else (0, 0)
        ctx.options = _broadcast(seen), causal, np.float32(scaling), threshold, np.uint64(left), np.uint64(right)
        given = *(tensor.numpy() for tensor in inputs), *ctx.options
        _on_all_threads(forward, given, (output.numpy(), normaliser.numpy()), len(query))
        ctx.save_for_backward(*inputs, output, normaliser)
        ctx.dtype = query.dtype
        return output.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, output, normaliser = ctx.saved_tensors
        results = [torch.zeros_like(tensor) for tensor in inputs]
        given = *(tensor.numpy() for tensor in inputs), *ctx.options
        made = output.numpy(), normaliser.numpy(), gradients[0].float().contiguous().numpy()
        _on_all_threads(backward, given, (*made, *(result.numpy() for result in results)), len(output))
        return (*(result.transpose(1, 2).to(ctx.dtype) for result in results), None, None, None, None)


def _broadcast(seen: Tensor | None) -> np.ndarray:
    """A mask as the kernel takes it, without copies along the dimensions in which it does not change."""
    if seen is None:
        return np.empty((0, 1, 1, 1), np.bool_)
    for dimension in range(3):
        if seen.stride(dimension) == 0:
            seen = seen.narrow(dimension, 0, 1)
    return seen.contiguous().numpy()


def _on_all_threads(kernel: Callable[..., None], given: Sequence[Any], more: Sequence[Any], samples: int) -> None:
    """Call a kernel for all samples, in as many threads as torch uses; its range of samples is between `given` and
    `more`."""
    threads = max(min(torch.get_num_threads(), samples), 1)
    bounds = [samples * thread // threads for thread in range(threads + 1)]
    first, *others = pairwise(bounds)
    waiting = [_pool(threads - 1).submit(kernel, *given, *part, *more) for part in others]
    kernel(*given, *first, *more)
    for other in waiting:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "attention")


def by_queries(query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float, threshold: int = 0) -> Tensor:
    """Attention, computed for `QUERIES` queries at a time: few enough for their scores to stay in the cache.

    Args:
        query: (samples, heads, queries, dimensions).
        key: (samples, heads, keys, dimensions), at least as many keys as queries.
        value: like `key`.
        causal: whether a query sees no later keys; the first query has the position of the first key.
        scaling: factor of the products of queries and keys.
        threshold: dropout rate of the weights, in units of 1 / `LEVELS`.

    Returns:
        (samples, heads, queries, dimensions of the values).
    """
    length, keys = query.shape[2], key.shape[2]
    flat_query, flat_key, flat_value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    parts = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        seen = stop if causal else keys
        mask = query.new_full((stop - start, seen), -torch.inf if causal else 0).triu_(start + 1)
        scores = torch.baddbmm(
            mask.expand(len(flat_query), -1, -1),
            flat_query[:, start:stop],
            flat_key[:, :seen].transpose(1, 2),
            alpha=scaling,
        )
        parts.append(torch.bmm(_drop(scores.softmax(-1), threshold), flat_value[:, :seen]))
    output = torch.cat(parts, 1).unflatten(0, query.shape[:2])
    return output / (1 - threshold / LEVELS) if threshold else output


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scaling: float, threshold: int) -> Tensor:
    """Attention with the mask `seen`, True where a query sees a key: (samples, heads, queries, dimensions)."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if seen is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores + torch.zeros_like(seen, dtype=scores.dtype).masked_fill(~seen, lowest)
    return torch.matmul(_drop(scores.softmax(-1), threshold), value) / (1 - threshold / LEVELS)


def _drop(weights: Tensor, threshold: int) -> Tensor:
    """The weights with some set to zero; the others are not scaled up yet."""
    if threshold == 0:
        return weights
    kept = _random_bits(weights.shape) >= threshold - LEVELS // 2
    return weights * kept.to(weights.dtype)


def _random_bits(shape: torch.Size) -> Tensor:
    """Uniform int16 numbers; torch's generator gives 64 bits at a time."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count].view(shape)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
