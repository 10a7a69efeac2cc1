"""Schedules by hand, against a naive scan of their definition, and their errors."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from common.distillation.schedules import (
    Segment,
    accelerated,
    ce_only,
    checkpoint_at,
    custom,
    designed,
    one_shot,
    progressive,
    refreshed,
    spans,
    two_shot,
    until_saturation,
    unused_segments,
)
from common.errors import UserError

CHECKPOINTS = st.lists(st.integers(0, 10**7), min_size=1, unique=True)
FEW_CHECKPOINTS = st.lists(st.integers(0, 40), min_size=1, unique=True)
STEPS = st.integers(0, 10**12)
FACTORS = st.one_of(st.integers(1, 50), st.sampled_from([0.1, 0.3, 0.7, 1.5, 2.5]))
# Multiples of 1/64 add without rounding, so that the tests may compare with the threshold exactly.
EVALUATIONS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([i / 64 for i in range(8)])), max_size=30).map(
    lambda pairs: [(sum(gap for gap, _ in pairs[: i + 1]), accuracy) for i, (_, accuracy) in enumerate(pairs)]
)
SATURATION = {"max_steps": 40, "window": 2, "threshold": 1 / 64}


def latest(checkpoints, wanted):
    return max((step for step in checkpoints if step <= wanted), default=None)


@given(STEPS)
def test_ce_only_has_no_teacher_at_any_step(step):
    assert checkpoint_at(ce_only(), step) is None


@given(CHECKPOINTS, STEPS)
def test_one_shot_is_the_final_teacher_always(checkpoints, step):
    assert checkpoint_at(one_shot(checkpoints), step) == max(checkpoints)


@given(CHECKPOINTS, st.integers(1, 10**6), STEPS)
def test_progressive_equals_counting_segments(checkpoints, every, step):
    expected = sorted(checkpoints)[min(step // every, len(checkpoints) - 1)]
    assert checkpoint_at(progressive(checkpoints, every), step) == expected


def test_progressive_with_a_number_is_equally_spaced_and_ends_with_the_final_teacher():
    saved = range(0, 1001, 100)
    assert [segment.checkpoint for segment in progressive(saved, 10, number=5)] == [200, 400, 600, 800, 1000]
    assert progressive(saved, 10, number=1) == one_shot(saved)
    assert progressive(saved[1:], 10, number=10) == progressive(saved[1:], 10)


@given(CHECKPOINTS, st.integers(1, 1000), st.integers(1, 20), STEPS)
def test_progressive_with_a_number_falls_back_to_the_latest_earlier_checkpoint(checkpoints, every, number, step):
    checkpoints = [0, *checkpoints]
    wanted = Fraction(max(checkpoints) * min(step // every + 1, number), number)
    assert checkpoint_at(progressive(checkpoints, every, number), step) == latest(checkpoints, wanted)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=8), st.integers(0, 200))
def test_explicit_equals_writing_out_every_step(plan, step):
    written_out = [checkpoint for checkpoint, steps in plan for _ in range(steps)]
    expected = written_out[min(step, len(written_out) - 1)]
    assert checkpoint_at(custom(plan), step) == expected
    assert checkpoint_at(custom([*plan[:-1], (plan[-1][0], None)]), step) == expected


def test_two_shot_switches_exactly_at_first_steps():
    schedule = two_shot([100, 200, 300], first=200, first_steps=50)
    assert [checkpoint_at(schedule, step) for step in (0, 49, 50, 10**9)] == [200, 200, 300, 300]


def test_two_shot_falls_back_to_the_latest_earlier_checkpoint():
    assert two_shot([100, 200, 300], first=260, first_steps=50) == two_shot([100, 200, 300], first=200, first_steps=50)


def test_two_shot_from_the_final_checkpoint_is_one_shot():
    assert two_shot([100, 200], first=200, first_steps=50) == one_shot([100, 200])


@given(FEW_CHECKPOINTS, FACTORS, st.integers(0, 500))
def test_accelerated_equals_a_scan(checkpoints, multiplier, step):
    wanted = Fraction(str(multiplier)) * max(step, 1)
    expected = latest(checkpoints, wanted)
    assert checkpoint_at(accelerated(checkpoints, multiplier), step) == (
        min(checkpoints) if expected is None else expected
    )


@given(CHECKPOINTS)
def test_a_huge_multiplier_is_one_shot(checkpoints):
    assert accelerated(checkpoints, 10**7) == one_shot(checkpoints)


@given(FEW_CHECKPOINTS, st.integers(1, 12), FACTORS, st.integers(0, 500))
def test_refreshed_equals_a_scan(checkpoints, refresh, speed, step):
    pace = Fraction(str(speed))
    if pace * refresh < min(checkpoints):
        with pytest.raises(UserError, match=f"the first is {min(checkpoints)}"):
            refreshed(checkpoints, refresh, speed)
    else:
        expected = latest(checkpoints, pace * (1 + step // refresh) * refresh)
        assert checkpoint_at(refreshed(checkpoints, refresh, speed), step) == expected


def test_decimal_factors_do_not_round_up_to_the_next_step():
    assert accelerated([0, 7], 0.7) == [Segment(0, 0), Segment(10, 7)]
    assert refreshed([0, 7, 14], 10, 0.7) == [Segment(0, 7), Segment(10, 14)]


def test_saturation_moves_on_after_a_window_without_improvement():
    climbing = [(step, step / 100) for step in range(10, 60, 10)]
    flat = [(step, 0.505) for step in range(60, 170, 10)]
    # The fifth flat evaluation is at 100; then 110 is the best before, and 120 to 160 are the window.
    expected = [Segment(0, 1), Segment(100, 2), Segment(160, 3)]
    assert until_saturation([1, 2, 3], climbing + flat, max_steps=10**9) == expected


def test_saturation_stays_while_each_window_improves_by_the_threshold():
    evaluations = [(step, step / 64) for step in range(64)]
    assert until_saturation([1, 2], evaluations, max_steps=10**9, window=1, threshold=1 / 64) == [Segment(0, 1)]


def test_saturation_moves_on_at_the_first_evaluation_at_or_after_max_steps():
    evaluations = [(40, 0.1), (80, 0.2), (120, 0.3), (210, 0.4), (220, 0.5)]
    expected = [Segment(0, 1), Segment(120, 2), Segment(220, 3)]
    assert until_saturation([1, 2, 3], evaluations, max_steps=100) == expected


@given(FEW_CHECKPOINTS, EVALUATIONS)
def test_a_checkpoint_lasts_until_its_first_saturated_evaluation(checkpoints, evaluations):
    def is_over(start, end):
        accuracies = [accuracy for step, accuracy in evaluations if start < step <= end]
        before, window = accuracies[:-2], accuracies[-2:]
        return end - start >= 40 or (before != [] and max(window) - max(before) < 1 / 64)

    schedule = until_saturation(checkpoints, evaluations, **SATURATION)
    assert [segment.checkpoint for segment in schedule] == sorted(checkpoints)[: len(schedule)]
    for segment, following in pairwise([*schedule, None]):
        end = following.start if following else math.inf
        over = [step for step, _ in evaluations if segment.start < step <= end and is_over(segment.start, step)]
        assert over == ([end] if following else []) or segment.checkpoint == max(checkpoints)


@given(FEW_CHECKPOINTS, EVALUATIONS, st.integers(0, 30))
def test_a_new_evaluation_changes_no_step_before_it(checkpoints, evaluations, known):
    before = until_saturation(checkpoints, evaluations[:known], **SATURATION)
    after = until_saturation(checkpoints, evaluations, **SATURATION)
    assert after[: len(before)] == before
    assert all(segment.start >= evaluations[known][0] for segment in after[len(before) :])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=6), st.integers(0, 60), st.integers(0, 60))
def test_spans_cover_the_range_step_by_step(plan, start, stop):
    schedule = custom(plan) if plan else ce_only()
    pieces = spans(schedule, start, stop)
    covered = [(step, checkpoint) for first, end, checkpoint in pieces for step in range(first, end)]
    assert covered == [(step, checkpoint_at(schedule, step)) for step in range(start, stop)]
    assert all(first < end for first, end, _ in pieces)
    assert all(left[2] != right[2] for left, right in pairwise(pieces))


def test_a_billion_steps_take_only_as_many_spans_as_checkpoints():
    schedule = accelerated(range(10**5, 10**7 + 1, 10**5), 0.01)
    pieces = spans(schedule, 0, 10**9 + 1)
    assert len(schedule) == len(pieces) == 100
    assert pieces[-1] == (10**9, 10**9 + 1, 10**7)


@pytest.mark.parametrize(
    "make",
    [
        one_shot,
        lambda none: progressive(none, 10),
        lambda none: two_shot(none, 0, 10),
        lambda none: accelerated(none, 2),
        lambda none: refreshed(none, 10),
        lambda none: until_saturation(none, [], max_steps=10),
    ],
)
def test_a_teacher_without_checkpoints_is_an_error(make):
    with pytest.raises(UserError, match="no checkpoints"):
        make([])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: progressive([1], 0), "must be positive and finite, got 0"),
        (lambda: progressive([1], 10, number=0), "must be positive and finite, got 0"),
        (
            lambda: progressive([500, 1000], 10, number=4),
            r"step 250; the first is 500: give --teacher-checkpoints \(number\) of at most 2$",
        ),
        (lambda: custom([]), "names no checkpoint: give --segments, such as 200:50"),
        (lambda: custom([(1, None), (2, 10)]), "checkpoint 1 needs a number"),
        (lambda: custom([(1, 10), (2, 0)]), "checkpoint 2 must be positive"),
        (
            lambda: two_shot([100, 200], 60, 10),
            r"at or before teacher step 60; the first is 100: give --checkpoint \(first\) a later",
        ),
        (lambda: two_shot([100, 200], 100, 0), "must be positive"),
        (lambda: accelerated([1], 0), "must be positive"),
        (lambda: accelerated([1], math.nan), "must be positive"),
        (lambda: refreshed([1], 0), "must be positive"),
        (lambda: refreshed([1], 10, math.inf), "must be positive"),
        (lambda: until_saturation([1], [], max_steps=0), "must be positive"),
        (lambda: until_saturation([1], [], max_steps=10, window=0), "must be positive"),
        (lambda: until_saturation([1], [(10, 0.5), (10, 0.5)], max_steps=10), "must be in order"),
    ],
)
def test_a_wrong_argument_is_an_error(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("steps", "names"),
    [
        (5, "2 designed targets and teacher step 90, due at step 10"),
        (15, "1 designed target and teacher step 90, due at step 20"),
        (25, "teacher step 90, due at step 30"),
    ],
)
def test_what_a_student_will_not_learn_from_is_named(steps, names):
    schedule = designed([-3, -2, -1], 30, 90)
    assert unused_segments(schedule, steps).endswith(f"the student does not learn from {names}")
    assert unused_segments(schedule, 31) == ""
    to_labels = designed([-1], 30, None)
    assert unused_segments(to_labels, 30).endswith("the student does not learn from the labels, due at step 30")


def test_designed_targets_have_equal_parts_of_the_first_steps():
    starts = [(segment.start, segment.checkpoint) for segment in designed([-3, -2, -1], 10, 90)]
    assert starts == [(0, -3), (3, -2), (6, -1), (10, 90)]
    with pytest.raises(UserError, match=r"3 designed targets need at least one step each: .* which is 2"):
        designed([-3, -2, -1], 2, 90)
