"""Sentences that held-out and training documents share, against plain Python."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.text import preparation, sentences as module
from common.text.blocks import TextData
from common.text.near_duplicates import normalised
from common.text.preparation import is_held_out, prepared
from common.text.report import summary
from common.text.sentences import SentenceOverlap, sentence_hashes
from tests.documents import WORDS, documents, write_text

FRACTION = 0.2
TEXTS = st.lists(st.sampled_from(["a", "bé", "c.", "d!", 'e?"', "f.)", ".", "g.h", "i,"]), max_size=40).map(" ".join)


def plain(document):
    """The sentences of a normalised document that are long enough."""
    words = document.split()
    ends = [i + 1 for i, word in enumerate(words) if re.search(r"[.!?][\"')\]}]*$", word)]
    found = [words[start:end] for start, end in pairwise([0, *ends, len(words)])]
    return [" ".join(sentence) for sentence in found if len(sentence) >= 8]


@given(st.lists(TEXTS, max_size=6))
@settings(deadline=None)
def test_sentences_have_the_same_hash_if_they_are_the_same(some):
    hashes, expected = sentence_hashes(some).tolist(), [sentence for text in some for sentence in plain(text)]
    assert len(hashes) == len(expected)
    assert len(set(hashes)) == len(set(expected)) == len(set(zip(hashes, expected, strict=True)))


@given(st.lists(TEXTS, max_size=12), st.integers(1, 5))
@settings(deadline=None)
def test_shared_sentences_are_counted(tmp_path_factory, some, chunk):
    """Of two corpora, whatever the order of their documents and the size of what is read at a time."""
    path = tmp_path_factory.mktemp("overlap") / "sentences"
    overlap = SentenceOverlap(path, 2)
    held_out, training = ([], []), set()
    for i, text in enumerate(some):
        if i % 3 == 2:
            overlap.train_on([text])
            training |= set(plain(text))
        else:
            overlap.hold_out([text], i % 3)
            held_out[i % 3].extend(plain(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        counts = overlap.counts()
    assert counts == [(len(own), sum(sentence in training for sentence in own)) for own in held_out]
    assert not path.exists()


def sentence(seed, words=12):
    """Words that no other seed gives."""
    chosen = np.random.default_rng([9, seed]).choice(WORDS, words)
    return f"{' '.join(chosen)} {seed}."


def long_document(seed):
    return " ".join(sentence(1000 * seed + i) for i in range(30))


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Prepare documents; the blocks, and the documents of each side."""
    monkeypatch.setattr(preparation, "BATCH_CHARACTERS", 5000)

    def prepare(some):
        data = TextData(corpora=(write_text(tmp_path / "a.txt", some),), vocabulary=320, length=16, held_out=FRACTION)
        blocks = prepared(data, tmp_path / "blocks")
        separator = blocks.separator
        sides = {}
        for split in ("train", "held_out"):
            tokens = np.asarray(getattr(blocks, split)).reshape(-1)
            parts = np.split(tokens, np.flatnonzero(tokens == separator) + 1)
            sides[split] = [blocks.tokenizer().decode(part[part != separator]) for part in parts]
        return blocks, sides

    return prepare


def test_no_sentence_of_a_held_out_document_is_trained_on(prepare):
    """By content, with a near-duplicate of every document, on the other side if its beginning decided that."""
    originals = [long_document(seed) for seed in range(60)]
    changed = [f"Other{i} {text}" for i, text in enumerate(originals)]
    changed = [text.replace(sentence(1000 * i + 15), "Another one.") for i, text in enumerate(changed)]
    sides = [[is_held_out(normalised(text), FRACTION) for text in some] for some in (originals, changed)]
    assert sum(one and not other for one, other in zip(*sides, strict=True)) > 5
    blocks, found = prepare([*originals, *changed])
    (corpus,) = blocks.corpora
    assert corpus.duplicates == 60
    expected = {"held_out_sentences": 30 * sum(sides[0]), "held_out_sentences_in_training": 0}
    assert corpus.notes == {**expected, "unknown_tokens": 0}
    numbers = {split: set(re.findall(r"\b\d{3,5}\b", " ".join(texts))) for split, texts in found.items()}
    assert len(numbers["held_out"]) > 200
    assert not numbers["held_out"] & numbers["train"]


def test_shared_sentences_are_recorded_and_printed(prepare):
    """Of documents that are no near-duplicates."""
    common = sentence(10**6)
    texts = [f"{long_document(seed)} {common if seed % 2 else ''}" for seed in range(40)]
    blocks, _ = prepare(texts)
    held_out = [seed for seed, text in enumerate(texts) if is_held_out(normalised(text), FRACTION)]
    expected = {
        "held_out_sentences": sum(30 + seed % 2 for seed in held_out),
        "held_out_sentences_in_training": sum(seed % 2 for seed in held_out),
        "unknown_tokens": 0,
    }
    assert blocks.corpora[0].notes == expected
    assert json.loads((blocks.directory / "blocks.json").read_text())["corpora"][0]["notes"] == expected
    assert not (blocks.directory / "sentences").exists()
    share = "{held_out_sentences_in_training:,} of {held_out_sentences:,} held-out sentences of 8 or more words"
    assert share.format(**expected) in summary(blocks)[-1]


def test_documents_may_have_no_long_sentence(prepare):
    blocks, _ = prepare(documents(60, words=6))
    expected = {"held_out_sentences": 0, "held_out_sentences_in_training": 0}
    assert blocks.corpora[0].notes == {**expected, "unknown_tokens": 0}
    assert len(summary(blocks)) == 2
