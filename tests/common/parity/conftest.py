"""Runs of both settings."""

import pytest

from tests.commands import exit_code
from tests.parity import CASES


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request, one_torch_thread):
    return request.param


@pytest.fixture(scope="module")
def teacher(case, tmp_path_factory):
    """A run with checkpoints at 10, 20 and 30 units."""
    directory = tmp_path_factory.mktemp(case.setting) / "teacher"
    arguments = [*case.train[1:], "--out", directory]
    assert exit_code(case.main(["train"]), *arguments) == 0
    return directory
