"""Which tokens begin a word, for the marks of each kind of tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.text.words import begins_word, begins_word_in


def tokenizer(*texts):
    vocabulary = {text: i for i, text in enumerate(("[UNK]", *texts))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, "[UNK]")), unk_token="[UNK]")


@pytest.mark.parametrize(
    ("texts", "begins"),
    [
        (("the", "##re", "a"), [True, False, True]),
        (("Ġthe", "re", "Ċ", "ĉ"), [True, False, True, True]),
        (("▁the", "re"), [True, False]),
    ],
)
def test_marks(texts, begins):
    found = begins_word(tokenizer(*texts), len(texts) + 3)
    np.testing.assert_array_equal(found, [True, *begins, False, False])


def test_a_token_after_a_special_one_begins_a_word():
    begins, special = np.array([True, False, True]), np.array([True, False, False])
    found = begins_word_in(np.array([[1, 1, 0, 1, 1], [0, 1, 1, 2, 1]]), begins, special)
    np.testing.assert_array_equal(found, [[False, False, True, True, False], [True, True, False, True, False]])


def test_a_tokenizer_without_marks_is_refused():
    with pytest.raises(UserError, match="leave out --unit word"):
        begins_word(tokenizer("a", "b"), 3)
