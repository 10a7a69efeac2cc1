"""What tests of files share: tensors to save, damaged contents, and disks that are full or read-only."""

import errno
import fcntl
import json
import os
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest

TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scale": np.float64(0.5),
    "empty": np.zeros((0, 4)),
}
CONFIG = {"width": 3, "lr": 0.1}


def call_with_full_disk(function, number, persistently):
    """Call with the system call of this number, or every one from it on, finding the disk full.

    Returns whether the function failed, and how many system calls it made.
    """
    calls = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number or (persistently and calls > number):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "fsync", "rename", "replace", "mkdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            function()
        except OSError:
            return True, calls
        return False, calls


def make_read_only(patch):
    """From now on the disk is read-only."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for name in ("write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        patch.setattr(os, name, refuse)
    opened = Path.open

    def open_to_read(path, mode="r", *args, **options):
        return (refuse if mode[0] in "aw" else opened)(path, mode, *args, **options)

    patch.setattr(Path, "open", open_to_read)
    patch.setattr(fcntl, "flock", refuse)


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def damaged(content):
    """Bytes near `content`: cut, with a piece exchanged, or doubled; and JSON of another form."""
    place = st.integers(0, len(content))
    piece = st.one_of(
        st.binary(max_size=4), st.sampled_from([b"null", b"[]", b"{}", b"1e999", b'"', b"-1", b"[[", b","])
    )
    exchanged = st.tuples(place, place, piece).map(lambda drawn: content[: drawn[0]] + drawn[2] + content[drawn[1] :])
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )
    return st.one_of(place.map(lambda end: content[:end]), exchanged, st.just(content + content), values.map(as_json))


def as_json(value):
    return json.dumps(value).encode()


def with_other_values(fields):
    """JSON objects with these fields, of which some are left out or have another value."""
    other = st.sampled_from([None, True, -1, 1.5, 10**400, float("nan"), "text", "", [], [1], {}, {"a": 1}])
    optional = {name: st.just(value) | other for name, value in fields.items()}
    return st.fixed_dictionaries({}, optional=optional).map(as_json)
