"""Phases of synthetic curves whose transition is known, and of curves that have none."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.distillation.phases import (
    NoTransitionError,
    Phases,
    _lower_hull,
    _non_increasing_fit,
    choose_checkpoints,
    find_phases,
)
from common.errors import UserError

NOISE = 0.008  # standard deviation of an accuracy of 50% on 4,096 samples
RISE = np.log(9)  # a logistic curve makes 10% to 90% of its drop within this many widths of its centre


def logistic(steps, centre, width):
    return 0.5 / (1 + np.exp(np.clip((steps - centre) / width, -60, 60)))


def uneven_steps(evaluations, generator):
    return np.cumsum(generator.uniform(0.2, 1.8, evaluations)) / evaluations


@settings(deadline=None)
@given(
    evaluations=st.integers(40, 300),
    centre=st.floats(0.35, 0.75),
    width=st.floats(0.002, 0.02),
    descent=st.floats(0, 10),
    tail=st.floats(0, 0.05),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_noisy_logistic_drop_after_a_descent_and_before_a_tail(evaluations, centre, width, descent, tail, seed):
    generator = np.random.default_rng(seed)
    steps = uneven_steps(evaluations, generator)
    losses = logistic(steps, centre, width) + descent * np.exp(-steps / 0.02) + tail * np.exp(-steps / 0.3)
    phases = find_phases(steps, losses + generator.normal(0, NOISE, evaluations))
    resolution = 2 * (width + np.diff(steps).max())
    assert phases.start == pytest.approx(centre - RISE * width, abs=resolution)
    assert phases.steepest == pytest.approx(centre, abs=resolution)
    assert phases.end == pytest.approx(centre + RISE * width, abs=resolution)
    assert phases.plateau < phases.start < phases.steepest < phases.end <= phases.tail


@given(st.floats(1e-3, 1e6), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_the_units_of_both_axes_do_not_matter(step_scale, step_shift, loss_scale, loss_shift):
    steps = uneven_steps(60, np.random.default_rng(0))
    losses = logistic(steps, 0.5, 0.02) + np.random.default_rng(1).normal(0, NOISE, 60)
    expected, found = (
        np.array([p.plateau, p.start, p.steepest, p.end, p.tail])
        for p in (
            find_phases(steps, losses),
            find_phases(step_scale * steps + step_shift, loss_scale * losses + loss_shift),
        )
    )
    np.testing.assert_allclose((found - step_shift) / step_scale, expected, rtol=1e-4)


def test_a_logistic_drop_without_noise_is_found_to_a_fifth_of_its_width():
    steps = np.linspace(0, 1, 5001)
    phases = find_phases(steps, logistic(steps, 0.5, 0.01))
    assert phases.start == pytest.approx(0.5 - RISE * 0.01, abs=0.002)
    assert phases.steepest == pytest.approx(0.5, abs=0.002)
    assert phases.end == pytest.approx(0.5 + RISE * 0.01, abs=0.002)


def test_a_drop_that_starts_abruptly_is_steepest_near_its_start():
    steps = np.linspace(0, 1, 1001)
    phases = find_phases(steps, np.exp(-np.maximum(steps - 0.4, 0) / 0.05))
    assert 0.4 < phases.start < phases.steepest < 0.43


def test_evaluations_that_are_dense_in_the_transition_change_little():
    sparse, dense = np.linspace(0, 1, 51), np.linspace(0.45, 0.55, 200)
    steps = np.union1d(sparse, dense)
    assert find_phases(steps, logistic(steps, 0.5, 0.01)).steepest == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("first_loss", [[], [0.69]], ids=["from 250k steps", "from initialisation"])
def test_a_wide_parity_mlp(first_loss):
    """Loss 5.9 at 250k steps, 0.94 at 1M, 0.75 at 2.5M, then near 0 within 400k; 0.69 before the first step."""
    trained = np.arange(250_000, 5_000_001, 50_000)
    descent = np.interp(trained, [250e3, 500e3, 1e6, 2.5e6], [5.9, 2.0, 0.94, 0.75])
    losses = np.where(trained <= 2.5e6, descent, 1.5 * logistic(trained, 2.7e6, 4e4))
    steps = [0, *trained] if first_loss else trained
    phases = find_phases(steps, [*first_loss, *losses])
    assert phases.plateau < 1.5e6
    assert 2.5e6 <= phases.start < phases.steepest < phases.end <= 2.9e6
    assert phases.steepest == pytest.approx(2.7e6, abs=50_000)
    assert choose_checkpoints(phases, range(0, 5_000_001, 100_000))[1] == 2_700_000


def test_a_small_transformer():
    """Error rates that flip between the classes' shares from the lower one on, a drop in 150 steps, two lapses."""
    steps = np.arange(0, 12_001, 50)
    losses = np.where(steps % 100 == 0, 0.479, 0.521)
    losses[steps >= 2_000] = 0
    losses[np.isin(steps, [1_900, 1_950, 2_500, 7_000])] = [0.4, 0.1, 0.09, 0.06]
    phases = find_phases(steps, losses)
    assert 1_850 <= phases.start <= 1_900 < phases.steepest < 1_950 <= phases.end <= 2_000
    before, inside, after = choose_checkpoints(phases, range(0, 12_001, 25))
    assert (inside, after > 2_000) == (1_925, True)
    assert before == pytest.approx(phases.start / 2, abs=50)


def test_the_larger_of_two_transitions():
    steps = np.linspace(0, 1, 201)
    phases = find_phases(steps, 0.4 * logistic(steps, 0.3, 0.01) + logistic(steps, 0.7, 0.01))
    assert phases.steepest == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("evaluations", [20, 100, 500])
@pytest.mark.parametrize(
    "curve",
    [
        lambda x: 0 * x + 0.5,
        lambda x: 1 - x,
        lambda x: 5 * np.exp(-x / 0.1),
        lambda x: (x + 0.01) ** -0.3,
        lambda x: np.cos(np.pi * x),
        lambda x: 0.5 + 0.5 * x,
        lambda x: 1 - logistic(x, 0.5, 0.01),
    ],
    ids=["constant", "linear", "exponential", "power law", "half a cosine", "rising", "an accuracy"],
)
def test_curves_without_a_transition(curve, evaluations):
    steps = np.linspace(0, 1, evaluations)
    for noise in (0, NOISE):
        losses = curve(steps) + np.random.default_rng(0).normal(0, noise, evaluations)
        with pytest.raises(NoTransitionError, match="no transition"):
            find_phases(steps, losses)


@pytest.mark.parametrize("seen", [-1, 0, 1])
def test_a_curve_that_ends_inside_its_transition(seen):
    steps = np.linspace(0, 0.5 + seen * 0.03, 60)
    losses = logistic(steps, 0.5, 0.03) + np.random.default_rng(0).normal(0, NOISE, 60)
    with pytest.raises(UserError, match="ends inside") as raised:
        find_phases(steps, losses)
    assert not isinstance(raised.value, NoTransitionError)


@pytest.mark.parametrize(
    ("steps", "losses", "message"),
    [
        (range(7), [1.0] * 7, "at least 8"),
        (range(9), [1.0] * 8, "one step and one loss"),
        ([0, 1, 2, 3, 4, 5, 5, 6], [1.0] * 8, "increase"),
        (range(8), [1.0] * 7 + [np.nan], "finite"),
    ],
)
def test_bad_input(steps, losses, message):
    with pytest.raises(UserError, match=message):
        find_phases(list(steps), losses)


PHASES = Phases(plateau=100.0, start=500.0, steepest=560.0, end=700.0, tail=800.0)


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        (range(0, 1001, 100), (300, 600, 900)),
        ([900, 0, 499, 501, 800], (499, 501, 800)),
        ([0, 699, 5000, 9000], (0, 699, 5000)),
        ([0, 500, 540, 590, 700, 801], (0, 540, 801)),
    ],
)
def test_chosen_checkpoints(checkpoints, expected):
    assert choose_checkpoints(PHASES, checkpoints) == expected


@pytest.mark.parametrize(
    ("checkpoints", "missing"),
    [([500, 600, 900], "before"), ([100, 500, 700, 900], "inside"), ([100, 600, 799], "after"), ([], "before")],
)
def test_a_missing_checkpoint(checkpoints, missing):
    with pytest.raises(UserError, match=f"no teacher checkpoint {missing}"):
        choose_checkpoints(PHASES, checkpoints)


CURVES = st.lists(st.floats(-100, 100), min_size=2, max_size=12).map(np.array)


@given(CURVES)
def test_the_fit_equals_the_minimum_over_starts_of_the_maximum_over_ends_of_the_mean(values):
    n = len(values)
    expected = [min(max(values[a : b + 1].mean() for b in range(i, n)) for a in range(i + 1)) for i in range(n)]
    np.testing.assert_allclose(_non_increasing_fit(values), expected, atol=1e-9)


@given(CURVES, st.integers(0, 2**32 - 1))
def test_the_hull_is_the_lowest_chord_over_each_point(values, seed):
    steps = uneven_steps(len(values), np.random.default_rng(seed))
    hull = _lower_hull(steps, values)
    lowest = values.copy()
    for left in range(len(values)):
        for right in range(left + 1, len(values)):
            inside = slice(left, right + 1)
            chord = np.interp(steps[inside], steps[[left, right]], values[[left, right]])
            lowest[inside] = np.minimum(lowest[inside], chord)
    np.testing.assert_allclose(np.interp(steps, steps[hull], values[hull]), lowest, atol=1e-9)
