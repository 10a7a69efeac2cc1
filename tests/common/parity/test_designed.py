"""Designed targets on parity: sums of monomials by brute force, the forms of arguments, and students that learn."""

from itertools import combinations
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from common.errors import UserError
from common.parity.designed import krawtchouk, monomials_of
from common.parity.task import make_task, unpack_signs
from common.runs.run import Run
from tests.commands import results_below

TASK = make_task(70, 4, support="random", seed=3)
"""Its samples have two words."""


@given(st.lists(st.sampled_from([-1, 1]), min_size=1, max_size=9), st.data())
def test_sums_of_monomials_are_krawtchouk_polynomials(signs, data):
    degree = data.draw(st.integers(0, len(signs)))
    expected = sum(prod(some) for some in combinations(signs, degree))
    assert krawtchouk(len(signs), degree, signs.count(-1)) == expected


@pytest.mark.parametrize("coordinates", ["support", "others", "0,63,64,69,5"])
def test_log_odds_are_the_weighted_sum_of_all_monomials(coordinates):
    design = monomials_of("1:0.5+2:-0.25+4:2", coordinates, TASK, 7)
    bits = TASK.sample(0, "train", 0, 200)
    logits = design.logits(bits)
    signs = unpack_signs(bits, TASK.d, "cpu", torch.float64).numpy()[:, design.coordinates]
    expected = [
        sum(weight * prod(some) for degree, weight in design.weights for some in combinations(row, degree))
        for row in signs
    ]
    np.testing.assert_allclose(logits[:, 0] - logits[:, 1], expected)


def test_degree_k_alone_is_the_answer():
    bits = TASK.sample(0, "train", 0, 500)
    predicted = monomials_of("4:1", "support", TASK, 0).logits(bits).argmax(axis=1)
    assert (predicted == TASK.labels(bits)).all()


@given(st.integers(0, 2**64 - 1))
def test_other_coordinates_are_as_many_and_none_of_the_support(seed):
    design = monomials_of("1:1", "others", TASK, seed)
    assert len(set(design.coordinates)) == 4
    assert not set(design.coordinates) & set(TASK.supports[0])
    assert design == monomials_of("1:1", "others", TASK, seed)


@pytest.mark.parametrize(
    ("text", "coordinates", "message"),
    [
        ("1", "support", "degree:weight, such as 1:0.16 or .*, got '1'"),
        ("a:1", "support", "got 'a:1'"),
        ("１:1", "support", "got '１:1'"),
        (" 1:1", "support", "got ' 1:1'"),
        ("", "support", "got ''"),
        ("2:1+1:1", "support", "each degree once, in ascending order"),
        ("1:1+1:2", "support", "each degree once"),
        ("5:1", "support", "has degree 5, but the --coordinates are 4"),
        ("0:1", "support", "has degree 0"),
        ("1:inf", "support", "not 0 and at most 1,000, got inf"),
        ("1:nan", "support", "not 0 and at most 1,000, got nan"),
        ("1:1e308", "support", "not 0 and at most 1,000, got 1e308"),
        ("01:1", "support", "got '01:1'"),
        ("1:0", "support", "not 0 and at most 1,000, got 0"),
        ("1:1", "middle", "--coordinates is support, others or comma-separated coordinates; got 'middle'"),
        ("1:1", "3,70", "index 70 is out of range"),
        ("1:1", "3,3", "distinct coordinates"),
    ],
)
def test_what_is_no_design_is_refused(text, coordinates, message):
    with pytest.raises(UserError, match=message):
        monomials_of(text, coordinates, TASK, 0)


def test_designs_need_two_labels_and_enough_other_coordinates():
    with pytest.raises(UserError, match="designed targets are for two labels, not 4"):
        monomials_of("1:1", "support", make_task(9, 2, labels=4), 0)
    with pytest.raises(UserError, match="needs 4 coordinates outside the support; there are 3"):
        monomials_of("1:1", "others", make_task(7, 4), 0)


DESIGNED = ("--methods", "designed", "--monomials", "1:0.5", "2:1")


def test_students_learn_from_the_design_and_then_from_the_teacher_or_the_labels(case, tmp_path, capsys, teacher):
    words = [*case.distill, *DESIGNED, "--teacher", teacher, "--out"]
    case.succeed(capsys, *words, tmp_path / "teacher")
    case.succeed(capsys, *words, tmp_path / "labels", "--then", "labels")
    first = 5 * case.unit
    for then, last in (("teacher", 30 * case.unit), ("labels", None)):
        for monomials in ("1_0.5", "2_1"):
            run = Run(tmp_path / then / case.student_run(f"designed-{monomials}"))
            taught = {record["step"]: record["teacher"] for record in run.records()}
            assert {taught[step] for step in taught if step <= first} == {-1}
            assert {taught[step] for step in taught if step > first} == {last}
            assert run.config["teacher_checkpoints"].keys() == ({str(last)} if last else set())
            arguments = run.config["arguments"]
            assert (arguments["then"], arguments["coordinates"]) == (then, "support")


def test_a_first_target_is_what_the_student_would_learn_from_a_teacher_that_computes_it(case, tmp_path, capsys):
    """Degree k alone with a large weight is the labels."""
    words = [*case.distill, "--then", "labels", *case.steps(first_steps=12), "--out", tmp_path]
    degree = case.k if case.name == "parity_mlp" else 2
    case.succeed(capsys, *words, "--methods", "designed", "ce", "--monomials", f"{degree}:60")
    designed, labels = (Run(tmp_path / case.student_run(name)).records() for name in (f"designed-{degree}_60", "ce"))
    assert [record["accuracy"] for record in designed] == [record["accuracy"] for record in labels]
    for mine, other in zip(designed, labels, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_no_teacher_is_needed_for_what_learns_from_none(case, tmp_path, capsys, monkeypatch):
    words = [*case.distill, "--methods", "designed", "ce", "--out", tmp_path / "students"]
    line = case.fail_in_one_line(capsys, *words, "--teacher", str(tmp_path / "missing"))
    assert "missing" in line
    case.succeed(capsys, *words, "--then", "labels")
    expected = results_below(tmp_path / "students")
    case.succeed(capsys, *words, "--then", "labels")
    assert results_below(tmp_path / "students") == expected


def test_arguments_of_designs_without_the_method_are_refused(case, tmp_path, capsys, teacher):
    words = [*case.distill, "--teacher", teacher, "--out", tmp_path / "students"]
    for extra in (["--monomials", "1:1"], ["--coordinates", "others"], ["--then", "labels"]):
        line = case.fail_in_one_line(capsys, *words, "--methods", "ce", *extra)
        assert f"{extra[0]} is for --methods designed" in line
    assert not (tmp_path / "students").exists()
