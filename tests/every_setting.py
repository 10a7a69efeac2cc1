"""Fixtures of tests that every setting must pass, or one of those that share their code; a plugin of pytest."""

import pytest

from tests.parity import CASES
from tests.pcfg import SETTINGS
from tests.text import TEXT_SETTINGS

EVERY_SETTING = (*CASES.values(), *SETTINGS, *TEXT_SETTINGS)
ONE_OF_EACH_PATH = (*CASES.values(), SETTINGS[0], TEXT_SETTINGS[1])
"""For what is not a setting's own code: both engines on parity, and of the four settings that `common.language_models`
trains, a masked model on a grammar and a causal one on text."""

one_of_each_path = pytest.mark.parametrize("setting", ONE_OF_EACH_PATH, indirect=True, ids=lambda setting: setting.name)


@pytest.fixture(scope="module", params=EVERY_SETTING, ids=lambda setting: setting.name)
def setting(request, one_torch_thread):
    """Each of the settings."""
    return request.param


@pytest.fixture(scope="module")
def teacher(setting, teacher_of):
    """A run with checkpoints at 10, 20 and 30 units."""
    return teacher_of(setting)
