"""Runs of both settings."""

import pytest

from tests.parity import CASES


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request, one_torch_thread):
    return request.param


@pytest.fixture(scope="module")
def teacher(case, teacher_of):
    """A run with checkpoints at 10, 20 and 30 units."""
    return teacher_of(case)
