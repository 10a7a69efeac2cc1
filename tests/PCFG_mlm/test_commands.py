"""The commands as a user meets them: killed, out of room, wrongly called, called twice, and from every folder."""

import itertools
import json
import math
import re
import resource
import shlex
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from torch.nn.functional import cross_entropy, log_softmax
from transformers import BertConfig, BertForMaskedLM

from common.distillation import run_loop, trainer
from common.distillation.losses import IGNORED_LABEL
from common.pcfg import grammar as grammars, training
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.task import rules_of
from common.runs import resume
from common.runs.names import EXECUTION_ARGUMENTS
from common.runs.run import Run, open_run
from common.teachers.discovery import find_checkpoints
from PCFG_mlm import data, distill, probe, train
from PCFG_mlm.batches import MaskedTask, TrainingBatches, evaluation_batches
from PCFG_mlm.models import new_model
from tests import commands
from tests.commands import (
    ROOT,
    and_signal,
    cut,
    files,
    kill_again_and_again,
    python,
    results,
    results_below,
    start,
    stop_again_and_again,
)

COMMANDS = {"train": train, "distill": distill, "probe": probe, "data": data}
TASK = MaskedTask(load_grammar("small"))
SIZES = "--batch-size 8 --eval-every 5 --eval-samples 32"
TRAIN = shlex.split(f"train smoke {SIZES} --heads 2 --steps 30")
DISTILL = shlex.split(f"distill smoke {SIZES} --steps 12 --student-heads 1 --seeds 0 --first-steps 5")


def succeed(capsys, name, *words):
    return commands.succeed(capsys, COMMANDS[name].main, *words)


def fail_in_one_line(capsys, name, *words):
    return commands.fail_in_one_line(capsys, COMMANDS[name].main, *words)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run on the smallest grammar of the package, with checkpoints at steps 10, 20 and 30."""
    directory = tmp_path_factory.mktemp("pcfg") / "teacher"
    sizes = {"heads": 2, "batch_size": 8, "eval_every": 5, "eval_samples": 32, "steps": 30}
    train.train(replace(train.PRESETS["smoke"], **sizes, out=directory))
    return directory


def measured(directory):
    """Loss and accuracy of a saved model on the held-out sentences, one sentence at a time, in float64."""
    model = BertForMaskedLM.from_pretrained(directory).double().eval()
    loss, correct, count = 0.0, 0, 0
    for batch in evaluation_batches(TASK, 32, 32):
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            length = int((ids != TASK.pad).sum())
            with torch.no_grad():
                logits = model(input_ids=ids[None, :length], attention_mask=mask[None, :length]).logits[0]
            for row, label in zip(logits, labels.tolist(), strict=False):
                if label != IGNORED_LABEL:
                    loss -= float(row.log_softmax(-1)[label])
                    correct += int(row.argmax()) == label
                    count += 1
    return loss / count, correct / count


# What a run is


def test_a_teacher_is_a_directory_that_transformers_reads(tmp_path, capsys):
    stdout = succeed(capsys, *TRAIN, "--out", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert {path.name for path in run.directory.iterdir()} == {
        *("config.json", "metrics.jsonl", "done.json", ".lock"),
        *(f"checkpoint-{step}" for step in (10, 20, 30)),
    }
    arguments = run.config["arguments"]
    assert arguments["rules"] == rules_of(TASK.grammar)
    assert {name: arguments[name] for name in ("preset", "grammar", "start", "heads", "steps", "seed", "lr")} == {
        **{"preset": "smoke", "grammar": "small", "start": "13"},
        **{"heads": 2, "steps": 30, "seed": 0, "lr": 5e-3},
    }
    records = run.records()
    assert [record["step"] for record in records] == list(range(0, 31, 5))
    assert [record["samples"] for record in records] == list(range(0, 241, 40))
    assert all(record["kl"] is record["teacher"] is None for record in records)
    for record in (records[2], records[4], records[6]):
        loss, accuracy = measured(run.directory / f"checkpoint-{record['step']}")
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["accuracy"] == pytest.approx(accuracy)
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert json.loads((run.directory / "done.json").read_text()) == {
        name: records[-1][name] for name in ("step", "loss", "accuracy")
    }
    assert stdout == f"{run.directory}: accuracy {records[-1]['accuracy']:.3f}\n"


def test_every_method_learns_from_the_checkpoints_of_its_schedule(tmp_path, capsys, teacher):
    words = shlex.split(
        "--eval-every 1 --eval-samples 8 --checkpoint 10 --segments 10:5 30:4 20 --speed 4 --warmup 0 --temperature 1 "
        "--saturation-window 1 --saturation-threshold 1 --saturation-steps 100 --methods"
    )
    expected = {
        "ce": [None] * 12,
        "one-shot": [30] * 12,
        "progressive": [10] * 4 + [20] * 4 + [30] * 4,
        "two-shot-10": [10] * 5 + [30] * 7,
        "until-saturation": [10] * 2 + [20] * 2 + [30] * 8,  # no accuracy is 1 above the one before it
        "accelerated": [10] * 5 + [20] * 3 + [30] * 4,
        "refreshed": [10] * 4 + [30] * 8,
        "custom": [10] * 5 + [30] * 4 + [20] * 3,
    }
    methods = [name.removesuffix("-10") for name in expected]
    succeed(capsys, *DISTILL, "--teacher", teacher, *words, *methods, "--out", tmp_path / "students")
    assert {path.name for path in (tmp_path / "students").iterdir()} == {
        f"{name}-heads1-steps12-seed0" for name in expected
    }
    identity, losses = Run(teacher).config["id"], {}
    for name, teachers in expected.items():
        run = Run(tmp_path / "students" / f"{name}-heads1-steps12-seed0")
        assert run.complete
        assert [checkpoint.step for checkpoint in find_checkpoints(run.directory)] == [12]
        assert BertForMaskedLM.from_pretrained(run.directory / "checkpoint-12").config.hidden_size == 8
        _, *records = run.records()
        assert [record["teacher"] for record in records] == teachers  # of the step before each evaluation
        assert [record["kl"] is None for record in records] == [taught is None for taught in teachers]
        assert run.config["arguments"]["teacher_id"] == identity
        losses[name] = [record["loss"] for record in run.records()]
    for one, other in itertools.combinations(expected, 2):
        parted = False
        taught = zip(expected[one], expected[other], losses[one][1:], losses[other][1:], strict=True)
        for step, (mine, yours, my_loss, your_loss) in enumerate(taught):
            parted = parted or mine != yours
            assert (my_loss != your_loss) == parted, (one, other, step)


def test_probes_of_a_student(tmp_path, capsys, teacher):
    run = tmp_path / "student"
    succeed(capsys, *DISTILL, "--methods", "progressive", "--checkpoint-every", 6, "--teacher", teacher, "--out", run)
    for words, keys in (
        ("ngrams --sentences 8 --exact 2", {"robust", "close"}),
        ("nonterminals --training 16 --heldout 8 --epochs 1 --heads 2 --dimension 8", {"levels"}),
    ):
        (name,) = succeed(capsys, "probe", *words.split(), "--run", run).splitlines()
        content = json.loads(Path(name).read_text())
        assert Path(name).parent == run / "probes"
        assert [entry["step"] for entry in content["checkpoints"]] == [6, 12]
        assert all(keys <= set(entry) for entry in content["checkpoints"])
    assert Run(run).complete


# Other people's teachers


class PlainSentences(torch.utils.data.Dataset):
    """Sentences for a Trainer that knows nothing of this project."""

    def __init__(self):
        source = TrainingBatches(TASK, 5, 8)
        self.rows = [
            dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True))
            for step in range(4)
            for row in zip(*vars(source.batch(step)).values(), strict=True)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def pad(rows):
    fill = {"input_ids": TASK.pad, "attention_mask": 0, "labels": IGNORED_LABEL}
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }


@pytest.fixture(scope="module")
def plain_teacher(tmp_path_factory):
    """checkpoint-4 and checkpoint-8 of a transformers.Trainer."""
    directory = tmp_path_factory.mktemp("plain") / "output"
    config = BertConfig(
        vocab_size=8,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=40,
        pad_token_id=TASK.pad,
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        max_steps=8,
        save_steps=4,
        learning_rate=0.01,
        per_device_train_batch_size=8,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    transformers.set_seed(0)
    plain = transformers.Trainer(BertForMaskedLM(config), arguments, train_dataset=PlainSentences(), data_collator=pad)
    plain.train()
    return directory


def test_a_teacher_of_a_plain_trainer_works_as_it_is(tmp_path, capsys, plain_teacher):
    before = files(plain_teacher)
    assert "checkpoint-8/optimizer.pt" in before
    words = shlex.split("--methods progressive --steps 2 --eval-every 1 --dropout 0 --temperature 1.5 --alpha 0.25")
    succeed(capsys, *DISTILL, *words, "--teacher", plain_teacher, "--out", tmp_path / "student")
    assert files(plain_teacher) == before
    _, first, second = Run(tmp_path / "student").records()
    assert (first["teacher"], second["teacher"]) == (4, 8)
    assert Run(tmp_path / "student").config["arguments"]["teacher_id"] is None

    batch = TrainingBatches(TASK, 1000, 8).batch(0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    chosen = batch.labels != IGNORED_LABEL
    student = new_model(TASK, 1, 1, 8, 0.0, 0).eval()
    teacher = BertForMaskedLM.from_pretrained(plain_teacher / "checkpoint-4").eval()
    with torch.no_grad():
        mine, theirs = (model(**inputs).logits[chosen].double() for model in (student, teacher))
    targets = (theirs / 1.5).softmax(-1)
    kl = (targets * (targets.log() - log_softmax(mine, -1))).sum(-1).mean()
    loss = 0.25 * cross_entropy(mine, batch.labels[chosen]) + 0.75 * kl
    assert first["kl"] == pytest.approx(float(kl), rel=1e-5)
    assert first["train_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_transition_cannot_be_looked_for_without_a_curve(tmp_path, capsys, plain_teacher, teacher):
    words = [*DISTILL, "--methods", "two-shot", "--out", tmp_path / "students", "--teacher"]
    assert "has no metrics.jsonl to find a transition in" in fail_in_one_line(capsys, *words, plain_teacher)
    assert "phases need at least 8 evaluations" in fail_in_one_line(capsys, *words, teacher)
    assert files(tmp_path) == {}


# Killed


def test_a_run_killed_eight_times_ends_with_the_same_bits(tmp_path, capsys):
    words = [
        *TRAIN,
        *shlex.split("--steps 150 --eval-every 3 --checkpoint-every 15 --dropout 0.2 --accumulate 2"),
        "--out",
    ]
    succeed(capsys, *words, tmp_path / "undisturbed")
    kill_again_and_again(8, tmp_path / "killed", resume, train.__name__, *words[1:], tmp_path / "killed")
    succeed(capsys, *words, tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


def test_students_killed_four_times_end_with_the_same_bits(tmp_path, capsys, teacher):
    words = [*DISTILL, *shlex.split("--steps 60 --eval-every 2 --dropout 0.2 --saturation-steps 26 --alpha 0.3 0")]
    words += ["--alpha-steps", 30, "--methods", "progressive", "until-saturation", "--teacher", teacher, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    second = "until-saturation-heads1-steps60-seed0"
    assert len({record["teacher"] for record in Run(tmp_path / "undisturbed" / second).records()}) == 3
    shutil.copytree(
        tmp_path / "undisturbed" / "progressive-heads1-steps60-seed0",
        tmp_path / "killed" / "progressive-heads1-steps60-seed0",
    )
    run = tmp_path / "killed" / second
    kill_again_and_again(4, run, resume, distill.__name__, *words[1:], tmp_path / "killed")
    succeed(capsys, *words, tmp_path / "killed")
    assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


# Told to stop


def test_a_run_told_to_stop_three_times_ends_with_the_same_bits(tmp_path, capsys):
    cadence = shlex.split("--steps 66 --eval-every 3 --checkpoint-every 15 --dropout 0.2 --accumulate 2")
    words = [*TRAIN, *cadence, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    stop_again_and_again(tmp_path / "stopped", train.__name__, *words[1:], tmp_path / "stopped")
    succeed(capsys, *words, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        (trainer.ProgressiveDistillationTrainer, "compute_loss", 4, 4),
        (training, "open_shared_run", 2, None),
        (run_loop, "progress", 2, 0),
        (trainer.ProgressiveDistillationTrainer, "compute_loss", 12 + 7, 7),
    ],
    ids=["first", "between", "before the first step", "second"],
)
def test_students_told_to_stop_leave_together_and_end_with_the_same_bits(
    tmp_path, capsys, monkeypatch, teacher, owner, name, call, step
):
    words = [*DISTILL, *shlex.split("--dropout 0.2 --methods progressive until-saturation ce --saturation-steps 5")]
    words += ["--teacher", teacher, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_signal(getattr(owner, name), call))
        code, _, stderr = start(capsys, distill.main, *words[1:], tmp_path / "stopped")
    place = "" if step is None else f" at step {step}"
    assert (code, stderr.splitlines()[-1]) == (75, f"stopped by SIGTERM{place}: the same command goes on")
    begun = {run.name.rpartition("-heads")[0] for run in (tmp_path / "stopped").iterdir()}
    assert begun == {"progressive"} if call in (2, 4) and step != 0 else {"progressive", "until-saturation"}
    succeed(capsys, *words, tmp_path / "stopped")
    assert results_below(tmp_path / "stopped") == results_below(tmp_path / "undisturbed")


# Out of room


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    words = [*TRAIN, "--heads", 8, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    saves = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(*arguments):
        saves.append(1)
        if len(saves) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        save_checkpoint(*arguments)

    save_checkpoint = run_loop.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(run_loop, "save_checkpoint", save)
        patch.setattr(resume, "RESUME_SECONDS", 0)
        try:
            code, stdout, stderr = start(capsys, train.main, *words[1:], tmp_path / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    *shown, line = stderr.splitlines()
    assert (code, stdout) == (2, "")
    assert all(": step " in other for other in shown)
    assert line.startswith("error: ")
    assert "model.safetensors: File too large" in line
    there, undisturbed = files(tmp_path / "full"), files(tmp_path / "undisturbed")
    saved = {name: content for name, content in there.items() if name.startswith("checkpoint")}
    assert {name.split("/")[0] for name in saved} == {"checkpoint-10", "checkpoint-20"}
    assert saved == {name: undisturbed[name] for name in saved}
    assert not [name for name in there if name.endswith(".unfinished")]
    succeed(capsys, *words, tmp_path / "full")
    assert results(tmp_path / "full") == results(tmp_path / "undisturbed")


# Wrongly called

WRONG = [
    ("--layers 0", "--layers must be at least 1, got 0"),
    ("--head-dim 0", "--head-dim must be at least 1, got 0"),
    ("--batch-size 0", "--batch-size must be at least 1, got 0"),
    ("--eval-every 0", "--eval-every must be at least 1, got 0"),
    ("--eval-samples 0", "--eval-samples must be at least 1, got 0"),
    ("--accumulate 0", "--accumulate must be at least 1, got 0"),
    ("--checkpoint-every -1", "--checkpoint-every must be at least 0, got -1"),
    ("--steps 0", "--steps must be at least 1, got 0"),
    ("--lr 0", "--lr must be positive and finite, got 0"),
    ("--lr nan", "--lr must be positive and finite, got nan"),
    ("--lr inf", "--lr must be positive and finite, got inf"),
    ("--warmup -0.1", "--warmup is a share of the steps, between 0 and 1; got -0.1"),
    ("--warmup 1.1", "--warmup is a share of the steps, between 0 and 1; got 1.1"),
    ("--warmup nan", "--warmup is a share of the steps, between 0 and 1; got nan"),
    ("--dropout 1", "--dropout must be at least 0 and below 1, got 1"),
    ("--dropout -0.1", "--dropout must be at least 0 and below 1, got -0.1"),
    ("--mask-rate 0", "the mask rate must be above 0"),
    ("--mask-rate 1", "the mask rate must be above 0"),
    ("--batch-size 6 --accumulate 4", "--batch-size 6 cannot be cut into 4 equal parts"),
    ("--grammar cfg4", "cfg4"),
    ("--start 99", "99"),
    ("--dataset missing", "missing is not a dataset that data.py export wrote"),
]
WRONG_TRAIN = [
    ("--heads 0", "--heads must be at least 1, got 0"),
    ("--seed -1", "--seed must be at least 0, got -1"),
    ("--seed 9223372036854775808", "--seed must be below 2^63"),
]
WRONG_DISTILL = [
    ("--student-heads 0", "--student-heads must be at least 1, got 0"),
    ("--student-heads 2 4 2", "--student-heads needs at least one value and none twice, got [2, 4, 2]"),
    ("--methods ce ce", "--methods needs at least one value and none twice, got ['ce', 'ce']"),
    ("--seeds 0 0", "--seeds needs at least one value and none twice, got [0, 0]"),
    ("--steps 5 5", "--steps needs at least one value and none twice, got [5, 5]"),
    ("--steps 5 0", "--steps must be at least 1, got 0"),
    ("--checkpoint 10 10", "--checkpoint needs at least one value and none twice"),
    ("--seeds 0 -1", "--seeds must be at least 0, got -1"),
    ("--stream-seed -1", "--stream-seed must be at least 0, got -1"),
    ("--methods ce one-shot --alpha 2", "--alpha must be between 0 and 1"),
    ("--methods one-shot --alpha 0.5 0", "--alpha-steps"),
    ("--methods one-shot --temperature -1", "--temperature must be 0 or more"),
    ("--methods one-shot --temperature nan", "--temperature must be 0 or more, got nan"),
    ("--methods one-shot --annealing logarithmic", "needs temperatures above 0"),
    ("--methods one-shot --top-k 9", "--top-k must be between 1 and the number of classes, 8, got 9"),
    ("--methods one-shot --divergence jensen-shannon --beta 1", "--beta must be between 0 and 1"),
    ("--methods progressive --teacher-every 0", "student steps per checkpoint must be positive"),
    ("--methods progressive --teacher-checkpoints 9", "the first is 10"),
    ("--methods two-shot --checkpoint 5", "at or before teacher step 5; the first is 10"),
    ("--methods two-shot --checkpoint middle", "--checkpoint must be a teacher step, before, inside or after"),
    ("--methods two-shot --checkpoint 10 --first-steps 0", "must be positive"),
    ("--methods accelerated --speed 0", "must be positive"),
    ("--methods refreshed", "the first is 10"),
    ("--methods custom", "names no checkpoint"),
    ("--methods custom --segments 10 20", "--segments is a list of checkpoint:steps"),
    ("--methods until-saturation --saturation-window 0", "window"),
    ("--grammar cfg3b --start 13", "was trained on small from 13, but here the grammar is cfg3b from 13"),
    ("--start 12", "was trained on small from 13, but here the grammar is small from 12"),
]


@pytest.mark.parametrize(("words", "message"), [*WRONG, *WRONG_TRAIN])
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(tmp_path, capsys, words, message):
    assert message in fail_in_one_line(capsys, *TRAIN, "--out", tmp_path / "run", *words.split())
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("words", "message"), [*WRONG, *WRONG_DISTILL])
def test_students_that_cannot_be_are_refused_before_anything_is_made(tmp_path, capsys, teacher, words, message):
    before = files(teacher)
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", teacher, "--out", tmp_path / "students", *words.split())
    assert message in line
    assert files(tmp_path) == {}
    assert files(teacher) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S -> A b\nA -> c\nB -> d\n", "line 3: B cannot be reached"),
        ("S -> A b\nA -> S | c\nS -> A\n", "lead back to"),
        ("S -> S S [0.6] | a [0.4]\n", "may go on for ever"),
        ("S -> a [0]\n", "line 1: the weight [0] is not a positive finite number"),
        ("nonsense\n", "line 1: 'nonsense' is not a rule"),
        ("", "has no rules"),
    ],
)
def test_a_bad_grammar_file_is_one_line(tmp_path, capsys, teacher, text, message):
    (tmp_path / "bad.cfg").write_text(text)
    before = files(tmp_path)
    for words in (TRAIN, [*DISTILL, "--teacher", teacher], shlex.split("data export --sentences 5")):
        line = fail_in_one_line(capsys, *words, "--grammar", tmp_path / "bad.cfg", "--out", tmp_path / "run")
        assert message in line
        assert str(tmp_path / "bad.cfg") in line
    assert files(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path, capsys, teacher):
    for words in (TRAIN, [*DISTILL, "--teacher", teacher]):
        line = fail_in_one_line(capsys, *words, "--device", "cuda", "--out", tmp_path / "run")
        assert "--device cuda cannot be used" in line
    assert files(tmp_path) == {}


def test_sentences_that_are_too_long_for_a_model_are_one_line(tmp_path, capsys):
    (tmp_path / "long.cfg").write_text("S -> S S [0.4999] | a [0.5001]\n")
    words = ["--grammar", tmp_path / "long.cfg", "--eval-samples", 100, "--out", tmp_path / "run"]
    assert "tokens, and a model has 1,024 positions" in fail_in_one_line(capsys, *TRAIN, *words)
    assert Run(tmp_path / "run").records() == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train smokey", "smokey"),
        ("train smoke --learning-rat 1", "--learning-rat"),
        ("train smoke --steps many", "--steps"),
        ("train smoke --precision bf8", "--precision"),
        ("distill smoke --methods guess", "--methods"),
        ("probe ngrams", "--run"),
        ("probe monomials", "monomials"),
        ("data export", "--sentences"),
    ],
)
def test_usage_errors_name_the_word_and_exit_with_two(capsys, words, named):
    name, *arguments = words.split()
    code, _, stderr = start(capsys, COMMANDS[name].main, *arguments)
    assert code == 2
    assert named in stderr


def save_other_vocabulary(directory):
    task = MaskedTask(parse_grammar("S -> a b c d", "letters"))
    new_model(task, 1, 1, 8, 0.0, 0).save_pretrained(directory / "checkpoint-10")


def save_too_few_positions(directory):
    task = MaskedTask(parse_grammar("S -> 1 2 3", "short"))
    new_model(task, 1, 1, 8, 0.0, 0).save_pretrained(directory / "checkpoint-10")


def save_gpt2(directory):
    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=3, eos_token_id=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory / "checkpoint-10")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (save_other_vocabulary, "has a vocabulary of 9, but small with its 3 terminals needs one of 8"),
        (save_too_few_positions, "has 4 positions, but sentences of small from 13 need 34"),
        (save_gpt2, "is a model of type gpt2"),
        (Path.mkdir, "has no checkpoint-<step> directory"),
        (lambda directory: None, "there is no directory"),
    ],
)
def test_what_cannot_teach_this_grammar_is_one_line(tmp_path, capsys, make, message):
    make(tmp_path / "teacher")
    before = files(tmp_path)
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students")
    assert message in line
    assert str(tmp_path / "teacher") in line
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoint-30/model.safetensors", "checkpoint-30/config.json", "config.json"])
def test_a_file_of_the_teacher_that_is_cut_off_is_one_line(tmp_path, capsys, teacher, name):
    damaged = shutil.copytree(teacher, tmp_path / "teacher") / name
    cut(damaged)
    before = files(tmp_path)
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students")
    assert str(damaged.parent) in line
    assert files(tmp_path) == before


def test_a_teacher_that_is_not_whole_is_one_line(tmp_path, capsys, teacher):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    words = [*DISTILL, "--teacher", mine, "--out", tmp_path / "students"]
    (mine / "checkpoint-20" / "model.safetensors").unlink()
    assert "checkpoint-20 lacks config.json or model.safetensors" in fail_in_one_line(capsys, *words)
    shutil.rmtree(mine / "checkpoint-20")
    (mine / "done.json").unlink()
    assert "is not complete: finish it first" in fail_in_one_line(capsys, *words)
    assert not (tmp_path / "students").exists()


def test_students_go_on_when_a_checkpoint_that_is_cut_off_is_mended(tmp_path, capsys, teacher):
    words = [*DISTILL, "--methods", "progressive", "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed", "--teacher", teacher)
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    cut(mine / "checkpoint-20" / "model.safetensors")
    code, _, stderr = start(capsys, distill.main, *words[1:], tmp_path / "student", "--teacher", mine)
    assert code == 2
    assert f"error: the weights in {mine / 'checkpoint-20'} are missing or damaged" in stderr.splitlines()[-1]
    shutil.copy(teacher / "checkpoint-20" / "model.safetensors", mine / "checkpoint-20")
    succeed(capsys, *words, tmp_path / "student", "--teacher", mine)
    assert results(tmp_path / "student") == results(tmp_path / "undisturbed")


def test_students_of_a_teacher_that_was_trained_anew_are_not_taken_for_complete(tmp_path, capsys, teacher):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    words = [*DISTILL, "--methods", "one-shot", "--teacher", mine, "--out", tmp_path / "run"]
    succeed(capsys, *words)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "id": "another"}))
    assert "teacher_id" in fail_in_one_line(capsys, *words)


def test_a_teacher_of_the_same_rules_in_another_file_is_accepted(tmp_path, capsys, teacher):
    shutil.copy(grammars.GRAMMARS / "small.cfg", tmp_path / "mine.cfg")
    words = ["--grammar", tmp_path / "mine.cfg", "--mask-rate", 0.2, "--no-hide-masked", "--methods", "one-shot"]
    succeed(capsys, *DISTILL, "--teacher", teacher, *words, "--out", tmp_path / "run")


# Datasets


def export(capsys, directory, sentences, *words):
    words = ["--sentences", sentences, "--validation", 0, *words, "--out", directory]
    succeed(capsys, "data", "export", "--grammar", "small", *words)


def test_training_on_a_dataset_of_its_seed_is_training_from_the_sampler(tmp_path, capsys, teacher):
    # Two groups of 16 batches of 4 sentences.
    export(capsys, tmp_path / "dataset", 128, "--seed", 7)
    commands = {
        "train": [*TRAIN, "--seed", 7, "--steps", 32],
        "distill": [*DISTILL, "--methods", "progressive", "--stream-seed", 7, "--steps", 32, "--teacher", teacher],
    }
    for name, words in commands.items():
        words += ["--batch-size", 4]
        succeed(capsys, *words, "--out", tmp_path / name)
        succeed(capsys, *words, "--out", tmp_path / f"{name} on it", "--dataset", tmp_path / "dataset")
        assert results(tmp_path / f"{name} on it") == results(tmp_path / name)
        dataset = Run(tmp_path / f"{name} on it").config["arguments"]["dataset"]
        assert dataset == str(tmp_path / "dataset")


def test_a_dataset_that_is_of_another_grammar_or_too_small_is_one_line(tmp_path, capsys, teacher):
    export(capsys, tmp_path / "other", 300, "--start", "12")
    export(capsys, tmp_path / "few", 239)
    before = files(tmp_path)
    students = [*DISTILL, "--methods", "ce", "--steps", 2, 30, "--teacher", teacher]
    for words in (TRAIN, students):
        for name, message in (
            ("other", "holds sentences of small from 12, which is not this run's grammar, small from 13"),
            ("few", "has 239 sentences and the run needs 240"),
        ):
            line = fail_in_one_line(capsys, *words, "--dataset", tmp_path / name, "--out", tmp_path / "run")
            assert message in line
    assert files(tmp_path) == before


# Diverged


@pytest.mark.parametrize("cadence", ["--eval-every 5", "--eval-every 40 --checkpoint-every 4", "--eval-every 40"])
def test_a_loss_that_is_not_finite_is_one_line_with_exit_code_three(tmp_path, capsys, monkeypatch, cadence):
    monkeypatch.setattr(resume, "RESUME_SECONDS", 0)
    words = [*TRAIN, "--checkpoint-every", 0, *cadence.split(), "--lr", "1e30", "--out", tmp_path / "run"]
    for _ in range(2):
        code, stdout, stderr = start(capsys, train.main, *words[1:])
        *shown, line = stderr.splitlines()
        assert (code, stdout) == (3, "")
        assert all(": step " in other for other in shown)
        assert re.fullmatch("error: .*/run: the loss is not finite at step [0-9]+: give a lower --lr", line)
        run = Run(tmp_path / "run")
        assert not run.complete
        assert all(math.isfinite(record["loss"]) for record in run.records())
        for path in run.directory.rglob("*.safetensors"):
            tensors = safetensors.numpy.load_file(path)
            assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    succeed(capsys, *TRAIN, "--out", tmp_path / "run", "--force")


def test_a_student_that_diverges_does_not_stop_the_others(tmp_path, capsys, monkeypatch, teacher):
    settings_of = training.settings_of

    def diverging_settings_of(arguments, directory, steps, seed):
        return settings_of(replace(arguments, lr=1e30) if seed == 1 else arguments, directory, steps, seed)

    words = [*DISTILL, "--methods", "one-shot", "--teacher", teacher, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "settings_of", diverging_settings_of)
        code, _, stderr = start(capsys, distill.main, *words[1:], tmp_path / "runs", "--seeds", 1, 0)
    assert code == 3
    assert "one-shot-heads1-steps12-seed1: the loss is not finite at step 5" in stderr.splitlines()[-1]
    assert not Run(tmp_path / "runs" / "one-shot-heads1-steps12-seed1").complete
    succeed(capsys, *words, tmp_path / "alone")
    assert results(tmp_path / "runs" / "one-shot-heads1-steps12-seed0") == results(tmp_path / "alone")


# Called twice


def test_a_complete_run_is_not_run_again_unless_forced(tmp_path, capsys, monkeypatch, teacher):
    for words in (TRAIN, [*DISTILL, "--methods", "progressive", "--teacher", teacher]):
        directory = tmp_path / words[0]
        words = [*words, "--out", directory]
        succeed(capsys, *words)
        before, made = files(directory), results(directory)
        with monkeypatch.context() as patch:
            patch.setattr(training, "ProgressiveDistillationTrainer", None)
            assert succeed(capsys, *words) == f"{directory} is complete\n"
        assert files(directory) == before
        cut(find_checkpoints(directory)[-1].location / "model.safetensors")
        succeed(capsys, *words, "--force")
        assert results(directory) == made


def test_students_that_are_added_later_join_those_that_are_complete(tmp_path, capsys, teacher):
    words = [*DISTILL, "--teacher", teacher, "--methods", "ce", "one-shot", "--out", tmp_path / "students", "--seeds"]
    succeed(capsys, *words, 0)
    before = files(tmp_path / "students")
    succeed(capsys, *words, 0, 1)
    assert {name: files(tmp_path / "students")[name] for name in before} == before
    assert len(list((tmp_path / "students").iterdir())) == 4


def test_other_arguments_or_a_foreign_directory_are_refused(tmp_path, capsys, teacher):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("Once")
    shutil.copytree(teacher, tmp_path / "run")
    before = files(tmp_path)
    line = fail_in_one_line(capsys, *TRAIN, "--lr", 0.01, "--out", tmp_path / "run")
    assert "lr is 0.005 there and 0.01 here" in line
    for more in ([], ["--force"]):
        assert "is not a run" in fail_in_one_line(capsys, *TRAIN, *more, "--out", tmp_path / "thesis")
    del before["run/.lock"]
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_second_process_on_the_same_run_is_refused(tmp_path, capsys, teacher):
    shutil.copytree(teacher, tmp_path / "run")
    before = files(tmp_path)
    with open_run(tmp_path / "run", Run(tmp_path / "run").config["arguments"]):
        for more in ([], ["--force"]):
            line = fail_in_one_line(capsys, *TRAIN, *more, "--out", tmp_path / "run")
            assert "another process is at work" in line
    assert files(tmp_path) == before


# Names

OTHERS = {
    **{"grammar": "cfg3b", "start": "12", "layers": 2, "head_dim": 4, "batch_size": 32, "lr": 1e-3, "dropout": 0.0},
    **{"eval_every": 7, "checkpoint_every": 5, "mask_rate": 0.2, "hide_masked": False, "warmup": 0.0},
    **{"eval_samples": 64, "dataset": Path("dataset"), "accumulate": 2, "precision": "bf16", "compile": True},
}
OTHER_TRAIN = {"heads": 2, "steps": 61, "seed": 1}
OTHER_DISTILL = {
    **{"teacher": "elsewhere", "methods": ("ce",), "seeds": (1,), "stream_seed": 1, "teacher_every": 3, "steps": (61,)},
    **{"teacher_checkpoints": 2, "teacher_range": (10, 20), "checkpoint": ("20",), "first_steps": 21, "speed": 2.0},
    **{"segments": ("10:5", "20"), "saturation_window": 4, "saturation_threshold": 0.02, "saturation_steps": 21},
    **{"temperature": 1.0, "end_temperature": 1.0, "annealing": "logarithmic", "top_k": 2, "alpha": (0.5,)},
    **{"alpha_steps": (3,), "divergence": "reverse-kl", "beta": 0.4, "student_heads": (4,)},
}


class Named(Exception):
    """The run's directory has been chosen."""


def directory_of(monkeypatch, module, arguments):
    """Where a command would make the run of these arguments."""

    def stop(directory, *arguments, **options):
        raise Named(directory)

    stand_in = {
        **{"task_of": lambda arguments, setting: TASK, "source_of": lambda *arguments: None, "open_shared_run": stop},
        **{"find_checkpoints": lambda teacher: [None], "local_path": str},
        **{"_check_own_teacher": lambda *arguments: None, "supervision": lambda *arguments: None},
        **{"settings_of": lambda *arguments: None, "processes_of": lambda settings: None},
    }
    with monkeypatch.context() as patch:
        patch.setattr(module, "SETTING", replace(module.SETTING, load_model=lambda *arguments: None))
        for name, function in stand_in.items():
            patch.setattr(training, name, function)
        with pytest.raises(Named) as named:
            (module.train if module is train else module.distill)(arguments)
    return named.value.args[0]


@pytest.mark.parametrize(
    ("module", "base", "others"),
    [
        (train, train.PRESETS["smoke"], OTHERS | OTHER_TRAIN),
        (
            distill,
            replace(distill.PRESETS["smoke"], methods=("two-shot",), seeds=(0,), checkpoint=("10",)),
            OTHERS | OTHER_DISTILL,
        ),
    ],
)
def test_runs_that_differ_in_one_argument_have_names_of_their_own(monkeypatch, module, base, others):
    assert {field.name for field in fields(base)} - {*EXECUTION_ARGUMENTS, "preset"} == set(others)
    changed = {
        "nothing": base,
        "preset": replace(base, preset="laptop"),
        **{name: replace(base, **{name: value}) for name, value in others.items()},
    }
    assert all(asdict(changed[name])[name] != asdict(base)[name] for name in others)
    directories = {name: directory_of(monkeypatch, module, arguments) for name, arguments in changed.items()}
    assert all(directory.parent == ROOT / "runs" / "PCFG_mlm" for directory in directories.values())
    assert len({directory.name.lower() for directory in directories.values()}) == len(changed)
    for name, value in {"out": None, "force": True, "device": "cpu", "wandb": "offline"}.items():
        assert directory_of(monkeypatch, module, replace(base, **{name: value})) == directories["nothing"]


# As printed

PYTHON = r"python (?:-m |PCFG_mlm[/.])*(train|distill|probe|data)(?:\.py)?( [^`\n]*[^`\n ])"


def printed():
    texts = [(ROOT / "PCFG_mlm" / "README.md").read_text(), *(module.__doc__ for module in COMMANDS.values())]
    return sorted({match for text in texts for match in re.findall(PYTHON, text)})


def test_every_command_is_printed_somewhere():
    assert {name for name, _ in printed()} == set(COMMANDS)


@pytest.mark.parametrize(("name", "line"), printed())
def test_printed_commands_parse(capsys, monkeypatch, name, line):
    parsed = []
    probes = {"ngrams": "ngrams", "nonterminals": "nonterminals", "bayes-optimal": "evaluation"}
    works = {"train": {"": "train"}, "distill": {"": "distill"}, "probe": probes, "data": {"export": "export"}}
    for work, function in works[name].items():
        monkeypatch.setattr(COMMANDS[name], function, lambda arguments, work=work: parsed.append((work, arguments)))
    words = shlex.split(line)
    succeed(capsys, name, *words)
    ((work, arguments),) = parsed
    assert words[0] == (arguments.preset if name in ("train", "distill") else work)


# In processes of their own


def test_train_and_distill_start_from_every_folder(tmp_path, teacher):
    done = python("train.py", *TRAIN[1:], "--out", tmp_path / "run", cwd=ROOT / "PCFG_mlm")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert "step 30 of 30, loss" in done.stderr
    assert results(tmp_path / "run") == results(teacher)
    words = [*DISTILL[1:], "--methods", "progressive", "--teacher", teacher, "--out"]
    done = python("PCFG_mlm/distill.py", *words, tmp_path / "student")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "student").complete


def test_an_error_in_a_process_of_its_own_is_one_line(tmp_path):
    failed = python("-m", "PCFG_mlm.train", *TRAIN[1:], "--layers", 0, "--out", tmp_path / "run")
    assert failed.returncode == 2
    assert failed.stderr == "error: --layers must be at least 1, got 0\n"
    assert failed.stdout == ""
    assert files(tmp_path) == {}
