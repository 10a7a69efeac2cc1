"""The commands with --model gpt2 as a user meets them: taught, killed, out of room, diverged, wrongly called."""

import itertools
import json
import math
import re
import resource
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.parity import training
from common.parity.gpt2 import Shape, configuration, load_model, shape_of
from common.parity.mlp import load_model as load_mlp
from common.parity.task import make_task
from common.runs.checkpoints import read_checkpoint
from common.runs.resume import load_resume, resume_steps
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from parity_mlp import distill, probe, train
from parity_mlp.data import signs
from tests.commands import (
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
    stopped,
)
from tests.gpt2 import tokens_of

COMMANDS = {"train": train, "distill": distill, "probe": probe}
SIZES = "--model gpt2 --d 6 --batch-size 8 --head-dim 3 --eval-samples 32 --eval-every 5 --lr 0.01"
TRAIN = shlex.split(f"train smoke {SIZES} --heads 2 --steps 30 --checkpoint-every 10")
DISTILL = shlex.split(f"distill smoke {SIZES} --steps 12 --student-heads 1 --seeds 0 --first-steps 5 --teacher-every 4")
MLP = "--d 6 --k 2 --lr 0.05 --eval-every 50 --eval-samples 32"
TASK = make_task(6, 2)


def succeed(capsys, name, *words):
    """Run a command in this process; what it wrote on stdout."""
    code, stdout, stderr = start(capsys, COMMANDS[name].main, *words)
    assert code == 0, stderr
    return stdout


def fail_in_one_line(capsys, name, *words, code=2):
    """Run a command that must fail; the line that it writes."""
    got, stdout, stderr = start(capsys, COMMANDS[name].main, *words)
    (line,) = stderr.splitlines()
    assert (got, stdout) == (code, "")
    assert line.startswith("error: ")
    return line


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run with checkpoints at steps 10, 20 and 30."""
    directory = tmp_path_factory.mktemp("parity") / "teacher"
    sizes = {"d": 6, "batch_size": 8, "head_dim": 3, "heads": 2, "steps": 30, "lr": 0.01, "eval_samples": 32}
    train.train(replace(train.PRESETS["gpt2"]["smoke"], **sizes, eval_every=5, checkpoint_every=10, out=directory))
    return directory


@pytest.fixture(scope="module")
def mlp_teacher(tmp_path_factory):
    """An MLP's run with checkpoints at steps 100, 200 and 300."""
    directory = tmp_path_factory.mktemp("mlp") / "teacher"
    sizes = {"d": 6, "k": 2, "width": 16, "lr": 0.05, "eval_samples": 32}
    arguments = train.TrainArguments(
        preset="smoke", **sizes, steps=300, eval_every=50, checkpoint_every=100, out=directory
    )
    train.train(arguments)
    return directory


def last_logits(model, bits):
    """Logits of a model of transformers at the last position, in float64."""
    with torch.no_grad():
        return model.double().eval()(tokens_of(shape_of(model.config.to_dict()), bits, 6)).logits[:, -1, :2]


# What a run is


def test_a_teacher_is_a_directory_that_transformers_reads(tmp_path, capsys):
    stdout = succeed(capsys, *TRAIN, "--out", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert {path.name for path in run.directory.iterdir()} == {
        *("config.json", "metrics.jsonl", "done.json", ".lock"),
        *(f"checkpoint-{step}" for step in (10, 20, 30)),
    }
    arguments = run.config["arguments"]
    assert {name: arguments[name] for name in ("model", "d", "k", "heads", "head_dim", "steps", "seed", "dropout")} == {
        **{"model": "gpt2", "d": 6, "k": 2, "heads": 2, "head_dim": 3, "steps": 30, "seed": 0, "dropout": 0.0}
    }
    records = run.records()
    assert [record["step"] for record in records] == list(range(0, 31, 5))
    assert [record["samples"] for record in records] == list(range(0, 241, 40))
    bits = TASK.sample(0, "evaluation", 0, 32)
    labels = torch.from_numpy(TASK.labels(bits))
    for record in (records[2], records[4], records[6]):
        model = GPT2LMHeadModel.from_pretrained(run.directory / f"checkpoint-{record['step']}")
        logits = last_logits(model, bits)
        assert record["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
        assert record["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert stdout == f"{run.directory}: accuracy {records[-1]['accuracy']:.3f}\n"


def test_the_stream_is_that_of_adamw_on_the_labels(tmp_path, capsys):
    """The whole of a run against a loop on the full model; float32 here and there."""
    words = ["--warmup", 0.25, "--lr-schedule", "linear", "--weight-decay", 0.1, "--beta2", 0.99, "--steps", 20]
    succeed(capsys, *TRAIN, *words, "--checkpoint-every", 10, "--seed", 3, "--out", tmp_path / "run")
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


def test_every_method_learns_from_the_checkpoints_of_its_schedule(tmp_path, capsys, teacher):
    words = shlex.split(
        "--eval-every 1 --eval-samples 8 --checkpoint 10 --plan 10:5 30:4 20 --speed 4 "
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
        "explicit": [10] * 5 + [30] * 4 + [20] * 3,
    }
    methods = [name.removesuffix("-10") for name in expected]
    succeed(capsys, *DISTILL, "--teacher", teacher, *words, *methods, "--out", tmp_path / "students")
    assert {path.name for path in (tmp_path / "students").iterdir()} == {f"{name}-heads1-seed0" for name in expected}
    identity, losses = Run(teacher).config["id"], {}
    for name, teachers in expected.items():
        run = Run(tmp_path / "students" / f"{name}-heads1-seed0")
        assert run.complete
        assert [checkpoint.step for checkpoint in find_checkpoints(run.directory)] == [12]
        assert GPT2LMHeadModel.from_pretrained(run.directory / "checkpoint-12").config.n_embd == 3
        _, *records = run.records()
        assert [record["teacher"] for record in records] == teachers  # of the step before each evaluation
        assert run.config["arguments"]["teacher_id"] == identity
        losses[name] = [record["loss"] for record in run.records()]
    for one, other in itertools.combinations(expected, 2):
        parted = False
        taught = zip(expected[one], expected[other], losses[one][1:], losses[other][1:], strict=True)
        for step, (mine, yours, my_loss, your_loss) in enumerate(taught):
            parted = parted or mine != yours
            assert (my_loss != pytest.approx(your_loss, rel=1e-6)) == parted, (one, other, step)


# Teachers


def what_a_student_sees(capsys, *words):
    """Train students by distill.py; the objectives that the engine got for each, put together over all ranges."""
    seen = {}
    make = training._objective

    def kept(arguments, student, *rest):
        seen.setdefault(student.run.directory.name, []).append(make(arguments, student, *rest))
        return seen[student.run.directory.name][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_objective", kept)
        succeed(capsys, *words)
    return {
        name: {term: np.concatenate([getattr(o, term) for o in objectives]) for term in ("labels", "targets", "alpha")}
        for name, objectives in seen.items()
    }


def assert_taught(seen, logits_at, teachers, temperature):
    """Targets are softmax(logits / temperature) of the checkpoint of each step, for samples of the stream 1000."""
    bits = TASK.sample(1000, "train", 0, 8 * len(teachers))
    np.testing.assert_array_equal(seen["labels"], TASK.labels(bits))
    for step, checkpoint in enumerate(teachers):
        batch = slice(8 * step, 8 * step + 8)
        logits = logits_at(checkpoint, bits[batch]).numpy() / temperature
        odds = np.exp(logits)
        np.testing.assert_allclose(seen["targets"][batch], odds / odds.sum(1, keepdims=True), atol=1e-5)


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
    seen = what_a_student_sees(capsys, *DISTILL, *words, "--teacher", plain_teacher, "--out", tmp_path / "students")
    assert files(plain_teacher) == before

    def logits_at(step, bits):
        return last_logits(GPT2LMHeadModel.from_pretrained(plain_teacher / f"checkpoint-{step}"), bits)

    for method, teachers in (("one-shot", [8] * 12), ("progressive", [4] * 6 + [8] * 6)):
        name = f"{method}-heads1-seed0"
        assert Run(tmp_path / "students" / name).config["arguments"]["teacher_id"] is None
        assert_taught(seen[name], logits_at, teachers, 1.5)
        assert set(seen[name]["alpha"]) == {0.25}


def test_an_mlp_teaches_a_gpt2(tmp_path, capsys, mlp_teacher):
    words = ["--methods", "ce", "progressive", "--teacher", mlp_teacher, "--out", tmp_path / "students"]
    seen = what_a_student_sees(capsys, *DISTILL, *words)

    def logits_at(step, bits):
        with torch.no_grad():
            return load_mlp(mlp_teacher / f"checkpoint-{step}").double()(torch.from_numpy(signs(bits, 6, np.float64)))

    assert_taught(seen["progressive-heads1-seed0"], logits_at, [100] * 4 + [200] * 4 + [300] * 4, 1)
    assert set(seen["ce-heads1-seed0"]["alpha"]) == {1}
    run = Run(tmp_path / "students" / "progressive-heads1-seed0")
    assert run.config["arguments"]["teacher_id"] == Run(mlp_teacher).config["id"]
    assert load_model(run.directory / "checkpoint-12").config.n_embd == 3


def test_a_gpt2_teaches_an_mlp(tmp_path, capsys, teacher):
    words = shlex.split(f"distill smoke {MLP} --widths 8 --seeds 0 --steps 120 --teacher-every 40 --first-steps 9")
    words += ["--methods", "progressive", "--batch-size", "8", "--teacher", teacher, "--out", tmp_path / "student"]
    seen = what_a_student_sees(capsys, *words)

    def logits_at(step, bits):
        return last_logits(load_model(teacher / f"checkpoint-{step}"), bits)

    assert_taught(seen["student"], logits_at, [10] * 40 + [20] * 40 + [30] * 40, 1)
    assert load_mlp(tmp_path / "student" / "checkpoint-120").output.out_features == 2


def test_students_share_the_logits_of_a_teacher(tmp_path, capsys, monkeypatch, teacher):
    """Each checkpoint is loaded once and asked once for each range, however many students there are."""
    asked = []
    real = training.engine_for_logits

    def counted(network, *arguments):
        engine = real(network, *arguments)
        logits = engine.logits
        engine.logits = lambda *which: asked.append(1) or logits(*which)
        return engine

    monkeypatch.setattr(training, "engine_for_logits", counted)
    words = ["--methods", "one-shot", "--seeds", 0, 1, "--student-heads", 1, 2, "--teacher", teacher]
    succeed(capsys, *DISTILL, *words, "--out", tmp_path / "students")
    assert len(list((tmp_path / "students").iterdir())) == 4
    assert len(asked) == 3  # ranges of 5, 5 and 2 steps


# Probes


@pytest.mark.parametrize(
    "words", ["", "--class-token --no-causal --feed-forward skip --average-heads --tie-embeddings"]
)
def test_probed_correlations_are_means_over_the_samples(tmp_path, capsys, words):
    run = tmp_path / "run"
    succeed(capsys, *TRAIN, *words.split(), "--out", run)
    stdout = succeed(capsys, "probe", *shlex.split("--samples 400 --outside 4 --degrees 1 2 --seed 4 --run"), run)
    (path,) = (run / "probes").iterdir()
    assert stdout == f"{path}\n"
    entries = json.loads(path.read_text())["checkpoints"]
    assert [entry["step"] for entry in entries] == [10, 20, 30]
    bits = make_task(6, 2).sample(4, "probe", 0, 400)
    probability = last_logits(load_model(run / "checkpoint-20"), bits).softmax(1)[:, 1].numpy()
    centred, x = probability - probability.mean(), signs(bits, 6)
    for degree in entries[1]["degrees"]:
        for side in ("inside", "outside"):
            expected = [abs(np.mean(x[:, subset].prod(axis=1) * centred)) for subset in degree[f"{side}_subsets"]]
            np.testing.assert_allclose(degree[side], expected, atol=1e-6)


# Killed


def test_a_run_killed_six_times_ends_with_the_same_bits(tmp_path, capsys):
    cadence = shlex.split("--steps 150 --eval-every 3 --checkpoint-every 15 --dropout 0.2 --accumulate 2")
    words = [*TRAIN, *cadence, "--adaptive-checkpoints", "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    kill_again_and_again(6, tmp_path / "killed", training, train.__name__, *words[1:], tmp_path / "killed")
    succeed(capsys, *words, tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


PASS = [
    *DISTILL,
    *shlex.split(
        "--dropout 0.2 --methods ce progressive until-saturation --saturation-steps 6 --divergence reverse-kl"
    ),
]
"""Three students of two passes, as those of the labels have the divergence of their own."""


def test_students_killed_six_times_together_end_with_the_same_bits(tmp_path, capsys, teacher):
    words = [*PASS, *shlex.split("--steps 100 --eval-every 3 --teacher-every 30"), "--teacher", teacher]
    succeed(capsys, *words, "--out", tmp_path / "undisturbed")
    run = tmp_path / "killed" / "until-saturation-heads1-seed0"
    kill_again_and_again(6, run, training, distill.__name__, *words[1:], "--out", tmp_path / "killed")
    succeed(capsys, *words, "--out", tmp_path / "killed")
    assert results_below(tmp_path / "killed") == results_below(tmp_path / "undisturbed")


def writes_until_killed(patch, number):
    """Let the process end before the write of this number, among those that end or begin a resume state."""
    calls = itertools.count()

    def until_killed(real):
        def call(*arguments):
            if next(calls) == number:
                raise Killed
            return real(*arguments)

        return call

    patch.setattr(training, "RESUME_SECONDS", 0)
    for owner, name in ((training, "add_resume"), (training, "keep_resume"), (Run, "finish")):
        patch.setattr(owner, name, until_killed(getattr(owner, name)))
    return calls


def test_students_killed_between_any_two_writes_of_their_states_end_with_the_same_bits(
    tmp_path, capsys, monkeypatch, teacher
):
    words = [*PASS, "--methods", "progressive", "until-saturation", "--teacher", teacher, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    expected = results_below(tmp_path / "undisturbed")
    differing = 0
    for number in itertools.count():
        killed = tmp_path / str(number)
        try:
            with monkeypatch.context() as patch:
                calls = writes_until_killed(patch, number)
                start(capsys, distill.main, *words[1:], killed)
            break
        except Killed:
            steps = [resume_steps(student) for student in killed.iterdir() if not Run(student).complete]
            differing += len(set(map(tuple, steps))) > 1
        succeed(capsys, *words, killed)
        assert results_below(killed) == expected, number
    assert number == next(calls) == 4 * 4 + 2  # at steps 0, 5, 10 and 12 two calls for each student, and its end
    assert differing == 7


def test_a_student_without_a_state_begins_anew_and_the_others_go_on(tmp_path, capsys, monkeypatch, teacher):
    """Without dropout a student depends on the others by rounding only, and each has Adam's steps of its own."""
    words = [*DISTILL, "--methods", "ce", "one-shot", "progressive", "--teacher", teacher, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        writes_until_killed(patch, 12)
        with pytest.raises(Killed):
            start(capsys, distill.main, *words[1:], tmp_path / "killed")
    students = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert [resume_steps(tmp_path / "killed" / name) for name in students] == [[5]] * 3
    shutil.rmtree(tmp_path / "killed" / students[1] / "resume")
    succeed(capsys, *words, tmp_path / "killed")
    for name in students:
        mine, whole = (Run(tmp_path / place / name) for place in ("killed", "undisturbed"))
        for record, expected in zip(mine.records(), whole.records(), strict=True):
            assert record == {key: value and pytest.approx(value, rel=1e-5) for key, value in expected.items()}


# Told to stop


def test_a_run_told_to_stop_three_times_ends_with_the_same_bits(tmp_path, capsys):
    cadence = shlex.split("--steps 66 --eval-every 3 --checkpoint-every 15 --dropout 0.2 --accumulate 2")
    words = [*TRAIN, *cadence, "--adaptive-checkpoints", "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    stop_again_and_again(tmp_path / "stopped", train.__name__, *words[1:], tmp_path / "stopped")
    succeed(capsys, *words, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("owner", "name", "calls", "step"),
    [(training, "_objective", [3], 5), (training, "_score", [7], 10), (Run, "log", [4, 7], 5)],
    ids=["training", "evaluation", "writing"],
)
def test_students_told_to_stop_are_saved_together_and_end_with_the_same_bits(
    tmp_path, capsys, monkeypatch, teacher, owner, name, calls, step
):
    """With dropout, whose random numbers all students of a pass share."""
    words = [*PASS, "--teacher", teacher, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_signal(getattr(owner, name), *calls))
        assert stopped(capsys, distill.main, *words[1:], tmp_path / "stopped") == step
    assert [resume_steps(student) for student in (tmp_path / "stopped").iterdir()] == [[step]] * 3
    succeed(capsys, *words, tmp_path / "stopped")
    assert results_below(tmp_path / "stopped") == results_below(tmp_path / "undisturbed")


def test_students_that_are_added_later_join_those_that_are_complete(tmp_path, capsys, teacher):
    words = [*DISTILL, "--teacher", teacher, "--methods", "ce", "one-shot", "--out", tmp_path / "students", "--seeds"]
    succeed(capsys, *words, 0)
    before = files(tmp_path / "students")
    succeed(capsys, *words, 0, 1)
    assert {name: files(tmp_path / "students")[name] for name in before} == before
    assert len(list((tmp_path / "students").iterdir())) == 4


# Out of room


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    words = [*TRAIN, "--heads", 10, "--dropout", 0.1, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed")
    saves = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(*arguments):
        saves.append(1)
        if len(saves) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        save_checkpoint(*arguments)

    save_checkpoint = training.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", save)
        patch.setattr(training, "RESUME_SECONDS", 0)
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
    assert load_resume(tmp_path / "full").step == 25
    succeed(capsys, *words, tmp_path / "full")
    assert results(tmp_path / "full") == results(tmp_path / "undisturbed")


# Diverged


@pytest.mark.parametrize("cadence", ["--eval-every 5", "--eval-every 40 --checkpoint-every 4", "--eval-every 40"])
def test_a_loss_that_is_not_finite_is_one_line_with_exit_code_three(tmp_path, capsys, monkeypatch, cadence):
    monkeypatch.setattr(training, "RESUME_SECONDS", 0)
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
        assert not list(run.directory.rglob("*.safetensors"))
    succeed(capsys, *TRAIN, "--out", tmp_path / "run", "--force")


def diverging(capsys, *words, kill=None):
    """Train three students of a pass, whose second one's weights become infinite before its evaluation at step 10."""
    real = training.learning_rates

    def rates(arguments, lr, steps):
        return real(arguments, lr, steps) * np.where((lr == 0.02) & (steps >= 8), 1e38, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "learning_rates", rates)
        if kill is not None:
            writes_until_killed(patch, kill)
        return start(capsys, distill.main, *words[1:])


DIVERGING = [*DISTILL, *shlex.split("--methods one-shot --lr 0.01 0.02 0.03 --steps 30 --dropout 0.2 --teacher")]


def test_a_student_that_diverges_leaves_what_is_there_and_the_others_of_its_pass_go_on(tmp_path, capsys, teacher):
    code, _, stderr = diverging(capsys, *DIVERGING, teacher, "--out", tmp_path / "runs")
    assert code == 3
    lost = tmp_path / "runs" / "one-shot-heads1-seed0-lr0.02"
    assert stderr.splitlines()[-1] == f"error: {lost}: the loss is not finite at step 10: give a lower --lr"
    assert not Run(lost).complete
    assert [record["step"] for record in Run(lost).records()] == [0, 5]
    assert not list(lost.glob("checkpoint-*"))
    succeed(capsys, *DIVERGING, teacher, "--out", tmp_path / "whole")
    for lr in (0.01, 0.03):  # and the bits of a pass in which no one diverges
        name = f"one-shot-heads1-seed0-lr{lr}"
        assert Run(tmp_path / "runs" / name).complete
        assert results(tmp_path / "runs" / name) == results(tmp_path / "whole" / name)


def test_the_others_are_the_same_to_the_bit_when_killed_after_one_has_diverged(tmp_path, capsys, teacher):
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
    ("--weight-decay -1", "--weight-decay must be at least 0 and at most 0.5 / lr"),
    ("--warmup 1.1", "--warmup is a fraction of the steps, between 0 and 1; got 1.1"),
    ("--warmup nan", "--warmup is a fraction of the steps, between 0 and 1; got nan"),
    ("--dropout 1", "--dropout must be at least 0 and below 1, got 1"),
    ("--dropout -0.1", "--dropout must be at least 0 and below 1, got -0.1"),
    ("--dropout nan", "--dropout must be at least 0 and below 1, got nan"),
    ("--beta1 1", "--beta1 must be at least 0 and below 1, got 1"),
    ("--beta2 -0.1", "--beta2 must be at least 0 and below 1, got -0.1"),
    ("--initial-std 0", "--initial-std must be positive and finite, got 0"),
    ("--initial-std nan", "--initial-std must be positive and finite, got nan"),
    ("--positions 5", "--positions must be at least 6, one for each token; got 5"),
    ("--positions 6 --class-token", "--positions must be at least 7, one for each token; got 6"),
    ("--positions 0", "--positions must be at least 6, one for each token; got 0"),
    ("--batch-size 6 --accumulate 4", "--batch-size 6 cannot be cut into 4 equal parts (1 processes times"),
    ("--label-temperature -1", "--label-temperature must be at least 0"),
    ("--labels 3", "--labels must be a power of two"),
    ("--labels 8", "need 14 coordinates"),
    ("--k 7", "k = 7 need 7 coordinates"),
    ("--support 0,6", "support index 6 is out of range"),
    ("--device abacus", "--device abacus cannot be used"),
]
WRONG_TRAIN = [
    ("--heads 0", "--heads must be at least 1, got 0"),
    ("--seed -1", "--seed must be at least 0, got -1"),
    ("--seed 9223372036854775808", "--seed must be below 2^63"),
]
WRONG_DISTILL = [
    ("--student-heads 0", "--student-heads must be at least 1, got 0"),
    ("--student-heads 2 4 2", "--student-heads needs at least one value and none twice, got [2, 4, 2]"),
    ("--lr 0.1 -1", "--lr must be positive and finite, got -1"),
    ("--lr 0.1 0.2 0.1", "--lr needs at least one value and none twice, got [0.1, 0.2, 0.1]"),
    ("--lr 0.1 10 --weight-decay 1", "--weight-decay must be at least 0 and at most 0.5 / lr"),
    ("--methods ce ce", "--methods needs at least one value and none twice, got ['ce', 'ce']"),
    ("--seeds 0 0", "--seeds needs at least one value and none twice, got [0, 0]"),
    ("--seeds 0 -1", "--seeds must be at least 0, got -1"),
    ("--stream-seed -1", "--stream-seed must be at least 0, got -1"),
    ("--methods ce one-shot --alpha 2", "--alpha must be between 0 and 1"),
    ("--methods one-shot --temperature nan", "temperature is nan: give finite numbers"),
    ("--methods one-shot --top-k 3", "--top-k must be between 1 and the number of labels, 2; got 3"),
    ("--methods one-shot --divergence jensen-shannon --beta 1", "--beta must be between 0 and 1"),
    ("--methods progressive --teacher-every 0", "student steps per checkpoint must be positive"),
    ("--methods two-shot --checkpoint 5", "at or before teacher step 5; the first is 10"),
    ("--methods until-saturation --saturation-window 0", "window"),
    ("--d 7", "has 6 positions, but d = 7 needs 7"),
    ("--d 9 --labels 4", "has 2 classes (vocabulary 2), but this task has 4"),
    ("--k 3", "was trained with k 2, but here it is 3"),
    ("--support 1,2", "was trained with support"),
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
    ("words", "named"),
    [
        ("train smoke --model foo", "--model"),
        ("train smoke --model", "--model"),
        ("train smoke --model gpt2 --width 5", "--width"),
        ("train smoke --model=gpt2 --width 5", "--width"),
        ("train smoke --heads 2", "--heads"),
        ("train smoke --model mlp --heads 2", "--heads"),
        ("train smoke --model mlp --compile", "--compile"),
        ("train smoke --model gpt2 --dtype float64", "--dtype"),
        ("train smoke --model gpt2 --precision bf8", "--precision"),
        ("train smoke --model gpt2 --feed-forward relu", "--feed-forward"),
        ("train smokey --model gpt2", "smokey"),
        ("distill smoke --model gpt2 --widths 5", "--widths"),
        ("distill smoke --student-heads 2", "--student-heads"),
        ("distill smoke --model gpt2 --methods guess", "--methods"),
    ],
)
def test_usage_errors_name_the_word_and_exit_with_two(tmp_path, capsys, words, named):
    name, *arguments = words.split()
    code, _, stderr = start(capsys, COMMANDS[name].main, *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert named in stderr
    assert files(tmp_path) == {}


@pytest.mark.parametrize("words", [["--model", "gpt2"], ["--model=gpt2"], ["--model", "mlp", "--model", "gpt2"]])
def test_the_model_may_be_named_in_every_way_that_the_parser_knows(tmp_path, capsys, words):
    sizes = TRAIN[1:2] + TRAIN[4:]
    code, _, stderr = start(capsys, train.main, *sizes, *words, "--out", tmp_path / "run")
    assert code == 0, stderr
    assert Run(tmp_path / "run").config["arguments"]["model"] == "gpt2"


@pytest.mark.parametrize("name", ["checkpoint-30/model.safetensors", "checkpoint-30/config.json", "config.json"])
def test_a_file_of_the_teacher_that_is_cut_off_is_one_line(tmp_path, capsys, teacher, name):
    damaged = shutil.copytree(teacher, tmp_path / "teacher") / name
    cut(damaged)
    before = files(tmp_path)
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", tmp_path / "teacher", "--out", tmp_path / "students")
    assert str(damaged) in line
    assert files(tmp_path) == before


def test_a_teacher_of_another_kind_is_one_line(tmp_path, capsys, teacher):
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    path = mine / "checkpoint-30" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "bert"}))
    line = fail_in_one_line(capsys, *DISTILL, "--teacher", mine, "--out", tmp_path / "students")
    assert f"{path.parent} holds a 'bert' model, not 'parity_mlp' or 'gpt2'" in line
    assert not (tmp_path / "students").exists()


def test_students_go_on_when_a_checkpoint_that_is_cut_off_is_mended(tmp_path, capsys, teacher):
    words = [*DISTILL, "--methods", "ce", "progressive", "--dropout", 0.2, "--out"]
    succeed(capsys, *words, tmp_path / "undisturbed", "--teacher", teacher)
    mine = shutil.copytree(teacher, tmp_path / "teacher")
    damaged = mine / "checkpoint-20" / "model.safetensors"
    cut(damaged)
    code, _, stderr = start(capsys, distill.main, *words[1:], tmp_path / "students", "--teacher", mine)
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"error: {damaged} is truncated or damaged")
    shutil.copy(teacher / "checkpoint-20" / "model.safetensors", damaged)
    succeed(capsys, *words, tmp_path / "students", "--teacher", mine)
    assert results_below(tmp_path / "students") == results_below(tmp_path / "undisturbed")


def test_a_run_of_the_other_model_is_not_gone_on_with(tmp_path, capsys, teacher):
    run = shutil.copytree(teacher, tmp_path / "run")
    line = fail_in_one_line(capsys, "train", "smoke", *MLP.split(), "--out", run)
    assert "holds a run with other arguments" in line
    assert "model is gpt2 there and mlp here" in line


def test_a_complete_run_is_not_run_again_unless_forced(tmp_path, capsys, monkeypatch, teacher):
    for words in (TRAIN, [*DISTILL, "--methods", "progressive", "--teacher", teacher]):
        directory = tmp_path / words[0]
        words = [*words, "--out", directory]
        succeed(capsys, *words)
        before, made = files(directory), results(directory)
        with monkeypatch.context() as patch:
            patch.setattr(COMMANDS[words[0]], "train_together", None)
            assert succeed(capsys, *words) == f"{directory} is complete\n"
        assert files(directory) == before
        cut(find_checkpoints(directory)[-1].location / "model.safetensors")
        succeed(capsys, *words, "--force")
        assert results(directory) == made


def test_commands_start_in_processes_of_their_own(tmp_path, teacher):
    done = python("parity_mlp/train.py", *TRAIN[1:], "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert results(tmp_path / "run") == results(teacher)
