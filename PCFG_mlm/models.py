"""BERT for sentences of a grammar: made from a seed, or loaded from any checkpoint in the layout of Hugging Face.

Attention is PyTorch's scaled_dot_product_attention, except with dropout on a CPU, see common/attention.py.
"""

from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM

from common.attention import ATTENTION
from common.pcfg.models import load_checked
from PCFG_mlm.batches import MaskedTask


def new_model(task: MaskedTask, layers: int, heads: int, head_dim: int, dropout: float, seed: int) -> BertForMaskedLM:
    """BERT with the weights that its Hugging Face class draws, from `seed` alone.

    The hidden size is heads * head_dim, the width of the feed-forward layers four times that; the seed is below 2^63.
    """
    hidden = heads * head_dim
    config = BertConfig(
        vocab_size=task.vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=task.positions,
        pad_token_id=task.pad,
        bos_token_id=task.bos,
        eos_token_id=task.eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
    model.set_attn_implementation(ATTENTION)
    return model


def load_model(path: Path, task: MaskedTask) -> BertForMaskedLM:
    """The model of a checkpoint, in float32; no random number is drawn.

    Raises:
        UserError: it is not a BERT for masked prediction, is damaged, or does not fit the task's vocabulary or
            sentences.
    """
    return load_checked(path, task, BertForMaskedLM, "BERT")
