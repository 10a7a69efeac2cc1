"""The training loop: ranges and checkpoints in closed form, and what runs record."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from common.errors import UserError
from common.parity.arguments import check
from common.parity.mlp import MLP, load_model
from common.parity.students import learning_rates
from common.parity.task import make_task
from common.parity.training import ADAPTIVE_CHANGE, RANGE_STEPS, adaptive_checkpoints, step_ranges
from common.runs.checkpoints import read_checkpoint
from common.runs.run import Run
from parity_mlp.data import signs
from parity_mlp.distill import distill
from parity_mlp.train import train
from tests.parity import STUDENTS, TEACHER, steps_of

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


def test_deep_networks_and_batches_run_the_same_commands(tmp_path):
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
