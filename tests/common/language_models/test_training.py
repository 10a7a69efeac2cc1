"""Training of several runs to their ends."""

import gc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from common import cli
from common.errors import UserError
from common.language_models import commands, training


@pytest.mark.parametrize("name", ["train", "distill"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_command_looks_for_garbage_among_new_objects_only(monkeypatch, name, nested):
    calls = []

    def refuse(arguments):
        calls.append("check")
        raise UserError("an argument is out of range")

    monkeypatch.setattr(commands, "check", refuse)
    monkeypatch.setattr(cli, "_collects_fast", nested)
    for call in ("freeze", "unfreeze"):
        monkeypatch.setattr(gc, call, partial(calls.append, call))
    with pytest.raises(UserError):
        getattr(commands, name)(None, {}, None)
    assert calls == (["check"] if nested else ["freeze", "check", "unfreeze"])
    assert cli._collects_fast == nested


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
