"""Training of several runs to their ends."""

import gc
import weakref
from types import SimpleNamespace

import pytest

from common.errors import DivergedError
from common.language_models import training


def test_garbage_is_looked_for_among_new_objects_only_during_training(monkeypatch):
    frozen = []

    def train(trainer, description):
        frozen.append(gc.get_freeze_count())
        raise DivergedError("the loss is not finite")

    monkeypatch.setattr(training, "train_run", train)
    run = SimpleNamespace(complete=False, directory=SimpleNamespace(name="test"))
    with pytest.raises(DivergedError):
        training.train_to_end([SimpleNamespace(run=run)])
    assert frozen[0] > 100_000
    assert gc.get_freeze_count() == 0


def test_trainers_that_have_ended_do_not_stay_in_memory(monkeypatch):
    class Trainer:
        def __init__(self):
            self.run = SimpleNamespace(complete=False, directory=SimpleNamespace(name="test"))
            self.itself = self

    alive, groups = [], []

    def train(trainer, description):
        alive.append([group() is not None for group in groups])
        groups.append(weakref.ref(trainer))

    monkeypatch.setattr(training, "train_run", train)
    gc.disable()
    try:
        for _ in range(3):
            training.train_to_end([Trainer()])
    finally:
        gc.enable()
    assert alive == [[], [False], [False, False]]
