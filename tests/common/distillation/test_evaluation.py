"""The curve of a teacher's checkpoints against sums written out by hand, and the level of chance against simulation."""

import gc
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from common.distillation.chance import chance_accuracy, is_at_chance
from common.distillation.choosing import choose_schedule
from common.distillation.evaluation import evaluate_checkpoints
from common.errors import UserError
from common.teachers.discovery import Checkpoint, find_checkpoints
from tests.trainers import HELD_OUT, STUDENTS, evaluate_by_hand, load_plain, load_teacher

OBJECTIVES = {"bert": "masked", "gpt2": "causal", "plain": "masked"}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_curve_of_a_teacher(teachers, kind):
    load = load_plain if kind == "plain" else type(STUDENTS[kind](0)).from_pretrained
    checkpoints = find_checkpoints(teachers / kind)
    curve = evaluate_checkpoints(checkpoints[::-1], load, HELD_OUT, OBJECTIVES[kind], "cpu")
    assert curve.steps == (10, 20, 30)
    by_hand = [evaluate_by_hand(load_teacher(teachers, kind, step), HELD_OUT) for step in curve.steps]
    assert curve.losses == pytest.approx([loss for loss, _ in by_hand], rel=1e-4)
    assert curve.accuracies == pytest.approx([accuracy for _, accuracy in by_hand])
    assert curve.source == "of the checkpoints on 20 samples of the student's data"


def test_one_model_is_in_memory_at_a_time_and_is_evaluated_without_dropout(teachers, capsys):
    alive = weakref.WeakSet()

    def load(path):
        gc.collect()
        assert not alive
        model = load_plain(path)
        model.register_forward_hook(lambda module, *_: assert_evaluating(module))
        alive.add(model)
        return model

    def assert_evaluating(module):
        assert not module.training
        assert not torch.is_grad_enabled()

    batches = [SimpleNamespace(**batch) for batch in HELD_OUT]
    evaluate_checkpoints(find_checkpoints(teachers / "plain"), load, batches, "masked", torch.device("cpu"))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 3
    assert shown[2].startswith("evaluating the teacher: step 3 of 3, teacher 30, loss ")


def test_a_schedule_without_a_log(teachers):
    def evaluate(checkpoints):
        return evaluate_checkpoints(checkpoints, load_plain, HELD_OUT, "masked", "cpu")

    schedule, choice = choose_schedule(teachers / "plain", every=4, evaluate=evaluate)
    assert [(segment.start, segment.checkpoint) for segment in schedule] == [(0, 10), (4, 20), (8, 30)]
    assert choice.reason.startswith("the curve has only 3 evaluations (of the checkpoints on 20 samples")


@pytest.mark.parametrize("batches", [[], [{**HELD_OUT[0], "labels": torch.full_like(HELD_OUT[0]["labels"], -100)}]])
def test_data_without_labels_is_refused(teachers, batches):
    with pytest.raises(UserError, match="evaluation data has no labels"):
        evaluate_checkpoints(find_checkpoints(teachers / "plain"), load_plain, batches, "masked", "cpu")


@pytest.mark.parametrize(
    ("classes", "value", "message"),
    [
        (slice(None), math.nan, "checkpoint-10 predicts NaN or infinity"),
        (0, math.nan, "checkpoint-10 predicts NaN or infinity"),
        (0, math.inf, "checkpoint-10 predicts NaN or infinity"),
        (slice(1, None), -math.inf, "loss of teacher step 7 on the student's data is inf"),
    ],
)
def test_a_checkpoint_that_is_not_finite_is_refused(teachers, classes, value, message):
    def load(path):
        model = load_plain(path)
        model.read.bias.data[classes] = value
        return model

    checkpoint = Checkpoint(7, teachers / "plain" / "checkpoint-10")
    with pytest.raises(UserError, match=message):
        evaluate_checkpoints([checkpoint], load, HELD_OUT, "masked", "cpu")


@given(st.lists(st.lists(st.sampled_from([-100, 0, 1, 2, 50_000]), max_size=8), max_size=5))
def test_chance_is_the_share_of_the_most_frequent_label(labels):
    flat = [label for row in labels for label in row if label != -100]
    tensors = [torch.tensor(row, dtype=torch.long).view(1, -1) for row in labels]
    if flat:
        assert chance_accuracy(tensors) == max(map(flat.count, flat)) / len(flat)
    else:
        with pytest.raises(UserError, match="no labels"):
            chance_accuracy(tensors)


@pytest.mark.parametrize("chance", [0.5, 0.06])
def test_chance_is_told_from_better(chance):
    count = 2000
    accuracies = np.random.default_rng(0).binomial(count, chance, 2000) / count
    assert np.mean([is_at_chance(accuracy, chance, count) for accuracy in accuracies]) > 0.995
    error = math.sqrt(chance * (1 - chance) / count)
    assert is_at_chance(chance + 2.9 * error, chance, count)
    assert not is_at_chance(chance + 3.1 * error, chance, count)
    assert is_at_chance(0.0, chance, count)
    assert not is_at_chance(1.0, chance, count)


def test_data_of_one_label_does_not_tell_a_teacher_from_chance():
    assert is_at_chance(1.0, 1.0, 10)
