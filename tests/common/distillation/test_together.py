"""Runs that are trained together: each has the results that it has alone, and the teacher computes its outputs once."""

import math
import shutil
from contextlib import ExitStack

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import BertForMaskedLM, TrainerCallback

from common.distillation.batches import ReadyBatches
from common.distillation.labelled_head import LabelledHead
from common.distillation.run_loop import train_run
from common.distillation.schedules import Segment, until_saturation
from common.distillation.teacher import Teacher
from common.distillation.together import train_together
from common.errors import DivergedError, UserError
from common.runs.run import Run, open_run
from tests.commands import Killed, files, save_often, stopped
from tests.trainers import (
    HELD_OUT,
    SCHEDULE,
    Batches,
    Draws,
    assert_same_model,
    bert,
    collate,
    content,
    distil,
    kill_by_exception,
    make_batch,
    recorded_arguments,
    samples,
    send_stop_signal,
)


def saturating(evaluations):
    return until_saturation([10, 20, 30], evaluations, max_steps=4)


RUNS = {
    "ce": {"teacher": None, "schedule": []},
    "one-shot": {"schedule": [Segment(0, 30)]},
    "short": {"schedule": [Segment(0, 30)], "steps": 4},
    "progressive": {},
    "cold": {"temperature": 0.5, "alpha": 0.3},
    "until-saturation": {"schedule": saturating},
    "wide": {"model": lambda: bert(5, width=16, dropout=0.1)},
}
"""Seven students of one teacher; each has a seed of its own."""


def make(directory, teachers, run, name, callback=None, **shared):
    options = {"train_dataset": Batches(), "eval_dataset": ReadyBatches(HELD_OUT), **shared, **RUNS[name]}
    seed, steps = list(RUNS).index(name), options.pop("steps", 8)
    options["model"] = options.pop("model", lambda: bert(seed, dropout=0.2))()
    args = recorded_arguments(directory, steps=steps, seed=seed, accumulate=2, eval_every=2)
    return distil(directory, teachers, args=args, run=run, callbacks=[callback or Draws()], **options)


def train_alone(place, teachers):
    for name in RUNS:
        with open_run(place / name, {}, setting="test") as run:
            train_run(make(place / name, teachers, run, name), "test")


def train_all(place, teachers, names=tuple(RUNS), callbacks=None, prepare=lambda trainers: None):
    shared = {"train_dataset": Batches(), "eval_dataset": ReadyBatches(HELD_OUT)}
    with ExitStack() as stack:
        trainers = []
        for name in names:
            run = stack.enter_context(open_run(place / name, {}, setting="test"))
            if not run.complete:
                callback = (callbacks or {}).get(name)
                trainers.append(make(place / name, teachers, run, name, callback, **shared))
        prepare(trainers)
        train_together(trainers, "test")


@pytest.fixture(scope="module")
def place_alone(tmp_path_factory, teachers):
    place = tmp_path_factory.mktemp("alone")
    train_alone(place, teachers)
    return place


@pytest.fixture(scope="module")
def alone(place_alone):
    return contents(place_alone)


def contents(place):
    return {name: content(place / name) for name in RUNS}


@pytest.mark.parametrize("most", [0, 150, 2**25])
def test_runs_are_bit_identical_to_those_trained_alone(tmp_path, teachers, alone, monkeypatch, most):
    """Of several methods, losses, sizes and lengths; with dropout, and other random numbers drawn at every step.

    Logits that are too many to keep, of all micro-batches and checkpoints of a step together, are computed again.
    """
    monkeypatch.setattr("common.distillation.teacher.MOST_LOGITS", most)
    kept = []
    output = Teacher.output

    def observed(teacher, *arguments):
        found = output(teacher, *arguments)
        kept.append(sum(each.kept_logits for each in (teacher._shared or {}).values()))
        return found

    monkeypatch.setattr(Teacher, "output", observed)
    train_all(tmp_path, teachers)
    assert contents(tmp_path) == alone
    assert max(kept) <= most
    assert (max(kept) > 0) == (most > 0)
    assert (max(kept) > 150) == (most > 150)


@pytest.mark.parametrize("order", [("short", "one-shot"), ("one-shot", "short")])
def test_the_teacher_runs_once_for_all_students(tmp_path, teachers, monkeypatch, order):
    """On two micro-batches of each step; a student of another seed, size, loss or number of steps adds nothing."""
    calls = []

    class Counting(LabelledHead):
        def __call__(self, model, inputs, *arguments, **options):
            if len(inputs["input_ids"]) > 1:  # not one of its checks, on a single sample
                calls.append(model)
            return super().__call__(model, inputs, *arguments, **options)

    monkeypatch.setattr("common.distillation.teacher.LabelledHead", Counting)
    progressive = 8 + SCHEDULE[-1].start  # the last checkpoint is the one of one-shot
    others = {
        "short": [(order[:1], 4), ((*order, "progressive"), progressive)],
        "one-shot": [(order[:1], 8), ((*order, "progressive", "cold", "wide"), progressive)],
    }
    for names, expected in [(order, 8), *others[order[0]]]:
        calls.clear()
        train_all(tmp_path / str(len(names)), teachers, names)
        assert len(calls) == 2 * expected


def test_other_data_or_another_teacher_is_not_shared(tmp_path, teachers, alone):
    with ExitStack() as stack:
        trainers = []
        for name in ("one-shot", "short"):
            run = stack.enter_context(open_run(tmp_path / name, {}, setting="test"))
            trainers.append(make(tmp_path / name, teachers, run, name))  # with a source of its own
        more = stack.enter_context(open_run(tmp_path / "other", {}, setting="test"))
        source = trainers[0].train_dataset
        other = distil(
            tmp_path / "other",
            teachers,
            "gpt2",
            args=recorded_arguments(tmp_path / "other", accumulate=2),
            run=more,
            train_dataset=source,
            eval_dataset=ReadyBatches(HELD_OUT),
        )
        assert not trainers[1].share_teacher(trainers[0])
        assert not other.share_teacher(trainers[0])
        train_together([*trainers, other], "test")
    assert {name: content(tmp_path / name) for name in ("one-shot", "short")} == {
        name: alone[name] for name in ("one-shot", "short")
    }


class Diverge(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 3:
            with torch.no_grad():
                next(model.parameters())[:] = math.nan


def test_a_student_that_diverges_leaves_the_others_alone(tmp_path, teachers, alone):
    diverging = {"progressive": Diverge(), "ce": Diverge()}
    with pytest.raises(DivergedError, match="ce: the loss is not finite at step 4"):
        train_all(tmp_path, teachers, callbacks=diverging)
    for name in RUNS:
        if name in diverging:
            assert not Run(tmp_path / name).complete
            assert [record["step"] for record in Run(tmp_path / name).records()] == [0, 2]
        else:
            assert content(tmp_path / name) == alone[name]


def test_a_stop_signal_saves_the_states_of_all(tmp_path, teachers, alone, capsys):
    """Before, at and after records and checkpoints, the end of one run and other teachers' turns."""
    for step in (1, 3, 4, 6, 7):
        callbacks = {"wide": Draws(step, send_stop_signal)}
        assert stopped(capsys, lambda callbacks=callbacks: train_all(tmp_path, teachers, callbacks=callbacks)) == step
        for name in RUNS:
            if not Run(tmp_path / name).complete:
                (state,) = (tmp_path / name / "resume").iterdir()
                assert int(state.name) == step
    train_all(tmp_path, teachers)
    assert contents(tmp_path) == alone


@pytest.mark.parametrize(("name", "steps"), [("ce", (3, 8)), ("wide", (6,))])
def test_killed_runs_resume_each_from_its_own_state(tmp_path, teachers, alone, monkeypatch, name, steps):
    """By the first or the last of a step, before the others' step or after it."""
    save_often(monkeypatch)
    for step in steps:
        with pytest.raises(Killed):
            train_all(tmp_path, teachers, callbacks={name: Draws(step, kill_by_exception)})
    train_all(tmp_path, teachers)
    assert contents(tmp_path) == alone


def test_runs_at_different_steps_are_trained_together(tmp_path, teachers, alone):
    for step, name in enumerate(("ce", "progressive", "until-saturation", "wide"), 1):
        callbacks = {name: Draws(step, kill_by_exception)}
        with pytest.MonkeyPatch.context() as patch:
            save_often(patch)
            with pytest.raises(Killed):
                train_all(tmp_path, teachers, [name], callbacks)
    train_all(tmp_path, teachers)
    assert contents(tmp_path) == alone


def test_an_error_of_one_run_frees_the_others(tmp_path, teachers):
    made = []
    with pytest.raises(Killed):
        train_all(tmp_path, teachers, callbacks={"cold": Draws(2, kill_by_exception)}, prepare=made.extend)
    assert len(made) == len(RUNS)
    assert all(trainer._teacher._models.current_step is None for trainer in made)


def test_complete_runs_are_left_as_they_are_and_give_their_weights(tmp_path, teachers, place_alone, alone):
    for name in ("ce", "wide"):
        shutil.copytree(place_alone / name, tmp_path / name)
    with ExitStack() as stack:
        trainers = []
        for name in RUNS:
            run = stack.enter_context(open_run(tmp_path / name, {}, setting="test"))
            trainers.append(make(tmp_path / name, teachers, run, name))
        train_together(trainers, "test")
    assert contents(tmp_path) == alone
    final = BertForMaskedLM.from_pretrained(tmp_path / "ce" / "checkpoint-8")
    assert_same_model(trainers[0].model, final, atol=0)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples(make_batch(0, 64)))


def test_one_stream_for_two_runs_is_refused(tmp_path, teachers):
    def train(streams):
        with ExitStack() as stack:
            trainers = []
            for name, stream in zip(("ce", "cold"), streams, strict=True):
                run = stack.enter_context(open_run(tmp_path / name, {}, setting="test"))
                options = {"train_dataset": stream, "data_collator": collate, "eval_dataset": ReadyBatches(HELD_OUT)}
                args = recorded_arguments(tmp_path / name)
                trainers.append(distil(tmp_path / name, teachers, args=args, run=run, **options))
            train_together(trainers, "test")

    stream = Stream()
    with pytest.raises(UserError, match="cannot read one stream"):
        train([stream, stream])
    train([stream, Stream()])
    assert content(tmp_path / "ce")["metrics.jsonl"] == content(tmp_path / "cold")["metrics.jsonl"]


def test_a_damaged_state_is_refused(tmp_path, teachers, capsys):
    stopped(capsys, lambda: train_all(tmp_path, teachers, callbacks={"ce": Draws(2, send_stop_signal)}))
    (state,) = (tmp_path / "cold" / "resume").iterdir()
    (state / "state.json").write_text("{}")
    before = {name: files(tmp_path / name) for name in RUNS}
    with pytest.raises(UserError, match="cold"):
        train_all(tmp_path, teachers)
    after = {name: files(tmp_path / name) for name in RUNS}
    assert all({**after[name], "config.json": b""} == {**before[name], "config.json": b""} for name in RUNS)


def test_a_gradient_that_is_accumulated_by_one_run_is_not_another_ones(tmp_path, teachers, alone):
    """accelerate has one flag for all trainers, that a step is the last of its micro-batches."""
    flags = []

    class Flag(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            flags.append(trainer.accelerator.sync_gradients)

    def prepare(trainers):
        nonlocal trainer
        trainer = trainers[0]
        trainer.add_callback(Flag())

    trainer = None
    train_all(tmp_path, teachers, ["ce", "cold"], prepare=prepare)
    assert flags == [False] * 8
    assert content(tmp_path / "ce") == alone["ce"]
