"""Exact batch-1 SGD at the speed of block operations, and plain PyTorch for everything else.

`engine.py` is the way in. numba keeps compiled code from run to run, but notices changes only in the file of a compiled
function, not in those that it calls; so the code is kept under a hash of all sources that it comes from.
"""

import hashlib
import os
from pathlib import Path

import numba

_FOLDER = Path(__file__).parent

if "NUMBA_CACHE_DIR" not in os.environ and os.access(_FOLDER, os.W_OK):
    _FILES = [*sorted(_FOLDER.glob("*.py")), _FOLDER.parents[1] / "common" / "losses.py"]
    _SOURCES = b"".join(path.read_bytes() for path in _FILES)
    _HASH = hashlib.sha256(_SOURCES).hexdigest()[:16]
    numba.config.CACHE_DIR = str(_FOLDER / "__pycache__" / _HASH)  # type: ignore[attr-defined]
