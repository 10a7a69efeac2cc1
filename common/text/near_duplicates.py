"""Documents that repeat an earlier one, exactly or nearly.

A document is normalised first: lower case, runs of whitespace as one space. It repeats an earlier one if

* the first `PREFIX` characters of both are the same, or
* they share a band of their MinHash signatures (Broder 1997, doi:10.1109/SEQUEN.1997.666900): of `SHINGLE` consecutive
  words each, the smallest of `BANDS` x `ROWS` hashes; a band is `ROWS` of them. Documents whose sets of shingles have
  the Jaccard similarity s share one with probability 1 - (1 - s^4)^4: 0.99 at s = 0.9, 0.7 at 0.7, 0.1 at 0.4.

What is remembered of a document takes about 100 bytes, whatever its length.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

PREFIX = 120
"""Normalised characters at the beginning that identify a document."""
SHINGLE = 5
"""Words per shingle; shorter documents have none."""
BANDS, ROWS = 4, 4

_SEEDS = np.random.Generator(np.random.Philox(key=[0, 0x6E656172])).integers(1, 2**64 - 1, BANDS * ROWS, np.uint64)
_SMALLEST_TABLE = 1 << 12


def normalised(document: str) -> str:
    """In lower case, with single spaces."""
    return " ".join(document.lower().split())


def prefix_key(document: str) -> int:
    """64 bits that depend on the first `PREFIX` characters of a normalised document alone."""
    return int.from_bytes(hashlib.blake2b(document[:PREFIX].encode(), digest_size=8).digest(), "little")


class NearDuplicates:
    """Remembers the documents that it accepted."""

    def __init__(self) -> None:
        self._table = np.zeros(_SMALLEST_TABLE, np.uint64)
        self._used = 0

    def accept(self, documents: Sequence[str]) -> NDArray[np.bool_]:
        """Which of some documents repeat none that was accepted before, here or in earlier calls; these are accepted.

        Args:
            documents: normalised.
        """
        encoded = [document.encode() for document in documents]
        ends = np.cumsum([0, *map(len, encoded)])
        keys = np.empty((len(documents), 1 + BANDS), np.uint64)
        keys[:, 0] = [prefix_key(document) or 1 for document in documents]
        _fill_bands(np.frombuffer(b"".join(encoded), np.uint8), ends, _SEEDS, keys)
        while 2 * (self._used + keys.size) > len(self._table):
            table = np.zeros(2 * len(self._table), np.uint64)
            _move(self._table, table)
            self._table = table
        accepted, self._used = _accept(self._table, keys, self._used)
        return accepted


@njit(inline="always")
def _mix(word):  # type: ignore[no-untyped-def]
    """The finaliser of MurmurHash3."""
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return word ^ (word >> np.uint64(33))


@njit(cache=True, nogil=True)
def _fill_bands(text, ends, seeds, keys):  # type: ignore[no-untyped-def]
    """Write the keys of each document's bands after its first key; 0 where it has no shingle."""
    basis, prime = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a
    recent = np.zeros(SHINGLE, np.uint64)
    smallest = np.zeros(len(seeds), np.uint64)
    for i in range(len(ends) - 1):
        words, word = 0, basis
        smallest[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        for place in range(ends[i], ends[i + 1] + 1):
            if place < ends[i + 1] and text[place] != 32:
                word = (word ^ np.uint64(text[place])) * prime
                continue
            recent[words % SHINGLE] = _mix(word)
            words, word = words + 1, basis
            if words >= SHINGLE:
                shingle = np.uint64(0)
                for j in range(SHINGLE):
                    shingle = _mix(shingle ^ recent[(words + j) % SHINGLE])
                for k in range(len(seeds)):
                    smallest[k] = min(smallest[k], _mix(shingle ^ seeds[k]))
        for band in range(BANDS):
            key = np.uint64(band + 1)
            for row in range(ROWS):
                key = _mix(key ^ smallest[band * ROWS + row])
            keys[i, 1 + band] = key if words >= SHINGLE else np.uint64(0)


@njit(inline="always")
def _find(table, key):  # type: ignore[no-untyped-def]
    """Where a key is in a table of open addressing, or where it would be put."""
    place = np.int64(key & np.uint64(len(table) - 1))
    while table[place] != 0 and table[place] != key:
        place = (place + 1) & (len(table) - 1)
    return place


@njit(cache=True, nogil=True)
def _move(old, new):  # type: ignore[no-untyped-def]
    for key in old:
        if key != 0:
            new[_find(new, key)] = key


@njit(cache=True, nogil=True)
def _accept(table, keys, used):  # type: ignore[no-untyped-def]
    accepted = np.ones(len(keys), np.bool_)
    for i in range(len(keys)):
        for key in keys[i]:
            if key != 0 and table[_find(table, key)] == key:
                accepted[i] = False
        if accepted[i]:
            for key in keys[i]:
                place = _find(table, key)
                if key != 0 and table[place] == 0:
                    table[place] = key
                    used += 1
    return accepted, used
