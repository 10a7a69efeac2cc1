"""Documents to token ids, fast.

Words repeat. For the tokenizers of BERT and GPT-2 and those that are trained here, which never put a token across the
whitespace that follows a word, a document is cut there into pieces, and each different piece is tokenized once. The ids
are those of the whole document. Other tokenizers are given whole documents.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MOST_PIECES = 1 << 20
"""Different pieces whose tokens are remembered; then all are forgotten, so that memory is bounded."""

_OTHER_SPACE = "\t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Whitespace after which a document is not cut: a token may begin with it and continue into the next word."""
_PIECES = re.compile(rf"[ \n]*[^ \n]+(?:(?<=[{_OTHER_SPACE}])[ \n]+[^ \n]*)*|[ \n]+")


class Encoder:
    """Token ids of documents, without special tokens.

    Args:
        tokenizer: see `tokenization.plain`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.cuts = ends_tokens_at_spaces(json.loads(tokenizer.to_str()))
        """Whether documents are cut into pieces."""
        self._numbers: dict[str, int] = {}
        self._starts, self._lengths, self._ids = (np.zeros(0, np.int64) for _ in range(3))

    def encode(self, documents: Sequence[str], separator: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All documents in one array, a separator after each.

        Returns:
            Token ids (tokens,), and the number of tokens of each document (documents,), its separator included. A
            document without tokens has no separator either.
        """
        pieces = [_PIECES.findall(document) if self.cuts else [document] for document in documents]
        self._learn(pieces)
        numbers = np.fromiter((self._numbers[piece] for some in pieces for piece in some), np.int64)
        starts, lengths = self._starts[numbers], self._lengths[numbers]
        firsts = np.cumsum([0, *map(len, pieces)])
        ends = np.concatenate([[0], np.cumsum(lengths)])
        counts = np.diff(ends[firsts])
        ids = self._ids[np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])]
        kept = counts > 0
        ids = np.insert(ids, np.cumsum(counts)[kept], separator)
        if not self.cuts:
            self._forget()
        return ids, counts + kept

    def _learn(self, pieces: Sequence[Sequence[str]]) -> None:
        unknown = self._unknown(pieces)
        if len(self._numbers) + len(unknown) > MOST_PIECES:
            self._forget()
            unknown = self._unknown(pieces)
        if not unknown:
            return
        found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(unknown, add_special_tokens=False)]
        self._numbers |= zip(unknown, range(len(self._numbers), len(self._numbers) + len(unknown)), strict=True)
        lengths = np.array([len(ids) for ids in found])
        self._starts = np.concatenate([self._starts, len(self._ids) + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, np.array([token for ids in found for token in ids], np.int64)])

    def _unknown(self, pieces: Sequence[Sequence[str]]) -> list[str]:
        return list(dict.fromkeys(piece for some in pieces for piece in some if piece not in self._numbers))

    def _forget(self) -> None:
        self._numbers = {}
        self._starts, self._lengths, self._ids = (np.zeros(0, np.int64) for _ in range(3))


def ends_tokens_at_spaces(description: dict[str, Any]) -> bool:
    """Whether a tokenizer, given as its JSON, is known to end a token wherever a space or newline follows a word."""
    if not all(token["special"] for token in description["added_tokens"]):
        return False
    normalizer, before, model = (description[name] or {} for name in ("normalizer", "pre_tokenizer", "model"))
    if before.get("type") == "BertPreTokenizer":
        return normalizer.get("type") == "BertNormalizer" and model["type"] == "WordPiece"
    if before.get("type") == "ByteLevel":
        is_plain = not before["add_prefix_space"] and before["use_regex"]
        return not normalizer and is_plain and model["type"] == "BPE" and not model["dropout"]
    return False
