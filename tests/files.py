"""What tests of files share: tensors to save, and disks that are full or read-only."""

import errno
import fcntl
import os
from pathlib import Path

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
