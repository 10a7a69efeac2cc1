"""BERT for blocks of text, made from a seed."""

from transformers import BertForMaskedLM

from common.language_models.models import bert
from common.text.task import CorpusTask
from text_mlm.arguments import Arguments


def new_model(task: CorpusTask, arguments: Arguments, heads: int, seed: int) -> BertForMaskedLM:
    """A BERT for the task's samples, with weights from `seed`, which is below 2^63."""
    return bert(task.tokens, arguments.layers, heads, arguments.head_dim, arguments.dropout, seed)
