"""What processes of `tests.forked` have imported before they begin: what takes long to import in the commands.

Not the commands themselves, which are run as `__main__`.
"""

import gc
import os
from importlib import import_module

from common.cli import fast_garbage_collection, prepare_process

prepare_process()
os.fsync = lambda descriptor: None  # as in tests/conftest.py
for name in (
    *("common.language_models.commands", "common.language_models.probing"),
    *("common.parity.commands", "common.parity.probing", "common.plotting", "common.text.report"),
    *(f"{setting}.training" for setting in ("parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive")),
    *(f"{setting}.training" for setting in ("text_mlm", "text_autoregressive")),
    "tests.trainers",
):
    import_module(name)
gc.collect()
UNSEARCHED = fast_garbage_collection()  # or to look for garbage would copy all of these objects into each process
UNSEARCHED.__enter__()
