"""Which tokens begin a word, for the marks of each kind of tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.text.words import begins_word, begins_word_in


def tokenizer(*texts, model=WordLevel):
    vocabulary = {text: i for i, text in enumerate(("[UNK]", *texts))}
    made = Tokenizer(model(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("model", "texts", "begins"),
    [
        (WordPiece, ("the", "##re", "a", "Ġ"), [True, False, True, True]),
        (WordLevel, ("Ġthe", "re", "Ċ", "ĉ", "##"), [True, False, True, True, False]),
        (WordLevel, ("▁the", "re"), [True, False]),
    ],
)
def test_marks(model, texts, begins):
    found = begins_word(tokenizer(*texts, model=model), len(texts) + 1)
    np.testing.assert_array_equal(found, [True, *begins])


def test_ids_that_a_tokenizer_lacks_begin_no_word_of_byte_level_bpe():
    np.testing.assert_array_equal(begins_word(tokenizer("Ġthe"), 4), [True, True, False, False])


def test_a_token_after_a_special_one_begins_a_word():
    begins, special = np.array([True, False, True]), np.array([True, False, False])
    found = begins_word_in(np.array([[1, 1, 0, 1, 1], [0, 1, 1, 2, 1]]), begins, special)
    np.testing.assert_array_equal(found, [[False, False, True, True, False], [True, True, False, True, False]])


def test_a_tokenizer_without_marks_is_refused():
    with pytest.raises(UserError, match="leave out --unit word"):
        begins_word(tokenizer("a", "b"), 3)
