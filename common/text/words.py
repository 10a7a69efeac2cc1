"""Which tokens begin a word, by the marks of the tokenizer."""

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from common.errors import UserError

CONTINUES = "##"
"""How WordPiece begins the other tokens of a word."""
BEGINS = ("Ġ", "Ċ", "ĉ", "č", "▁")
"""How byte-level BPE (for a space, a line break, a tab and a carriage return) and SentencePiece begin the first one."""


def begins_word(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> NDArray[np.bool_]:
    """Whether each token begins a word, (vocabulary,); special tokens do, and so do runs of whitespace.

    Raises:
        UserError: the tokenizer has neither kind of mark.
    """
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.convert_ids_to_tokens(list(range(min(vocabulary, len(tokenizer)))))
    if any(text.startswith(CONTINUES) for text in texts):
        begins = [not text.startswith(CONTINUES) for text in texts]
    elif any(text.startswith(BEGINS) for text in texts):
        begins = [text.startswith(BEGINS) for text in texts]
    else:
        raise UserError("the tokenizer does not mark where words begin: leave out --unit word")
    result = np.zeros(vocabulary, np.bool_)
    result[: len(begins)] = begins
    result[list(special)] = True
    return result


def begins_word_in(
    samples: NDArray[np.int64], begins: NDArray[np.bool_], special: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether each token of samples (samples, length) begins a word; any token after a special one does.

    Args:
        samples: token ids.
        begins: of the vocabulary, from `begins_word`.
        special: whether a token is special, (vocabulary,).
    """
    found = begins[samples]
    found[:, 1:] |= special[samples[:, :-1]]
    return found
