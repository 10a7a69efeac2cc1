"""Speed of GPT-2 on a grammar: tokens per second of training and distillation against the plain way, in one process.

    python benchmarks/pcfg_autoregressive.py [--out benchmarks/results/NAME.json]

What is compared, and how, is in grammar_speed.py. The sentences are those of cfg3f, with labels on all tokens.
"""

import numpy as np
import tyro
from grammar_speed import GrammarSpeedArguments, grammar_subject, measure
from transformers import GPT2LMHeadModel

from common.cli import command
from common.pcfg.sampler import Sentences
from common.pcfg.task import Selection
from PCFG_autoregressive.batches import Batch, NextTokenTask, label_batch
from PCFG_autoregressive.train import PRESETS
from PCFG_autoregressive.training import SETTING


def head_multiply_adds(task: NextTokenTask, hidden: int) -> float:
    """Of the head per token."""
    return hidden * task.vocabulary


def padded(task: NextTokenTask, seed: int, sentences: Sentences) -> Batch:
    """All sentences as one batch."""
    return label_batch(task, Selection(sentences, 0, np.arange(len(sentences))))


SUBJECT = grammar_subject(SETTING, PRESETS, GPT2LMHeadModel, padded, head_multiply_adds, causal=True)


if __name__ == "__main__":
    command(lambda: measure(tyro.cli(GrammarSpeedArguments, description=__doc__), SUBJECT, PRESETS["laptop"]))
