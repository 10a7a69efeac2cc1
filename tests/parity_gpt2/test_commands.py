"""What is special in this setting's commands: checkpoints that transformers reads, other teachers, passes, dropout."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.parity import students
from common.parity.gpt2 import Shape, configuration, load_model, shape_of
from common.parity.mlp import load_model as load_mlp
from common.runs.checkpoints import read_checkpoint
from common.runs.run import Run
from parity_gpt2 import training
from parity_mlp.data import signs
from tests.commands import Killed, assert_named, files, refusals, results
from tests.gpt2 import last_logits, tokens_of
from tests.parity import GPT2, MLP, assert_taught, recorded_objectives, writes_until_killed

TRAIN, DISTILL, TASK = GPT2.train, GPT2.distill, GPT2.task

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def teacher(teacher_of):
    """A run with checkpoints at steps 10, 20 and 30."""
    return teacher_of(GPT2)


# What a run is


def test_a_teacher_is_a_directory_that_transformers_reads(tmp_path, capsys):
    stdout = GPT2.succeed(capsys, *TRAIN, "--out", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert {path.name for path in run.directory.iterdir()} == {
        *("config.json", "metrics.jsonl", "done.json", ".lock"),
        *(f"checkpoint-{step}" for step in (10, 20, 30)),
    }
    arguments = run.config["arguments"]
    assert {name: arguments[name] for name in ("d", "k", "heads", "head_dim", "steps", "seed", "dropout")} == {
        **{"d": 6, "k": 2, "heads": 2, "head_dim": 3, "steps": 30, "seed": 0, "dropout": 0.0}
    }
    records = run.records()
    assert [record["step"] for record in records] == list(range(0, 31, 5))
    assert [record["samples"] for record in records] == list(range(0, 241, 40))
    bits = TASK.sample(0, "evaluation", 0, 32)
    labels = torch.from_numpy(TASK.labels(bits))
    for record in (records[2], records[4], records[6]):
        model = GPT2LMHeadModel.from_pretrained(run.directory / f"checkpoint-{record['step']}")
        logits = last_logits(model, bits, 6)
        assert record["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
        assert record["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert stdout == f"{run.directory}: accuracy {records[-1]['accuracy']:.3f}\n"


def test_the_stream_is_that_of_adamw_on_the_labels(tmp_path, capsys):
    """The whole of a run against a loop on the full model; float32 here and there."""
    words = ["--warmup", 0.25, "--lr-schedule", "linear", "--weight-decay", 0.1, "--beta2", 0.99, "--steps", 20]
    GPT2.succeed(capsys, *TRAIN, *words, "--checkpoint-every", 10, "--seed", 3, "--out", tmp_path / "run")
    torch.manual_seed(3)
    model = GPT2LMHeadModel(configuration(Shape(2, 2, 3, 2, 6), 0.1)).double()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    bits = TASK.sample(3, "train", 0, 160)
    tokens, labels = tokens_of(shape_of(model.config.to_dict()), bits, 6), torch.from_numpy(TASK.labels(bits))
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.01 * (min(1, (step + 1) / 5) if step < 5 else (20 - step) / 15)
        batch = slice(8 * step, 8 * step + 8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens[batch]).logits[:, -1], labels[batch]).backward()
        optimizer.step()
    tensors = read_checkpoint(tmp_path / "run" / "checkpoint-20")[1]
    for name, parameter in model.named_parameters():
        if not name.endswith("c_attn.bias"):  # no key's bias has a gradient, and Adam makes steps of its rounding
            np.testing.assert_allclose(tensors[name], parameter.detach().numpy(), atol=1e-3, err_msg=name)


# Teachers


@pytest.fixture(scope="module")
def plain_teacher(tmp_path_factory):
    """checkpoint-4 and checkpoint-8 of somebody's stock GPT-2: tied, other sizes, more positions."""
    directory = tmp_path_factory.mktemp("plain") / "output"
    torch.manual_seed(0)
    sizes = {"vocab_size": 2, "n_positions": 9, "n_embd": 8, "n_layer": 3, "n_head": 4, "initializer_range": 0.5}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    for step in (4, 8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(directory / f"checkpoint-{step}")
        (directory / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"not a pickle")
    return directory


def test_a_teacher_of_plain_transformers_works_as_it_is(tmp_path, capsys, plain_teacher):
    before = files(plain_teacher)
    words = shlex.split("--methods one-shot progressive --teacher-every 6 --temperature 1.5 --alpha 0.25")
    with recorded_objectives() as seen:
        GPT2.succeed(capsys, *DISTILL, *words, "--teacher", plain_teacher, "--out", tmp_path / "students")
    assert files(plain_teacher) == before

    def logits_at(step, bits):
        return last_logits(GPT2LMHeadModel.from_pretrained(plain_teacher / f"checkpoint-{step}"), bits, 6)

    for method, teachers in (("one-shot", [8] * 12), ("progressive", [4] * 6 + [8] * 6)):
        name = f"{method}-heads1-seed0"
        assert Run(tmp_path / "students" / name).config["arguments"]["teacher_id"] is None
        assert_taught(TASK, seen[name], logits_at, teachers, 1.5)
        assert set(seen[name]["alpha"]) == {0.25}


def test_an_mlp_teaches_a_gpt2(tmp_path, capsys):
    mlp_teacher = tmp_path / "teacher"
    MLP.succeed(capsys, *MLP.train, "--d", 6, "--k", 2, "--steps", 300, "--checkpoint-every", 100, "--out", mlp_teacher)
    words = ["--methods", "ce", "progressive", "--teacher", mlp_teacher, "--out", tmp_path / "students"]
    with recorded_objectives() as seen:
        GPT2.succeed(capsys, *DISTILL, *words)

    def logits_at(step, bits):
        with torch.no_grad():
            return load_mlp(mlp_teacher / f"checkpoint-{step}").double()(torch.from_numpy(signs(bits, 6, np.float64)))

    assert_taught(TASK, seen["progressive-heads1-seed0"], logits_at, [100] * 4 + [200] * 4 + [300] * 4, 1)
    assert set(seen["ce-heads1-seed0"]["alpha"]) == {1}
    run = Run(tmp_path / "students" / "progressive-heads1-seed0")
    assert run.config["arguments"]["teacher_id"] == Run(mlp_teacher).config["id"]
    assert load_model(run.directory / "checkpoint-12").config.n_embd == 3


def test_students_share_the_logits_of_a_teacher(tmp_path, capsys, monkeypatch, teacher):
    """Each checkpoint is loaded once and run once for each range, however many students there are."""
    computed = []
    real = training.SETTING.frozen_logits

    def counted(*arguments):
        logits = real(*arguments)
        return lambda bits: computed.append(1) or logits(bits)

    monkeypatch.setattr(training, "SETTING", replace(training.SETTING, frozen_logits=counted))
    words = ["--methods", "one-shot", "--seeds", 0, 1, "--student-heads", 1, 2, "--teacher", teacher]
    GPT2.succeed(capsys, *DISTILL, *words, "--out", tmp_path / "students")
    assert len(list((tmp_path / "students").iterdir())) == 4
    assert len(computed) == 1 + 3  # the teacher's accuracy, and ranges of 5, 5 and 2 steps


# Diverged


def diverging(capsys, *words, kill=None):
    """Train three students of a stack, whose second one's weights become infinite before its evaluation at step 10."""
    real = students.learning_rates

    def rates(arguments, lr, steps):
        return real(arguments, lr, steps) * np.where((lr == 0.02) & (steps >= 8), 1e38, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(students, "learning_rates", rates)
        if kill is not None:
            writes_until_killed(patch, kill)
        return GPT2.start(capsys, *words)


DIVERGING = [*DISTILL, *shlex.split("--methods one-shot --lr 0.01 0.02 0.03 --steps 30 --dropout 0.2 --teacher")]


def test_a_student_that_diverges_keeps_its_records_and_the_others_of_its_stack_are_bit_identical(
    tmp_path, capsys, teacher
):
    code, stderr = diverging(capsys, *DIVERGING, teacher, "--out", tmp_path / "runs")
    assert code == 3
    diverged = tmp_path / "runs" / "one-shot-heads1-seed0-lr0.02"
    assert stderr[-1] == f"error: {diverged}: the loss is not finite at step 10: give a lower --lr"
    assert not Run(diverged).complete
    assert [record["step"] for record in Run(diverged).records()] == [0, 5]
    assert not list(diverged.glob("checkpoint-*"))
    GPT2.succeed(capsys, *DIVERGING, teacher, "--out", tmp_path / "whole")
    for lr in (0.01, 0.03):  # bit-identical to a stack in which no one diverges
        name = f"one-shot-heads1-seed0-lr{lr}"
        assert Run(tmp_path / "runs" / name).complete
        assert results(tmp_path / "runs" / name) == results(tmp_path / "whole" / name)


def test_the_others_are_bit_identical_when_killed_after_one_has_diverged(tmp_path, capsys, teacher):
    diverging(capsys, *DIVERGING, teacher, "--out", tmp_path / "runs")
    for kill in (12, 17, 19):
        with pytest.raises(Killed):
            diverging(capsys, *DIVERGING, teacher, "--out", tmp_path / str(kill), kill=kill)
        assert diverging(capsys, *DIVERGING, teacher, "--out", tmp_path / str(kill))[0] == 3
        assert results_of_complete(tmp_path / str(kill)) == results_of_complete(tmp_path / "runs")


def results_of_complete(directory):
    found = {run.name: results(run) for run in directory.iterdir() if Run(run).complete}
    assert len(found) == 2
    return found


# Wrongly called

WRONG = (
    "--head-dim 0",
    "--accumulate 0",
    "--dropout 1",
    "--dropout -0.1",
    "--dropout nan",
    "--beta1 1",
    "--beta2 -0.1",
    "--initial-std 0",
    "--initial-std nan",
    ("--positions 5", "--positions 6 5"),
    ("--positions 6 --class-token", "--positions 7 6"),
    ("--positions 0", "--positions 6 0"),
    ("--batch-size 6 --accumulate 4", "--batch-size 6 4 1"),
)
WRONG_DISTILL = (
    "--student-heads 0",
    ("--student-heads 2 4 2", "--student-heads 2 4"),
    ("--d 7", "d 6 7"),
    ("--d 6 --labels 4", "labels 2 4"),
)


@refusals(*WRONG, "--heads 0")
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(tmp_path, capsys, words, named):
    assert_named(GPT2.fail_in_one_line(capsys, *TRAIN, "--out", tmp_path / "run", *words.split()), named)
    assert files(tmp_path) == {}


@refusals(*WRONG, *WRONG_DISTILL)
def test_students_that_cannot_be_are_refused_before_anything_is_made(tmp_path, capsys, teacher, words, named):
    before = files(teacher)
    words = [*DISTILL, "--teacher", teacher, "--out", tmp_path / "students", *words.split()]
    assert_named(GPT2.fail_in_one_line(capsys, *words), named)
    assert files(tmp_path) == {}
    assert files(teacher) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train smoke --width 5", "--width"),
        ("train smoke --dtype float64", "--dtype"),
        ("train smoke --precision bf8", "--precision"),
        ("train smoke --feed-forward relu", "--feed-forward"),
        ("distill smoke --widths 5", "--widths"),
    ],
)
def test_usage_errors_name_the_argument_and_exit_with_two(tmp_path, capsys, words, named):
    code, stderr = GPT2.start(capsys, *words.split(), "--out", tmp_path / "run")
    assert code == 2
    assert named in "\n".join(stderr)
    assert files(tmp_path) == {}
