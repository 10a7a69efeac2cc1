"""Files as they must not be: JSON with other values in some place, cut, overwritten, or nothing like it."""

import copy
import json
import shutil

from hypothesis import strategies as st

HUGE = (10**18, -(10**18), 2**63, 10**400, 1e308, 5e-324)
ODD = (
    None,
    True,
    False,
    0,
    -1,
    -0.0,
    0.5,
    1e400,
    float("nan"),
    "",
    "0",
    "x" * 10_000,
    "\0",
    "é\u2028\x1b[2J",
    [],
    {},
    [[]],
)
"""JSON values, as Python reads them, that hardly anything expects."""

NESTED = b"[" * 100_000
TEXTS = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'"',
    b"\xff\xfe",
    b"\0" * 100,
    b"NaN",
    NESTED,
    b'{"a":' * 100_000,
    b"9" * 5000,
)

values = st.one_of(st.sampled_from(ODD + HUGE).map(copy.deepcopy), st.integers(), st.floats(), st.text(max_size=5))


def restored(directory):
    """The directory as its copy, `whole` beside it, is."""
    shutil.rmtree(directory)
    return shutil.copytree(directory.with_name("whole"), directory)


def places(value):
    """Every place in a JSON value, as keys and indices."""
    found = [()]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        found += [(key, *rest) for rest in places(item)]
    return found


@st.composite
def changed(draw, value):
    """The value with one to three places removed, repeated or replaced."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from(places(value)[1:] or [(None,)]))
        if key is None:
            return draw(values)
        inside = value
        for each in above:
            inside = inside[each]
        what = draw(st.sampled_from(("remove", "repeat", "replace", "replace")))
        if what == "remove":
            del inside[key]
        elif what == "repeat" and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(inside[key]))
        else:
            inside[key] = draw(values)
    return value


@st.composite
def damaged(draw, content):
    """Bytes that are cut, overwritten or longer."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    middle = draw(st.one_of(st.just(b""), st.binary(max_size=8)))
    rest = draw(st.sampled_from((content[place + len(middle) :], content[place:], b"")))
    return content[:place] + middle + rest


def json_files(value):
    """Contents of a file that should hold this JSON value; some are nested too deeply for Python's parser."""
    as_bytes = lambda changed: json.dumps(changed).encode()  # noqa: E731
    return st.one_of(changed(value).map(as_bytes), damaged(as_bytes(value)), st.sampled_from(TEXTS))
