"""What tests of several folders share."""

import gc
import os
import signal
import sys
from contextlib import ExitStack
from functools import cache

import hypothesis
import pytest
import torch

from common.cli import fast_garbage_collection, prepare_process
from common.runs.names import ROOT
from common.runs.stopping import SIGNALS
from tests.forked import keep_environment

hypothesis.settings.register_profile("long", max_examples=2000)
"""20 times as many examples as by default, of the tests that do not say how many: `--hypothesis-profile long`."""


def pytest_configure(config):
    """Share numba's cache with the commands, and let the scripts of figures be imported as they import each other."""
    prepare_process()
    keep_environment()
    sys.path.append(str(ROOT / "figures"))
    config.pluginmanager.import_plugin("tests.every_setting")


def pytest_collection_modifyitems(items):
    """What starts several processes of torch is slow, whichever test comes first; what waits for Slurm begins first."""
    for item in items:
        if "two_processes" in item.fixturenames:
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)


def pytest_collection_finish(session):
    """Do not look for garbage among modules and tests, as every Trainer would when it begins."""
    gc.collect()
    stack = ExitStack()
    stack.enter_context(fast_garbage_collection())
    session.config.add_cleanup(stack.close)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Leave no handler behind: what ended by a stop signal ignores others, and so would all that the process starts."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def one_torch_thread():
    """Here and in processes of their own: with more threads small tensors are slower, and rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk():
    """No test looks at what is left when the power fails. See `tests.preloaded` for other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def text_blocks(tmp_path_factory):
    """Where text is prepared, here and in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXT_BLOCKS", str(tmp_path_factory.mktemp("blocks")))
        yield


@pytest.fixture(scope="session")
def teacher_of(tmp_path_factory):
    """A function that gives a setting's teacher, trained once, with one thread whoever asks first."""

    @cache
    def train(setting):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return setting.train_teacher(tmp_path_factory.mktemp(setting.name) / "teacher")
        finally:
            torch.set_num_threads(threads)

    return train
