"""Causal language models for blocks of text, made from a seed."""

from transformers import GPT2LMHeadModel, GPTNeoXForCausalLM

from common.language_models.models import gpt2, gpt_neox
from common.text.task import CorpusTask
from text_autoregressive.arguments import Arguments


def new_model(task: CorpusTask, arguments: Arguments, heads: int, seed: int) -> GPT2LMHeadModel | GPTNeoXForCausalLM:
    """A model for the task's samples, with weights from `seed`, which is below 2^63."""
    make = gpt2 if arguments.architecture == "gpt2" else gpt_neox
    tokens = task.tokens
    model = make(tokens, arguments.layers, heads, arguments.head_dim, arguments.dropout, seed)
    if tokens.pad is not None:  # or transformers.Trainer does so, with a warning
        model.config.pad_token_id = model.generation_config.pad_token_id = tokens.pad
    return model
