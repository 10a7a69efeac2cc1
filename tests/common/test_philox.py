"""Random words against NumPy's generator and the known answers of Philox's authors."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.philox import philox4x32, philox4x64

WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))


@given(st.integers(1, 2**64 - 1), st.lists(WORDS, min_size=5, max_size=5))
@settings(deadline=None)
def test_philox4x64_is_that_of_numpy(block, others):
    *counter, left, right = map(np.uint64, [block, *others])
    generator = np.random.Philox(key=[left, right], counter=[counter[0] - np.uint64(1), *counter[1:]])
    assert list(philox4x64(*counter, left, right)) == generator.random_raw(4).tolist()


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox4x32_gives_the_known_answers_of_its_authors(counter, key, words):
    assert list(philox4x32(*map(np.uint64, counter + key))) == words
