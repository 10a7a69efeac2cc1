"""What tests of files share: tensors to save, and disks that are full at one system call after another."""

import errno
import os

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


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
