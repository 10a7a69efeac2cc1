"""Transformers made from a seed: BERT, GPT-2 and GPT-NeoX of any size.

The hidden size is heads * head_dim, the width of the feed-forward layers four times that. The weights are those that
the class of transformers draws, from the seed alone. Attention is PyTorch's scaled_dot_product_attention, except where
common/attention.py is faster; the activation of GPT-2 is that of common/fast_layers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

from common.fast_layers import use_fast_layers

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Tokens:
    """What a model must know of the tokens."""

    vocabulary: int
    """Number of token ids."""
    positions: int
    """Tokens of the longest sample."""
    bos: int | None
    """Id of the token that begins a sample, if there is one."""
    eos: int | None
    """Id of the token that ends a sample, if there is one."""
    pad: int | None = None
    """Id of the padding, if there is one."""


def bert(tokens: Tokens, layers: int, heads: int, head_dim: int, dropout: float, seed: int) -> BertForMaskedLM:
    """A BERT for masked prediction; the seed is below 2^63."""
    hidden = heads * head_dim
    config = BertConfig(
        vocab_size=tokens.vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=tokens.positions,
        pad_token_id=tokens.pad,
        bos_token_id=tokens.bos,
        eos_token_id=tokens.eos,
    )
    return _drawn(lambda: BertForMaskedLM(config), seed)


def gpt2(tokens: Tokens, layers: int, heads: int, head_dim: int, dropout: float, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 for next-token prediction; the seed is below 2^63."""
    config = GPT2Config(
        vocab_size=tokens.vocabulary,
        n_positions=tokens.positions,
        n_embd=heads * head_dim,
        n_layer=layers,
        n_head=heads,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=tokens.bos,
        eos_token_id=tokens.eos,
        use_cache=False,
    )
    return _drawn(lambda: GPT2LMHeadModel(config), seed)


def gpt_neox(tokens: Tokens, layers: int, heads: int, head_dim: int, dropout: float, seed: int) -> GPTNeoXForCausalLM:
    """A GPT-NeoX, the architecture of Pythia, for next-token prediction; the seed is below 2^63."""
    hidden = heads * head_dim
    config = GPTNeoXConfig(
        vocab_size=tokens.vocabulary,
        max_position_embeddings=tokens.positions,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        bos_token_id=tokens.bos,
        eos_token_id=tokens.eos,
        use_cache=False,
    )
    return _drawn(lambda: GPTNeoXForCausalLM(config), seed)


def _drawn(make: Callable[[], Model], seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    use_fast_layers(model)
    return model
