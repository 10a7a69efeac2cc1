"""What tests of several folders share."""

import pytest
import torch

from common.cli import prepare_process


def pytest_configure():
    """Share numba's cache with the commands."""
    prepare_process()


def pytest_collection_modifyitems(items):
    """What starts several processes of torch is slow, whichever test comes first."""
    for item in items:
        if "two_processes" in item.fixturenames:
            item.add_marker("slow")


@pytest.fixture(scope="module")
def one_torch_thread():
    """Here and in processes of their own: with more threads small tensors are slower, and rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
