"""Speed of BERT on a grammar: tokens per second of training and distillation against the plain way, in one process.

    python benchmarks/pcfg_mlm.py [--out benchmarks/results/NAME.json]

What is compared, and how, is in grammar_speed.py. The sentences are those of cfg3b.
"""

import numpy as np
import tyro
from grammar_speed import GrammarSpeedArguments, grammar_subject, measure
from transformers import BertForMaskedLM

from common.cli import command
from common.pcfg.sampler import Sentences
from PCFG_mlm.batches import Batch, MaskedTask, mask_batch
from PCFG_mlm.train import PRESETS
from PCFG_mlm.training import SETTING


def head_multiply_adds(task: MaskedTask, hidden: int) -> float:
    """Of the head per token: a linear map and the logits, at the labelled positions only."""
    return task.mask_rate * (hidden**2 + hidden * task.vocabulary)


def padded(task: MaskedTask, seed: int, sentences: Sentences) -> Batch:
    """All sentences from the beginning of the training stream as one batch, with the masks that they have there."""
    return mask_batch(task, seed, "train", sentences, 0, np.arange(len(sentences)))


SUBJECT = grammar_subject(SETTING, PRESETS, BertForMaskedLM, padded, head_multiply_adds, causal=False)


if __name__ == "__main__":
    command(lambda: measure(tyro.cli(GrammarSpeedArguments, description=__doc__), SUBJECT, PRESETS["laptop"]))
