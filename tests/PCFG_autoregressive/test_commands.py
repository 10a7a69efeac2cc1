"""What is special to commands of next-token prediction: what a run is, other people's teachers, labels at one depth."""

import shlex
from dataclasses import replace

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy, log_softmax
from transformers import GPT2Config, GPT2LMHeadModel

from common.distillation.batches import ReadyBatches
from common.distillation.losses import IGNORED_LABEL
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.language_models import training
from common.pcfg.batches import TrainingBatches, evaluation_batches
from common.pcfg.grammar_files import load_grammar
from common.pcfg.task import rules_of
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from PCFG_autoregressive import train
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_autoregressive.models import new_model
from tests.commands import files, results, start
from tests.pcfg import AUTOREGRESSIVE, DISTILL, TRAIN, train_plainly

TASK = NextTokenTask(load_grammar("small"))


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
    stdout = AUTOREGRESSIVE.succeed(capsys, *words)
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


def test_no_evaluation_sentence_is_trained_on(tmp_path, monkeypatch):
    """Whatever a run computes a loss of in training is none of the sentences that it is evaluated on."""
    trained, evaluated = set(), set()
    compute_loss = ProgressiveDistillationTrainer.compute_loss

    def rows(input_ids):
        return {tuple(row[row != TASK.pad].tolist()) for row in input_ids}

    def remember_trained(self, model, inputs, *arguments, **options):
        trained.update(rows(inputs["input_ids"]))
        return compute_loss(self, model, inputs, *arguments, **options)

    def remember_evaluated(batches):
        evaluated.update(*(rows(batch.input_ids) for batch in batches))
        return ReadyBatches(batches)

    monkeypatch.setattr(ProgressiveDistillationTrainer, "compute_loss", remember_trained)
    monkeypatch.setattr(training, "ReadyBatches", remember_evaluated)
    sizes = {"grammar": "cfg3f", "start": "20", "layers": 1, "heads": 1, "steps": 20, "batch_size": 8}
    train.train(replace(train.PRESETS["smoke"], **sizes, eval_every=20, eval_samples=64, out=tmp_path / "run"))
    assert len(trained) == 20 * 8
    assert len(evaluated) == 64
    assert trained.isdisjoint(evaluated)


# Other people's teachers


def pad(rows):
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=TASK.pad)
    there = input_ids != TASK.pad
    return {"input_ids": input_ids, "attention_mask": there.long(), "labels": input_ids.where(there, IGNORED_LABEL)}


@pytest.fixture(scope="module")
def plain_teacher(tmp_path_factory):
    batches = TrainingBatches(TASK, 5, 8)
    rows = [row[row != TASK.pad] for step in range(4) for row in batches.batch(step).input_ids]
    transformers.set_seed(0)
    sizes = {"vocab_size": 8, "n_embd": 12, "n_layer": 1, "n_head": 3, "n_positions": 40}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=3, eos_token_id=4))
    return train_plainly(model, rows, pad, tmp_path_factory.mktemp("plain") / "output")


@pytest.mark.parametrize("level", [1, "all"])
def test_a_teacher_of_a_plain_trainer_works_as_it_is(tmp_path, capsys, plain_teacher, level):
    before = files(plain_teacher)
    assert "checkpoint-8/optimizer.pt" in before
    words = shlex.split(
        "--methods progressive --teacher-every 1 --steps 2 --eval-every 1 --dropout 0 --temperature 1.5 --alpha 0.25"
    )
    words += ["--label-level", level, "--teacher", plain_teacher, "--out", tmp_path / "student"]
    AUTOREGRESSIVE.succeed(capsys, *DISTILL, *words)
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


# Labels at one depth


def test_a_depth_without_labels_is_refused_before_anything_is_made(tmp_path, capsys):
    teacher = tmp_path / "teacher"
    for name in ("config.json", "model.safetensors"):
        (teacher / "checkpoint-10").mkdir(parents=True, exist_ok=True)
        (teacher / "checkpoint-10" / name).write_text("{}")
    for words in (TRAIN, [*DISTILL, "--methods", "ce", "--teacher", teacher]):
        words = [*words, "--start", 7, "--label-level", 2, "--out", tmp_path / "run"]
        line = AUTOREGRESSIVE.fail_in_one_line(capsys, *words)
        assert "--label-level 2 has no tokens: below 7, small has nonterminals at depths up to 1" in line
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_label_level_that_there_is_not_is_refused(capsys):
    for level in ("0", "4", "some"):
        code, _, stderr = start(capsys, train.main, "smoke", "--label-level", level)
        assert code == 2
        assert "--label-level" in stderr


def test_a_dataset_without_trees_serves_for_all_tokens_only(tmp_path, capsys):
    words = ["--sentences", 256, "--validation", 0, "--out", tmp_path / "dataset"]
    AUTOREGRESSIVE.succeed(capsys, "data", "export", "--grammar", "small", *words)
    words = [*TRAIN, "--dataset", tmp_path / "dataset", "--out", tmp_path / "run"]
    line = AUTOREGRESSIVE.fail_in_one_line(capsys, *words, "--label-level", 1)
    assert "does not say which tokens end spans: export a dataset with --trees" in line
    assert not (tmp_path / "run").exists()
    AUTOREGRESSIVE.succeed(capsys, *words)
    AUTOREGRESSIVE.succeed(capsys, *TRAIN, "--out", tmp_path / "sampled")
    assert results(tmp_path / "run") == results(tmp_path / "sampled")


def test_a_run_of_other_labels_is_refused(tmp_path, capsys):
    words = [*TRAIN, "--steps", 5, "--out", tmp_path / "run"]
    AUTOREGRESSIVE.succeed(capsys, *words)
    assert "label_level is all there and 1 here" in AUTOREGRESSIVE.fail_in_one_line(capsys, *words, "--label-level", 1)
