"""Fixtures of tests that every setting must pass; a plugin of pytest."""

import pytest

from tests.parity import CASES
from tests.pcfg import SETTINGS
from tests.text import TEXT_SETTINGS


@pytest.fixture(scope="module", params=[*CASES.values(), *SETTINGS, *TEXT_SETTINGS], ids=lambda setting: setting.name)
def setting(request, one_torch_thread):
    """Each of the settings."""
    return request.param


@pytest.fixture(scope="module")
def teacher(setting, teacher_of):
    """A run with checkpoints at 10, 20 and 30 units."""
    return teacher_of(setting)
