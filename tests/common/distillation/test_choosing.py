"""Checkpoints chosen from curves whose transition is known, and from curves that have none."""

import json

import numpy as np
import pytest
import tyro
from hypothesis import given, settings, strategies as st

from common.distillation import choosing
from common.distillation.choosing import ChooseArguments, choose, choose_command, choose_schedule, find_transition
from common.distillation.schedules import Segment, progressive
from common.distillation.supervision import custom_schedule
from common.errors import UserError
from common.teachers.curves import Curve
from common.teachers.discovery import Checkpoint

STEPS = tuple(range(0, 3001, 50))
DROP = tuple(float(np.interp(step, [0, 100, 1000, 2000], [4.0, 2.0, 2.0, 1.0])) for step in STEPS)
"""A descent to step 100, a plateau to 1,000, a straight drop to 2,000, so from 1,100 to 1,900 without its ends."""


def falling(losses, steps=STEPS, accuracies=None):
    return Curve(tuple(map(int, steps)), tuple(map(float, losses)), "a log", accuracies)


def sigmoid_in_logarithm(steps, centre, width, descent):
    """A descent from the initial weights, a plateau, and a drop, all against log(step)."""
    drop = 1 / (1 + np.exp((np.log(steps) - np.log(centre)) / width))
    return 3 + drop + descent * np.exp(-steps / 20)


# Transition


def test_phases_against_the_step_come_first():
    transition = find_transition(falling(DROP))
    assert (transition.logarithmic, transition.curve) == (False, "the loss against the step")
    assert transition.phases.start == pytest.approx(1100, abs=20)
    assert transition.phases.end == pytest.approx(1900, abs=20)


@pytest.mark.parametrize("descent", [1.0, 5.0])
def test_phases_against_the_logarithm_of_the_step(descent):
    steps = np.unique(np.geomspace(10, 100_000, 60).astype(int))
    losses = sigmoid_in_logarithm(steps, centre=5000, width=0.5, descent=descent)
    transition = find_transition(falling(losses, steps))
    assert (transition.logarithmic, transition.curve) == (True, "the loss against the logarithm of the step")
    assert np.log(transition.phases.steepest) == pytest.approx(np.log(5000), abs=0.2)
    assert np.log(transition.phases.start) == pytest.approx(np.log(5000) - 0.5 * np.log(9), abs=0.4)
    assert np.log(transition.phases.end) == pytest.approx(np.log(5000) + 0.5 * np.log(9), abs=0.4)
    assert transition.phases.plateau in steps
    assert transition.phases.tail in steps
    with_initial_weights = falling([9, *losses], [0, *steps])
    assert find_transition(with_initial_weights).phases == transition.phases


def test_a_bert_on_natural_language():
    """Measured with a prototype: held-out loss and accuracy. Its plateau is soft, and seen in the accuracy only."""
    steps = [100, 200, 400, 600, 800, 1000, 1400, 1800, 2400, 2800]
    losses = [5.94, 5.49, 5.26, 5.09, 4.92, 4.75, 4.35, 3.99, 3.73, 3.67]
    accuracies = (0.083, 0.147, 0.160, 0.184, 0.198, 0.216, 0.271, 0.308, 0.342, 0.349)
    transition = find_transition(falling(losses, steps, accuracies))
    assert transition.curve == "the error rate against the logarithm of the step"
    assert (transition.phases.start, transition.phases.end) == pytest.approx((956, 2125), abs=1)
    with pytest.raises(UserError, match="no transition"):
        find_transition(falling(losses, steps))


@pytest.mark.parametrize("noise", [0, 0.005])
@pytest.mark.parametrize("spacing", [np.linspace, np.geomspace])
@pytest.mark.parametrize(
    "curve",
    [
        lambda x: np.exp(-x / 0.01),
        lambda x: np.exp(-x / 0.1),
        lambda x: (x / 1e-4) ** -0.3,
        lambda x: (1 + x / 0.003) ** -0.5,
        lambda x: (1 + x / 0.03) ** -1.0,
        lambda x: np.exp(-x / 0.01) + (1 + x / 0.002) ** -0.3,
        lambda x: 0 * x,
    ],
    ids=["exponential", "slow exponential", "power law", "shifted power law", "another", "sum", "constant"],
)
def test_a_smooth_descent_has_no_transition_on_either_axis(curve, spacing, noise):
    x = spacing(1e-4, 1, 50)
    losses = 2 + curve(x) + np.random.default_rng(0).normal(0, noise, len(x))
    with pytest.raises(UserError, match="no transition"):
        find_transition(falling(losses, np.round(x * 1e6)))


def test_the_error_rate_counts_where_the_loss_has_no_transition():
    flat = tuple(1 - loss / 4 for loss in DROP)
    transition = find_transition(falling(np.exp(-np.array(STEPS) / 300), accuracies=flat))
    assert transition.curve == "the error rate against the step"
    assert transition.phases == find_transition(falling(DROP)).phases


# Choice


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (2, (1500, 3000)),
        (3, (1300, 1700, 3000)),
        (5, (1200, 1400, 1600, 1800, 3000)),
        (9, (*range(1150, 1900, 100), 3000)),
        (50, (*range(1150, 1900, 50), 3000)),
    ],
)
def test_checkpoints_are_spread_over_the_transition(number, expected):
    choice = choose(falling(DROP), STEPS, number=number)
    assert choice.checkpoints == pytest.approx(expected, abs=51)
    assert len(choice.checkpoints) == len(expected)
    assert all(1050 < step < 1950 for step in choice.checkpoints[:-1])
    assert choice.checkpoints[-1] == 3000
    assert choice.phases == find_transition(falling(DROP)).phases
    assert choice.reason.startswith("the loss against the step drops between steps 1,")
    assert choice.reason.endswith("(a log): checkpoints inside this transition, then the final one")


def test_in_a_transition_against_the_logarithm_the_spacing_is_logarithmic():
    steps = np.unique(np.geomspace(10, 100_000, 200).astype(int)).tolist()
    choice = choose(falling(sigmoid_in_logarithm(np.array(steps), 5000, 0.5, 1.0), steps), steps, number=5)
    ratios = np.diff(np.log(choice.checkpoints[:-1]))
    assert ratios == pytest.approx([ratios.mean()] * 3, abs=0.1)
    assert choice.checkpoints[-1] == steps[-1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4000), min_size=1, max_size=40, unique=True), st.integers(2, 12))
def test_what_is_chosen_exists_is_distinct_and_ends_with_the_final_one(steps, number):
    for curve in (None, falling(DROP)):
        choice = choose(curve, steps, number=number)
        assert list(choice.checkpoints) == sorted(set(choice.checkpoints))
        assert set(choice.checkpoints) <= set(steps)
        assert choice.checkpoints[-1] == max(steps)
        assert len(choice.checkpoints) <= number
        assert len(choice.reason.splitlines()) == 1
    trained = len([step for step in steps if step > 0])
    assert len(choose(None, steps, number=number).checkpoints) == max(min(number, trained), 1)


def test_without_a_curve_checkpoints_are_at_equal_spacing_in_the_logarithm_of_the_step():
    powers = [0, *(2**i for i in range(13))]
    choice = choose(None, powers, number=4)
    assert choice.checkpoints == (8, 64, 512, 4096)
    assert choice.phases is None
    assert choice.reason == "there is no training curve: 4 checkpoints at equal spacing in the logarithm of the step"
    assert choose(None, range(1000, 10_001, 1000), number=3).checkpoints == (2000, 5000, 10_000)


def test_without_a_transition_the_reason_says_so():
    spaced = choose(None, STEPS, number=4).checkpoints
    for curve, why in (
        (falling(np.exp(-np.array(STEPS) / 300)), "the curve has no transition (a plateau, then a sharp drop) (a log)"),
        (
            falling(DROP[:35], STEPS[:35]),
            "the curve ends inside its transition (a log): 4 checkpoints at equal spacing",
        ),
        (falling(DROP[:7], STEPS[:7]), "the curve has only 7 evaluations (a log): 4 checkpoints at equal spacing"),
    ):
        choice = choose(curve, STEPS, number=4)
        assert (choice.checkpoints, choice.phases) == (spaced, None)
        assert choice.reason.startswith(why)


def test_a_transition_without_checkpoints():
    steps = [100, 500, 1000, 2000, 2500, 3000]
    choice = choose(falling(DROP), steps, number=3)
    assert choice.checkpoints == choose(None, steps, number=3).checkpoints
    assert choice.phases is not None
    assert "(a log), but the teacher has no checkpoint there: 3 checkpoints at equal spacing" in choice.reason


@pytest.mark.parametrize(("steps", "number"), [([], 2), ([1, 2], 1), ([1, 2], 0)])
def test_nothing_to_choose(steps, number):
    with pytest.raises(UserError, match="no checkpoints" if not steps else "must be at least 2"):
        choose(None, steps, number=number)


# Teacher to schedule


@pytest.fixture
def teacher(tmp_path):
    """A teacher that logged `DROP` and has checkpoints every 100 steps."""
    for step in range(0, 3001, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("config.json", "model.safetensors"):
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    history = [{"step": step, "eval_loss": loss} for step, loss in zip(STEPS, DROP, strict=True)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return tmp_path


def test_a_schedule_in_one_call(teacher):
    schedule, choice = choose_schedule(teacher, every=70, number=3)
    assert choice.checkpoints == (1300, 1700, 3000)
    assert schedule == [Segment(0, 1300), Segment(70, 1700), Segment(140, 3000)]
    assert choose_schedule(str(teacher), every=70, number=3, log=teacher / "trainer_state.json") == (schedule, choice)


def test_where_the_curve_comes_from(teacher, tmp_path_factory):
    table = tmp_path_factory.mktemp("log") / "log.csv"
    table.write_text("step,loss\n" + "".join(f"{step},{np.exp(-step / 300)}\n" for step in STEPS))
    assert choose_schedule(teacher, every=1, log=table)[1].phases is None
    assert choose_schedule(teacher, every=1, log=falling(DROP))[1].phases is not None
    with pytest.raises(UserError, match="does not exist"):
        choose_schedule(teacher, every=1, log=teacher / "typo.csv")

    def evaluate(checkpoints):
        steps = [checkpoint.step for checkpoint in checkpoints]
        return Curve(tuple(steps), tuple(np.interp(steps, STEPS, DROP)), "evaluated")

    assert "eval_loss in " in choose_schedule(teacher, every=1, evaluate=evaluate)[1].reason
    (teacher / "trainer_state.json").unlink()
    assert "(evaluated)" in choose_schedule(teacher, every=1, evaluate=evaluate)[1].reason
    assert choose_schedule(teacher, every=1)[1].reason.startswith("there is no training curve")


def test_a_teacher_on_the_hub_and_the_pattern_of_its_names(monkeypatch):
    asked = []

    def find(*arguments):
        asked.append(arguments)
        return [Checkpoint(step, f"organisation/model@{step}") for step in (1, 10, 100)]

    monkeypatch.setattr(choosing, "find_checkpoints", find)
    pattern = r"(?P<step>\d+)"
    schedule, _ = choose_schedule("organisation/model", every=5, number=2, pattern=pattern)
    assert schedule == progressive([10, 100], 5)
    choose_schedule("organisation/model", every=5)
    assert asked == [("organisation/model", pattern), ("organisation/model", None)]


# Command


def command(*words):
    choose_command(tyro.cli(ChooseArguments, args=[*map(str, words)]))


def test_the_command_prints_what_was_found_and_how_to_use_it(teacher, capsys):
    command(teacher, "--number", 3, "--every", 50)
    reason, phases, checkpoints, arguments, python = capsys.readouterr().out.splitlines()
    schedule, choice = choose_schedule(teacher, every=50, number=3)
    assert reason.split(maxsplit=1) == ["reason:", choice.reason]
    assert phases.startswith("phases:      plateau from step 100, transition from 1,100 to 1,900, fastest at 1,")
    assert checkpoints.split() == ["checkpoints:", "1300", "1700", "3000"]
    assert arguments.split(maxsplit=1)[1] == "--methods custom --segments 1300:50 1700:50 3000"
    assert custom_schedule(arguments.split()[4:], choice.checkpoints) == schedule
    name, _, code = python.split(maxsplit=2)[2].partition(" = ")
    assert (name, eval(code, {"progressive": progressive})) == ("schedule", schedule)


def test_the_command_says_why_there_is_no_transition(teacher, capsys):
    (teacher / "trainer_state.json").unlink()
    command(teacher, "--number", 3)
    reason, *others = capsys.readouterr().out.splitlines()
    assert "there is no training curve: 3 checkpoints at equal spacing in the logarithm of the step" in reason
    assert others == [
        "checkpoints: 300 1000 3000",
        "arguments:   --methods custom --segments 300:100 1000:100 3000",
        "in Python:   schedule = progressive([300, 1000, 3000], every=100)",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--number", 1], "--number must be at least 2"),
        (["--every", 0], "--every must be"),
        (["--log", "no.csv"], "no.csv"),
    ],
)
def test_wrong_arguments_are_refused(teacher, words, message):
    with pytest.raises(UserError, match=message):
        command(teacher, *words)
