"""Small corpora for tests of text."""

import hashlib

import numpy as np

from common.text.preparation import update_hash

WORDS = [
    start + middle + end
    for start in ("ba", "ko", "ti", "re", "Su", "Né")
    for middle in ("lan", "mor", "xi", "pe", "")
    for end in ("ing", "s", "ed", "", "'s")
]


def document(seed, words=60):
    """Words with a distribution as in language, in lines, with punctuation."""
    generator = np.random.default_rng(seed)
    ranks = np.minimum(generator.zipf(1.3, words), len(WORDS)) - 1
    text = [WORDS[rank] + generator.choice(["", "", "", ",", ".", ".\n", "\n    "]) for rank in ranks]
    return " ".join([f"Nr{seed}", *text]).strip()


def documents(count, first=0, words=60):
    return [document(seed, words) for seed in range(first, first + count)]


def write_text(path, some):
    """A `.txt` corpus; documents must have no blank lines."""
    path.write_text("\n\n".join(some))
    return str(path)


def hash_of(some):
    """SHA-256 of a sequence of documents."""
    digest = hashlib.sha256()
    for one in some:
        update_hash(digest, one)
    return digest.hexdigest()
