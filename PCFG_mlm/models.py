"""BERT for sentences of a grammar: made from a seed, or loaded from any checkpoint in the layout of Hugging Face."""

from pathlib import Path

from transformers import BertForMaskedLM

from common.language_models.models import bert
from common.pcfg.models import load_checked, tokens_of
from PCFG_mlm.batches import MaskedTask


def new_model(task: MaskedTask, layers: int, heads: int, head_dim: int, dropout: float, seed: int) -> BertForMaskedLM:
    """A BERT for the task's sentences, with weights from `seed`, which is below 2^63."""
    return bert(tokens_of(task), layers, heads, head_dim, dropout, seed)


def load_model(path: Path, task: MaskedTask) -> BertForMaskedLM:
    """The model of a checkpoint, in float32; no random number is drawn.

    Raises:
        UserError: it is not a BERT for masked prediction, is damaged, or does not fit the task's vocabulary or
            sentences.
    """
    return load_checked(path, task, BertForMaskedLM, "BERT")
