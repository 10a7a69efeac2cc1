"""Teachers in memory: prefetched, or loaded when needed."""

import threading
from pathlib import Path

import torch

from common.distillation.schedules import ce_only, checkpoint_at, next_checkpoint
from common.teachers.discovery import Checkpoint
from common.teachers.loading import Teachers
from tests.trainers import Plain, assert_same_model

CPU = torch.device("cpu")


def test_the_next_teacher_is_loaded_while_the_current_one_is_in_use():
    begun, resume = threading.Event(), threading.Event()

    def load(path):
        if path.name == "2":
            begun.set()
            assert resume.wait(60)
        return Plain(int(path.name))

    chosen = Teachers([Checkpoint(step, Path(str(step))) for step in (1, 2)], load)
    first = chosen.load(1, 2, CPU)
    assert begun.wait(60)
    assert chosen.load(1, 2, CPU) is first
    assert chosen.current_step == 1
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())
    resume.set()
    second = chosen.load(2, None, CPU)
    assert chosen.current_step == 2
    assert_same_model(second, Plain(2), atol=0)


def test_a_teacher_that_was_not_prefetched_is_loaded_when_it_is_needed():
    loaded = []

    def load(path):
        loaded.append(int(path.name))
        return Plain(int(path.name))

    chosen = Teachers([Checkpoint(step, Path(str(step))) for step in (1, 2, 3)], load)
    models = [chosen.load(step, then, CPU) for step, then in ((1, 2), (1, 2), (3, None))]
    assert models[0] is models[1]
    assert_same_model(models[2], Plain(3), atol=0)
    assert loaded == [1, 2, 3]


def test_no_teacher_is_loaded_for_steps_without_one():
    chosen = Teachers([], Plain)
    assert chosen.load(checkpoint_at(ce_only(), 0), next_checkpoint(ce_only(), 0)) is None
    assert chosen.current_step is None
