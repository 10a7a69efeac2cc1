"""GPT-2 on parity, by transformers, and its published variants.

A coordinate x_i is the token (1 - x_i) / 2, and the classes are the first tokens of the vocabulary: they are
predicted by the logits at the last position. The variants are no causal mask, feed-forward layers that are linear or
skipped, heads that are averaged instead of concatenated, a class token at the end, and tied embeddings (Panigrahi et
al. 2025, arXiv:2410.05464).

A checkpoint is in Hugging Face's format of GPT-2. `GPT2LMHeadModel.from_pretrained` reads it as it is, unless
feed-forward layers are skipped, heads averaged or the mask is left out; `load_model` reads all of them. `last_position`
computes the same logits with less work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from common.parity.networks import Network, Tensors, require_shapes
from common.parity.task import ParityTask
from common.teachers.configs import config_of, read_config
from common.teachers.loading import StoredModel, build_model
from common.teachers.tensors import read_weights

MODEL_TYPE = "gpt2"

FeedForward = Literal["gelu", "linear", "skip"]
ACTIVATIONS: dict[FeedForward, str] = {"gelu": "gelu_new", "linear": "linear", "skip": "linear"}
"""Names in transformers; without feed-forward layers the activation has no effect."""
VARIANTS = {"is_causal": True, "skip_feed_forward": False, "average_heads": False, "class_token": False}
"""Entries of config.json that GPT-2 lacks, and what they are in GPT-2."""


@dataclass(frozen=True)
class Shape:
    """The architecture of a network. Networks of one shape can be trained in one pass."""

    layers: int
    heads: int
    head_dim: int
    vocabulary: int
    positions: int
    causal: bool = True
    feed_forward: FeedForward = "gelu"
    average_heads: bool = False
    class_token: bool = False
    tied: bool = False
    inner: int = 0
    """Width of the feed-forward layers; 0 is four times the hidden size."""
    epsilon: float = 1e-5
    """Of the layer normalisations."""
    dropout: float = 0.0
    """In training: dropout probability of embeddings, attention and residual branches."""

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim

    @property
    def classes(self) -> int:
        return self.vocabulary - self.class_token


class ParityGPT2(GPT2LMHeadModel):
    """GPT-2 with the variants that `Shape` names; its configuration is that of `configuration`."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        shape = shape_of(config.to_dict())
        blocks: Any = self.transformer.h
        for block in blocks:
            block.attn.is_causal = shape.causal
            if shape.average_heads:
                block.attn.c_proj = AverageHeads(shape.hidden, shape.head_dim)
                nn.init.normal_(block.attn.c_proj.weight, std=config.initializer_range / (2 * shape.layers) ** 0.5)
            if shape.feed_forward == "skip":
                block.ln_2, block.mlp = nn.Identity(), Nothing()


class AverageHeads(Conv1D):
    """Output projection of the mean of all heads: (..., heads * head_dim) to (..., hidden)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(-1, (-1, len(self.weight))).mean(-2))


class Nothing(nn.Module):
    """Adds nothing to the hidden states."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def configuration(shape: Shape, initial_std: float = 0.02) -> GPT2Config:
    """The configuration of a shape in transformers; variants that GPT-2 lacks have entries of their own."""
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.positions,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.inner or None,
        activation_function=ACTIVATIONS[shape.feed_forward],
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        resid_pdrop=shape.dropout,
        layer_norm_epsilon=shape.epsilon,
        initializer_range=initial_std,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.update(
        {
            "is_causal": shape.causal,
            "skip_feed_forward": shape.feed_forward == "skip",
            "average_heads": shape.average_heads,
            "class_token": shape.class_token,
            "architectures": ["GPT2LMHeadModel"],
        }
    )
    return config


def shape_of(config: Mapping[str, Any], file: object = "config.json") -> Shape:
    """The shape that a config.json describes; missing entries have the defaults of transformers.

    Args:
        config: its content.
        file: its name, for messages.

    Raises:
        UserError: it does not belong to a GPT-2, has an invalid entry, or describes an unknown variant.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{file}: a {config.get('model_type')!r} model is not a {MODEL_TYPE!r} model")
    full = config_of(config, file, VARIANTS).to_dict()
    activation = "skip" if full["skip_feed_forward"] else full["activation_function"]
    known: dict[str, FeedForward] = {ACTIVATIONS["gelu"]: "gelu", ACTIVATIONS["linear"]: "linear", "skip": "skip"}
    if activation not in known:
        raise UserError(f"{file}: activation_function {activation!r} is none of {', '.join(ACTIVATIONS.values())}")
    for name, wanted in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if full[name] is not wanted:
            raise UserError(f"{file}: {name} must be {wanted}, got {full[name]}")
    return Shape(
        layers=full["n_layer"],
        heads=full["n_head"],
        head_dim=full["n_embd"] // full["n_head"],
        vocabulary=full["vocab_size"],
        positions=full["n_positions"],
        causal=full["is_causal"],
        feed_forward=known[activation],
        average_heads=full["average_heads"],
        class_token=full["class_token"],
        tied=full["tie_word_embeddings"],
        inner=full["n_inner"] or 0,
        epsilon=full["layer_norm_epsilon"],
        dropout=full["resid_pdrop"],
    )


def initial_network(shape: Shape, initial_std: float, seed: int) -> Network:
    """A network with the weights that transformers draws for GPT-2; it depends on the arguments alone."""
    config = configuration(shape, initial_std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ParityGPT2(config)
    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    return Network({**config.to_diff_dict(), "model_type": MODEL_TYPE}, tensors)


def checked_network(checkpoint: Path, config: dict[str, Any], tensors: Tensors, task: ParityTask) -> Network:
    """The content of a checkpoint as a network, if it is a GPT-2 for this task.

    Raises:
        UserError: it has another number of classes or too few positions, or its tensors are not those that its
            config.json describes, in float32.
    """
    shape = shape_of(config, checkpoint / "config.json")
    if shape.classes != task.classes:
        raise UserError(
            f"the network in {checkpoint} has {shape.classes} classes (vocabulary {shape.vocabulary}), "
            f"but this task has {task.classes}"
        )
    if shape.positions < task.d + shape.class_token:
        raise UserError(
            f"the network in {checkpoint} has {shape.positions} positions, "
            f"but d = {task.d} needs {task.d + shape.class_token}"
        )
    with torch.device("meta"):
        expected = dict(ParityGPT2(configuration(shape)).named_parameters())
    require_shapes(checkpoint, {name: tuple(value.shape) for name, value in expected.items()}, tensors)
    if {tensors[name].dtype for name in expected} != {np.dtype(np.float32)}:
        raise UserError(f"{checkpoint}: the tensors must be float32")
    return Network(config, {name: tensors[name] for name in expected})


def load_model(checkpoint: Path) -> ParityGPT2:
    """The network of a checkpoint as a model of transformers, whatever its variant.

    Raises:
        UserError: config.json or the weights are damaged, do not belong together, or are not finite.
    """
    stored = StoredModel(checkpoint, read_config(checkpoint, VARIANTS), read_weights(checkpoint))
    model = build_model(stored, "causal", model_class=ParityGPT2)
    assert isinstance(model, ParityGPT2)
    return model
