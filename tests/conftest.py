"""What tests of several folders share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_torch_thread():
    """Here and in processes of their own: with more threads small tensors are slower, and rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
