"""What students minimise: learning rates in closed form, targets of the checkpoints of their schedule."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from common.distillation import schedules
from common.distillation.phases import choose_checkpoints, find_phases
from common.parity.mlp import load_model
from common.parity.students import learning_rates
from common.parity.task import task_of
from common.runs.run import Run
from parity_mlp.arguments import Arguments
from parity_mlp.data import signs
from parity_mlp.distill import DistillArguments, distill
from parity_mlp.train import train
from tests.parity import STUDENTS, TEACHER, recorded_objectives, steps_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    directory = tmp_path_factory.mktemp("parity") / "teacher"
    train(replace(TEACHER, out=directory))
    return directory


def taught(teacher: Path, *methods: str, **changes) -> DistillArguments:
    """Arguments of students of a teacher."""
    return replace(STUDENTS, teacher=str(teacher), methods=methods, **changes)


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


# What students learn from


def objectives(arguments: DistillArguments) -> dict[str, np.ndarray]:
    """What a single student minimised over all ranges."""
    with recorded_objectives() as seen:
        distill(arguments)
    (student,) = seen.values()
    return student


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
        case "custom":
            return schedules.custom([(3000, 800), (1000, 650), (4000, None)])
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
    "custom": {"segments": ("3000:800", "1000:650", "4000")},
}


@pytest.mark.parametrize("name", METHODS)
def test_students_learn_from_the_checkpoints_of_their_schedule_and_record_them(tmp_path, teacher, name):
    arguments = taught(teacher, name.removesuffix("-2"), out=tmp_path / "run", **METHODS[name])
    seen = objectives(arguments)
    records = Run(tmp_path / "run").records()
    schedule = schedule_of(arguments, steps_of(teacher), records)
    assert [record["teacher"] for record in records] == [
        schedules.checkpoint_at(schedule, max(record["step"] - 1, 0)) for record in records
    ]
    if name == "ce":
        assert seen["alpha"].tolist() == [1] * arguments.steps
        return
    assert seen["alpha"].tolist() == [0] * arguments.steps
    if name != "one-shot":
        assert len({record["teacher"] for record in records}) > 1
    for start, stop, checkpoint in schedules.spans(schedule, 0, arguments.steps):
        logits = teacher_logits(teacher, checkpoint, arguments, arguments.stream_seed)
        np.testing.assert_allclose(seen["targets"][start:stop], logits[start:stop].softmax(1), atol=1e-5)


def test_every_sample_of_a_batch_has_the_checkpoint_of_its_step(tmp_path, teacher):
    sizes = {"batch_size": 3, "steps": 100, "teacher_every": 30, "eval_every": 40}
    arguments = taught(teacher, "progressive", **sizes, out=tmp_path / "run")
    targets = objectives(arguments)["targets"]
    schedule = schedules.progressive(steps_of(teacher), 30)
    assert [record["teacher"] for record in Run(tmp_path / "run").records()] == [1000, 2000, 3000, 4000]
    for start, stop, checkpoint in schedules.spans(schedule, 0, 100):
        logits = teacher_logits(teacher, checkpoint, arguments, arguments.stream_seed)
        expected = logits[3 * start : 3 * stop].softmax(1)
        np.testing.assert_allclose(targets[3 * start : 3 * stop], expected, atol=1e-5)


@pytest.mark.parametrize("annealing", ["linear", "logarithmic"])
def test_the_temperature_has_its_first_value_at_the_first_step_and_its_last_at_the_last(tmp_path, teacher, annealing):
    temperature = {"temperature": 8.0, "end_temperature": 2.0, "annealing": annealing}
    arguments = taught(teacher, "one-shot", **temperature, steps=200, out=tmp_path / "run")
    targets = objectives(arguments)["targets"]
    logits = teacher_logits(teacher, 4000, arguments, arguments.stream_seed)
    temperatures = (logits[:, 0] - logits[:, 1]).numpy() / np.log(targets[:, 0] / targets[:, 1])
    space = np.linspace(8, 2, 200) if annealing == "linear" else np.geomspace(8, 2, 200)
    np.testing.assert_allclose(temperatures, space, rtol=1e-3)
    assert temperatures[[0, -1]] == pytest.approx([8, 2], rel=1e-4)


def test_alpha_moves_at_its_steps(tmp_path, teacher):
    alphas = {"alpha": (0.75, 0.25, 0.0), "alpha_steps": (450, 1000)}
    arguments = taught(teacher, "one-shot", **alphas, out=tmp_path / "run")
    alpha = objectives(arguments)["alpha"]
    assert alpha.tolist() == [0.75] * 450 + [0.25] * 550 + [0.0] * 2000


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jensen-shannon"])
def test_alpha_one_is_cross_entropy_bit_for_bit(tmp_path, teacher, divergence):
    arguments = taught(teacher, "ce", "progressive", alpha=(1.0,), divergence=divergence, out=tmp_path / "runs")
    distill(arguments)
    ce, progressive = (tmp_path / "runs" / f"{method}-width8-seed0" for method in arguments.methods)
    assert final_weights(ce) == final_weights(progressive)


def test_a_teacher_of_temperature_zero_that_is_always_right_teaches_as_the_labels_do(tmp_path, teacher):
    assert Run(teacher).records()[-1]["accuracy"] == 1
    arguments = taught(teacher, "ce", "one-shot", temperature=0.0, out=tmp_path / "runs")
    distill(arguments)
    ce, one_shot = (tmp_path / "runs" / f"{method}-width8-seed0" for method in arguments.methods)
    assert final_weights(ce) == final_weights(one_shot)


def test_students_do_not_depend_on_each_other(tmp_path, teacher):
    methods, sizes = ("ce", "progressive", "until-saturation"), {"widths": (8, 70), "seeds": (0, 1)}
    together = taught(teacher, *methods, **sizes, out=tmp_path / "together")
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
    places = ("before", "inside", "after")
    arguments = taught(teacher, "two-shot", k=3, checkpoint=places, steps=1200, out=tmp_path / "runs")
    distill(arguments)
    records = Run(teacher).records()
    phases = find_phases([record["step"] for record in records], [1 - record["accuracy"] for record in records])
    for place, step in zip(arguments.checkpoint, choose_checkpoints(phases, steps_of(teacher)), strict=True):
        student = Run(tmp_path / "runs" / f"two-shot-{place}-width8-seed0")
        assert [record["teacher"] for record in student.records()] == [step, step, step, 6000]
