"""GPT-2 for sentences of a grammar: made from a seed, or loaded from any checkpoint in the layout of Hugging Face.

Attention is PyTorch's scaled_dot_product_attention, except on a CPU, see common/attention.py.
"""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.attention import ATTENTION
from common.pcfg.models import load_checked
from PCFG_autoregressive.batches import NextTokenTask


def new_model(
    task: NextTokenTask, layers: int, heads: int, head_dim: int, dropout: float, seed: int
) -> GPT2LMHeadModel:
    """GPT-2 with the weights that its Hugging Face class draws, from `seed` alone.

    The hidden size is heads * head_dim, the width of the feed-forward layers four times that; the seed is below 2^63.
    """
    config = GPT2Config(
        vocab_size=task.vocabulary,
        n_positions=task.positions,
        n_embd=heads * head_dim,
        n_layer=layers,
        n_head=heads,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=task.bos,
        eos_token_id=task.eos,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.set_attn_implementation(ATTENTION)
    return model


def load_model(path: Path, task: NextTokenTask) -> GPT2LMHeadModel:
    """The model of a checkpoint, in float32; no random number is drawn.

    Raises:
        UserError: it is not a GPT-2 for next-token prediction, is damaged, or does not fit the task's vocabulary or
            sentences.
    """
    model = load_checked(path, task, GPT2LMHeadModel, "GPT-2")
    model.config.use_cache = False
    model.set_attn_implementation(ATTENTION)
    return model
