"""Training against a plain loop: losses, weights and logged values; processes, precision, kills, teachers and errors.

Run as a script, this file is one process of a training that the tests start and compare with their own.
"""

import gc
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import common.trainer
from common.distillation.batches import ReadyBatches
from common.distillation.labelled_head import LabelledHead, labelled_logits
from common.distillation.run_loop import train_run, training_arguments
from common.distillation.schedules import Segment, explicit, progressive, until_saturation
from common.distillation.state import weights
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import DivergedError, UserError
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from common.runs.files import write_file
from common.runs.processes import Processes, open_shared_run
from common.runs.run import Run, open_run
from common.teachers.discovery import Checkpoint, find_checkpoints
from common.teachers.loading import Teachers
from tests.commands import and_signal, exit_code, stopped

CLASSES, LENGTH, BATCH, STEPS = 11, 6, 8, 8
LR, WARMUP = 0.01, 2
SCHEDULE = [Segment(0, 20), Segment(3, 10), Segment(6, 30)]
WITHOUT_GRADIENT = ("key.bias", "c_attn.bias")
"""Keys' biases change no attention, so that their gradients are rounding errors, which Adam scales up."""


class Plain(nn.Module):
    """A model of which the trainer knows nothing."""

    def __init__(self, seed: int, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(CLASSES, width)
        self.mix = nn.Linear(LENGTH * width, LENGTH * width)
        self.read = nn.Linear(width, CLASSES)

    def forward(self, input_ids, attention_mask):
        states = self.embed(input_ids) * attention_mask[..., None]
        mixed = self.mix(states.flatten(1)).view(states.shape)
        return {"logits": self.read(mixed.tanh())}


def bert(seed, width=8, layers=1, dropout=0.0):
    torch.manual_seed(seed)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=CLASSES,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def gpt2(seed, width=8, layers=1):
    torch.manual_seed(seed)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"n_positions": LENGTH, "n_embd": width, "n_layer": layers, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=CLASSES, bos_token_id=0, eos_token_id=0, **shape, **dropout))


STUDENTS = {"bert": bert, "gpt2": gpt2, "plain": Plain}


def load_plain(path):
    model = Plain(0, width=7)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in read_checkpoint(path)[1].items()})
    return model


def make_batch(step, size=BATCH):
    """Samples of several lengths; the second quarter has no label, the rest ever more, up to all of its tokens."""
    numbers = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(CLASSES, (size, LENGTH), generator=numbers)
    lengths = torch.randint(2, LENGTH + 1, (size, 1), generator=numbers)
    visible = torch.arange(LENGTH) < lengths
    rate = torch.linspace(-0.3, 1, size).roll(size // 4)[:, None]
    labelled = visible & (torch.rand(size, LENGTH, generator=numbers) < rate)
    answers = (3 * tokens + 1) % CLASSES
    return {
        "input_ids": tokens,
        "attention_mask": visible.long(),
        "labels": torch.where(labelled, answers, -100),
    }


@dataclass(frozen=True)
class Batches:
    size: int = BATCH

    def batch(self, step):
        return make_batch(step, self.size)


HELD_OUT = [make_batch(step, size) for step, size in ((90, 5), (91, 12), (92, 3))]


def samples(batch):
    return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def collate(rows):
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def arguments(directory, **changes):
    given = {"steps": STEPS, "batch_size": BATCH, "accumulate": 1, "lr": LR, "warmup": WARMUP / STEPS}
    given |= {"eval_every": 4, "checkpoint_every": 4, "seed": 3, "precision": "float32", "compiled": False}
    logging = changes.pop("logging_steps", 1)
    args = training_arguments(directory, **{**given, "device": "cpu", **changes})
    args.logging_strategy, args.logging_steps = "steps", logging
    args.eval_strategy = args.save_strategy = "no"
    return args


def recorded_arguments(directory, **changes):
    """Those of a run, as a command of this project has them."""
    args = arguments(directory, **changes)
    args.logging_strategy, args.eval_strategy, args.save_strategy = "no", "steps", "steps"
    return args


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if "learning_rate" in entry]


# A plain loop


def labelled(model, batch):
    """Logits at the labels' positions, and the labels, by way of the whole output."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
    labels = batch["labels"]
    if isinstance(model, GPT2LMHeadModel):
        logits, labels = logits[:, :-1], labels[:, 1:]
    chosen = labels != -100
    return logits[chosen], labels[chosen]


def evaluate_by_hand(model, batches):
    model.eval()
    with torch.no_grad():
        logits, labels = map(torch.cat, zip(*[labelled(model, batch) for batch in batches], strict=True))
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(-1) == labels).double().mean().item()


def train_by_hand(model, batches, teacher_at=lambda step: None, temperature=1.0, alpha=0.0):
    """Train on every batch, in float64; sums over the labels of loss, divergence, right answers and 1, per step.

    The temperature and alpha are numbers, or one for each step.
    """
    temperatures, alphas = np.broadcast_to(temperature, len(batches)), np.broadcast_to(alpha, len(batches))
    model.double().train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    sums = []
    for step, batch in enumerate(batches):
        cosine = (1 + math.cos(math.pi * (step - WARMUP) / (len(batches) - WARMUP))) / 2
        optimizer.param_groups[0]["lr"] = LR * (step / WARMUP if step < WARMUP else cosine)
        logits, labels = labelled(model, batch)
        log_p = logits.log_softmax(-1)
        loss = -log_p[range(len(labels)), labels]
        kl = torch.zeros_like(loss)
        teacher = teacher_at(step)
        if teacher is not None:
            with torch.no_grad():
                z, _ = labelled(teacher.double().eval(), batch)
            arg_max = F.one_hot(z.argmax(-1), CLASSES).double()
            q = (z / temperatures[step]).softmax(-1) if temperatures[step] else arg_max
            kl = (torch.xlogy(q, q) - q * log_p).sum(-1)
            loss = alphas[step] * loss + (1 - alphas[step]) * kl
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        right = logits.argmax(-1) == labels
        sums.append([loss.sum().item(), kl.sum().item(), right.sum().item(), len(labels)])
    return np.array(sums)


def assert_same_model(model, other, atol=2e-4):
    here, there = dict(model.named_parameters()), dict(other.named_parameters())
    assert here.keys() == there.keys()
    for name, parameter in here.items():
        if not name.endswith(WITHOUT_GRADIENT):
            expected = there[name].to(parameter.dtype)
            torch.testing.assert_close(parameter, expected, rtol=0, atol=atol, msg=lambda text, n=name: n + text)


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    """A Trainer collects garbage before it trains, and would look through every imported module each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A directory of three checkpoints for each kind of student; the teachers are larger."""
    directory = tmp_path_factory.mktemp("teachers")
    for step, seed in ((10, 41), (20, 42), (30, 43)):
        bert(seed, 12, 2).save_pretrained(directory / "bert" / f"checkpoint-{step}")
        gpt2(seed, 12, 2).save_pretrained(directory / "gpt2" / f"checkpoint-{step}")
        save_checkpoint(directory / "plain", step, weights(Plain(seed, 7)), {})
    for path in list(directory.rglob("*.safetensors")):  # sharper than freshly drawn weights
        tensors = {k: 15 * v if v.ndim == 2 else v for k, v in read_checkpoint(path.parent)[1].items()}
        save_checkpoint(path.parents[1], int(path.parent.name.split("-")[1]), tensors, read_checkpoint(path.parent)[0])
    return directory


def load_teacher(teachers, kind, step):
    path = teachers / kind / f"checkpoint-{step}"
    return load_plain(path) if kind == "plain" else type(STUDENTS[kind](0)).from_pretrained(path)


def schedule_by_hand(teachers, kind):
    return lambda step: load_teacher(teachers, kind, 20 if step < 3 else 10 if step < 6 else 30)


def distil(directory, teachers, kind="bert", **options):
    """A trainer with the schedule and everything else by default."""
    given = {"model": STUDENTS[kind](1), "args": None, "train_dataset": Batches(), "schedule": SCHEDULE}
    given |= {"teacher": teachers / kind, "load_teacher": load_plain if kind == "plain" else None, **options}
    given["args"] = given["args"] or arguments(directory)
    return ProgressiveDistillationTrainer(**given)


# Losses and weights


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", STUDENTS)
def test_training_on_a_source_is_the_plain_loop_in_one_part_or_several(tmp_path, teachers, kind, accumulate):
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
    trainer = distil(
        tmp_path,
        teachers,
        alpha=(0.8, 0.1),
        alpha_steps=[5],
        temperature=(0.5, 4.0),
        annealing=annealing,
    )
    trainer.train()
    temperatures = {"linear": 0.5 + 0.5 * np.arange(STEPS), "logarithmic": 0.5 * 8 ** (np.arange(STEPS) / 7)}[annealing]
    alphas = [0.8, 0.8, 0.8, 0.8, 0.8, 0.1, 0.1, 0.1]
    batches, model = [make_batch(i) for i in range(STEPS)], bert(1)
    sums = train_by_hand(model, batches, schedule_by_hand(teachers, "bert"), temperatures, alphas)
    np.testing.assert_allclose(logged(trainer, "loss"), sums[:, 0] / sums[:, 3], rtol=1e-4)
    np.testing.assert_allclose(logged(trainer, "kl"), sums[:, 1] / sums[:, 3], rtol=1e-4)
    assert_same_model(trainer.model, model)


def test_a_batch_without_labels_changes_nothing_but_the_moments(tmp_path, teachers):
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
    trainer = ProgressiveDistillationTrainer(model, arguments(tmp_path), train_dataset=Features())
    trainer.train()
    logits = Classifier()(Features().batch(0)["features"])["logits"]
    expected = F.cross_entropy(logits, Features().batch(0)["labels"]).item()
    assert logged(trainer, "loss")[0] == pytest.approx(expected, rel=1e-6)


# Labelled positions


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_head_at_labelled_positions_has_the_logits_and_gradients_of_the_whole(kind):
    batch = make_batch(0)
    labels = batch.pop("labels")
    positions = (labels.flatten() != -100).nonzero()[:, 0]
    model, whole = STUDENTS[kind](5), STUDENTS[kind](5)
    head = LabelledHead.of(model)
    widths = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, made: widths.append(tuple(made.shape)))
    logits = labelled_logits(model, batch, positions, head)
    expected = whole(**batch).logits.flatten(0, 1)[positions]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-7)
    directions = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (logits * directions).sum().backward()
    (expected * directions).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)
    assert widths == [(len(positions), CLASSES)]
    assert model(**batch).logits.shape == (BATCH, LENGTH, CLASSES)


def test_a_model_without_a_known_head_is_computed_whole():
    class Changed(BertForMaskedLM):
        def forward(self, **inputs):
            outputs = super().forward(**inputs)
            return {"logits": 2 * outputs.logits}

    batch = make_batch(0)
    positions = (batch.pop("labels").flatten() != -100).nonzero()[:, 0]
    for model in (Plain(2), Changed(bert(2).config)):
        assert LabelledHead.of(model) is None
        expected = model(**batch)["logits"].flatten(0, 1)[positions]
        torch.testing.assert_close(labelled_logits(model, batch, positions, None), expected, rtol=0, atol=0)


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
    trainer = ProgressiveDistillationTrainer(STUDENTS[kind](1), args, eval_dataset=held_out, data_collator=collate)
    metrics = trainer.evaluate()
    assert (metrics["eval_loss"], metrics["eval_accuracy"]) == pytest.approx(
        evaluate_by_hand(STUDENTS[kind](1), HELD_OUT), rel=1e-5
    )
    assert trainer.records == []


def test_compute_metrics_gets_what_a_trainer_would_give_it(tmp_path):
    rows = samples(make_batch(90, 20))

    def compute(predictions):
        return {"sum": float(np.abs(predictions.predictions).sum()), "labels": int((predictions.label_ids >= 0).sum())}

    args = arguments(tmp_path)
    options = {"eval_dataset": rows, "data_collator": collate, "compute_metrics": compute}
    ours = ProgressiveDistillationTrainer(bert(1), args, **options).evaluate()
    theirs = Trainer(bert(1), args, **options).evaluate()
    for name in ("eval_sum", "eval_labels", "eval_loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_a_schedule_that_is_a_function_sees_every_evaluation_and_decides_the_teacher(tmp_path, teachers):
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
    assert seen == [[], *[evaluations[:i] for i in range(5)]]
    assert logged(trainer, "teacher") == [10, 10, 20, 20, 30, 30, 30, 30]
    assert [record["teacher"] for record in trainer.records] == [10, 20, 30, 30]
    model = bert(1)
    steps = [10, 10, 20, 20, 30, 30, 30, 30]
    train_by_hand(
        model, [make_batch(i) for i in range(STEPS)], lambda step: load_teacher(teachers, "bert", steps[step])
    )
    assert_same_model(trainer.model, model)


def test_the_records_of_a_run_are_means_since_the_record_before(tmp_path, teachers):
    args = recorded_arguments(tmp_path / "run")
    with open_run(tmp_path / "run", {}) as run:
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
    assert json.loads((run.directory / "done.json").read_text()) == last
    loss, accuracy = evaluate_by_hand(checkpoint, HELD_OUT)
    assert (last["loss"], last["accuracy"]) == pytest.approx((loss, accuracy), rel=1e-5)
    assert [c.step for c in find_checkpoints(run.directory)] == [4, 8]


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


@pytest.mark.parametrize(("kind", "backend"), [("bert", "aot_eager"), ("plain", "inductor")])
def test_a_compiled_student_has_the_losses_of_the_eager_one(tmp_path, teachers, kind, backend):
    """The head's choice of positions is traced with BERT, whose number of labels changes; a small model is enough for
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


# Kill and resume


class Killed(BaseException):
    """Passes through every handler of errors."""


class Draws(TrainerCallback):
    """Draws from every generator after each step, or is killed instead."""

    def __init__(self, kill_at=None, kill=None):
        self.kill_at, self.kill, self.drawn = kill_at, kill, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_at:
            self.kill()
        self.drawn[state.global_step] = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002


def kill_by_exception():
    raise Killed


def tell_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def run_with_dropout(directory, teachers, callback=None, accumulate=2, schedule=SCHEDULE):
    """Train to the end of a run, from wherever it was left."""
    args = recorded_arguments(directory, accumulate=accumulate, eval_every=2)
    with open_shared_run(directory, {}, Processes(args.process_index, args.world_size)) as run:
        trainer = distil(
            directory,
            teachers,
            model=bert(1, dropout=0.2),
            args=args,
            run=run,
            schedule=schedule,
            eval_dataset=ReadyBatches(HELD_OUT),
            callbacks=[callback or Draws()],
        )
        train_run(trainer, "test")


def save_often(patch):
    """The resume state is written at every evaluation, whatever the time."""
    patch.setattr(common.trainer, "RESUME_SECONDS", 0.0)
    patch.setattr(common.trainer, "RESUME_SHARE", math.inf)


def content(run):
    files = [*run.glob("checkpoint-*/*"), run / "metrics.jsonl", run / "done.json"]
    assert not (run / "resume").exists()
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, teachers):
    directory, draws = tmp_path_factory.mktemp("uninterrupted") / "run", Draws()
    run_with_dropout(directory, teachers, draws)
    return content(directory), draws.drawn


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_a_run_killed_at_a_step_ends_with_the_same_bits_and_random_numbers(
    tmp_path, teachers, uninterrupted, monkeypatch, step
):
    save_often(monkeypatch)
    with pytest.raises(Killed):
        run_with_dropout(tmp_path / "run", teachers, Draws(step, kill_by_exception))
    draws = Draws()
    random.seed(99)
    run_with_dropout(tmp_path / "run", teachers, draws)
    expected, drawn = uninterrupted
    assert content(tmp_path / "run") == expected
    first = (step - 1) // 2 * 2 + 1
    assert draws.drawn == {step: drawn[step] for step in range(first, STEPS + 1)}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "calls"), [("log", 5), ("save_checkpoint", 2), ("save_resume", 3), ("finish", 1)], ids=lambda value: value
)
def test_a_run_killed_around_any_write_ends_with_the_same_bits(
    tmp_path, teachers, uninterrupted, monkeypatch, name, calls, when
):
    save_often(monkeypatch)
    place = Run if name in ("log", "finish") else common.trainer
    real = getattr(place, name)
    for number in range(1, calls + 1):
        made = 0

        def write(*given, number=number):
            nonlocal made
            made += 1
            if made == number and when == "before":
                raise Killed
            real(*given)
            if made == number:
                raise Killed

        directory = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, write)
            with pytest.raises(Killed):
                run_with_dropout(directory, teachers)
        if not Run(directory).complete:
            run_with_dropout(directory, teachers)
        assert content(directory) == uninterrupted[0]


def test_a_run_whose_process_is_killed_ends_with_the_same_bits(tmp_path, teachers, uninterrupted, monkeypatch):
    words = [sys.executable, __file__, "killed", str(tmp_path / "run"), str(teachers)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (tmp_path / "run" / "resume").iterdir()] == ["4"]
    draws = Draws()
    run_with_dropout(tmp_path / "run", teachers, draws)
    assert content(tmp_path / "run") == uninterrupted[0]
    assert min(draws.drawn) == 5


def test_a_run_killed_between_writes_of_the_resume_state_starts_from_the_last(tmp_path, teachers, uninterrupted):
    """With the default least time between two writes, a run this short has none."""
    with pytest.raises(Killed):
        run_with_dropout(tmp_path / "run", teachers, Draws(7, kill_by_exception))
    assert not (tmp_path / "run" / "resume").exists()
    run_with_dropout(tmp_path / "run", teachers)
    assert content(tmp_path / "run") == uninterrupted[0]


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_stopped_at_a_step_goes_on_after_it_to_the_same_bits_and_random_numbers(
    tmp_path, teachers, uninterrupted, capsys, step
):
    """At every step, most of them without a record; after the last one the run is complete."""
    name = stopped(capsys, lambda: run_with_dropout(tmp_path / "run", teachers, Draws(step, tell_to_stop)))
    expected, drawn = uninterrupted
    if step == STEPS:
        assert name is None
    else:
        assert name == step
        assert [path.name for path in (tmp_path / "run" / "resume").iterdir()] == [str(step)]
        draws = Draws()
        random.seed(99)
        run_with_dropout(tmp_path / "run", teachers, draws)
        assert draws.drawn == {step: drawn[step] for step in range(step + 1, STEPS + 1)}
    assert content(tmp_path / "run") == expected


@pytest.mark.parametrize("logging", [1, 3])
def test_a_run_stopped_between_logs_and_records_has_the_same_means(tmp_path, teachers, capsys, logging):
    """Stopped and going on at every step, with a training log beside the records."""

    class Logs(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            if "learning_rate" in logs:
                kept.append((state.global_step, *(logs[name] for name in ("loss", "kl", "accuracy", "teacher"))))

    def train(directory, stop_at=None):
        args = recorded_arguments(directory, eval_every=4, logging_steps=logging)
        args.logging_strategy = "steps"
        with open_run(directory, {}) as run:
            options = {"run": run, "eval_dataset": ReadyBatches(HELD_OUT), "callbacks": [Draws(stop_at, tell_to_stop)]}
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
    owner = {"log": Run, "evaluate": ProgressiveDistillationTrainer}.get(name, common.trainer)
    calls = {"log": [3], "evaluate": [3]}.get(name, [1, 2])
    with monkeypatch.context() as patch:
        if name == "save_resume":
            save_often(patch)
        patch.setattr(owner, name, and_signal(getattr(owner, name), *calls))
        step = stopped(capsys, lambda: run_with_dropout(tmp_path / "run", teachers))
    assert step == (2 if name == "save_resume" else 4)
    run_with_dropout(tmp_path / "run", teachers)
    assert content(tmp_path / "run") == uninterrupted[0]


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
        callback = Draws(step, tell_to_stop)
        run = lambda callback=callback: run_with_dropout(tmp_path / "run", teachers, callback, schedule=schedule)  # noqa: E731
        assert stopped(capsys, run) == step
    run_with_dropout(tmp_path / "run", teachers, schedule=schedule)
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.parametrize("with_source", [True, False])
def test_a_trainer_s_own_checkpoint_goes_on_with_the_right_batches_and_evaluations(tmp_path, teachers, with_source):
    """Without a run; the schedule is a function of evaluations, some of them from before the checkpoint."""

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


# Several processes


def environment():
    """As many threads as here, as the bits depend on how many there are."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parents[2])}


def distil_rows(directory, teachers):
    """Train on ordinary data in its own order, evaluate on ordinary data, and write what came of it."""
    args = arguments(directory / "rows", logging_steps=4)
    args.train_sampling_strategy = "sequential"
    args.per_device_eval_batch_size = 3
    trainer = distil(
        directory,
        teachers,
        args=args,
        train_dataset=samples(make_batch(0, 2 * BATCH)),
        eval_dataset=samples(make_batch(90, 13)),
        data_collator=collate,
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        write_file(directory / "logs.json", json.dumps([trainer.state.log_history, metrics]).encode())
        save_checkpoint(directory, STEPS, weights(trainer.model), {})


def run_without_dropout(directory, teachers, accumulate, callback=None):
    args = recorded_arguments(directory, accumulate=accumulate)
    with open_shared_run(directory, {}, Processes(args.process_index, args.world_size)) as run:
        callbacks = [callback] if callback else []
        options = {"run": run, "eval_dataset": ReadyBatches(HELD_OUT), "callbacks": callbacks}
        train_run(distil(directory, teachers, args=args, **options), "test")


def main(mode, directory, teachers):
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        if mode == "killed":
            run_with_dropout(directory, teachers, Draws(5, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            return
        run_without_dropout(directory / "run", teachers, accumulate=2)
        distil_rows(directory, teachers)
        draws = {name: Draws() for name in ("whole", "joined", "joined again")}
        for name, callback in draws.items():
            run_with_dropout(directory / name, teachers, callback, accumulate=1)
        with suppress(Killed):
            run_with_dropout(directory / "resumed", teachers, Draws(5, kill_by_exception), accumulate=1)
        run_with_dropout(directory / "resumed", teachers, accumulate=1)
    tell_one = tell_to_stop if os.environ["RANK"] == "1" else lambda: None
    codes = [
        exit_code(lambda: run_with_dropout(directory / "stopped", teachers, Draws(5, tell_one), accumulate=1)),
        exit_code(lambda: run_with_dropout(directory / "left", teachers, Draws(5, tell_one), accumulate=1)),
        exit_code(lambda: run_with_dropout(directory / "stopped", teachers, accumulate=1)),
        exit_code(lambda: run_without_dropout(directory / "changing", teachers, 1, Draws(6, tell_one))),
    ]
    drawn = {name: callback.drawn for name, callback in draws.items()}
    (directory / f"process-{os.environ['RANK']}.json").write_text(json.dumps({"codes": codes, "drawn": drawn}))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, teachers):
    directory = tmp_path_factory.mktemp("two_processes")
    for name in ("joined", "joined again"):
        draws = Draws(3, tell_to_stop)
        assert exit_code(lambda name=name, draws=draws: run_with_dropout(directory / name, teachers, draws)) == 75
    assert exit_code(lambda: run_without_dropout(directory / "changing", teachers, 2, Draws(3, tell_to_stop))) == 75
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launch, __file__, "shared", str(directory), str(teachers)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return directory


def test_two_processes_make_the_run_of_one(tmp_path, teachers, two_processes):
    run_without_dropout(tmp_path, teachers, accumulate=1)
    shared, alone = Run(two_processes / "run").records(), Run(tmp_path).records()
    assert len(shared) == len(alone) == 3
    for here, there in zip(shared, alone, strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-5) for name, value in there.items()}
    for checkpoint in find_checkpoints(tmp_path):
        name = f"checkpoint-{checkpoint.step}"
        models = [BertForMaskedLM.from_pretrained(directory / name) for directory in (tmp_path, two_processes / "run")]
        assert_same_model(*models, atol=1e-5)


def test_two_processes_share_ordinary_data(teachers, two_processes):
    history, metrics = json.loads((two_processes / "logs.json").read_text())
    model, rows = bert(1), make_batch(0, 2 * BATCH)
    halves = [{name: value[start : start + BATCH] for name, value in rows.items()} for start in (0, BATCH)]
    sums = train_by_hand(model, STEPS // 2 * halves, schedule_by_hand(teachers, "bert")).reshape(2, 4, 4).sum(1)
    logs = [entry for entry in history if "learning_rate" in entry]
    for i, name in enumerate(("loss", "kl", "accuracy")):
        np.testing.assert_allclose([entry[name] for entry in logs], sums[:, i] / sums[:, 3], rtol=1e-4)
    trained = bert(0)
    trained.load_state_dict(
        {
            name: torch.from_numpy(tensor)
            for name, tensor in read_checkpoint(two_processes / f"checkpoint-{STEPS}")[1].items()
        },
        strict=False,
    )
    assert_same_model(trained, model)
    expected = evaluate_by_hand(model, [make_batch(90, 13)])
    assert (metrics["eval_loss"], metrics["eval_accuracy"]) == pytest.approx(expected, rel=1e-4)


def test_two_processes_killed_and_resumed_end_with_the_same_bits(two_processes):
    assert content(two_processes / "resumed") == content(two_processes / "whole")


def test_two_processes_of_which_one_is_told_to_stop_stop_together_and_end_with_the_same_bits(two_processes):
    assert content(two_processes / "stopped") == content(two_processes / "whole")
    for index in range(2):
        assert in_process(two_processes, index)["codes"] == [75, 75, 0, 75]
    assert [path.name for path in (two_processes / "left" / "resume").iterdir()] == ["5"]


def in_process(directory, index):
    return json.loads((directory / f"process-{index}.json").read_text())


def test_one_process_then_two_then_one_make_the_run_of_one(tmp_path, teachers, two_processes):
    """Stopped after step 3 and after step 6, each time between two records."""
    shutil.copytree(two_processes / "changing", tmp_path / "changing")
    assert [path.name for path in (tmp_path / "changing" / "resume").iterdir()] == ["6"]
    for name in ("changing", "alone"):
        run_without_dropout(tmp_path / name, teachers, accumulate=1)
    for here, there in zip(Run(tmp_path / "changing").records(), Run(tmp_path / "alone").records(), strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-5) for name, value in there.items()}
    models = [
        BertForMaskedLM.from_pretrained(tmp_path / name / f"checkpoint-{STEPS}") for name in ("changing", "alone")
    ]
    assert_same_model(*models, atol=1e-5)


def test_random_numbers_of_a_process_that_joins_follow_from_seed_step_and_number(
    tmp_path, two_processes, uninterrupted
):
    """That of one that was there go on. The model draws none of Python's own."""
    assert content(two_processes / "joined") == content(two_processes / "joined again")
    first, second = (in_process(two_processes, index)["drawn"]["joined"] for index in range(2))
    for step in range(4, STEPS + 1):
        assert first[str(step)][0] == uninterrupted[1][step][0]
    seeds = np.random.SeedSequence([arguments(tmp_path).seed, 3, 1])
    numbers = random.Random(int(seeds.generate_state(1)[0]))
    assert [second[str(step)][0] for step in range(4, STEPS + 1)] == [numbers.random() for _ in range(4, STEPS + 1)]


def test_random_numbers_of_a_process_that_stays_go_on_when_another_leaves(tmp_path, teachers, two_processes):
    draws = []
    for name in ("one", "other"):
        shutil.copytree(two_processes / "left", tmp_path / name)
        draws.append(Draws())
        run_with_dropout(tmp_path / name, teachers, draws[-1], accumulate=1)
    assert content(tmp_path / "one") == content(tmp_path / "other")
    whole = in_process(two_processes, 0)["drawn"]["whole"]
    assert {str(step): drawn[0] for step, drawn in draws[0].drawn.items()} == {s: whole[s][0] for s in ("6", "7", "8")}


# Teachers


def test_the_teacher_before_is_freed_first_and_at_most_the_next_is_alive_too(tmp_path, teachers):
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
    trainer = distil(tmp_path, teachers, schedule=explicit(plan), load_teacher=load)
    trainer.train()
    assert loaded == [10, 20, 30, 10, 20]
    assert used == [(step, [step]) for step in loaded]
    assert logged(trainer, "teacher") == [10, 20, 20, 30, 10, 10, 20, 20]
    assert len(alive) == 0


def test_the_next_teacher_is_loaded_while_the_one_before_is_in_use():
    begun, go_on = threading.Event(), threading.Event()

    def load(path):
        if path.name == "2":
            begun.set()
            assert go_on.wait(60)
        return Plain(int(path.name))

    chosen = Teachers([Checkpoint(step, Path(str(step))) for step in (1, 2)], load)
    schedule = progressive([1, 2], every=3)
    device = torch.device("cpu")
    first = chosen.at(schedule, 0, device)
    assert begun.wait(60)
    assert chosen.at(schedule, 2, device) is first
    assert not first.model.training
    assert not any(parameter.requires_grad for parameter in first.model.parameters())
    go_on.set()
    second = chosen.at(schedule, 3, device)
    assert (first.step, second.step) == (1, 2)
    assert_same_model(second.model, Plain(2), atol=0)
    assert chosen.at([], 5, device) is None


def test_no_teacher_is_being_loaded_when_training_has_ended(tmp_path, teachers):
    """A schedule that goes on after the last step; a model that is made beside a loading one is not initialised."""
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


def test_a_teacher_that_was_not_foreseen_is_loaded_when_it_is_needed():
    loaded = []

    def load(path):
        loaded.append(int(path.name))
        return Plain(int(path.name))

    chosen = Teachers([Checkpoint(step, Path(str(step))) for step in (1, 2, 3)], load)
    device = torch.device("cpu")
    schedule = progressive([1, 2], every=3)
    steps = [chosen.at(schedule, step, device).step for step in (0, 2)]
    assert [*steps, chosen.at([Segment(0, 3)], 3, device).step] == [1, 1, 3]
    assert loaded == [1, 2, 3]


@pytest.mark.parametrize("damage", ["missing", "cut", "not a teacher"])
def test_an_error_of_loading_reaches_the_main_thread_as_it_is(tmp_path, teachers, damage):
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
    with pytest.raises(Exception) as expected:  # noqa: PT011
        BertForMaskedLM.from_pretrained(path.parent)
    with pytest.raises(expected.type) as found:
        trainer.train()
    assert str(found.value) == str(expected.value)
    assert logged(trainer, "teacher") == [20, 20, 20]


def test_an_own_loader_s_error_is_the_very_same_object(tmp_path, teachers):
    error = RuntimeError("no such teacher")

    def load(path):
        raise error

    with pytest.raises(RuntimeError) as found:
        distil(tmp_path, teachers, load_teacher=load).train()
    assert found.value is error


def test_teachers_draw_no_random_numbers_of_the_training(tmp_path, teachers):
    """With alpha 1 the teacher teaches nothing, so that dropout is all that it could change."""
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
        ({"schedule": ()}, "needs both a teacher"),
        ({"teacher": None}, "needs both a teacher"),
        ({"teacher": []}, "needs both a teacher"),
        ({"schedule": [Segment(0, 10), Segment(2, 25)]}, "teacher step 25, where there is no checkpoint"),
        ({"schedule": [Segment(1, 10)]}, "begin at step 0"),
        ({"schedule": [Segment(0, 10), Segment(4, 20), Segment(4, 30)]}, "go on in order"),
        ({"alpha": -0.1}, "alpha must be between 0 and 1"),
        ({"alpha": (0.5, 1.1), "alpha_steps": [3]}, "alpha must be between 0 and 1"),
        ({"alpha": math.nan}, "alpha must be between 0 and 1"),
        ({"alpha": (0.5, 1.0)}, "0 boundaries separate 1 values, got 2"),
        ({"temperature": -1.0}, "temperatures must be 0 or more"),
        ({"temperature": (1.0, 0.0), "annealing": "logarithmic"}, "logarithmic annealing needs"),
        ({"divergence": "jensen-shannon", "beta": 1.0}, "beta must be between 0 and 1"),
        ({"teacher": "no/such/directory"}, "there is no directory no/such/directory"),
    ],
)
def test_wrong_arguments_are_refused_at_once(tmp_path, teachers, options, message):
    with pytest.raises(UserError, match=message) as found:
        distil(tmp_path, teachers, **options)
    assert found.value.exit_code == 2


def test_a_schedule_that_comes_to_a_missing_checkpoint_is_refused(tmp_path, teachers):
    args = arguments(tmp_path)
    args.eval_strategy, args.eval_steps = "steps", 2

    def schedule(evaluations):
        return [Segment(0, 10), *[Segment(step, 10 + step) for step, _ in evaluations]]

    trainer = distil(tmp_path, teachers, args=args, schedule=schedule, eval_dataset=ReadyBatches(HELD_OUT))
    with pytest.raises(UserError, match="teacher step 12, where there is no checkpoint"):
        trainer.train()


def test_a_run_needs_a_source(tmp_path, teachers):
    with open_run(tmp_path / "run", {}) as run, pytest.raises(UserError, match="a run needs a Source"):
        distil(tmp_path, teachers, run=run, train_dataset=samples(make_batch(0)))


def test_a_student_without_from_pretrained_needs_a_loader(tmp_path, teachers):
    with pytest.raises(UserError, match="Plain has no from_pretrained: give load_teacher"):
        distil(tmp_path, teachers, "plain", load_teacher=None).train()


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 3), (2, 4)])
def test_a_batch_that_cannot_be_cut_is_refused(tmp_path, batch_size, accumulate):
    with pytest.raises(UserError, match=f"--batch-size {batch_size} cannot be cut into {accumulate} equal parts"):
        arguments(tmp_path, batch_size=batch_size, accumulate=accumulate)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="torch finds no GPU"):
        arguments(tmp_path, device="cuda")


@pytest.mark.parametrize("size", [6, 9])
def test_a_source_of_another_batch_size_is_refused(tmp_path, teachers, size):
    trainer = distil(tmp_path, teachers, train_dataset=Batches(size), args=arguments(tmp_path, accumulate=2))
    with pytest.raises(UserError, match=f"batches of {size} samples, not of 8"):
        trainer.train()


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
    with open_run(directory, {}) as run:
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
    with open_run(tmp_path / "run", {}) as run:
        trainer = distil(tmp_path, teachers, "plain", args=args, run=run, eval_dataset=ReadyBatches(HELD_OUT))
        with pytest.raises(UserError, match="Plain has no configuration to save: train without a run"):
            train_run(trainer, "test")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
