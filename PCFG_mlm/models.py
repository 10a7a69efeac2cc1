"""BERT for sentences of a grammar: made from a seed, or loaded from any checkpoint in the layout of Hugging Face.

Attention is PyTorch's scaled_dot_product_attention, except with dropout on a CPU, see common/attention.py.
"""

from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM

from common.attention import ATTENTION
from common.errors import UserError
from PCFG_mlm.data import Batch, MaskedTask

UNBOUNDED_POSITIONS = 1024
"""Positions of a model for a grammar without a longest sentence."""


def positions_for(task: MaskedTask) -> int:
    """Tokens that a model must have room for: those of the longest sentence and BOS."""
    longest = task.grammar.length_ranges[0][1]
    return UNBOUNDED_POSITIONS if longest is None else longest + 1


def require_room(batch: Batch, task: MaskedTask) -> Batch:
    """The same batch.

    Raises:
        UserError: a sentence is longer than models of the task have positions.
    """
    longest, positions = batch.input_ids.shape[1], positions_for(task)
    if longest > positions:
        raise UserError(
            f"{task.grammar.name} made a sentence of {longest - 1:,} tokens, and a model has {positions:,} positions: "
            "give a grammar with a longest sentence, or with shorter ones"
        )
    return batch


def new_model(task: MaskedTask, layers: int, heads: int, head_dim: int, dropout: float, seed: int) -> BertForMaskedLM:
    """BERT with the weights that its Hugging Face class draws, from `seed` alone.

    Args:
        task: gives the vocabulary and the number of positions.
        layers: Transformer blocks.
        heads: attention heads; the hidden size is heads * head_dim, that of the feed-forward layers four times as much.
        head_dim: dimensions per head.
        dropout: share that is dropped, of the hidden states and of the attention.
        seed: below 2^63.
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
        max_position_embeddings=positions_for(task),
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
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    advice = "give a BERT that was trained on this grammar"
    if not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json: {advice}")
    try:
        config = BertConfig.from_pretrained(path)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a config.json that cannot be read ({_line(error)}): {advice}") from error
    if config.model_type != "bert":
        raise UserError(f"{path} is a model of type {config.model_type}: {advice}")
    if config.vocab_size != task.vocabulary:
        raise UserError(
            f"{path} has a vocabulary of {config.vocab_size}, but {task.grammar.name} with its "
            f"{task.terminals} terminals needs one of {task.vocabulary}: {advice}"
        )
    if config.max_position_embeddings < positions_for(task):
        raise UserError(
            f"{path} has {config.max_position_embeddings} positions, but sentences of {task.grammar.name} from "
            f"{task.grammar.start} need {positions_for(task)}: {advice}"
        )
    try:
        loaded: Any = BertForMaskedLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"the weights in {path} are missing or damaged ({_line(error)}): make it again") from error
    model, found = loaded
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if lacking:
        raise UserError(f"{path} lacks weights of the BERT that its config.json describes, such as {min(lacking)}")
    return model


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
