"""Near-duplicates against the definition, by sets of shingles and plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.text.near_duplicates import PREFIX, SHINGLE, NearDuplicates, normalised, prefix_key
from tests.documents import documents

LETTERS = st.text(st.sampled_from("abé \n"), max_size=30)


def accept(some):
    return NearDuplicates().accept([normalised(document) for document in some]).tolist()


def with_replaced(document, count, seed=0):
    """Some of the words of a document replaced, the first one among them, so that the beginning differs."""
    words = document.split()
    places = np.random.default_rng(seed).choice(np.arange(1, len(words)), count - 1, replace=False)
    for place in [0, *places]:
        words[place] = f"other{place}"
    return " ".join(words)


def test_case_and_whitespace_do_not_count():
    assert normalised("  One\tTWO\n\n three ") == "one two three"
    assert accept(["One two", " one  TWO\n", "one three"]) == [True, False, True]


def test_the_same_beginning_is_a_near_duplicate():
    beginning = "x" * (PREFIX - 1)
    assert accept([f"{beginning}a some", f"{beginning}a other", f"{beginning}b other"]) == [True, False, True]


def test_documents_with_most_shingles_in_common_are_near_duplicates():
    for i, document in enumerate(documents(30, words=300)):
        assert accept([document, with_replaced(document, 2, i)]) == [True, False]
        assert accept([document, with_replaced(document, 200, i)]) == [True, True]


def test_different_documents_are_not_near_duplicates():
    assert all(accept([*documents(50, words=100), "", "a", "a b", "a b c d e"]))


def test_short_documents_share_no_shingles():
    words = " ".join(f"w{i}" for i in range(SHINGLE - 1))
    assert accept([words, f"{words} x", f"{words} y"]) == [True, True, True]


def test_a_document_that_was_left_out_is_not_remembered():
    a, b = documents(2, words=300)
    chain = [a, normalised(a)[:PREFIX] + b, b]
    assert accept(chain) == [True, False, True]


@given(st.lists(LETTERS, max_size=40), st.integers(1, 40))
@settings(deadline=None)
def test_batches_do_not_matter(some, size):
    known = NearDuplicates()
    normal = [normalised(document) for document in some]
    batches = [known.accept(normal[i : i + size]) for i in range(0, len(normal), size)]
    assert np.concatenate([np.zeros(0, bool), *batches]).tolist() == accept(some)


def shingles(document):
    words = normalised(document).split()
    return frozenset(tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1))


@given(st.lists(LETTERS, max_size=40))
@settings(deadline=None)
def test_exact_duplicates_are_always_found_and_others_have_a_reason(some):
    """A document that is left out shares its beginning or a shingle with one that was accepted before."""
    accepted = []
    for document, is_new in zip(some, accept(some), strict=True):
        beginnings = {normalised(other)[:PREFIX] for other in accepted}
        if normalised(document)[:PREFIX] in beginnings:
            assert not is_new
        elif not is_new:
            assert any(shingles(document) & shingles(other) for other in accepted)
        if is_new:
            accepted.append(document)


def test_many_documents_fit():
    known = NearDuplicates()
    some = [f"document {i}" for i in range(5000)]
    assert known.accept(some).all()
    assert not known.accept(some).any()


@pytest.mark.parametrize(("document", "key"), [("", prefix_key("")), ("a" * 200, prefix_key("a" * PREFIX))])
def test_the_key_is_of_the_beginning(document, key):
    assert prefix_key(document) == key
    assert prefix_key("b" + document) != key
