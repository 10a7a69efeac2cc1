"""What is special to commands of masked prediction: what a run is, other people's teachers, wrong mask rates."""

import json
import shlex

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy, log_softmax
from transformers import BertConfig, BertForMaskedLM

from common.distillation.losses import IGNORED_LABEL
from common.pcfg.batches import TrainingBatches, evaluation_batches
from common.pcfg.grammar_files import load_grammar
from common.pcfg.task import rules_of
from common.runs.run import Run
from PCFG_mlm.batches import MaskedTask
from PCFG_mlm.models import new_model
from tests.commands import files
from tests.pcfg import DISTILL, MLM, TRAIN, train_plainly

TASK = MaskedTask(load_grammar("small"))


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
    stdout = MLM.succeed(capsys, *TRAIN, "--out", tmp_path / "run")
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
    done = json.loads((run.directory / "done.json").read_text())
    assert done.keys() == {"step", "loss", "accuracy", "training", "records", "checkpoints"}
    assert all(done[name] == records[-1][name] for name in ("step", "loss", "accuracy"))
    assert stdout == f"{run.directory}: accuracy {records[-1]['accuracy']:.3f}\n"


# Other people's teachers


def pad(rows):
    fill = {"input_ids": TASK.pad, "attention_mask": 0, "labels": IGNORED_LABEL}
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }


@pytest.fixture(scope="module")
def plain_teacher(tmp_path_factory):
    batches = [TrainingBatches(TASK, 5, 8).batch(step) for step in range(4)]
    rows = [
        dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True))
        for batch in batches
        for row in zip(*vars(batch).values(), strict=True)
    ]
    transformers.set_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = BertConfig(**sizes, intermediate_size=20, max_position_embeddings=40, pad_token_id=TASK.pad)
    return train_plainly(BertForMaskedLM(config), rows, pad, tmp_path_factory.mktemp("plain") / "output")


def test_a_teacher_of_a_plain_trainer_works_as_it_is(tmp_path, capsys, plain_teacher):
    before = files(plain_teacher)
    assert "checkpoint-8/optimizer.pt" in before
    words = shlex.split(
        "--methods progressive --teacher-every 1 --steps 2 --eval-every 1 --dropout 0 --temperature 1.5 --alpha 0.25"
    )
    MLM.succeed(capsys, *DISTILL, *words, "--teacher", plain_teacher, "--out", tmp_path / "student")
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


def test_a_transition_cannot_be_looked_for_without_a_curve(tmp_path, capsys, plain_teacher):
    short = MLM.train_teacher(tmp_path / "short")
    words = [*DISTILL, "--methods", "two-shot", "--out", tmp_path / "students", "--teacher"]
    assert "give another log" in MLM.fail_in_one_line(capsys, *words, plain_teacher)
    assert "the curve has only 7 evaluations" in MLM.fail_in_one_line(capsys, *words, short)
    assert not (tmp_path / "students").exists()


# Wrongly called


def test_a_student_with_another_mask_rate_than_its_teacher_is_told(tmp_path, capsys, teacher_of):
    words = [*DISTILL, "--methods", "one-shot", "--teacher", teacher_of(MLM), "--out", tmp_path / "run"]
    _, lines = MLM.start(capsys, *words, "--mask-rate", 0.15)
    assert "warning: --mask-rate is 0.15, but the teacher was trained with 0.3" in lines
    _, lines = MLM.start(capsys, *words, "--force")
    assert not [line for line in lines if "--mask-rate" in line]


@pytest.mark.parametrize("rate", [0, 1])
def test_a_wrong_mask_rate_is_refused_before_anything_is_made(tmp_path, capsys, rate, teacher_of):
    for words in (TRAIN, [*DISTILL, "--methods", "ce", "--teacher", teacher_of(MLM)]):
        line = MLM.fail_in_one_line(capsys, *words, "--mask-rate", rate, "--out", tmp_path / "run")
        assert "--mask-rate must be above 0" in line
    assert files(tmp_path) == {}
