"""Small streaming datasets, tokens and masks, for tests of training on ordinary datasets."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from tests.trainers import CLASSES

SAMPLES = 20


class Stream(torch.utils.data.IterableDataset):
    """Begins each epoch at another sample."""

    def __init__(self, rows):
        self.rows, self.epoch, self.read = rows, 0, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for i in range(len(self.rows)):
            self.read += 1
            yield self.rows[(i + 3 * self.epoch) % len(self.rows)]


class Stateful(Stream):
    """Its position is where it continues, and is left at the end."""

    def __init__(self, rows):
        super().__init__(rows)
        self.position = {"at": 0}

    def state_dict(self):
        return self.position

    def load_state_dict(self, state):
        self.position = state

    def __iter__(self):
        for i in range(self.position["at"], len(self.rows)):
            self.position["at"], self.read = i + 1, self.read + 1
            yield self.rows[(i + 3 * self.epoch) % len(self.rows)]


def tokenizer():
    words = {word: i for i, word in enumerate(["[PAD]", "[MASK]", "[UNK]", *map(str, range(3, CLASSES))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "[UNK]")), pad_token="[PAD]", mask_token="[MASK]"
    )


def masking(**options):
    return DataCollatorForLanguageModeling(tokenizer(), mlm_probability=0.5, **options)


def token_rows(count=SAMPLES, seed=0):
    drawn = np.random.default_rng(seed)
    return [{"input_ids": drawn.integers(3, CLASSES, length).tolist()} for length in drawn.integers(2, 7, count)]
