"""How a line of text lists things."""

import pytest

from common.errors import listed


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        ("a", "a"),
        ("ab", "a and b"),
        ("abc", "a, b and c"),
        ("abcd", "a, b, c and 1 more"),
        (range(2000), "0, 1, 2 and 1,997 more"),
    ],
)
def test_lists(items, text):
    assert listed(items, 3) == text
