"""The commands as a user meets them: what a run is, other teachers, cut off, wrongly called, from every folder."""

import json
import math
import re
import shlex
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy, log_softmax
from transformers import GPT2Config, GPT2LMHeadModel

from common.distillation import trainer
from common.distillation.losses import IGNORED_LABEL
from common.pcfg import training
from common.pcfg.grammar_files import load_grammar
from common.pcfg.task import rules_of
from common.runs import resume
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from PCFG_autoregressive import data, distill, probe, train
from PCFG_autoregressive.batches import NextTokenTask, TrainingBatches, evaluation_batches
from PCFG_autoregressive.models import new_model
from PCFG_autoregressive.training import Arguments
from tests import commands
from tests.commands import ROOT, Killed, files, python, results, start, stop_again_and_again

COMMANDS = {"train": train, "distill": distill, "probe": probe, "data": data}
TASK = NextTokenTask(load_grammar("small"))
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


def measured(directory, task):
    """Loss and accuracy of a saved model on the held-out sentences, one prefix at a time, in float64."""
    model = GPT2LMHeadModel.from_pretrained(directory).double().eval()
    loss, correct, count = 0.0, 0, 0
    for batch in evaluation_batches(task, 8, 8):
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            for t in range(1, len(ids)):
                if labels[t] != IGNORED_LABEL:
                    with torch.no_grad():
                        row = model(input_ids=ids[None, :t]).logits[0, -1]
                    loss -= float(row.log_softmax(-1)[labels[t]])
                    correct += int(row.argmax()) == labels[t]
                    count += 1
    return loss / count, float(correct / count)


# What a run is


@pytest.mark.parametrize("level", [2, "all"])
def test_a_teacher_is_a_directory_that_transformers_reads(tmp_path, capsys, level):
    words = [*TRAIN, "--label-level", level, "--eval-samples", 8, "--dropout", 0.2, "--out", tmp_path / "run"]
    stdout = succeed(capsys, *words)
    run, task = Run(tmp_path / "run"), NextTokenTask(TASK.grammar, level)
    assert [checkpoint.step for checkpoint in find_checkpoints(run.directory)] == [10, 20, 30]
    arguments = run.config["arguments"]
    assert arguments["rules"] == rules_of(TASK.grammar)
    assert arguments["label_level"] == level
    records = run.records()
    assert [record["step"] for record in records] == list(range(0, 31, 5))
    for record in (records[2], records[6]):
        loss, accuracy = measured(run.directory / f"checkpoint-{record['step']}", task)
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["accuracy"] == pytest.approx(accuracy)
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert stdout == f"{run.directory}: accuracy {records[-1]['accuracy']:.3f}\n"


def test_every_method_learns_from_the_checkpoints_of_its_schedule(tmp_path, capsys, teacher):
    words = shlex.split("--eval-every 1 --eval-samples 8 --checkpoint 10 --warmup 0 --temperature 1 --methods")
    expected = {
        "ce": [None] * 12,
        "one-shot": [30] * 12,
        "progressive": [10] * 4 + [20] * 4 + [30] * 4,
        "two-shot-10": [10] * 5 + [30] * 7,
    }
    methods = [name.removesuffix("-10") for name in expected]
    succeed(capsys, *DISTILL, "--teacher", teacher, *words, *methods, "--out", tmp_path / "students")
    for name, teachers in expected.items():
        run = Run(tmp_path / "students" / f"{name}-heads1-steps12-seed0")
        assert run.complete
        assert GPT2LMHeadModel.from_pretrained(run.directory / "checkpoint-12").config.n_embd == 8
        _, *records = run.records()
        assert [record["teacher"] for record in records] == teachers
        assert run.config["arguments"]["teacher_id"] == Run(teacher).config["id"]


def test_no_evaluation_sentence_is_trained_on(tmp_path, monkeypatch):
    """Whatever a run computes a loss of in training is none of the sentences that it is evaluated on."""
    trained, evaluated = set(), set()
    real = trainer.ProgressiveDistillationTrainer.compute_loss, trainer.ProgressiveDistillationTrainer._evaluation_sums

    def rows(batch):
        return {tuple(row[row != TASK.pad].tolist()) for row in batch["input_ids"]}

    def compute_loss(self, model, inputs, *arguments, **options):
        trained.update(rows(inputs))
        return real[0](self, model, inputs, *arguments, **options)

    def sums(self, batch):
        evaluated.update(rows(batch))
        return real[1](self, batch)

    monkeypatch.setattr(trainer.ProgressiveDistillationTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(trainer.ProgressiveDistillationTrainer, "_evaluation_sums", sums)
    sizes = {"grammar": "cfg3f", "start": "20", "layers": 1, "heads": 1, "steps": 20, "batch_size": 8}
    train.train(replace(train.PRESETS["smoke"], **sizes, eval_every=20, eval_samples=64, out=tmp_path / "run"))
    assert len(trained) == 20 * 8
    assert len(evaluated) == 64
    assert trained.isdisjoint(evaluated)


# Other people's teachers


class PlainSentences(torch.utils.data.Dataset):
    """Sentences for a Trainer that knows nothing of this project."""

    def __init__(self):
        batches = TrainingBatches(TASK, 5, 8)
        self.rows = [row[row != TASK.pad] for step in range(4) for row in batches.batch(step).input_ids]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def pad(rows):
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=TASK.pad)
    there = input_ids != TASK.pad
    return {"input_ids": input_ids, "attention_mask": there.long(), "labels": input_ids.where(there, IGNORED_LABEL)}


@pytest.fixture(scope="module")
def plain_teacher(tmp_path_factory):
    """checkpoint-4 and checkpoint-8 of a transformers.Trainer."""
    directory = tmp_path_factory.mktemp("plain") / "output"
    config = GPT2Config(vocab_size=8, n_embd=12, n_layer=1, n_head=3, n_positions=40, bos_token_id=3, eos_token_id=4)
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
    plain = transformers.Trainer(GPT2LMHeadModel(config), arguments, train_dataset=PlainSentences(), data_collator=pad)
    plain.train()
    return directory


@pytest.mark.parametrize("level", [1, "all"])
def test_a_teacher_of_a_plain_trainer_works_as_it_is(tmp_path, capsys, plain_teacher, level):
    before = files(plain_teacher)
    assert "checkpoint-8/optimizer.pt" in before
    words = shlex.split("--methods progressive --steps 2 --eval-every 1 --dropout 0 --temperature 1.5 --alpha 0.25")
    words += ["--label-level", level, "--teacher", plain_teacher, "--out", tmp_path / "student"]
    succeed(capsys, *DISTILL, *words)
    assert files(plain_teacher) == before
    _, first, second = Run(tmp_path / "student").records()
    assert (first["teacher"], second["teacher"]) == (4, 8)

    task = NextTokenTask(TASK.grammar, level)
    batch = TrainingBatches(task, 1000, 8).batch(0)
    labels = batch.labels[:, 1:]
    chosen = labels != IGNORED_LABEL
    student = new_model(task, 1, 1, 8, 0.0, 0).eval()
    theirs = GPT2LMHeadModel.from_pretrained(plain_teacher / "checkpoint-4").eval()
    with torch.no_grad():
        mine, taught = (model(batch.input_ids).logits[:, :-1][chosen].double() for model in (student, theirs))
    targets = (taught / 1.5).softmax(-1)
    kl = (targets * (targets.log() - log_softmax(mine, -1))).sum(-1).mean()
    assert first["kl"] == pytest.approx(float(kl), rel=1e-5)
    loss = 0.25 * cross_entropy(mine, labels[chosen]) + 0.75 * kl
    assert first["train_loss"] == pytest.approx(float(loss), rel=1e-5)


# Cut off


def test_runs_that_were_cut_off_end_with_the_same_bits(tmp_path, capsys, monkeypatch, teacher):
    """Dropout on the way, labels at a depth, and a teacher."""
    more = shlex.split("--dropout 0.2 --accumulate 2 --label-level 2 --eval-every 3")
    for words in ([*TRAIN, *more], [*DISTILL, "--methods", "progressive", "--teacher", teacher, *more]):
        succeed(capsys, *words, "--out", tmp_path / f"{words[0]} whole")
        cut = [*words[1:], "--out", tmp_path / words[0]]
        with monkeypatch.context() as patch:
            patch.setattr(resume, "RESUME_SECONDS", 0)
            patch.setattr(resume, "RESUME_SHARE", math.inf)
            log = Run.log

            def log_until_killed(run, record, log=log):
                if record["step"] == 9:
                    raise Killed
                log(run, record)

            patch.setattr(Run, "log", log_until_killed)
            with pytest.raises(Killed):
                start(capsys, COMMANDS[words[0]].main, *cut)
        assert (tmp_path / words[0] / "resume" / "6").is_dir()
        succeed(capsys, words[0], *cut)
        assert results(tmp_path / words[0]) == results(tmp_path / f"{words[0]} whole")


def test_a_run_told_to_stop_three_times_ends_with_the_same_bits(tmp_path, capsys):
    cadence = shlex.split("--steps 66 --eval-every 3 --checkpoint-every 15 --dropout 0.2 --label-level 2")
    words = [*TRAIN, *cadence, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    stop_again_and_again(tmp_path / "stopped", train.__name__, *words[1:], tmp_path / "stopped")
    succeed(capsys, *words, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "undisturbed")


# Wrongly called

WRONG = [
    ("--layers 0", "--layers must be at least 1, got 0"),
    ("--lr 0", "--lr must be positive and finite, got 0"),
    ("--dropout 1", "--dropout must be at least 0 and below 1, got 1"),
    ("--batch-size 6 --accumulate 4", "--batch-size 6 cannot be cut into 4 equal parts"),
    ("--grammar cfg4", "cfg4"),
    ("--start 7 --label-level 2", "--label-level 2 has no tokens: below 7, small has nonterminals at depths up to 1"),
    ("--dataset missing", "missing is not a dataset that data.py export wrote"),
]


@pytest.mark.parametrize(("words", "message"), [*WRONG, ("--heads 0", "--heads must be at least 1, got 0")])
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(tmp_path, capsys, words, message):
    assert message in fail_in_one_line(capsys, *TRAIN, "--out", tmp_path / "run", *words.split())
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *WRONG,
        ("--student-heads 0", "--student-heads must be at least 1, got 0"),
        ("--start 12", "was trained on small from 13, but here the grammar is small from 12"),
    ],
)
def test_students_that_cannot_be_are_refused_before_anything_is_made(tmp_path, capsys, teacher, words, message):
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", teacher, "--out", tmp_path / "students", *words.split())
    assert message in line
    assert files(tmp_path) == {}


def test_a_label_level_that_there_is_not_is_refused(capsys):
    for level in ("0", "4", "some"):
        code, _, stderr = start(capsys, train.main, "smoke", "--label-level", level)
        assert code == 2
        assert "--label-level" in stderr


def test_a_teacher_of_another_setting_is_one_line(tmp_path, capsys):
    config = transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "teacher" / "checkpoint-10")
    words = [*DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students"]
    assert "is a model of type bert" in fail_in_one_line(capsys, *words)
    assert not (tmp_path / "students").exists()


def test_sentences_that_are_too_long_for_a_model_are_one_line(tmp_path, capsys):
    (tmp_path / "long.cfg").write_text("S -> S S [0.4999] | a [0.5001]\n")
    words = ["--grammar", tmp_path / "long.cfg", "--eval-samples", 100, "--out", tmp_path / "run"]
    assert "tokens, and a model has 1,024 positions" in fail_in_one_line(capsys, *TRAIN, *words)


def test_a_dataset_without_trees_serves_for_all_tokens_only(tmp_path, capsys):
    words = ["--sentences", 256, "--validation", 0, "--out", tmp_path / "dataset"]
    succeed(capsys, "data", "export", "--grammar", "small", *words)
    words = [*TRAIN, "--dataset", tmp_path / "dataset", "--out", tmp_path / "run"]
    line = fail_in_one_line(capsys, *words, "--label-level", 1)
    assert "does not say which tokens end spans: export a dataset with --trees" in line
    assert not (tmp_path / "run").exists()
    succeed(capsys, *words)
    succeed(capsys, *TRAIN, "--out", tmp_path / "sampled")
    assert results(tmp_path / "run") == results(tmp_path / "sampled")


# Called twice


def test_a_complete_run_is_not_run_again(tmp_path, capsys, monkeypatch, teacher):
    for words in (TRAIN, [*DISTILL, "--methods", "progressive", "--teacher", teacher]):
        words = [*words, "--out", tmp_path / words[0]]
        succeed(capsys, *words)
        before = files(tmp_path / words[0])
        with monkeypatch.context() as patch:
            patch.setattr(training, "ProgressiveDistillationTrainer", None)
            assert succeed(capsys, *words) == f"{tmp_path / words[0]} is complete\n"
        assert files(tmp_path / words[0]) == before
        assert "label_level is all there and 1 here" in fail_in_one_line(capsys, *words, "--label-level", 1)


def test_label_levels_are_part_of_the_default_name(monkeypatch):
    names = set()

    class Named(Exception):
        pass

    def stop(directory, *arguments, **options):
        names.add(directory.name)
        raise Named

    monkeypatch.setattr(training, "open_shared_run", stop)
    for level in (1, 2, 3, "all"):
        with pytest.raises(Named):
            train.train(replace(train.PRESETS["smoke"], label_level=level))
    assert names == {"smoke", *(f"smoke-label_level{level}" for level in (1, 2, 3))}
    assert {field.name for field in fields(Arguments)} - {field.name for field in fields(training.Arguments)} == {
        "label_level"
    }


# As printed

PYTHON = r"python (?:-m |PCFG_autoregressive[/.])*(train|distill|probe|data)(?:\.py)?( [^`\n]*[^`\n ])"


def printed():
    texts = [(ROOT / "PCFG_autoregressive" / "README.md").read_text(), *(m.__doc__ for m in COMMANDS.values())]
    return sorted({match for text in texts for match in re.findall(PYTHON, text)})


def test_every_command_is_printed_somewhere():
    assert {name for name, _ in printed()} == set(COMMANDS)


@pytest.mark.parametrize(("name", "line"), printed())
def test_printed_commands_parse(capsys, monkeypatch, name, line):
    parsed = []
    probes = {
        **{"ngrams": "ngrams", "nonterminals": "nonterminals", "generation": "generation"},
        "bayes-optimal": "evaluation",
    }
    works = {"train": {"": "train"}, "distill": {"": "distill"}, "probe": probes, "data": {"export": "export"}}
    for work, function in works[name].items():
        monkeypatch.setattr(COMMANDS[name], function, lambda arguments, work=work: parsed.append((work, arguments)))
    words = shlex.split(line)
    succeed(capsys, name, *words)
    ((work, arguments),) = parsed
    assert words[0] == (arguments.preset if name in ("train", "distill") else work)


# In processes of their own


def test_train_and_distill_start_from_every_folder(tmp_path, teacher):
    done = python("train.py", *TRAIN[1:], "--out", tmp_path / "run", cwd=ROOT / "PCFG_autoregressive")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert results(tmp_path / "run") == results(teacher)
    words = [*DISTILL[1:], "--methods", "progressive", "--teacher", teacher, "--out"]
    done = python("PCFG_autoregressive/distill.py", *words, tmp_path / "student")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "student").complete
    assert json.loads((tmp_path / "student" / "done.json").read_text())["step"] == 12
    assert np.isfinite(Run(tmp_path / "student").records()[-1]["loss"])
