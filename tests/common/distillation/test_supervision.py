"""Which runs a command makes, its teacher, and the schedule of every method, written out by hand."""

import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro
from hypothesis import example, given, settings, strategies as st

from common.distillation.arguments import DistillationArguments, require_distinct, resolve_teacher, student_arguments
from common.distillation.given_teacher import own_teacher
from common.distillation.phases import find_phases
from common.distillation.schedules import checkpoint_at, segments_at
from common.distillation.supervision import FROM_LABELS, custom_schedule, first_checkpoint, fixed_schedule, supervision
from common.errors import UserError
from common.runs.run import open_run
from common.teachers.discovery import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Arguments(DistillationArguments):
    """A command with one plural argument of its own."""

    widths: tuple[int, ...] = (4,)
    lr: float = 0.1


def arguments(method="one-shot", **changes):
    return Arguments(**{"methods": (method,), "first_steps": 5, "saturation_steps": 4, **changes})


def loss_of(record):
    return record["loss"]


def runs_of(schedule, steps):
    """A schedule as pairs (teacher step, consecutive student steps)."""
    runs = []
    for step in range(steps):
        teacher = checkpoint_at(schedule, step)
        if runs and runs[-1][0] == teacher:
            runs[-1] = (teacher, runs[-1][1] + 1)
        else:
            runs.append((teacher, 1))
    return runs


# Runs

METHODS = ("ce", "one-shot", "progressive", "two-shot", "until-saturation", "accelerated", "refreshed", "custom")


def test_runs_are_in_the_order_of_the_plural_arguments():
    command = arguments(methods=("ce", "two-shot"), widths=(4, 8), seeds=(1, 0), checkpoint=("200", "before"), lr=0.5)
    runs = student_arguments(command, ("methods", "widths", "seeds", "checkpoint"))
    assert [(run.methods, run.widths, run.seeds, run.checkpoint) for run in runs] == [
        (("ce",), (4,), (1,), ()),
        (("ce",), (4,), (0,), ()),
        (("ce",), (8,), (1,), ()),
        (("ce",), (8,), (0,), ()),
        (("two-shot",), (4,), (1,), ("200",)),
        (("two-shot",), (4,), (1,), ("before",)),
        (("two-shot",), (4,), (0,), ("200",)),
        (("two-shot",), (4,), (0,), ("before",)),
        (("two-shot",), (8,), (1,), ("200",)),
        (("two-shot",), (8,), (1,), ("before",)),
        (("two-shot",), (8,), (0,), ("200",)),
        (("two-shot",), (8,), (0,), ("before",)),
    ]
    assert {run.lr for run in runs} == {0.5}


@settings(deadline=None)
@given(
    methods=st.lists(st.sampled_from(METHODS), min_size=1, unique=True),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    checkpoint=st.lists(st.sampled_from(["1", "2", "inside"]), min_size=1, unique=True),
)
def test_every_combination_is_one_run(methods, widths, seeds, checkpoint):
    plural = {"methods": methods, "widths": widths, "seeds": seeds, "checkpoint": checkpoint}
    command = arguments(**{name: tuple(values) for name, values in plural.items()})
    require_distinct(command, tuple(plural))
    students = student_arguments(command, plural)
    made = Counter((*student.methods, *student.widths, *student.seeds, *student.checkpoint) for student in students)
    wanted = Counter()
    for method in methods:
        for width in widths:
            for seed in seeds:
                if method == "two-shot":
                    wanted.update((method, width, seed, first) for first in checkpoint)
                else:
                    wanted[method, width, seed] += 1
    assert made == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, r"--methods needs at least one value, without repeats, got \[\]"),
        ({"seeds": (3, 0, 3)}, r"--seeds needs at least one value, without repeats, got \[3, 0, 3\]"),
        ({"checkpoint": ("1", "1")}, "--checkpoint needs"),
        ({"alpha_steps": ()}, "--alpha-steps needs"),
    ],
)
def test_plural_arguments_without_a_value_or_with_one_twice_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        require_distinct(arguments(**changes), tuple(changes))


# Teacher


def test_a_teacher_inside_the_repository_is_named_from_its_root(tmp_path, monkeypatch):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for directory in (root / "runs" / "laptop", root / "setting", elsewhere / "teacher"):
        directory.mkdir(parents=True)
    for folder, given_as, found in (
        (root, "runs/laptop", "runs/laptop"),
        (root, "runs/laptop/", "runs/laptop"),
        (root / "setting", "../runs/laptop", "runs/laptop"),
        (elsewhere, str(root / "runs" / "laptop"), "runs/laptop"),
        (elsewhere, "teacher", str(elsewhere / "teacher")),
        (root / "setting", "../../elsewhere/teacher", str(elsewhere / "teacher")),
        (root, "organisation/model", "organisation/model"),
        (root, "../missing", "../missing"),
        (root, "", "runs/default"),
    ):
        monkeypatch.chdir(folder)
        assert resolve_teacher(given_as, "runs/default", root) == found


SETTINGS = ("PCFG_mlm",)


def test_a_teacher_of_this_project_is_identified_by_its_config(tmp_path):
    with open_run(tmp_path / "run", {"grammar": "small", "lr": 1}, setting="PCFG_mlm") as run:
        with pytest.raises(UserError, match=r"run is not complete: rerun its train\.py"):
            own_teacher(tmp_path / "run", SETTINGS)
        run.finish({})
    config = own_teacher(tmp_path / "run", SETTINGS)
    assert config["arguments"] == {"grammar": "small", "lr": 1}
    assert len(config["id"]) == 16
    with pytest.raises(UserError, match="is a run of PCFG_mlm: give a run of parity_mlp or parity_gpt2"):
        own_teacher(tmp_path / "run", ("parity_mlp", "parity_gpt2"))


@pytest.mark.parametrize("config", ['{"model_type": "bert"}', '{"arguments": null}', '{"arguments": "rules"}'])
def test_any_other_teacher_has_no_config_of_a_run(tmp_path, config):
    assert own_teacher(tmp_path, SETTINGS) is None
    assert own_teacher(tmp_path / "missing", SETTINGS) is None
    (tmp_path / "config.json").symlink_to("config.json")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        own_teacher(tmp_path, SETTINGS)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config)
    assert own_teacher(tmp_path, SETTINGS) is None


@pytest.mark.parametrize("arguments", ['{"grammar": "small"}', "{}"])
def test_a_run_of_an_earlier_version_is_refused(tmp_path, arguments):
    (tmp_path / "config.json").write_text(f'{{"arguments": {arguments}}}')
    with pytest.raises(UserError, match=r"config\.json was written by an earlier version"):
        own_teacher(tmp_path, SETTINGS)


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b'{"arguments": {"grammar"', b"\xff\xfe"])
def test_a_teacher_whose_config_is_cut_off_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is truncated or damaged: give another --teacher"):
        own_teacher(tmp_path, SETTINGS)


# Schedules


def test_the_old_name_of_the_custom_method_and_its_flag_are_accepted():
    words = shlex.split("--first-steps 1 --saturation-steps 1 --methods explicit --plan 300:2 400")
    student = tyro.cli(DistillationArguments, args=words)
    assert (student.methods, student.segments) == (("custom",), ("300:2", "400"))
    renamed = shlex.split("--first-steps 1 --saturation-steps 1 --methods custom --segments 300:2 400")
    assert student == tyro.cli(DistillationArguments, args=renamed)


STEPS = [100, 200, 300, 400]


@pytest.mark.parametrize(
    ("changes", "total", "expected"),
    [
        ({"method": "one-shot"}, 10, [(400, 10)]),
        ({"method": "progressive"}, 10, [(100, 2), (200, 2), (300, 2), (400, 4)]),
        ({"method": "progressive"}, 3, [(100, 1), (200, 1), (300, 1)]),
        ({"method": "progressive", "teacher_every": 3}, 10, [(100, 3), (200, 3), (300, 3), (400, 1)]),
        ({"method": "progressive", "teacher_checkpoints": 2}, 10, [(200, 5), (400, 5)]),
        ({"method": "progressive", "teacher_checkpoints": 3}, 9, [(100, 3), (200, 3), (400, 3)]),
        ({"method": "progressive", "teacher_checkpoints": 2, "teacher_every": 1}, 10, [(200, 1), (400, 9)]),
        ({"method": "progressive", "teacher_range": (150, 300)}, 9, [(200, 3), (300, 3), (400, 3)]),
        ({"method": "progressive", "teacher_range": (300, 300), "teacher_every": 4}, 9, [(300, 4), (400, 5)]),
        ({"method": "progressive", "teacher_range": (400, 900)}, 9, [(400, 9)]),
        ({"method": "two-shot", "checkpoint": ("200",)}, 10, [(200, 5), (400, 5)]),
        ({"method": "two-shot", "checkpoint": ("0200",), "first_steps": 9}, 10, [(200, 9), (400, 1)]),
        ({"method": "two-shot", "checkpoint": ("400",)}, 10, [(400, 10)]),
        ({"method": "accelerated", "speed": 50.0}, 10, [(100, 4), (200, 2), (300, 2), (400, 2)]),
        ({"method": "accelerated", "speed": 1e9}, 10, [(400, 10)]),
        ({"method": "refreshed", "teacher_every": 3, "speed": 50.0}, 10, [(100, 3), (300, 3), (400, 4)]),
        ({"method": "refreshed", "speed": 100.0}, 10, [(200, 2), (400, 8)]),
        ({"method": "custom", "segments": ("300:2", "100:3", "400")}, 10, [(300, 2), (100, 3), (400, 5)]),
        ({"method": "custom", "segments": ("300:2", "200:3")}, 10, [(300, 2), (200, 8)]),
    ],
)
def test_the_schedule_of_every_method(changes, total, expected):
    student = arguments(**changes)
    assert runs_of(fixed_schedule(student, total, STEPS, Path("missing"), loss_of), total) == expected
    teacher = [Checkpoint(step, f"organisation/model@step{step}") for step in STEPS]
    schedule = supervision(student, total, teacher, Path("missing"), 8, loss_of).schedule
    assert runs_of(segments_at(schedule, []), total) == expected


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True).map(sorted),
    total=st.integers(1, 40),
    number=st.none() | st.integers(1, 6),
    every=st.none() | st.integers(1, 9),
)
def test_progressive_is_its_definition(steps, total, number, every):
    student = arguments("progressive", teacher_checkpoints=number, teacher_every=every)
    used = steps
    if number is not None:
        wanted = [steps[-1] * i / number for i in range(1, number + 1)]
        if wanted[0] < steps[0]:
            with pytest.raises(UserError, match=f"the first is {steps[0]}"):
                fixed_schedule(student, total, steps, Path("missing"), loss_of)
            return
        used = [max(step for step in steps if step <= place) for place in wanted]
    share = every or max(total // len(used), 1)
    schedule = fixed_schedule(student, total, steps, Path("missing"), loss_of)
    for step in range(total):
        assert checkpoint_at(schedule, step) == used[min(step // share, len(used) - 1)]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((), "names no checkpoint"),
        (("300",), None),
        (("300:",), None),
        (("300", "400"), "--segments must be a list of checkpoint:steps; only the last may omit its steps; got '300'"),
        (("300:", "400"), "got '300:'"),
        (
            ("99:3", "400"),
            "--segments names teacher step 99, of which there is no checkpoint: the nearest are 100 and 200",
        ),
        (("300:0", "400"), "must be positive"),
        (("-300:2", "400"), "got '-300:2'"),
        (("300:2.5", "400"), r"got '300:2\.5'"),
        (("300:2:1", "400"), "got '300:2:1'"),
        (("inside:2", "400"), "got 'inside:2'"),
        (("300:²", "400"), "got '300:²'"),
        (("³00:2", "400"), "got '³00:2'"),
    ],
)
def test_segments_are_checkpoints_and_their_steps(plan, message):
    if message is None:
        assert runs_of(custom_schedule(plan, STEPS), 7) == [(300, 7)]
    else:
        with pytest.raises(UserError, match=message):
            custom_schedule(plan, STEPS)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 5)), min_size=1, max_size=5), st.booleans())
def test_segments_are_followed_step_by_step(pairs, last_is_open):
    plan = [f"{checkpoint}:{count}" for checkpoint, count in pairs]
    if last_is_open:
        plan[-1] = plan[-1].partition(":")[0]
    expected = [checkpoint for checkpoint, count in pairs for _ in range(count)]
    schedule = custom_schedule(plan, STEPS)
    assert [checkpoint_at(schedule, step) for step in range(len(expected))] == expected
    assert checkpoint_at(schedule, 10**9) == expected[-1]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=4) | st.integers(0).filter(lambda step: step not in STEPS).map(str))
@example("²")
def test_names_that_are_no_checkpoint_are_refused_in_one_line(word):
    with pytest.raises(UserError, match=r"--checkpoint (must be a teacher step, before, inside or after; got|names)"):
        first_checkpoint(word, STEPS, Path("missing"), loss_of)
    with pytest.raises(UserError, match="--segments"):
        custom_schedule([f"{word}:5", "400"], STEPS)


@pytest.fixture
def directory(tmp_path):
    """A teacher whose loss is 2 up to step 200, falls in a straight line, and is 1 from step 300 on."""
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(0, 501, 10):
            loss = 2 - min(max(step - 200, 0) / 100, 1)
            file.write(json.dumps({"step": step, "loss": loss, "accuracy": 1 - loss / 4}) + "\n")
    return tmp_path


@pytest.mark.parametrize("loss_of_record", [loss_of, lambda record: 1 - record["accuracy"]])
def test_the_first_checkpoint_is_chosen_from_the_teachers_curve(directory, loss_of_record):
    steps = [20, 90, 150, 250, 310, 390, 470, 500]
    for named, expected in {"before": 90, "inside": 250, "after": 390, "310": 310}.items():
        assert first_checkpoint(named, steps, directory, loss_of_record) == expected
    student = arguments("two-shot", checkpoint=("after",), first_steps=3)
    assert runs_of(fixed_schedule(student, 5, steps, directory, loss_of_record), 5) == [(390, 3), (500, 2)]


@pytest.mark.parametrize("missing", ["loss", "accuracy"])
def test_a_curve_that_lacks_a_value_is_refused(directory, missing):
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 510, "loss": 1, "accuracy": 1, missing: None}) + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl has evaluations without loss or accuracy: give --checkpoint"):
        first_checkpoint("before", STEPS, directory, loss_of)


def test_the_first_checkpoint_is_chosen_from_any_log(directory, tmp_path_factory):
    steps = [20, 90, 150, 250, 310, 390, 470, 500]
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    other = tmp_path_factory.mktemp("other")
    (other / "trainer_state.json").write_text(json.dumps({"log_history": records}))
    for named, expected in {"before": 90, "inside": 250, "after": 390}.items():
        assert first_checkpoint(named, steps, other, loss_of) == expected


def test_without_a_transition_against_the_step_one_against_its_logarithm_is_used(tmp_path):
    steps = [50, 100, 150, 200, 300, 400, 600, *range(800, 3401, 200)]
    losses = [7.66, 6.37, 6.02, 5.86, 5.62, 5.46, 5.29, 5.19, 4.96, 4.76, 4.55, 4.38, 4.16, 3.98, 3.83, 3.73, 3.64]
    losses += [3.56, 3.52, 3.44, 3.42]  # of a BERT on text
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step, loss in zip(steps, losses, strict=True):
            file.write(json.dumps({"step": step, "loss": loss, "accuracy": 0.5}) + "\n")
    with pytest.raises(UserError, match="no transition"):
        find_phases(steps, losses)
    for named, expected in {"before": 600, "inside": 1600, "after": 3400}.items():
        assert first_checkpoint(named, [200, 600, 1600, 2200, 3400], tmp_path, loss_of) == expected


def test_a_teacher_without_a_curve_or_without_a_transition_is_refused(directory, tmp_path_factory):
    empty, rising = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("rising")
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**record, "accuracy": record["loss"] / 4}) + "\n" for record in records]
    (rising / "metrics.jsonl").write_text("".join(lines))
    for path in (empty, empty / "missing"):
        with pytest.raises(UserError, match="has no training log to find a transition in: give --checkpoint a teacher"):
            first_checkpoint("inside", STEPS, path, loss_of)
    with pytest.raises(UserError, match="no teacher checkpoint inside the transition"):
        first_checkpoint("inside", STEPS, directory, loss_of)
    with pytest.raises(UserError, match=r"no transition .*rising.*: give --checkpoint one of its steps, 100 to 400"):
        first_checkpoint("inside", STEPS, rising, lambda record: -record["loss"])


# Supervision

TEACHER = [Checkpoint(step, f"organisation/model@step{step}") for step in STEPS]


def supervised(method="one-shot", total=10, **changes):
    return supervision(arguments(method, **changes), total, TEACHER, Path("missing"), 8, loss_of)


def test_without_a_teacher_arguments_of_the_loss_are_ignored():
    assert supervised("ce", alpha=(2.0,), temperature=-1.0) is FROM_LABELS
    assert segments_at(FROM_LABELS.schedule, [(10, 0.5)]) == []
    assert FROM_LABELS.teacher == ()


def test_the_loss_has_the_given_arguments():
    loss = {"alpha": (0.5, 0.0), "alpha_steps": (3,), "divergence": "jensen-shannon", "beta": 0.25, "top_k": 8}
    found = supervised(temperature=2.0, end_temperature=0.5, annealing="logarithmic", **loss)
    assert {name: getattr(found, name) for name in loss} == loss
    assert (found.temperature, found.annealing, found.teacher) == ((2.0, 0.5), "logarithmic", TEACHER)
    assert supervised(temperature=0.0).temperature == (0.0, 0.0)
    assert supervised(temperature=2.0, end_temperature=0.0).temperature == (2.0, 0.0)


def test_until_saturation_follows_the_evaluations():
    schedule = supervised(
        "until-saturation", saturation_steps=50, saturation_window=2, saturation_threshold=0.1
    ).schedule
    assert runs_of(schedule([]), 100) == [(100, 100)]
    accuracies = [0.2, 0.5, 0.55, 0.57, 0.6, 0.7, 0.8, 0.9, 1.0]
    evaluations = [(10 * i, accuracy) for i, accuracy in enumerate(accuracies, 1)]
    # At step 40 the best of the last two, 0.57, is less than 0.1 above 0.5; at step 90 there were 50 steps.
    assert runs_of(schedule(evaluations[:3]), 100) == [(100, 100)]
    assert runs_of(schedule(evaluations[:8]), 100) == [(100, 40), (200, 60)]
    assert runs_of(schedule(evaluations), 100) == [(100, 40), (200, 50), (300, 10)]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("one-shot", {"alpha": ()}, "--alpha must be from 0 to 1"),
        ("one-shot", {"alpha": (-0.1,)}, "--alpha must be from 0 to 1"),
        ("one-shot", {"alpha": (0.5, 1.1), "alpha_steps": (3,)}, "--alpha must be from 0 to 1"),
        ("one-shot", {"alpha": (math.nan,)}, "--alpha must be from 0 to 1"),
        ("one-shot", {"alpha": (0.5, 0.0)}, r"--alpha-steps \[\] must be one fewer than the 2 values"),
        ("one-shot", {"alpha": (0.5, 0.1, 0.0), "alpha_steps": (5, 5)}, "--alpha-steps must increase"),
        ("one-shot", {"temperature": -1.0}, "--temperature must be 0 or more"),
        ("one-shot", {"end_temperature": -1.0}, "--temperature must be 0 or more"),
        ("one-shot", {"end_temperature": 0.0, "annealing": "logarithmic"}, "--temperature must be above 0"),
        ("one-shot", {"top_k": 0}, "--top-k must be from 1 to the number of classes, 8, got 0"),
        ("one-shot", {"top_k": 9}, "--top-k must be from 1 to the number of classes, 8, got 9"),
        ("one-shot", {"divergence": "jensen-shannon", "beta": 0.0}, "--beta must be between 0 and 1"),
        ("one-shot", {"divergence": "jensen-shannon", "beta": 1.0}, "--beta must be between 0 and 1"),
        ("progressive", {"teacher_every": 0}, "student steps per checkpoint must be positive"),
        ("progressive", {"teacher_checkpoints": 0}, "number of checkpoints must be positive"),
        (
            "progressive",
            {"teacher_checkpoints": 5},
            "teacher step 80; the first is 100: give --teacher-checkpoints .* at most 4$",
        ),
        ("progressive", {"teacher_range": (101, 199)}, "no checkpoints in --teacher-range 101 199"),
        ("progressive", {"teacher_range": (1, 900), "teacher_checkpoints": 2}, "give either it or --teacher-range"),
        ("two-shot", {"checkpoint": ("99",)}, "--checkpoint names teacher step 99, of which there is no checkpoint"),
        ("two-shot", {"checkpoint": ("200",), "first_steps": 0}, "must be positive"),
        ("two-shot", {"checkpoint": ("during",)}, "--checkpoint must be a teacher step, before, inside or after"),
        ("accelerated", {"speed": 0.0}, "multiplier must be positive"),
        ("refreshed", {"speed": 1.0}, "at or before teacher step 2; the first is 100: give a larger --teacher-every"),
        ("refreshed", {"speed": math.inf}, "speed must be positive and finite"),
        ("custom", {}, "names no checkpoint: give --segments"),
        ("until-saturation", {"saturation_window": 0}, "window of evaluations must be positive"),
        ("until-saturation", {"saturation_steps": 0}, "must be positive"),
    ],
)
def test_wrong_arguments_of_supervision_are_refused(method, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        supervised(method, **changes)
    assert len(str(caught.value).splitlines()) == 1


def test_beta_counts_for_the_jensen_shannon_divergence_alone():
    assert supervised(beta=1.0).divergence == "forward-kl"
