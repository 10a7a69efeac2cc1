"""GPT-2 for sentences of a grammar: made from a seed, or loaded from any checkpoint in the layout of Hugging Face."""

from pathlib import Path

from transformers import GPT2LMHeadModel

from common.language_models.models import gpt2
from common.pcfg.models import load_checked, tokens_of
from PCFG_autoregressive.batches import NextTokenTask


def new_model(
    task: NextTokenTask, layers: int, heads: int, head_dim: int, dropout: float, seed: int
) -> GPT2LMHeadModel:
    """A GPT-2 for the task's sentences, with weights from `seed`, which is below 2^63."""
    return gpt2(tokens_of(task), layers, heads, head_dim, dropout, seed)


def load_model(path: Path, task: NextTokenTask) -> GPT2LMHeadModel:
    """The model of a checkpoint, in float32; no random number is drawn.

    Raises:
        UserError: it is not a GPT-2 for next-token prediction, is damaged, or does not fit the task's vocabulary or
            sentences.
    """
    model = load_checked(path, task, GPT2LMHeadModel, "GPT-2")
    model.config.use_cache = False
    return model
