"""Commands of both settings on grammars: killed, stopped, out of disk, wrongly called, called twice, from anywhere."""

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

from common.distillation import run_loop
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.pcfg import commands as pcfg_commands, training
from common.pcfg.grammar_files import GRAMMARS, parse_grammar
from common.runs import resume
from common.runs.names import EXECUTION_ARGUMENTS
from common.runs.run import Run, open_run
from common.teachers.discovery import find_checkpoints
from tests.commands import (
    ROOT,
    Killed,
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
from tests.pcfg import DISTILL, SETTINGS, SMALL, TRAIN

OTHER_TASK_WORDS = {
    "PCFG_mlm": ["--mask-rate", 0.2, "--no-hide-masked"],
    "PCFG_autoregressive": ["--label-level", 1],
}
HARDEST = {"PCFG_mlm": "--dropout 0.2", "PCFG_autoregressive": "--dropout 0.2 --label-level 2"}
"""Arguments with which a resumed run is hardest to get right."""


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: setting.name)
def pcfg(request):
    """A setting on grammars."""
    return request.param


@pytest.fixture(scope="module")
def teacher(pcfg, tmp_path_factory):
    """A run on the smallest grammar of the package, with checkpoints at steps 10, 20 and 30."""
    return pcfg.train_teacher(tmp_path_factory.mktemp("pcfg") / "teacher")


# What a run is


def test_every_method_learns_from_the_checkpoints_of_its_schedule(pcfg, tmp_path, capsys, teacher):
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
    pcfg.succeed(capsys, *DISTILL, "--teacher", teacher, *words, *methods, "--out", tmp_path / "students")
    assert {path.name for path in (tmp_path / "students").iterdir()} == {
        f"{name}-heads1-steps12-seed0" for name in expected
    }
    identity, losses = Run(teacher).config["id"], {}
    for name, teachers in expected.items():
        run = Run(tmp_path / "students" / f"{name}-heads1-steps12-seed0")
        assert run.complete
        assert [checkpoint.step for checkpoint in find_checkpoints(run.directory)] == [12]
        assert pcfg.model_class.from_pretrained(run.directory / "checkpoint-12").config.hidden_size == 8
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


def test_probes_of_a_student(pcfg, tmp_path, capsys, teacher):
    run = tmp_path / "student"
    pcfg.succeed(
        capsys, *DISTILL, "--methods", "progressive", "--checkpoint-every", 6, "--teacher", teacher, "--out", run
    )
    for words, keys in (
        ("ngrams --sentences 8", {"robust", "close"}),
        ("nonterminals --training 16 --heldout 8 --epochs 1 --heads 2 --dimension 8", {"levels"}),
    ):
        (name,) = pcfg.succeed(capsys, "probe", *words.split(), "--run", run).splitlines()
        content = json.loads(Path(name).read_text())
        assert Path(name).parent == run / "probes"
        assert [entry["step"] for entry in content["checkpoints"]] == [6, 12]
        assert all(keys <= set(entry) for entry in content["checkpoints"])
    assert Run(run).complete


# Killed


@pytest.mark.slow
def test_a_run_killed_four_times_ends_with_the_same_bits(pcfg, tmp_path, capsys):
    cadence = shlex.split("--steps 100 --eval-every 3 --checkpoint-every 15 --accumulate 2")
    words = [*TRAIN, *cadence, *HARDEST[pcfg.name].split(), "--out"]
    pcfg.succeed(capsys, *words, tmp_path / "undisturbed")
    kill_again_and_again(4, tmp_path / "killed", resume, pcfg.main("train").__module__, *words[1:], tmp_path / "killed")
    pcfg.succeed(capsys, *words, tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


@pytest.mark.slow
def test_students_killed_twice_end_with_the_same_bits(pcfg, tmp_path, capsys, teacher):
    words = [
        *DISTILL,
        *shlex.split("--steps 60 --eval-every 2 --saturation-steps 26 --alpha 0.3 0"),
        *HARDEST[pcfg.name].split(),
    ]
    words += ["--alpha-steps", 30, "--methods", "progressive", "until-saturation", "--teacher", teacher, "--out"]
    pcfg.succeed(capsys, *words, tmp_path / "undisturbed")
    second = "until-saturation-heads1-steps60-seed0"
    assert len({record["teacher"] for record in Run(tmp_path / "undisturbed" / second).records()}) == 3
    shutil.copytree(
        tmp_path / "undisturbed" / "progressive-heads1-steps60-seed0",
        tmp_path / "killed" / "progressive-heads1-steps60-seed0",
    )
    run = tmp_path / "killed" / second
    kill_again_and_again(2, run, resume, pcfg.main("distill").__module__, *words[1:], tmp_path / "killed")
    pcfg.succeed(capsys, *words, tmp_path / "killed")
    assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


def test_runs_killed_before_a_record_end_with_the_same_bits(pcfg, tmp_path, capsys, monkeypatch, teacher):
    more = ["--accumulate", 2, "--eval-every", 3, *HARDEST[pcfg.name].split()]
    for words in ([*TRAIN, *more], [*DISTILL, "--methods", "progressive", "--teacher", teacher, *more]):
        pcfg.succeed(capsys, *words, "--out", tmp_path / f"{words[0]} whole")
        words += ["--out", tmp_path / words[0]]
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
                start(capsys, pcfg.main(words[0]), *words[1:])
        assert (tmp_path / words[0] / "resume" / "6").is_dir()
        pcfg.succeed(capsys, *words)
        assert results(tmp_path / words[0]) == results(tmp_path / f"{words[0]} whole")


# Told to stop


@pytest.mark.slow
def test_a_run_told_to_stop_three_times_ends_with_the_same_bits(pcfg, tmp_path, capsys):
    cadence = shlex.split("--steps 66 --eval-every 3 --checkpoint-every 15 --accumulate 2")
    words = [*TRAIN, *cadence, *HARDEST[pcfg.name].split(), "--out"]
    pcfg.succeed(capsys, *words, tmp_path / "undisturbed")
    stop_again_and_again(tmp_path / "stopped", pcfg.main("train").__module__, *words[1:], tmp_path / "stopped")
    pcfg.succeed(capsys, *words, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        (ProgressiveDistillationTrainer, "compute_loss", 4, 4),
        (pcfg_commands, "open_shared_run", 2, None),
        (run_loop, "progress", 2, 0),
        (ProgressiveDistillationTrainer, "compute_loss", 12 + 7, 7),
    ],
    ids=["first", "between", "before the first step", "second"],
)
def test_students_told_to_stop_leave_together_and_resume_bit_identically(
    pcfg, tmp_path, capsys, monkeypatch, teacher, owner, name, call, step
):
    words = [*DISTILL, *shlex.split("--dropout 0.2 --methods progressive until-saturation ce --saturation-steps 5")]
    words += ["--teacher", teacher, "--out"]
    pcfg.succeed(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_signal(getattr(owner, name), call))
        code, _, stderr = start(capsys, pcfg.main("distill"), *words[1:], tmp_path / "stopped")
    place = "" if step is None else f" at step {step}"
    assert code == 75
    assert stderr.splitlines()[-1].startswith(f"stopped by SIGTERM{place}: ")
    begun = {run.name.rpartition("-heads")[0] for run in (tmp_path / "stopped").iterdir()}
    assert begun == {"progressive"} if call in (2, 4) and step != 0 else {"progressive", "until-saturation"}
    pcfg.succeed(capsys, *words, tmp_path / "stopped")
    assert results_below(tmp_path / "stopped") == results_below(tmp_path / "undisturbed")


# Out of room


def test_a_full_disk_is_one_line_and_the_run_resumes(pcfg, tmp_path, capsys, monkeypatch):
    words = [*TRAIN, "--heads", 8, "--out"]
    pcfg.succeed(capsys, *words, tmp_path / "undisturbed")
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
            code, stdout, stderr = start(capsys, pcfg.main("train"), *words[1:], tmp_path / "full")
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
    pcfg.succeed(capsys, *words, tmp_path / "full")
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
    ("--warmup -0.1", "--warmup is a fraction of the steps, between 0 and 1; got -0.1"),
    ("--warmup 1.1", "--warmup is a fraction of the steps, between 0 and 1; got 1.1"),
    ("--warmup nan", "--warmup is a fraction of the steps, between 0 and 1; got nan"),
    ("--dropout 1", "--dropout must be at least 0 and below 1, got 1"),
    ("--dropout -0.1", "--dropout must be at least 0 and below 1, got -0.1"),
    ("--batch-size 6 --accumulate 4", "--batch-size 6 cannot be"),
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
    ("--student-heads 2 4 2", "--student-heads needs at least one value"),
    ("--methods ce ce", "--methods needs at least one value"),
    ("--seeds 0 0", "--seeds needs at least one value"),
    ("--steps 5 5", "--steps needs at least one value"),
    ("--steps 5 0", "--steps must be at least 1, got 0"),
    ("--checkpoint 10 10", "--checkpoint needs at least one value"),
    ("--seeds 0 -1", "--seeds must be at least 0, got -1"),
    ("--stream-seed -1", "--stream-seed must be at least 0, got -1"),
    ("--methods ce one-shot --alpha 2", "--alpha must be between 0 and 1"),
    ("--methods one-shot --alpha 0.5 0", "--alpha-steps"),
    ("--methods one-shot --temperature -1", "--temperature must be 0 or more"),
    ("--methods one-shot --temperature nan", "--temperature must be 0 or more, got nan"),
    ("--methods one-shot --annealing logarithmic", "--temperature must be above 0"),
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
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(pcfg, tmp_path, capsys, words, message):
    assert message in pcfg.fail_in_one_line(capsys, *TRAIN, "--out", tmp_path / "run", *words.split())
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("words", "message"), [*WRONG, *WRONG_DISTILL])
def test_students_that_cannot_be_are_refused_before_anything_is_made(pcfg, tmp_path, capsys, teacher, words, message):
    before = files(teacher)
    line = pcfg.fail_in_one_line(capsys, *DISTILL, "--teacher", teacher, "--out", tmp_path / "students", *words.split())
    assert message in line
    assert files(tmp_path) == {}
    assert files(teacher) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S -> A b\nA -> c\nB -> d\n", "line 3: B cannot be reached"),
        ("S -> A b\nA -> S | c\nS -> A\n", "lead back to"),
        ("S -> S S [0.6] | a [0.4]\n", "may never end"),
        ("S -> a [0]\n", "line 1: the weight [0] is not a positive finite number"),
        ("nonsense\n", "line 1: 'nonsense' is not a rule"),
        ("", "has no rules"),
    ],
)
def test_a_bad_grammar_file_is_one_line(pcfg, tmp_path, capsys, teacher, text, message):
    (tmp_path / "bad.cfg").write_text(text)
    before = files(tmp_path)
    for words in (TRAIN, [*DISTILL, "--teacher", teacher], shlex.split("data export --sentences 5")):
        line = pcfg.fail_in_one_line(capsys, *words, "--grammar", tmp_path / "bad.cfg", "--out", tmp_path / "run")
        assert message in line
        assert str(tmp_path / "bad.cfg") in line
    assert files(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(pcfg, tmp_path, capsys, teacher):
    for words in (TRAIN, [*DISTILL, "--teacher", teacher]):
        line = pcfg.fail_in_one_line(capsys, *words, "--device", "cuda", "--out", tmp_path / "run")
        assert "--device cuda cannot be used" in line
    assert files(tmp_path) == {}


def test_sentences_that_are_too_long_for_a_model_are_one_line(pcfg, tmp_path, capsys):
    (tmp_path / "long.cfg").write_text("S -> S S [0.4999] | a [0.5001]\n")
    words = ["--grammar", tmp_path / "long.cfg", "--eval-samples", 100, "--out", tmp_path / "run"]
    assert "tokens, and a model has 1,024 positions" in pcfg.fail_in_one_line(capsys, *TRAIN, *words)
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
def test_usage_errors_name_the_word_and_exit_with_two(pcfg, capsys, words, named):
    name, *arguments = words.split()
    code, _, stderr = start(capsys, pcfg.main(name), *arguments)
    assert code == 2
    assert named in stderr


def save_model_of(pcfg, text, directory):
    task = pcfg.task(parse_grammar(text, "another"))
    pcfg.setting.new_model(task, 1, 1, 8, 0.0, 0).save_pretrained(directory / "checkpoint-10")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda pcfg, teacher: save_model_of(pcfg, "S -> a b c d", teacher),
            "has a vocabulary of 9, but small with its 3 terminals needs one of 8",
        ),
        (lambda pcfg, teacher: save_model_of(pcfg, "S -> 1 2 3", teacher), "positions, but sentences of small from 13"),
        (lambda pcfg, teacher: pcfg.other_model().save_pretrained(teacher / "checkpoint-10"), "is a model of type"),
        (lambda pcfg, teacher: teacher.mkdir(), "has no checkpoint-<step> directory"),
        (lambda pcfg, teacher: None, "there is no directory"),
    ],
)
def test_what_cannot_teach_this_grammar_is_one_line(pcfg, tmp_path, capsys, make, message):
    make(pcfg, tmp_path / "teacher")
    before = files(tmp_path)
    line = pcfg.fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students")
    assert message in line
    assert str(tmp_path / "teacher") in line
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoint-30/model.safetensors", "checkpoint-30/config.json", "config.json"])
def test_a_file_of_the_teacher_that_is_cut_off_is_one_line(pcfg, tmp_path, capsys, teacher, name):
    damaged = shutil.copytree(teacher, tmp_path / "teacher") / name
    cut(damaged)
    before = files(tmp_path)
    line = pcfg.fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students")
    assert str(damaged.parent) in line
    assert files(tmp_path) == before


def test_a_teacher_that_is_not_whole_is_one_line(pcfg, tmp_path, capsys, teacher):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    words = [*DISTILL, "--teacher", mine, "--out", tmp_path / "students"]
    (mine / "checkpoint-20" / "model.safetensors").unlink()
    assert "checkpoint-20 lacks config.json or model.safetensors" in pcfg.fail_in_one_line(capsys, *words)
    shutil.rmtree(mine / "checkpoint-20")
    (mine / "done.json").unlink()
    assert "is not complete" in pcfg.fail_in_one_line(capsys, *words)
    assert not (tmp_path / "students").exists()


def test_students_go_on_when_a_checkpoint_that_is_cut_off_is_mended(pcfg, tmp_path, capsys, teacher):
    words = [*DISTILL, "--methods", "progressive", "--out"]
    pcfg.succeed(capsys, *words, tmp_path / "undisturbed", "--teacher", teacher)
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    cut(mine / "checkpoint-20" / "model.safetensors")
    code, _, stderr = start(capsys, pcfg.main("distill"), *words[1:], tmp_path / "student", "--teacher", mine)
    assert code == 2
    assert f"error: the weights in {mine / 'checkpoint-20'} are missing or damaged" in stderr.splitlines()[-1]
    shutil.copy(teacher / "checkpoint-20" / "model.safetensors", mine / "checkpoint-20")
    pcfg.succeed(capsys, *words, tmp_path / "student", "--teacher", mine)
    assert results(tmp_path / "student") == results(tmp_path / "undisturbed")


def test_students_of_a_teacher_that_was_trained_anew_are_not_taken_for_complete(pcfg, tmp_path, capsys, teacher):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    words = [*DISTILL, "--methods", "one-shot", "--teacher", mine, "--out", tmp_path / "run"]
    pcfg.succeed(capsys, *words)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "id": "another"}))
    assert "teacher_id" in pcfg.fail_in_one_line(capsys, *words)


def test_a_teacher_of_the_same_rules_in_another_file_is_accepted(pcfg, tmp_path, capsys, teacher):
    shutil.copy(GRAMMARS / "small.cfg", tmp_path / "mine.cfg")
    words = ["--grammar", tmp_path / "mine.cfg", *OTHER_TASK_WORDS[pcfg.name], "--methods", "one-shot"]
    pcfg.succeed(capsys, *DISTILL, "--teacher", teacher, *words, "--out", tmp_path / "run")


# Datasets


def export(pcfg, capsys, directory, sentences, *words):
    words = ["--sentences", sentences, "--validation", 0, *words, "--out", directory]
    pcfg.succeed(capsys, "data", "export", "--grammar", "small", *words)


def test_training_on_a_dataset_of_its_seed_is_training_from_the_sampler(pcfg, tmp_path, capsys, teacher):
    # Two groups of 16 batches of 4 sentences.
    export(pcfg, capsys, tmp_path / "dataset", 128, "--seed", 7)
    commands = {
        "train": [*TRAIN, "--seed", 7, "--steps", 32],
        "distill": [*DISTILL, "--methods", "progressive", "--stream-seed", 7, "--steps", 32, "--teacher", teacher],
    }
    for name, words in commands.items():
        words += ["--batch-size", 4]
        pcfg.succeed(capsys, *words, "--out", tmp_path / name)
        pcfg.succeed(capsys, *words, "--out", tmp_path / f"{name} on it", "--dataset", tmp_path / "dataset")
        assert results(tmp_path / f"{name} on it") == results(tmp_path / name)
        dataset = Run(tmp_path / f"{name} on it").config["arguments"]["dataset"]
        assert dataset == str(tmp_path / "dataset")


def test_a_dataset_that_is_of_another_grammar_or_too_small_is_one_line(pcfg, tmp_path, capsys, teacher):
    export(pcfg, capsys, tmp_path / "other", 300, "--start", "12")
    export(pcfg, capsys, tmp_path / "few", 239)
    before = files(tmp_path)
    students = [*DISTILL, "--methods", "ce", "--steps", 2, 30, "--teacher", teacher]
    for words in (TRAIN, students):
        for name, message in (
            ("other", "holds sentences of small from 12, which is not this run's grammar, small from 13"),
            ("few", "has 239 sentences and the run needs 240"),
        ):
            line = pcfg.fail_in_one_line(capsys, *words, "--dataset", tmp_path / name, "--out", tmp_path / "run")
            assert message in line
    assert files(tmp_path) == before


# Diverged


@pytest.mark.parametrize("cadence", ["--eval-every 5", "--eval-every 40 --checkpoint-every 4", "--eval-every 40"])
def test_a_loss_that_is_not_finite_is_one_line_with_exit_code_three(pcfg, tmp_path, capsys, monkeypatch, cadence):
    monkeypatch.setattr(resume, "RESUME_SECONDS", 0)
    words = [*TRAIN, "--checkpoint-every", 0, *cadence.split(), "--lr", "1e30", "--out", tmp_path / "run"]
    for _ in range(2):
        code, stdout, stderr = start(capsys, pcfg.main("train"), *words[1:])
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
    pcfg.succeed(capsys, *TRAIN, "--out", tmp_path / "run", "--force")


def test_a_student_that_diverges_does_not_stop_the_others(pcfg, tmp_path, capsys, monkeypatch, teacher):
    trainer_arguments = pcfg_commands.trainer_arguments

    def diverging_trainer_arguments(arguments, directory, steps, seed):
        return trainer_arguments(replace(arguments, lr=1e30) if seed == 1 else arguments, directory, steps, seed)

    words = [*DISTILL, "--methods", "one-shot", "--teacher", teacher, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(pcfg_commands, "trainer_arguments", diverging_trainer_arguments)
        code, _, stderr = start(capsys, pcfg.main("distill"), *words[1:], tmp_path / "runs", "--seeds", 1, 0)
    assert code == 3
    assert "one-shot-heads1-steps12-seed1: the loss is not finite at step 5" in stderr.splitlines()[-1]
    assert not Run(tmp_path / "runs" / "one-shot-heads1-steps12-seed1").complete
    pcfg.succeed(capsys, *words, tmp_path / "alone")
    assert results(tmp_path / "runs" / "one-shot-heads1-steps12-seed0") == results(tmp_path / "alone")


# Called twice


def test_a_complete_run_is_not_run_again_unless_forced(pcfg, tmp_path, capsys, monkeypatch, teacher):
    for words in (TRAIN, [*DISTILL, "--methods", "progressive", "--teacher", teacher]):
        directory = tmp_path / words[0]
        words = [*words, "--out", directory]
        pcfg.succeed(capsys, *words)
        before, made = files(directory), results(directory)
        with monkeypatch.context() as patch:
            patch.setattr(training, "RunTrainer", None)
            assert pcfg.succeed(capsys, *words) == f"{directory} is complete\n"
        assert files(directory) == before
        cut(find_checkpoints(directory)[-1].location / "model.safetensors")
        pcfg.succeed(capsys, *words, "--force")
        assert results(directory) == made


def test_students_that_are_added_later_join_those_that_are_complete(pcfg, tmp_path, capsys, teacher):
    words = [*DISTILL, "--teacher", teacher, "--methods", "ce", "one-shot", "--out", tmp_path / "students", "--seeds"]
    pcfg.succeed(capsys, *words, 0)
    before = files(tmp_path / "students")
    pcfg.succeed(capsys, *words, 0, 1)
    assert {name: files(tmp_path / "students")[name] for name in before} == before
    assert len(list((tmp_path / "students").iterdir())) == 4


def test_other_arguments_or_a_foreign_directory_are_refused(pcfg, tmp_path, capsys, teacher):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("Once")
    shutil.copytree(teacher, tmp_path / "run")
    before = files(tmp_path)
    line = pcfg.fail_in_one_line(capsys, *TRAIN, "--lr", 0.01, "--out", tmp_path / "run")
    assert "lr is 0.005 there and 0.01 here" in line
    for more in ([], ["--force"]):
        assert "is not a run" in pcfg.fail_in_one_line(capsys, *TRAIN, *more, "--out", tmp_path / "thesis")
    del before["run/.lock"]
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_second_process_on_the_same_run_is_refused(pcfg, tmp_path, capsys, teacher):
    shutil.copytree(teacher, tmp_path / "run")
    before = files(tmp_path)
    with open_run(tmp_path / "run", Run(tmp_path / "run").config["arguments"], setting=pcfg.name):
        for more in ([], ["--force"]):
            line = pcfg.fail_in_one_line(capsys, *TRAIN, *more, "--out", tmp_path / "run")
            assert "another process is using" in line
    assert files(tmp_path) == before


# Names

OTHERS = {
    **{"grammar": "cfg3b", "start": "12", "layers": 2, "head_dim": 4, "batch_size": 32, "lr": 1e-3, "dropout": 0.0},
    **{"eval_every": 7, "checkpoint_every": 5, "warmup": 0.0},
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
OTHER_TASK = {"PCFG_mlm": {"mask_rate": 0.2, "hide_masked": False}, "PCFG_autoregressive": {"label_level": 1}}


class Named(Exception):
    """The run's directory has been chosen."""


def directory_of(pcfg, monkeypatch, name, arguments):
    """Where a command would make the run of these arguments."""

    def stop(directory, *arguments, **options):
        raise Named(directory)

    stand_in = {
        **{"task_of": lambda *arguments: pcfg.task(SMALL), "training_batches": lambda *arguments: None},
        **{"find_checkpoints": lambda teacher: [None], "local_path": str, "open_shared_run": stop},
        **{"own_teacher": lambda *arguments: None, "supervision": lambda *arguments: None},
        **{"trainer_arguments": lambda *arguments: None, "processes_of": lambda trainer_args: None},
    }
    with monkeypatch.context() as patch:
        patch.setattr(pcfg.package.training, "SETTING", replace(pcfg.setting, load_model=lambda *arguments: None))
        for function, substitute in stand_in.items():
            patch.setattr(pcfg_commands, function, substitute)
        with pytest.raises(Named) as named:
            getattr(pcfg.commands[name], name)(arguments)
    return named.value.args[0]


@pytest.mark.parametrize(
    ("name", "changes", "others"),
    [
        ("train", {}, OTHERS | OTHER_TRAIN),
        ("distill", {"methods": ("two-shot",), "seeds": (0,), "checkpoint": ("10",)}, OTHERS | OTHER_DISTILL),
    ],
)
def test_runs_that_differ_in_one_argument_have_names_of_their_own(pcfg, monkeypatch, name, changes, others):
    others = others | OTHER_TASK[pcfg.name]
    base = replace(pcfg.commands[name].PRESETS["smoke"], **changes)
    assert {field.name for field in fields(base)} - {*EXECUTION_ARGUMENTS, "preset"} == set(others)
    changed = {
        "nothing": base,
        "preset": replace(base, preset="laptop"),
        **{other: replace(base, **{other: value}) for other, value in others.items()},
    }
    assert all(asdict(changed[other])[other] != asdict(base)[other] for other in others)
    directories = {key: directory_of(pcfg, monkeypatch, name, arguments) for key, arguments in changed.items()}
    assert all(directory.parent == ROOT / "runs" / pcfg.name for directory in directories.values())
    assert len({directory.name.lower() for directory in directories.values()}) == len(changed)
    for other, value in {"out": None, "force": True, "device": "cpu", "wandb": "offline"}.items():
        changed_directory = directory_of(pcfg, monkeypatch, name, replace(base, **{other: value}))
        assert changed_directory == directories["nothing"]


# As printed


def printed(pcfg):
    """Name and arguments of every command in the README and the docstrings."""
    pattern = rf"python (?:-m |{pcfg.name}[/.])*(train|distill|probe|data)(?:\.py)?( [^`\n]*[^`\n ])"
    texts = [(ROOT / pcfg.name / "README.md").read_text(), *(module.__doc__ for module in pcfg.commands.values())]
    return sorted({match for text in texts for match in re.findall(pattern, text)})


def test_every_command_is_printed_and_parses(pcfg, capsys, monkeypatch):
    parsed = []
    for name, work in (("train", "train"), ("distill", "distill"), ("probe", "probe"), ("data", "export")):
        monkeypatch.setattr(pcfg.commands[name], work, lambda *arguments: parsed.append(arguments[0]))
    probes = pcfg.commands["probe"].PROBES
    printed_probes = set()
    for name, line in printed(pcfg):
        first, *others = shlex.split(line)
        pcfg.succeed(capsys, name, first, *others)
        arguments = parsed.pop()
        assert not parsed
        if name in ("train", "distill"):
            assert arguments.preset == first
        if name == "probe":
            assert type(arguments) is probes[first]
            printed_probes.add(first)
    assert {name for name, _ in printed(pcfg)} == set(pcfg.commands)
    assert printed_probes == set(probes)


# In processes of their own


@pytest.mark.slow
def test_train_and_distill_start_from_every_folder(pcfg, tmp_path, teacher):
    done = python("train.py", *TRAIN[1:], "--out", tmp_path / "run", cwd=ROOT / pcfg.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert "step 30 of 30, loss" in done.stderr
    assert results(tmp_path / "run") == results(teacher)
    words = [*DISTILL[1:], "--methods", "progressive", "--teacher", teacher, "--out"]
    done = python(f"{pcfg.name}/distill.py", *words, tmp_path / "student")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "student").complete
    assert Run(tmp_path / "student").summary["step"] == 12


@pytest.mark.slow
def test_an_error_in_a_process_of_its_own_is_one_line(tmp_path):
    failed = python("-m", "PCFG_mlm.train", *TRAIN[1:], "--layers", 0, "--out", tmp_path / "run")
    assert failed.returncode == 2
    assert failed.stderr == "error: --layers must be at least 1, got 0\n"
    assert failed.stdout == ""
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", ["data"])
def test_a_command_starts_before_slow_modules_are_imported(pcfg, name):
    code = f"import sys, {pcfg.name}.{name}; assert not {{'torch', 'numba', 'transformers'}} & sys.modules.keys()"
    assert python("-c", code).returncode == 0
