"""The training loop: learning rates, cuts and checkpoints in closed form; what runs record and what students see."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from common.distillation import schedules
from common.distillation.phases import choose_checkpoints, find_phases
from common.errors import UserError
from common.parity.arguments import Arguments, check
from common.parity.mlp import MLP, load_model
from common.parity.objective import Objective
from common.parity.students import Student, learning_rates
from common.parity.task import make_task, task_of
from common.parity.training import ADAPTIVE_CHANGE, RANGE_STEPS, adaptive_checkpoints, step_ranges
from common.runs.checkpoints import read_checkpoint
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from parity_mlp.data import signs
from parity_mlp.distill import DistillArguments, distill
from parity_mlp.train import TrainArguments, train

TEACHER = TrainArguments(
    preset="smoke",
    d=10,
    k=2,
    width=32,
    steps=4000,
    lr=0.05,
    eval_every=500,
    checkpoint_every=1000,
    eval_samples=512,
)
STUDENTS = DistillArguments(
    preset="smoke",
    d=10,
    k=2,
    widths=(8,),
    seeds=(0,),
    steps=3000,
    lr=(0.05,),
    eval_every=400,
    checkpoint_every=0,
    eval_samples=512,
    teacher_every=700,
    first_steps=900,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    directory = tmp_path_factory.mktemp("parity") / "teacher"
    train(replace(TEACHER, out=directory))
    return directory


def steps_of(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(run)]


def final_weights(run: Path) -> bytes:
    return (run / f"checkpoint-{steps_of(run)[-1]}" / "model.safetensors").read_bytes()


# Learning rates


@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rates_are_the_closed_forms(schedule, warmup):
    arguments = replace(TEACHER, steps=200, lr=0.3, lr_schedule=schedule, warmup=warmup)
    warm = round(warmup * 200)
    rates = learning_rates(arguments, 0.3, np.arange(200))
    np.testing.assert_allclose(rates[:warm], [0.3 * (step + 1) / warm for step in range(warm)])
    shares = [(step - warm) / (200 - warm) for step in range(warm, 200)]
    expected = {
        "constant": [0.3 for _ in shares],
        "linear": [0.3 * (1 - share) for share in shares],
        "cosine": [0.3 * (1 + math.cos(math.pi * share)) / 2 for share in shares],
    }
    np.testing.assert_allclose(rates[warm:], expected[schedule], atol=1e-12)
    assert rates.max() == pytest.approx(0.3)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from(["constant", "linear", "cosine"]), st.data())
def test_learning_rates_rise_then_fall_between_zero_and_lr_and_depend_on_the_step_alone(steps, warmup, schedule, data):
    arguments = replace(TEACHER, steps=steps, lr=0.3, lr_schedule=schedule, warmup=warmup)
    rates = learning_rates(arguments, 0.3, np.arange(steps))
    assert rates.min() >= 0
    assert rates.max() <= 0.3 * (1 + 1e-12)
    rises = np.diff(rates) > 1e-15
    assert not (np.diff(rises.astype(int)) > 0).any()
    step = data.draw(st.integers(0, steps - 1))
    assert learning_rates(arguments, 0.3, np.array([step]))[0] == rates[step]


def test_warm_up_over_all_steps_ends_at_lr():
    rates = learning_rates(replace(TEACHER, steps=10, warmup=1.0, lr_schedule="cosine"), 1.0, np.arange(10))
    np.testing.assert_allclose(rates, np.arange(1, 11) / 10)


# Adaptive checkpoints

EVALUATIONS = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 0.2)), min_size=1, max_size=40).map(
    lambda pairs: list(zip(np.cumsum([gap for gap, _ in pairs]).tolist(), [loss for _, loss in pairs], strict=True))
)


@given(EVALUATIONS, st.integers(0, 100))
def test_adaptive_checkpoints_are_where_the_loss_moves_or_the_gap_is_long(evaluations, longest):
    saved = adaptive_checkpoints(evaluations, longest)
    assert saved[0] == evaluations[0][0]
    losses = dict(evaluations)
    last = saved[0]
    for step, loss in evaluations[1:]:
        moved = abs(loss - losses[last]) >= ADAPTIVE_CHANGE
        waited = longest > 0 and step - last >= longest
        assert (step in saved) == (moved or waited)
        if step in saved:
            last = step
    assert last == saved[-1]


@given(EVALUATIONS, st.integers(0, 100), st.data())
def test_adaptive_checkpoints_do_not_change_when_more_evaluations_come(evaluations, longest, data):
    count = data.draw(st.integers(1, len(evaluations)))
    until = evaluations[count - 1][0]
    saved = adaptive_checkpoints(evaluations, longest)
    assert adaptive_checkpoints(evaluations[:count], longest) == [step for step in saved if step <= until]


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=60), st.integers(1, 9))
def test_no_gap_between_adaptive_checkpoints_is_longer_than_asked(losses, longest):
    saved = adaptive_checkpoints(list(enumerate(losses)), longest)
    assert max(np.diff([*saved, len(losses)])) <= longest


def test_adaptive_checkpoints_are_dense_in_the_drop_only():
    losses = [0.7] * 10 + np.linspace(0.7, 0.1, 13).tolist() + [0.1] * 10
    assert adaptive_checkpoints(list(enumerate(losses)), 0) == [0, *range(11, 23)]


# Ranges


@given(st.integers(1, 20_000), st.integers(200, 9000), st.integers(0, 9000), st.data())
def test_ranges_cover_all_steps_and_are_cut_at_every_cadence_from_wherever_they_start(steps, evals, checkpoints, data):
    checkpoints = checkpoints if checkpoints >= 200 else 0
    arguments = replace(TEACHER, steps=steps, eval_every=evals, checkpoint_every=checkpoints)
    ranges = list(step_ranges(arguments, 0))
    starts, stops = zip(*ranges, strict=True)
    assert starts == (0, *stops[:-1])
    multiples = {step for cadence in (RANGE_STEPS, evals, checkpoints) if cadence for step in range(0, steps, cadence)}
    assert stops == (*sorted(multiples - {0}), steps)
    first = data.draw(st.integers(0, len(ranges)))
    assert list(step_ranges(arguments, (*starts, steps)[first])) == ranges[first:]


# Arguments that no run could have


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"eval_every": 0}, "--eval-every must be at least 1"),
        ({"eval_samples": 0}, "--eval-samples must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"layers": 0}, "--layers must be at least 1"),
        ({"checkpoint_every": -1}, "--checkpoint-every must be at least 0"),
        ({"checkpoint_from": -1}, "--checkpoint-from must be at least 0"),
        ({"lr": 0.0}, "--lr must be positive"),
        ({"lr": math.nan}, "--lr must be positive"),
        ({"lr": math.inf}, "--lr must be"),
        ({"weight_decay": -0.1}, "--weight-decay must be"),
        ({"weight_decay": 1 / TEACHER.lr}, "--weight-decay must be"),
        ({"warmup": -0.1}, "--warmup is a fraction"),
        ({"warmup": 1.5}, "--warmup is a fraction"),
        ({"warmup": math.nan}, "--warmup is a fraction"),
        ({"label_temperature": -1.0}, "--label-temperature must be"),
        ({"device": "abacus"}, "--device abacus cannot be used"),
    ],
)
def test_arguments_out_of_range_are_refused(changed, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check(replace(TEACHER, **changed), (changed.get("lr", 0.05),))


def test_the_least_arguments_are_accepted():
    check(
        replace(TEACHER, steps=1, eval_every=1, checkpoint_every=0, eval_samples=1, weight_decay=0.0, warmup=1.0),
        (0.1,),
    )


# What a run records


def test_a_run_records_evaluations_and_checkpoints_at_their_steps(tmp_path):
    arguments = replace(TEACHER, steps=4500, eval_every=700, checkpoint_every=2000, out=tmp_path / "run")
    train(arguments)
    records = Run(tmp_path / "run").records()
    evaluated = [*range(0, 4500, 700), 4500]
    assert [record["step"] for record in records] == evaluated
    assert [record["samples"] for record in records] == evaluated
    assert {record["teacher"] for record in records} == {None}
    assert steps_of(tmp_path / "run") == [2000, 4000, 4500]

    task = make_task(10, 2)
    bits = task.sample(arguments.seed, "evaluation", 0, arguments.eval_samples)
    labels = torch.from_numpy(task.labels(bits))
    logits = load_model(tmp_path / "run" / "checkpoint-4500")(torch.from_numpy(signs(bits, 10))).detach()
    assert records[-1]["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert records[-1]["accuracy"] == (logits.argmax(1) == labels).float().mean().item()
    assert records[-1]["accuracy"] > 0.95 > 0.7 > records[0]["accuracy"]


def test_without_a_cadence_only_the_final_checkpoint_is_saved(tmp_path):
    train(replace(TEACHER, steps=1500, checkpoint_every=0, out=tmp_path / "run"))
    assert steps_of(tmp_path / "run") == [1500]


def test_checkpoints_from_a_step_on_are_those_of_the_same_run_with_more(tmp_path):
    train(replace(TEACHER, steps=3000, checkpoint_every=500, out=tmp_path / "all"))
    train(replace(TEACHER, steps=3000, checkpoint_every=500, checkpoint_from=1700, out=tmp_path / "late"))
    assert steps_of(tmp_path / "late") == [2000, 2500, 3000]
    for step in steps_of(tmp_path / "late"):
        name = f"checkpoint-{step}/model.safetensors"
        assert (tmp_path / "late" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_no_weights_that_are_not_finite_are_saved_between_evaluations(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        train(replace(TEACHER, lr=1e10, eval_every=1000, checkpoint_every=300, out=tmp_path / "run"))
    for path in (tmp_path / "run").glob("checkpoint-*"):
        assert all(np.isfinite(value).all() for value in read_checkpoint(path)[1].values())


def test_adaptive_checkpoints_are_those_of_the_recorded_losses(tmp_path):
    arguments = replace(TEACHER, eval_every=50, checkpoint_every=900, adaptive_checkpoints=True, out=tmp_path / "run")
    train(arguments)
    evaluations = [(record["step"], record["loss"]) for record in Run(arguments.out).records()]
    expected = {*adaptive_checkpoints(evaluations, 900), arguments.steps} - {0}
    assert set(steps_of(arguments.out)) == expected
    assert 10 < len(expected) < len(evaluations) - 10


def test_deep_networks_and_batches_run_the_same_commands(tmp_path, teacher):
    sizes = {"layers": 2, "batch_size": 4, "steps": 120, "eval_every": 50, "out": tmp_path / "deep"}
    train(replace(TEACHER, **sizes, checkpoint_every=60))
    assert [record["samples"] for record in Run(tmp_path / "deep").records()] == [0, 200, 400, 480]
    assert steps_of(tmp_path / "deep") == [60, 120]
    config, tensors = read_checkpoint(tmp_path / "deep" / "checkpoint-120")
    assert config["layers"] == 2
    assert tensors["hidden.1.weight"].shape == (32, 32)

    sizes["out"] = tmp_path / "student"
    distill(replace(STUDENTS, **sizes, teacher=str(tmp_path / "deep"), methods=("one-shot",)))
    assert [record["teacher"] for record in Run(tmp_path / "student").records()] == [120] * 4


def test_hierarchical_parity_with_four_labels_is_learned(tmp_path):
    arguments = replace(TEACHER, d=8, labels=4, width=64, steps=12_000, eval_every=3000, out=tmp_path / "run")
    train(arguments)
    record = Run(tmp_path / "run").records()[-1]
    assert record["accuracy"] > 0.9
    assert read_checkpoint(tmp_path / "run" / "checkpoint-12000")[0]["classes"] == 4


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_labels_are_smoothed_as_one_hot_logits_at_the_temperature(tmp_path, temperature):
    steps = 300
    arguments = replace(
        TEACHER, steps=steps, dtype="float64", label_temperature=temperature, lr_schedule="cosine", warmup=0.1
    )
    train(replace(arguments, out=tmp_path / "run"))

    torch.manual_seed(arguments.seed)
    model = MLP(10, 32, 2).double()
    task = make_task(10, 2)
    bits = task.sample(arguments.seed, "train", 0, steps)
    x = torch.from_numpy(signs(bits, 10, np.float64))
    targets = F.one_hot(torch.from_numpy(task.labels(bits))).double()
    if temperature:
        targets = (targets / temperature).softmax(1)
    optimizer = torch.optim.SGD(model.parameters())
    for step, lr in enumerate(learning_rates(arguments, arguments.lr, np.arange(steps))):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        F.cross_entropy(model(x[step]), targets[step]).backward()
        optimizer.step()
    expected = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    for name, value in read_checkpoint(tmp_path / "run" / f"checkpoint-{steps}")[1].items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


# What students learn from


@dataclass(frozen=True)
class Seen:
    """The objectives of one student, put together over all ranges."""

    alpha: np.ndarray
    targets: np.ndarray


def what_a_student_sees(monkeypatch: pytest.MonkeyPatch, arguments: DistillArguments) -> Seen:
    """Train a single student and keep the objectives that the engine gets."""
    objectives: list[Objective] = []
    make = Student.objective

    def kept(*args: object) -> Objective:
        objectives.append(make(*args))  # type: ignore[arg-type]
        return objectives[-1]

    monkeypatch.setattr(Student, "objective", kept)
    distill(arguments)
    alpha, targets = (np.concatenate([getattr(o, name) for o in objectives]) for name in ("alpha", "targets"))
    return Seen(alpha, targets)


def teacher_logits(teacher: Path, step: int, arguments: Arguments, stream_seed: int) -> torch.Tensor:
    """Logits of a checkpoint for every sample of the training stream."""
    task = task_of(vars(arguments))
    bits = task.sample(stream_seed, "train", 0, arguments.steps * arguments.batch_size)
    with torch.no_grad():
        return load_model(teacher / f"checkpoint-{step}")(torch.from_numpy(signs(bits, task.d))).double()


def schedule_of(arguments: DistillArguments, checkpoints: list[int], records: list[dict]) -> list[schedules.Segment]:
    evaluations = [(record["step"], record["accuracy"]) for record in records if record["step"]]
    match arguments.methods[0]:
        case "one-shot":
            return schedules.one_shot(checkpoints)
        case "progressive":
            return schedules.progressive(checkpoints, arguments.teacher_every, arguments.teacher_checkpoints)
        case "two-shot":
            return schedules.two_shot(checkpoints, int(arguments.checkpoint[0]), arguments.first_steps)
        case "until-saturation":
            return schedules.until_saturation(checkpoints, evaluations, max_steps=1000, window=1, threshold=0.05)
        case "accelerated":
            return schedules.accelerated(checkpoints, arguments.speed)
        case "refreshed":
            return schedules.refreshed(checkpoints, arguments.teacher_every, arguments.speed)
        case "explicit":
            return schedules.explicit([(3000, 800), (1000, 650), (4000, None)])
        case _:
            return schedules.ce_only()


METHODS = {
    "ce": {},
    "one-shot": {},
    "progressive": {},
    "progressive-2": {"teacher_checkpoints": 2},
    "two-shot": {"checkpoint": ("2000",)},
    "until-saturation": {"saturation_window": 1, "saturation_threshold": 0.05, "saturation_steps": 1000},
    "accelerated": {"speed": 1.7},
    "refreshed": {"speed": 1.5},
    "explicit": {"plan": ("3000:800", "1999:650", "4000")},
}


@pytest.mark.parametrize("name", METHODS)
def test_students_learn_from_the_checkpoints_of_their_schedule_and_record_them(tmp_path, monkeypatch, teacher, name):
    arguments = replace(
        STUDENTS, teacher=str(teacher), methods=(name.removesuffix("-2"),), out=tmp_path / "run", **METHODS[name]
    )
    seen = what_a_student_sees(monkeypatch, arguments)
    records = Run(tmp_path / "run").records()
    schedule = schedule_of(arguments, steps_of(teacher), records)
    assert [record["teacher"] for record in records] == [
        schedules.checkpoint_at(schedule, max(record["step"] - 1, 0)) for record in records
    ]
    if name == "ce":
        assert seen.alpha.tolist() == [1] * arguments.steps
        return
    assert seen.alpha.tolist() == [0] * arguments.steps
    if name != "one-shot":
        assert len({record["teacher"] for record in records}) > 1
    for start, stop, checkpoint in schedules.spans(schedule, 0, arguments.steps):
        logits = teacher_logits(teacher, checkpoint, arguments, arguments.stream_seed)
        np.testing.assert_allclose(seen.targets[start:stop], logits[start:stop].softmax(1), atol=1e-5)


def test_every_sample_of_a_batch_has_the_checkpoint_of_its_step(tmp_path, monkeypatch, teacher):
    arguments = replace(
        STUDENTS,
        teacher=str(teacher),
        methods=("progressive",),
        out=tmp_path / "run",
        batch_size=3,
        steps=100,
        teacher_every=30,
        eval_every=40,
    )
    targets = what_a_student_sees(monkeypatch, arguments).targets
    schedule = schedules.progressive(steps_of(teacher), 30)
    assert [record["teacher"] for record in Run(tmp_path / "run").records()] == [1000, 2000, 3000, 4000]
    for start, stop, checkpoint in schedules.spans(schedule, 0, 100):
        logits = teacher_logits(teacher, checkpoint, arguments, arguments.stream_seed)
        expected = logits[3 * start : 3 * stop].softmax(1)
        np.testing.assert_allclose(targets[3 * start : 3 * stop], expected, atol=1e-5)


@pytest.mark.parametrize("annealing", ["linear", "logarithmic"])
def test_the_temperature_has_its_first_value_at_the_first_step_and_its_last_at_the_last(
    tmp_path, monkeypatch, teacher, annealing
):
    arguments = replace(
        STUDENTS,
        teacher=str(teacher),
        methods=("one-shot",),
        out=tmp_path / "run",
        steps=200,
        temperature=8.0,
        end_temperature=2.0,
        annealing=annealing,
    )
    targets = what_a_student_sees(monkeypatch, arguments).targets
    logits = teacher_logits(teacher, 4000, arguments, arguments.stream_seed)
    temperatures = (logits[:, 0] - logits[:, 1]).numpy() / np.log(targets[:, 0] / targets[:, 1])
    space = np.linspace(8, 2, 200) if annealing == "linear" else np.geomspace(8, 2, 200)
    np.testing.assert_allclose(temperatures, space, rtol=1e-3)
    assert temperatures[[0, -1]] == pytest.approx([8, 2], rel=1e-4)


def test_alpha_moves_at_its_steps(tmp_path, monkeypatch, teacher):
    arguments = replace(
        STUDENTS,
        teacher=str(teacher),
        methods=("one-shot",),
        out=tmp_path / "run",
        alpha=(0.75, 0.25, 0.0),
        alpha_steps=(450, 1000),
    )
    alpha = what_a_student_sees(monkeypatch, arguments).alpha
    assert alpha.tolist() == [0.75] * 450 + [0.25] * 550 + [0.0] * 2000


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jensen-shannon"])
def test_alpha_one_is_cross_entropy_bit_for_bit(tmp_path, teacher, divergence):
    arguments = replace(
        STUDENTS,
        teacher=str(teacher),
        methods=("ce", "progressive"),
        alpha=(1.0,),
        divergence=divergence,
        out=tmp_path / "runs",
    )
    distill(arguments)
    ce, progressive = (tmp_path / "runs" / f"{method}-width8-seed0" for method in arguments.methods)
    assert final_weights(ce) == final_weights(progressive)


def test_a_teacher_of_temperature_zero_that_is_always_right_teaches_as_the_labels_do(tmp_path, teacher):
    assert Run(teacher).records()[-1]["accuracy"] == 1
    arguments = replace(
        STUDENTS, teacher=str(teacher), methods=("ce", "one-shot"), temperature=0.0, out=tmp_path / "runs"
    )
    distill(arguments)
    ce, one_shot = (tmp_path / "runs" / f"{method}-width8-seed0" for method in arguments.methods)
    assert final_weights(ce) == final_weights(one_shot)


def test_students_do_not_depend_on_each_other(tmp_path, teacher):
    together = replace(
        STUDENTS,
        teacher=str(teacher),
        methods=("ce", "progressive", "until-saturation"),
        widths=(8, 70),
        seeds=(0, 1),
        out=tmp_path / "together",
    )
    distill(together)
    students = sorted((tmp_path / "together").iterdir())
    assert len(students) == 12
    assert len({final_weights(student) for student in students}) == 12
    for method, width, seed in (("ce", 70, 1), ("progressive", 8, 1), ("until-saturation", 70, 0)):
        alone = replace(together, methods=(method,), widths=(width,), seeds=(seed,), out=tmp_path / method)
        distill(alone)
        student = tmp_path / "together" / f"{method}-width{width}-seed{seed}"
        assert final_weights(student) == final_weights(tmp_path / method)
        assert Run(student).records() == Run(tmp_path / method).records()


def test_checkpoints_before_inside_and_after_the_transition_are_those_of_its_phases(tmp_path):
    teacher = tmp_path / "teacher"
    cadence = {"steps": 6000, "eval_every": 100, "checkpoint_every": 100, "eval_samples": 4096}
    train(replace(TEACHER, k=3, width=64, lr=0.03, **cadence, out=teacher))
    arguments = replace(
        STUDENTS,
        k=3,
        teacher=str(teacher),
        methods=("two-shot",),
        checkpoint=("before", "inside", "after"),
        steps=1200,
        out=tmp_path / "runs",
    )
    distill(arguments)
    records = Run(teacher).records()
    phases = find_phases([record["step"] for record in records], [1 - record["accuracy"] for record in records])
    for place, step in zip(arguments.checkpoint, choose_checkpoints(phases, steps_of(teacher)), strict=True):
        student = Run(tmp_path / "runs" / f"two-shot-{place}-width8-seed0")
        assert [record["teacher"] for record in student.records()] == [step, step, step, 6000]
