"""GPT-2 and its variants written out from the formula, as an oracle, and networks to try it on."""

import math
from dataclasses import replace

import torch

from common.parity.gpt2 import ParityGPT2, Shape, configuration, shape_of
from parity_gpt2.data import token_ids

PLAIN = Shape(layers=2, heads=2, head_dim=3, vocabulary=2, positions=6)
STOCK = {
    "plain": PLAIN,
    "one-layer": replace(PLAIN, layers=1),
    "three-layers": replace(PLAIN, layers=3, heads=3, head_dim=2),
    "linear": replace(PLAIN, feed_forward="linear"),
    "class-token": replace(PLAIN, class_token=True, vocabulary=3, positions=7),
    "tied": replace(PLAIN, tied=True),
    "tied-class-token": replace(PLAIN, tied=True, class_token=True, vocabulary=3, positions=7),
    "positions": replace(PLAIN, positions=11),
    "hierarchical": replace(PLAIN, vocabulary=4),
    "inner": replace(PLAIN, inner=5, epsilon=0.3),
}
"""Shapes for d = 6 that a stock GPT-2 has."""
OTHERS = {
    "no-mask": replace(PLAIN, causal=False),
    "skip": replace(PLAIN, feed_forward="skip"),
    "average": replace(PLAIN, average_heads=True),
    "all": Shape(
        layers=3,
        heads=2,
        head_dim=3,
        vocabulary=5,
        positions=9,
        causal=False,
        feed_forward="skip",
        average_heads=True,
        class_token=True,
        tied=True,
    ),
}
"""Shapes for d = 6 that need code of this project."""
SHAPES = STOCK | OTHERS


def random_model(shape, seed, scale=0.5):
    """A network whose every weight and bias is drawn from a normal distribution, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = ParityGPT2(configuration(shape)).double().eval()
    for parameter in model.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def tokens_of(shape, bits, d):
    """The tokens of packed bits, (samples, T): 0 for +1, 1 for -1, and the class token last."""
    return token_ids(bits, d, shape.vocabulary - 1 if shape.class_token else None)


def last_logits(model, bits, d):
    """Logits (samples, classes) of a model of transformers at the last position, in float64."""
    shape = shape_of(model.config.to_dict())
    with torch.no_grad():
        return model.double().eval()(tokens_of(shape, bits, d)).logits[:, -1, : shape.classes]


def written_out(shape, weights, tokens):
    """Logits (samples, T, vocabulary) of tokens (samples, T); `weights` by their names in transformers."""
    length = tokens.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool)
    if shape.causal:
        allowed = allowed.tril()
    words = weights["transformer.wte.weight"]
    hidden = words[tokens] + weights["transformer.wpe.weight"][:length]

    def normalise(name, x):
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / (variance + shape.epsilon).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def affine(name, x):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    for layer in range(shape.layers):
        block = f"transformer.h.{layer}"
        query, key, value = affine(f"{block}.attn.c_attn", normalise(f"{block}.ln_1", hidden)).chunk(3, -1)
        heads = []
        for head in range(shape.heads):
            part = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(shape.head_dim)
            odds = scores.masked_fill(~allowed, -math.inf).exp()
            heads.append(odds / odds.sum(-1, keepdim=True) @ value[..., part])
        joined = sum(heads) / shape.heads if shape.average_heads else torch.cat(heads, -1)
        hidden = hidden + affine(f"{block}.attn.c_proj", joined)
        if shape.feed_forward != "skip":
            x = affine(f"{block}.mlp.c_fc", normalise(f"{block}.ln_2", hidden))
            if shape.feed_forward == "gelu":
                x = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            hidden = hidden + affine(f"{block}.mlp.c_proj", x)
    head = words if shape.tied else weights["lm_head.weight"]
    return normalise("transformer.ln_f", hidden) @ head.T
