"""Training against a plain loop: losses, weights, logged values, precision, teachers and errors."""

import math
import threading
import weakref

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from common.distillation.batches import ReadyBatches
from common.distillation.schedules import Segment, custom, progressive, until_saturation
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError
from tests.trainers import (
    BATCH,
    HELD_OUT,
    STEPS,
    STUDENTS,
    Batches,
    Draws,
    Killed,
    arguments,
    assert_same_model,
    bert,
    collate,
    distil,
    evaluate_by_hand,
    kill_by_exception,
    load_teacher,
    logged,
    make_batch,
    samples,
    schedule_by_hand,
    train_by_hand,
)

# Losses and weights


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", STUDENTS)
def test_training_on_a_source_is_the_plain_loop_with_and_without_accumulation(tmp_path, teachers, kind, accumulate):
    args = arguments(tmp_path, accumulate=accumulate)
    trainer = distil(tmp_path, teachers, kind, args=args, temperature=1.7, alpha=0.3)
    trainer.train()
    model = STUDENTS[kind](1)
    sums = train_by_hand(model, [make_batch(i) for i in range(STEPS)], schedule_by_hand(teachers, kind), 1.7, 0.3)
    np.testing.assert_allclose(logged(trainer, "loss"), sums[:, 0] / sums[:, 3], rtol=1e-4)
    np.testing.assert_allclose(logged(trainer, "kl"), sums[:, 1] / sums[:, 3], rtol=1e-4)
    np.testing.assert_allclose(logged(trainer, "accuracy"), sums[:, 2] / sums[:, 3], rtol=1e-6)
    assert logged(trainer, "teacher") == [20, 20, 20, 10, 10, 10, 30, 30]
    assert_same_model(trainer.model, model)


@pytest.mark.parametrize("form", ["torch", "datasets"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_training_on_an_ordinary_dataset_is_the_plain_loop(tmp_path, teachers, kind, form):
    """20 samples make two full batches and a smaller one."""
    rows = samples(make_batch(0, 20))
    if form == "datasets":
        rows = datasets.Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in rows])
    batches = []

    def record(rows):
        batches.append(collate(rows))
        return dict(batches[-1])

    trainer = distil(tmp_path, teachers, kind, train_dataset=rows, data_collator=record, temperature=2.0)
    trainer.train()
    assert [len(batch["labels"]) for batch in batches[:6]] == [8, 8, 4, 8, 8, 4]
    model = STUDENTS[kind](1)
    sums = train_by_hand(model, batches[:STEPS], schedule_by_hand(teachers, kind), 2.0)
    np.testing.assert_allclose(logged(trainer, "loss"), sums[:, 0] / sums[:, 3], rtol=1e-4)
    assert_same_model(trainer.model, model)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_loss_is_that_of_the_arg_max_a_low_temperature_or_the_labels(tmp_path, teachers, with_teacher, temperature):
    options = {"temperature": temperature} if with_teacher else {"teacher": None, "schedule": (), "load_teacher": None}
    trainer = distil(tmp_path, teachers, **options)
    trainer.train()
    model = bert(1)
    teacher_at = schedule_by_hand(teachers, "bert") if with_teacher else lambda step: None
    batches = [make_batch(i) for i in range(STEPS)]
    sums = train_by_hand(model, batches, teacher_at, temperature, alpha=0.0 if with_teacher else 1.0)
    np.testing.assert_allclose(logged(trainer, "loss"), sums[:, 0] / sums[:, 3], rtol=1e-4)
    assert_same_model(trainer.model, model)
    assert ("kl" in trainer.state.log_history[0]) == ("teacher" in trainer.state.log_history[0]) == with_teacher


@pytest.mark.parametrize("annealing", ["linear", "logarithmic"])
def test_alpha_and_temperature_change_at_their_steps(tmp_path, teachers, annealing):
    trainer = distil(tmp_path, teachers, alpha=(0.8, 0.1), alpha_steps=[5], temperature=(0.5, 4.0), annealing=annealing)
    trainer.train()
    temperatures = {"linear": 0.5 + 0.5 * np.arange(STEPS), "logarithmic": 0.5 * 8 ** (np.arange(STEPS) / 7)}[annealing]
    alphas = [0.8, 0.8, 0.8, 0.8, 0.8, 0.1, 0.1, 0.1]
    batches, model = [make_batch(i) for i in range(STEPS)], bert(1)
    sums = train_by_hand(model, batches, schedule_by_hand(teachers, "bert"), temperatures, alphas)
    np.testing.assert_allclose(logged(trainer, "loss"), sums[:, 0] / sums[:, 3], rtol=1e-4)
    np.testing.assert_allclose(logged(trainer, "kl"), sums[:, 1] / sums[:, 3], rtol=1e-4)
    assert_same_model(trainer.model, model)


def test_a_batch_without_labels_updates_only_the_moments(tmp_path, teachers):
    class Gap:
        def batch(self, step):
            batch = make_batch(step)
            return {**batch, "labels": torch.full_like(batch["labels"], -100)} if step in (0, 4) else batch

    trainer = distil(tmp_path, teachers, train_dataset=Gap())
    assert math.isfinite(trainer.train().training_loss)
    model = bert(1)
    sums = train_by_hand(model, [Gap().batch(i) for i in range(STEPS)], schedule_by_hand(teachers, "bert"))
    assert [i for i, count in enumerate(sums[:, 3]) if not count] == [0, 4]
    for i, loss in enumerate(logged(trainer, "loss")):
        assert math.isnan(loss) if i in (0, 4) else loss == pytest.approx(sums[i, 0] / sums[i, 3], rel=1e-4)
    assert_same_model(trainer.model, model)


def test_labels_of_whole_samples_train_a_classifier(tmp_path):
    """Logits of shape (samples, classes), labels of shape (samples,)."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.read = nn.Linear(4, 3)

        def forward(self, features):
            return {"logits": self.read(features)}

    class Features:
        def batch(self, step):
            numbers = torch.Generator().manual_seed(step)
            features = torch.randn(BATCH, 4, generator=numbers)
            return {"features": features, "labels": features[:, :3].argmax(-1)}

    model = Classifier()
    trainer = ProgressiveDistillationTrainer(model, arguments(tmp_path), train_dataset=Features(), objective="masked")
    trainer.train()
    logits = Classifier()(Features().batch(0)["features"])["logits"]
    expected = F.cross_entropy(logits, Features().batch(0)["labels"]).item()
    assert logged(trainer, "loss")[0] == pytest.approx(expected, rel=1e-6)


# Logged values and evaluations


def test_logged_values_are_means_over_labels_of_all_steps_since_the_last_log(tmp_path, teachers):
    trainer = distil(tmp_path, teachers, args=arguments(tmp_path, logging_steps=4), alpha=0.3, temperature=1.7)
    trainer.train()
    batches = [make_batch(i) for i in range(STEPS)]
    sums = train_by_hand(bert(1), batches, schedule_by_hand(teachers, "bert"), 1.7, 0.3)
    assert len(set(sums[:, 3])) > 4
    means = sums.reshape(2, 4, 4).sum(1)
    for i, name in enumerate(("loss", "kl", "accuracy")):
        np.testing.assert_allclose(logged(trainer, name), means[:, i] / means[:, 3], rtol=1e-4)
    assert logged(trainer, "teacher") == [10, 30]


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("form", ["batches", "dataset"])
def test_evaluation_gives_means_over_labels(tmp_path, kind, form):
    rows = [row for batch in HELD_OUT for row in samples(batch)]
    held_out = ReadyBatches(HELD_OUT) if form == "batches" else rows
    args = arguments(tmp_path)
    args.per_device_eval_batch_size = 8
    options = {"eval_dataset": held_out, "data_collator": collate, "objective": "masked" if kind == "plain" else None}
    trainer = ProgressiveDistillationTrainer(STUDENTS[kind](1), args, **options)
    metrics = trainer.evaluate()
    assert (metrics["eval_loss"], metrics["eval_accuracy"]) == pytest.approx(
        evaluate_by_hand(STUDENTS[kind](1), HELD_OUT), rel=1e-5
    )
    assert trainer.records == []


def test_compute_metrics_is_called_as_by_a_trainer(tmp_path):
    rows = samples(make_batch(90, 20))

    def compute(predictions):
        return {"sum": float(np.abs(predictions.predictions).sum()), "labels": int((predictions.label_ids >= 0).sum())}

    args = arguments(tmp_path)
    options = {"eval_dataset": rows, "data_collator": collate, "compute_metrics": compute}
    ours = ProgressiveDistillationTrainer(bert(1), args, **options).evaluate()
    theirs = Trainer(bert(1), args, **options).evaluate()
    for name in ("eval_sum", "eval_labels", "eval_loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_a_schedule_that_is_a_function_gets_every_evaluation_and_determines_the_teacher(tmp_path, teachers):
    seen = []

    def schedule(evaluations):
        seen.append(list(evaluations))
        return until_saturation([10, 20, 30], evaluations, max_steps=2)

    args = arguments(tmp_path)
    args.eval_strategy, args.eval_steps = "steps", 2
    trainer = distil(tmp_path, teachers, args=args, schedule=schedule, eval_dataset=ReadyBatches(HELD_OUT))
    trainer.train()
    evaluations = [(e["step"], e["eval_accuracy"]) for e in trainer.state.log_history if "eval_accuracy" in e]
    assert [step for step, _ in evaluations] == [2, 4, 6, 8]
    assert [[tuple(one[:2]) for one in some] for some in seen] == [[], *[evaluations[:i] for i in range(5)]]
    assert all(one.kl > 0 for one in seen[-1])
    assert logged(trainer, "teacher") == [10, 10, 20, 20, 30, 30, 30, 30]
    assert [record["teacher"] for record in trainer.records] == [10, 20, 30, 30]
    model = bert(1)
    steps = [10, 10, 20, 20, 30, 30, 30, 30]
    train_by_hand(
        model, [make_batch(i) for i in range(STEPS)], lambda step: load_teacher(teachers, "bert", steps[step])
    )
    assert_same_model(trainer.model, model)


# Precision and compilation


def test_bf16_computes_in_bfloat16_near_float32_and_keeps_weights_in_float32(tmp_path, teachers):
    types = set()

    def train(precision):
        def load(path):
            teacher = BertForMaskedLM.from_pretrained(path)
            teacher.cls.register_forward_hook(
                lambda module, given, made: types.add(("teacher", module.training, made.dtype))
            )
            return teacher

        args = arguments(tmp_path, precision=precision)
        trainer = distil(
            tmp_path, teachers, args=args, load_teacher=load, eval_dataset=ReadyBatches(HELD_OUT), temperature=2.0
        )
        trainer.model.cls.register_forward_hook(
            lambda module, given, made: types.add(("student", module.training, made.dtype))
        )
        before = trainer.evaluate()["eval_loss"]
        assert types == {("student", False, torch.bfloat16 if precision == "bf16" else torch.float32)}
        trainer.train()
        losses = [before, trainer.evaluate()["eval_loss"], *logged(trainer, "loss"), *logged(trainer, "kl")]
        return losses, {parameter.dtype for parameter in trainer.model.parameters()}

    expected, _ = train("float32")
    parts = [("student", True), ("student", False), ("teacher", False)]
    assert types == {(*part, torch.float32) for part in parts}
    types.clear()
    losses, kept = train("bf16")
    assert types == {(*part, torch.bfloat16) for part in parts}
    assert kept == {torch.float32}
    assert losses != expected
    np.testing.assert_allclose(losses, expected, rtol=0.05)


@pytest.mark.parametrize(
    ("kind", "backend"), [("bert", "aot_eager"), pytest.param("plain", "inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_student_has_the_losses_of_the_eager_one(tmp_path, teachers, kind, backend):
    """BERT traces the head's selection of positions, whose number changes; a small model is enough for
    the default backend."""
    losses = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
        args = arguments(tmp_path, compiled=compiled, steps=4)
        args.torch_compile_backend = backend if compiled else None
        trainer = distil(tmp_path, teachers, kind, args=args, eval_dataset=ReadyBatches(HELD_OUT))
        trainer.train()
        losses.append([*logged(trainer, "loss"), trainer.evaluate()["eval_loss"]])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize("with_source", [True, False])
def test_a_trainer_s_own_checkpoint_resumes_with_the_right_batches_and_evaluations(tmp_path, teachers, with_source):
    """Without a run. The schedule depends on evaluations, some of them made before the checkpoint."""

    def trainer(directory, callbacks=()):
        args = arguments(directory, eval_every=2, checkpoint_every=4)
        args.eval_strategy = args.save_strategy = "steps"
        rows = samples(make_batch(0, 20))
        return distil(
            directory,
            teachers,
            args=args,
            train_dataset=Batches() if with_source else rows,
            data_collator=collate,
            schedule=lambda evaluations: until_saturation([10, 20, 30], evaluations, max_steps=4),
            eval_dataset=ReadyBatches(HELD_OUT),
            callbacks=list(callbacks),
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "half", [Draws(5, kill_by_exception)]).train()
    rest = trainer(tmp_path / "half")
    rest.train(resume_from_checkpoint=True)
    assert logged(rest, "teacher") == logged(whole, "teacher") == [10] * 4 + [20] * 4
    assert_same_model(rest.model, whole.model, atol=0)
    assert [r["step"] for r in rest.records] == [2, 4, 6, 8]


# Teachers


def test_the_previous_teacher_is_freed_first_and_at_most_the_next_one_is_prefetched(tmp_path, teachers):
    alive, loaded, used = weakref.WeakSet(), [], []

    class Counted(BertForMaskedLM):
        def to(self, *device):
            used.append((self.step, [model.step for model in alive]))
            return super().to(*device)

        def forward(self, **inputs):
            assert self in alive
            assert len(alive) <= 2
            return super().forward(**inputs)

    def load(path):
        assert threading.current_thread() is not threading.main_thread()
        assert len(alive) <= 1
        model = Counted(bert(0).config)
        model.step = int(path.name.removeprefix("checkpoint-"))
        alive.add(model)
        loaded.append(model.step)
        return model

    plan = [(10, 1), (20, 2), (30, 1), (10, 2), (20, None)]
    trainer = distil(tmp_path, teachers, schedule=custom(plan), load_teacher=load)
    trainer.train()
    assert loaded == [10, 20, 30, 10, 20]
    assert used == [(step, [step]) for step in loaded]
    assert logged(trainer, "teacher") == [10, 20, 20, 30, 10, 10, 20, 20]
    assert len(alive) == 0


def test_no_teacher_is_being_loaded_when_training_has_ended(tmp_path, teachers):
    """The schedule continues after the last step. A model created while another is loading is not initialised."""
    loaded = []

    def load(path):
        if path.name == "checkpoint-20":
            assert ended.wait(60)
        loaded.append(path.name)
        return bert(0)

    class End(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            threading.Timer(0.1, ended.set).start()

    ended = threading.Event()
    trainer = distil(tmp_path, teachers, schedule=progressive([10, 20], 100), load_teacher=load, callbacks=[End()])
    trainer.train()
    assert loaded == ["checkpoint-10", "checkpoint-20"]


@pytest.mark.parametrize("damage", ["missing", "cut", "not a teacher"])
def test_an_error_of_loading_reaches_the_main_thread(tmp_path, teachers, damage):
    for step in (10, 20, 30):
        bert(step).save_pretrained(tmp_path / "teacher" / f"checkpoint-{step}")
    trainer = distil(tmp_path, teachers, teacher=tmp_path / "teacher")
    path = tmp_path / "teacher" / "checkpoint-10" / "model.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.with_name("config.json").write_text("{")
    with pytest.raises(UserError, match="checkpoint-10"):
        trainer.train()
    assert logged(trainer, "teacher") == [20, 20, 20]


def test_an_own_loader_s_error_is_the_very_same_object(tmp_path, teachers):
    error = RuntimeError("no such teacher")

    def load(path):
        raise error

    with pytest.raises(RuntimeError) as found:
        distil(tmp_path, teachers, load_teacher=load).train()
    assert found.value is error


def test_teachers_draw_no_random_numbers_of_the_training(tmp_path, teachers):
    """With alpha 1 the teacher has no weight in the loss, so that it could only change dropout."""
    ends = []
    for options in ({"alpha": 1.0}, {"teacher": None, "schedule": ()}):
        draws = Draws()
        trainer = distil(tmp_path, teachers, model=bert(1, dropout=0.3), callbacks=[draws], **options)
        trainer.train()
        ends.append((trainer.model, draws.drawn))
    assert_same_model(ends[0][0], ends[1][0], atol=1e-6)
    assert ends[0][1] == ends[1][1]


def test_a_directory_of_a_plain_trainer_is_a_teacher(tmp_path):
    args = TrainingArguments(
        str(tmp_path / "teacher"), max_steps=4, save_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, seed=5
    )
    set_seed(5)
    rows = samples(make_batch(0, 20))
    Trainer(bert(7, 12, 2, dropout=0.1), args, train_dataset=rows, data_collator=collate).train()
    assert (tmp_path / "teacher" / "checkpoint-2" / "optimizer.pt").exists()
    trainer = distil(tmp_path, tmp_path, teacher=tmp_path / "teacher", schedule=progressive([2, 4], every=4))
    trainer.train()
    model = bert(1)
    places = {step: BertForMaskedLM.from_pretrained(tmp_path / "teacher" / f"checkpoint-{step}") for step in (2, 4)}
    sums = train_by_hand(model, [make_batch(i) for i in range(STEPS)], lambda step: places[2 if step < 4 else 4])
    np.testing.assert_allclose(logged(trainer, "loss"), sums[:, 0] / sums[:, 3], rtol=1e-4)
    assert_same_model(trainer.model, model)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": ()}, "give a teacher and a schedule for it"),
        ({"teacher": None}, "give a teacher and a schedule for it"),
        ({"teacher": []}, "give a teacher and a schedule for it"),
        ({"schedule": [Segment(0, 10), Segment(2, 25)]}, "teacher step 25, which has no checkpoint"),
        ({"schedule": [Segment(1, 10)]}, "must begin at step 0"),
        ({"schedule": [Segment(0, 10), Segment(4, 20), Segment(4, 30)]}, "be in order"),
        ({"alpha": -0.1}, "alpha must be from 0 to 1"),
        ({"alpha": (0.5, 1.1), "alpha_steps": [3]}, "alpha must be from 0 to 1"),
        ({"alpha": math.nan}, "alpha must be from 0 to 1"),
        ({"alpha": (0.5, 1.0)}, r"alpha_steps \[\] must be one fewer than the 2 values"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": (1.0, 0.0), "annealing": "logarithmic"}, "temperature must be above 0 for logarithmic"),
        ({"divergence": "jensen-shannon", "beta": 1.0}, "beta must be between 0 and 1"),
        ({"teacher": "no/such/directory"}, "there is no directory no/such/directory"),
    ],
)
def test_wrong_arguments_are_refused_before_training(tmp_path, teachers, options, message):
    with pytest.raises(UserError, match=message) as found:
        distil(tmp_path, teachers, **options)
    assert found.value.exit_code == 2


def test_a_schedule_that_reaches_a_missing_checkpoint_is_refused(tmp_path, teachers):
    args = arguments(tmp_path)
    args.eval_strategy, args.eval_steps = "steps", 2

    def schedule(evaluations):
        return [Segment(0, 10), *[Segment(one.step, 10 + one.step) for one in evaluations]]

    trainer = distil(tmp_path, teachers, args=args, schedule=schedule, eval_dataset=ReadyBatches(HELD_OUT))
    with pytest.raises(UserError, match="teacher step 12, which has no checkpoint"):
        trainer.train()


def test_a_teacher_that_is_not_of_transformers_needs_a_loader(tmp_path, teachers):
    with pytest.raises(UserError, match="give load_teacher"):
        distil(tmp_path, teachers, "plain", load_teacher=None).train()
