"""How many held-out sentences also occur in training documents, word for word.

Near-duplicates are left out as whole documents (see near_duplicates.py), so two documents may still share sentences,
such as a licence or the description of a common argument. A sentence ends with a word that ends in ".", "!" or "?",
before closing quotes and brackets, or with its document. Shorter ones than `WORDS` words are not counted.

The hashes of training sentences, of 64 bits, are in a file until the end; those of held-out sentences are in memory.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

WORDS = 8
"""Of the shortest sentence that is counted."""

_CHUNK = 1 << 20
"""Hashes that are read from the file at a time."""

_SPACE, _ENDS, _CLOSING = 32, (33, 46, 63), (34, 39, 41, 93, 125)
"""Codes of a space, of .!? and of closing quotes and brackets."""


class SentenceOverlap:
    """Counts sentences of corpora, one after the other.

    Args:
        path: of a file that does not exist, for the hashes of training sentences; it is removed by `counts`.
        corpora: their number.
    """

    def __init__(self, path: Path, corpora: int) -> None:
        self._path, self._file = path, path.open("xb")
        self._held_out: list[list[NDArray[np.uint64]]] = [[] for _ in range(corpora)]

    def train_on(self, documents: Sequence[str]) -> None:
        """Remember the sentences of normalised training documents, of any corpus."""
        self._file.write(sentence_hashes(documents).data)

    def hold_out(self, documents: Sequence[str], corpus: int) -> None:
        """Remember the sentences of normalised held-out documents of a corpus, given by its index."""
        self._held_out[corpus].append(sentence_hashes(documents))

    def counts(self) -> list[tuple[int, int]]:
        """For each corpus, how many held-out sentences there are, and how many of them occur in training documents."""
        self._file.close()
        held_out = [np.concatenate([np.zeros(0, np.uint64), *parts]) for parts in self._held_out]
        known = np.unique(np.concatenate(held_out))
        found = np.zeros(len(known), np.bool_)
        with self._path.open("rb") as file:
            while len(chunk := np.fromfile(file, np.uint64, _CHUNK)):
                found |= np.isin(known, chunk)
        self._path.unlink()
        return [(len(own), int(found[np.searchsorted(known, own)].sum())) for own in held_out]


def sentence_hashes(documents: Sequence[str]) -> NDArray[np.uint64]:
    """Hashes of the sentences of normalised documents that are long enough, in order."""
    encoded = [document.encode() for document in documents]
    ends = np.cumsum([0, *map(len, encoded)])
    text = np.frombuffer(b"".join(encoded), np.uint8)
    hashes = np.empty(len(text) // (2 * WORDS - 1) + 1, np.uint64)  # a word and a space take at least 2 bytes
    return hashes[: _fill_hashes(text, ends, hashes)]


@njit(cache=True, nogil=True)
def _fill_hashes(text, ends, hashes):  # type: ignore[no-untyped-def]
    """Write the hash of each long sentence, FNV-1a with the finaliser of MurmurHash3; returns their number."""
    basis, prime, count = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3), 0
    for i in range(len(ends) - 1):
        words, value, is_end = 0, basis, False
        for place in range(ends[i], ends[i + 1] + 1):
            is_last = place == ends[i + 1]
            if not is_last and text[place] != _SPACE:
                value = (value ^ np.uint64(text[place])) * prime
                if text[place] in _ENDS:
                    is_end = True
                elif text[place] not in _CLOSING:
                    is_end = False
                continue
            words += 1
            if not (is_end or is_last):
                value = (value ^ np.uint64(_SPACE)) * prime
                continue
            if words >= WORDS:
                value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
                value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
                hashes[count] = value ^ (value >> np.uint64(33))
                count += 1
            words, value, is_end = 0, basis, False
    return count
