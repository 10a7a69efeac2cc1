"""Students compared in pairs: what is drawn and said, against numbers made up so that the answers are known."""

import math

import numpy as np
import pytest
from paired_students import COMPARED, accuracies, describe, draw, steps_to_reach

STEPS = [500, 1000, 2000]
LABELS = np.array([0.5, 0.6, 0.7])
PAIRS = [[stream, seed] for stream in (3000, 4000) for seed in range(10, 14)]


@pytest.fixture
def data():
    """One-shot students of the first teacher are 0.02 above those of the labels, and of the second 0.04; progressive
    ones have what the labels give after sqrt(2) times the steps. Pairs differ from each other, but for their order."""
    of_pair = np.linspace(-0.01, 0.01, len(PAIRS))[:, None, None]
    labels = LABELS + of_pair
    one_shot = np.concatenate([labels + 0.02, labels + 0.04], axis=1)
    progressive = np.concatenate([labels + 0.03, labels + 0.07], axis=1)
    accuracy = {"ce": labels.tolist(), "one-shot": one_shot.tolist(), "progressive": progressive.tolist()}
    return {"paired": {"steps": STEPS, "teacher_seeds": [1, 2], "pairs": PAIRS, "accuracy": accuracy}}


def test_accuracies_are_means_over_the_teachers(data):
    found = accuracies(data["paired"], "one-shot") - accuracies(data["paired"], "ce")
    np.testing.assert_allclose(found, 0.03)
    assert found.shape == (len(PAIRS), len(STEPS))


def test_statements_and_tables(data):
    finding = describe(data)
    for verdict, (methods, difference) in zip(
        finding.verdicts,
        {
            "Progressive one-shot": "+0.020",
            "Progressive cross entropy": "+0.050",
            "One-shot cross entropy": "+0.030",
        }.items(),
        strict=True,
    ):
        upper, _, lower = methods.partition(" ")
        assert verdict.statement == f"{upper} students end above {lower} students, on average over the budgets"
        interval = f"95% interval {difference} to {difference}"
        assert verdict.numbers == f"mean difference {difference}, {interval}; 8 of 8 pairs; p = 0.0078"
        assert verdict.holds
    differences, steps = finding.tables
    assert differences.caption.endswith("4 seeds, 2 streams, 2 teachers")
    assert differences.rows[2] == ["One-shot - cross entropy", *["+0.030 (+0.030 to +0.030), 0.0078"] * 3]
    assert steps.rows[1] == [
        "progressive",
        *(f"{at:,.0f} ({at:,.0f} to {at:,.0f})" for at in (500 * math.sqrt(2), 1000 * math.sqrt(2))),
        "above 2,000 (above 2,000 to above 2,000)",
    ]


def test_a_difference_of_either_sign_is_not_said_to_hold(data):
    for number, row in enumerate(data["paired"]["accuracy"]["progressive"]):
        for teacher in row:
            teacher[:] = [value - 0.04 * (number % 2) for value in teacher]
    finding = describe(data)
    assert [verdict.holds for verdict in finding.verdicts] == [False, True, True]


def test_the_figure_draws_means_and_intervals(data):
    figure = draw(data)
    left, right = figure.axes
    for line, expected in zip(left.lines, (LABELS, LABELS + 0.03, LABELS + 0.05), strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert [container.get_label() for container in right.containers] == [line.label for line in COMPARED.values()]
    for container, expected in zip(right.containers, (0.02, 0.05, 0.03), strict=True):
        np.testing.assert_allclose(container.lines[0].get_ydata(), expected)


def test_few_pairs_have_no_intervals(data):
    paired = data["paired"]
    paired["pairs"] = paired["pairs"][:1]
    paired["teacher_seeds"] = [1]
    paired["accuracy"] = {method: [values[0][:1]] for method, values in paired["accuracy"].items()}
    difference = draw(data).axes[1]
    assert difference.get_title(loc="left") + difference.get_title() == "(b) paired differences"
    assert not any(container.has_yerr for container in difference.containers)
    differences, steps = describe(data).tables
    assert differences.caption == "Mean difference in accuracy, p; 1 seed, 1 stream, 1 teacher"
    assert differences.rows[2] == ["One-shot - cross entropy", *["+0.020, 1"] * 3]
    assert "interval)" not in steps.caption
    assert steps.rows[0] == ["one-shot", *(f"{at * 2**0.2:,.0f}" for at in (500, 1000)), "above 2,000"]


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [(0.5, 500), (0.55, 500 * math.sqrt(2)), (0.6, 1000), (0.7, 2000), (0.49, 0), (0.71, math.inf)],
)
def test_steps_to_reach(wanted, steps):
    assert steps_to_reach(STEPS, LABELS, np.array([wanted]))[0] == pytest.approx(steps)


def test_a_curve_that_falls_counts_by_its_largest_value_before():
    found = steps_to_reach(STEPS, np.array([0.5, 0.6, 0.55]), np.array([0.58, 0.6, 0.61]))
    np.testing.assert_allclose(found, [500 * 2**0.8, 1000, math.inf])
