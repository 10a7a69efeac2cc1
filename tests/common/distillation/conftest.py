"""Teachers, and an uninterrupted run, that the tests of this folder compare with."""

import pytest

from common.distillation.state import weights
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from tests.trainers import Draws, Plain, bert, content, gpt2, run_with_dropout


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """A directory of three checkpoints for each kind of student; the teachers are larger."""
    directory = tmp_path_factory.mktemp("teachers")
    for step, seed in ((10, 41), (20, 42), (30, 43)):
        bert(seed, 12, 2).save_pretrained(directory / "bert" / f"checkpoint-{step}")
        gpt2(seed, 12, 2).save_pretrained(directory / "gpt2" / f"checkpoint-{step}")
        save_checkpoint(directory / "plain", step, weights(Plain(seed, 7)), {})
    for path in list(directory.rglob("*.safetensors")):  # sharper than freshly drawn weights
        tensors = {k: 15 * v if v.ndim == 2 else v for k, v in read_checkpoint(path.parent)[1].items()}
        save_checkpoint(path.parents[1], int(path.parent.name.split("-")[1]), tensors, read_checkpoint(path.parent)[0])
    return directory


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, teachers):
    directory, draws = tmp_path_factory.mktemp("uninterrupted") / "run", Draws()
    run_with_dropout(directory, teachers, draws)
    return content(directory), draws.drawn
