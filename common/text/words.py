"""Which tokens begin a word, by the marks of the tokenizer."""

import numpy as np
from numpy.typing import NDArray
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerBase

from common.errors import UserError

BEGINS = ("Ġ", "Ċ", "ĉ", "č", "▁")
"""How byte-level BPE (for a space, a line break, a tab and a carriage return) and SentencePiece begin the first one."""


def begins_word(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> NDArray[np.bool_]:
    """Whether each token begins a word, (vocabulary,); special tokens do, and so do runs of whitespace.

    Raises:
        UserError: the tokenizer has neither kind of mark.
    """
    special = set(tokenizer.all_special_ids)
    known = {token: text for text, token in tokenizer.get_vocab().items()}
    texts = [known.get(token, "") for token in range(vocabulary)]  # ids may have gaps
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if isinstance(model, WordPiece):
        begins = [not text.startswith(model.continuing_subword_prefix) for text in texts]
    elif any(text.startswith(BEGINS) for text in texts):
        begins = [text.startswith(BEGINS) for text in texts]
    else:
        raise UserError("the tokenizer does not mark where words begin: leave out --unit word")
    result = np.array(begins)
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
