"""Automatic schedules: what predictions say about checkpoints, by hand; when the student moves on; the commands."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from common.distillation.automatic import LACKING, LEARNED, Anchor, choose_anchors, divergence, information
from common.distillation.schedules import Evaluation, Segment, until_learned
from common.errors import UserError


def mixtures(shares, samples=64, classes=3):
    """Predictions of checkpoints: certain of a class with some probability, and else uniform."""
    certain = np.eye(classes)[np.arange(samples) % classes]
    return {step: share * certain + (1 - share) / classes for step, share in shares.items()}


def test_information_is_the_entropy_of_a_certain_prediction_of_each_class_and_0_of_a_constant_one():
    assert information(mixtures({1: 1.0}, 63)[1]) == pytest.approx(np.log(3))
    assert information(np.tile([0.2, 0.3, 0.5], (9, 1))) == pytest.approx(0)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 5))
def test_divergence_is_the_plain_sum(seed, samples, classes):
    generator = np.random.Generator(np.random.Philox(seed))
    first, second = generator.dirichlet(np.ones(classes), (2, samples))
    first[0] = np.eye(classes)[0]
    expected = sum(
        p * np.log(p / q)
        for row, other in zip(first, second, strict=True)
        for p, q in zip(row, other, strict=True)
        if p
    )
    assert divergence(first, second) == pytest.approx(expected / samples)


def test_the_first_checkpoint_is_the_one_that_lacks_a_quarter_of_the_final_one():
    shares = {10: 0.0, 20: 0.1, 30: 0.3, 40: 0.6, 50: 0.7, 60: 0.8, 70: 0.95}
    predictions = mixtures(shares)
    final = predictions[70]
    lacking = {step: divergence(final, predictions[step]) / information(final) for step in shares}
    assert lacking[10] == pytest.approx(1, abs=1e-3)
    first, last = choose_anchors(list(shares), predictions.__getitem__)
    expected = min(list(shares)[:-1], key=lambda step: abs(lacking[step] - LACKING))
    assert expected == 40
    assert first == Anchor(40, pytest.approx(information(predictions[40])), pytest.approx(lacking[40]))
    assert last == Anchor(70, pytest.approx(information(final)), 0)


def test_a_single_checkpoint_is_all_there_is():
    predictions = mixtures({5: 0.9})
    assert [anchor.step for anchor in choose_anchors([5], predictions.__getitem__)] == [5]


def test_a_final_checkpoint_that_predicts_the_same_for_all_samples_is_refused():
    with pytest.raises(UserError, match="checkpoint 9 predicts the same for all samples"):
        choose_anchors([3, 9], mixtures({3: 0.5, 9: 0.0}).__getitem__)


ANCHORS = [Anchor(50, 0.4, 0.25), Anchor(70, 0.6, 0.0)]


@pytest.mark.parametrize(
    ("kls", "start"),
    [
        ([0.3, 0.21, 0.2, 0.1], 300),
        ([0.3, 0.3, 0.3, 0.3, 0.3, 0.3], 500),  # after max_steps
        ([0.1], 100),
        ([0.3, 0.3], None),
    ],
)
def test_the_student_moves_on_once_it_has_learned_the_checkpoint_or_after_the_longest_time(kls, start):
    evaluations = [Evaluation(100 * (i + 1), 0.5, kl) for i, kl in enumerate(kls)]
    expected = [Segment(0, 50), *([] if start is None else [Segment(start, 70)])]
    assert until_learned(ANCHORS, evaluations, share=LEARNED, max_steps=450) == expected
    for known in range(len(evaluations)):  # an evaluation only appends
        found = until_learned(ANCHORS, evaluations[:known], share=LEARNED, max_steps=450)
        assert found == [segment for segment in expected if segment.start <= 100 * known]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"share": 0}, "the share of the information must be positive"),
        ({"max_steps": 0}, "the largest number of student steps per checkpoint must be positive"),
        ({"evaluations": [Evaluation(5, 0.5), Evaluation(5, 0.6)]}, "must be in order of student steps"),
        (
            {"evaluations": [Evaluation(5, 0.5)]},
            "the evaluation at step 5 has no divergence .*: resume with a RunTrainer",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(changed, message):
    given_arguments = {"anchors": ANCHORS, "evaluations": [], "share": 0.5, "max_steps": 10} | changed
    with pytest.raises(UserError, match=message):
        until_learned(**given_arguments)
