"""Runs: their records, kills around every write, stops, divergence and arguments that are refused."""

import math
import shutil

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, TrainerCallback

from common.distillation import run_loop, state
from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import RunTrainer, train_run
from common.distillation.schedules import until_saturation
from common.errors import DivergedError, UserError
from common.runs import resume
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from common.runs.run import Run, open_run
from common.teachers import trajectory, weights
from common.teachers.discovery import Checkpoint, find_checkpoints
from tests.commands import and_signal, files, save_often, stopped
from tests.trainers import (
    BATCH,
    HELD_OUT,
    STEPS,
    Draws,
    Killed,
    arguments,
    assert_same_model,
    bert,
    content,
    distil,
    evaluate_by_hand,
    kill_by_exception,
    make_batch,
    recorded_arguments,
    run_with_dropout,
    schedule_by_hand,
    send_stop_signal,
    train_by_hand,
)


def test_the_records_of_a_run_are_means_since_the_previous_record(tmp_path, teachers):
    args = recorded_arguments(tmp_path / "run")
    with open_run(tmp_path / "run", {}, setting="test") as run:
        train_run(distil(tmp_path, teachers, args=args, run=run, eval_dataset=ReadyBatches(HELD_OUT)), "test")
    batches, model = [make_batch(i) for i in range(STEPS)], bert(1)
    sums = train_by_hand(model, batches, schedule_by_hand(teachers, "bert")).reshape(2, 4, 4).sum(1)
    first, *rest = run.records()
    assert {**first, "loss": 0, "accuracy": 0} == {
        **dict.fromkeys(("step", "samples", "loss", "accuracy"), 0),
        **dict.fromkeys(("train_loss", "kl")),
        "teacher": 20,
    }
    assert (first["loss"], first["accuracy"]) == pytest.approx(evaluate_by_hand(bert(1), HELD_OUT), rel=1e-5)
    assert [(r["step"], r["samples"], r["teacher"]) for r in rest] == [(4, 4 * BATCH, 10), (8, 8 * BATCH, 30)]
    np.testing.assert_allclose([r["train_loss"] for r in rest], sums[:, 0] / sums[:, 3], rtol=1e-4)
    np.testing.assert_allclose([r["kl"] for r in rest], sums[:, 1] / sums[:, 3], rtol=1e-4)
    checkpoint = BertForMaskedLM.from_pretrained(tmp_path / "run" / "checkpoint-8")
    assert_same_model(checkpoint, model)
    last = {name: rest[-1][name] for name in ("step", "loss", "accuracy")}
    done = run.summary
    assert done.pop("training")["max_steps"] == 8
    assert done == last
    loss, accuracy = evaluate_by_hand(checkpoint, HELD_OUT)
    assert (last["loss"], last["accuracy"]) == pytest.approx((loss, accuracy), rel=1e-5)
    assert [c.step for c in find_checkpoints(run.directory)] == [4, 8]


OWNERS = {"log": Run, "finish": Run, "save_checkpoint": run_loop, "save_resume": state, "evaluate": RunTrainer}
"""Where each function that writes, or evaluates, is called from."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "steps"),
    [("log", [0, 2, 4, 6, 8]), ("save_checkpoint", [4, 8]), ("save_resume", [2, 4, 6]), ("finish", [8])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_killed_around_every_write_is_bit_identical(
    tmp_path, teachers, uninterrupted, monkeypatch, name, steps, when
):
    """Once around each of them."""
    save_often(monkeypatch)
    place = OWNERS[name]
    real, killed = getattr(place, name), []

    def write(owner, about, *rest):
        step = about if isinstance(about, int) else about["step"]
        if step not in killed and when == "before":
            killed.append(step)
            raise Killed
        real(owner, about, *rest)
        if step not in killed:
            killed.append(step)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, name, write)
        for _ in steps:
            with pytest.raises(Killed):
                run_with_dropout(tmp_path, teachers)
    if not Run(tmp_path).complete:
        run_with_dropout(tmp_path, teachers)
    assert killed == steps
    assert content(tmp_path) == uninterrupted[0]


def test_a_run_killed_between_writes_of_the_resume_state_resumes_from_the_last(
    tmp_path, teachers, uninterrupted, monkeypatch
):
    """A run that is shorter than the interval between writes has none."""
    monkeypatch.setattr(resume, "RESUME_SECONDS", math.inf)
    with pytest.raises(Killed):
        run_with_dropout(tmp_path / "run", teachers, Draws(7, kill_by_exception))
    assert not (tmp_path / "run" / "resume").exists()
    run_with_dropout(tmp_path / "run", teachers)
    assert content(tmp_path / "run") == uninterrupted[0]


@pytest.mark.parametrize("logging", [1, 3])
def test_a_run_stopped_between_logs_and_records_has_the_same_means(tmp_path, teachers, capsys, logging):
    """Stopped and resumed at every step, with a training log beside the records."""

    class Logs(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            if "learning_rate" in logs:
                kept.append((state.global_step, *(logs[name] for name in ("loss", "kl", "accuracy", "teacher"))))

    def train(directory, stop_at=None):
        args = recorded_arguments(directory, eval_every=4, logging_steps=logging)
        args.logging_strategy = "steps"
        with open_run(directory, {}, setting="test") as run:
            options = {
                "run": run,
                "eval_dataset": ReadyBatches(HELD_OUT),
                "callbacks": [Draws(stop_at, send_stop_signal)],
            }
            trainer = distil(directory, teachers, args=args, model=bert(1, dropout=0.2), **options)
            trainer.add_callback(Logs())
            train_run(trainer, "test")

    kept = []
    train(tmp_path / "whole")
    whole, kept = kept, []
    assert [step for step, *_ in whole] == [step for step in range(1, STEPS + 1) if step % logging == 0]
    for step in range(1, STEPS):
        assert stopped(capsys, lambda step=step: train(tmp_path / "run", step)) == step
    train(tmp_path / "run")
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert kept == whole


@pytest.mark.parametrize("name", ["save_checkpoint", "save_resume", "log", "evaluate"])
def test_a_signal_while_something_is_written_damages_nothing(
    tmp_path, teachers, uninterrupted, capsys, monkeypatch, name
):
    """The signal comes at step 4, and again while the state is saved."""
    owner = OWNERS[name]
    calls = {"log": [3], "evaluate": [3]}.get(name, [1, 2])
    with monkeypatch.context() as patch:
        if name == "save_resume":
            save_often(patch)
        patch.setattr(owner, name, and_signal(getattr(owner, name), *calls))
        step = stopped(capsys, lambda: run_with_dropout(tmp_path / "run", teachers))
    assert step == (2 if name == "save_resume" else 4)
    run_with_dropout(tmp_path / "run", teachers)
    assert content(tmp_path / "run") == uninterrupted[0]


def test_one_value_of_a_large_teacher_that_changes_is_noticed_where_it_is_read(
    tmp_path, teachers, monkeypatch, uninterrupted
):
    """Of large weights only samples are compared before training."""
    monkeypatch.setattr(trajectory, "WHOLE_BYTES", 0)
    monkeypatch.setattr(weights, "SAMPLE", 1)
    save_often(monkeypatch)
    (tmp_path / "teachers").mkdir()
    shutil.copytree(teachers / "bert", tmp_path / "teachers" / "bert")
    run = tmp_path / "run"
    with pytest.raises(Killed):
        run_with_dropout(run, tmp_path / "teachers", Draws(5, kill_by_exception))
    before = files(run)
    changed = tmp_path / "teachers" / "bert" / "checkpoint-10"
    known = trajectory.checkpoint_digests([Checkpoint(10, changed)])
    config, tensors = read_checkpoint(changed)
    bias = tensors["cls.predictions.bias"].copy()
    bias[1] += 1
    save_checkpoint(changed.parent, 10, {**tensors, "cls.predictions.bias": bias}, config)
    trajectory._digest.cache_clear()
    assert trajectory.checkpoint_digests([Checkpoint(10, changed)]) == known
    with pytest.raises(UserError, match=f"^the weights in {changed} have changed since they were first read: restore"):
        run_with_dropout(run, tmp_path / "teachers")
    assert {**files(run), "config.json": before["config.json"]} == before
    save_checkpoint(changed.parent, 10, tensors, config)
    run_with_dropout(run, tmp_path / "teachers")
    assert content(run) == uninterrupted[0]


def test_a_schedule_that_is_a_function_is_the_same_after_a_kill(tmp_path, teachers, monkeypatch):
    def schedule(evaluations):
        return until_saturation([10, 20, 30], evaluations, max_steps=4)

    save_often(monkeypatch)
    run_with_dropout(tmp_path / "whole", teachers, schedule=schedule)
    with pytest.raises(Killed):
        run_with_dropout(tmp_path / "run", teachers, Draws(7, kill_by_exception), schedule=schedule)
    run_with_dropout(tmp_path / "run", teachers, schedule=schedule)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert [record["teacher"] for record in Run(tmp_path / "run").records()] == [10, 10, 10, 20, 20]


def test_a_schedule_that_is_a_function_is_the_same_after_a_stop_between_evaluations(tmp_path, teachers, capsys):
    def schedule(evaluations):
        return until_saturation([10, 20, 30], evaluations, max_steps=4)

    run_with_dropout(tmp_path / "whole", teachers, schedule=schedule)
    for step in (3, 5, 7):
        callback = Draws(step, send_stop_signal)
        run = lambda callback=callback: run_with_dropout(tmp_path / "run", teachers, callback, schedule=schedule)  # noqa: E731
        assert stopped(capsys, run) == step
    run_with_dropout(tmp_path / "run", teachers, schedule=schedule)
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 3), (2, 4)])
def test_a_batch_that_cannot_be_split_equally_is_refused(tmp_path, batch_size, accumulate):
    with pytest.raises(UserError, match=f"--batch-size {batch_size} cannot be divided into {accumulate} equal parts"):
        arguments(tmp_path, batch_size=batch_size, accumulate=accumulate)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="torch finds no GPU"):
        arguments(tmp_path, device="cuda")


@pytest.mark.parametrize("place", ["loss", "weights"])
def test_nothing_of_a_diverged_student_is_saved(tmp_path, teachers, monkeypatch, place):
    """The weights become NaN at step 5, before the record and the checkpoint of step 6, or before a checkpoint only."""
    save_often(monkeypatch)

    class Diverge(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 5:
                with torch.no_grad():
                    next(model.parameters())[:] = math.nan

    directory = tmp_path / "run"
    every = {"loss": (3, 3), "weights": (8, 3)}[place]
    args = recorded_arguments(directory, eval_every=every[0], checkpoint_every=every[1])
    with open_run(directory, {}, setting="test") as run:
        trainer = distil(
            tmp_path, teachers, args=args, run=run, eval_dataset=ReadyBatches(HELD_OUT), callbacks=[Diverge()]
        )
        with pytest.raises(DivergedError, match="not finite at step 6: give a lower --lr") as found:
            train_run(trainer, "test")
    assert found.value.exit_code == 3
    assert not run.complete
    assert [c.step for c in find_checkpoints(directory)] == [3]
    assert [r["step"] for r in run.records()] == {"loss": [0, 3], "weights": [0]}[place]
    assert [p.name for p in directory.glob("resume/*")] == {"loss": ["3"], "weights": []}[place]
    assert all(np.isfinite(tensor).all() for tensor in read_checkpoint(directory / "checkpoint-3")[1].values())


def test_a_model_without_a_configuration_cannot_be_saved_in_a_run(tmp_path, teachers):
    args = recorded_arguments(tmp_path / "run")
    with open_run(tmp_path / "run", {}, setting="test") as run:  # noqa: SIM117
        with pytest.raises(UserError, match="Plain has no configuration to save: train without a run"):
            distil(tmp_path, teachers, "plain", args=args, run=run, eval_dataset=ReadyBatches(HELD_OUT))
