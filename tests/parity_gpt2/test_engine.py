"""Training GPT-2 against torch.optim.AdamW on the full model, step by step, in float64; stacks taken apart and resumed.

The engine computes in float32. For the comparisons `float` means `double`, so that nothing is lost in the rounding.
"""

import io
import json
import math
import os
import shlex
import shutil
import sys
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity_mlp.train
from common.cli import command
from common.parity import last_position, training
from common.parity.gpt2 import configuration, initial_network
from common.parity.networks import Network
from common.parity.objective import DIVERGENCE_CODES, Objective
from common.parity.task import make_task
from common.runs import resume
from common.runs.checkpoints import read_checkpoint
from common.runs.resume import load_resume
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from parity_gpt2 import distill, train
from parity_gpt2.engine import MOMENTS, STEP, AdamSettings, TransformerEngine
from tests.commands import Killed, python, results
from tests.forked import two_forked
from tests.gpt2 import SHAPES, random_model, tokens_of

D, BATCH = 6, 8
SIZES = "--d 6 --batch-size 8 --head-dim 3 --eval-samples 32 --eval-every 4 --lr 0.003"
TRAIN = shlex.split(f"train smoke {SIZES} --heads 2 --steps 14 --checkpoint-every 6")
DISTILL = shlex.split(f"distill smoke {SIZES} --methods ce progressive --seeds 0 --student-heads 1 --steps 12")
SHARED = {
    "train": TRAIN,
    "train-accumulate": [*TRAIN, "--accumulate", "2"],
    "distill": [*DISTILL, "--divergence", "reverse-kl", "--alpha", "0.3"],
}
"""What two processes make as one does."""
REFUSED = {
    "mlp": (shlex.split("mlp smoke"), "an MLP is trained by one process: start the command without torchrun"),
    "batch": ([*TRAIN, "--batch-size", "7"], "--batch-size 7 cannot be divided into 2 equal parts (2 processes times"),
    "parts": ([*TRAIN, "--accumulate", "8"], "--batch-size 8 cannot be divided into 16 equal parts (2 processes times"),
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def in_float64(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def network(shape, seed, dtype=np.float64):
    """A random network, and moments of zero, in which the engine computes in `dtype`."""
    parameters = dict(random_model(shape, seed, 0.3).named_parameters())
    tensors = {name: value.detach().numpy().astype(dtype) for name, value in parameters.items()}
    moments = {prefix + name: np.zeros_like(value) for name, value in tensors.items() for prefix in MOMENTS}
    return Network(configuration(shape).to_dict(), tensors | moments)


def stream(steps, start=0):
    return make_task(D, 2).sample(0, "train", start * BATCH, steps * BATCH)


def objective(shape, steps, seed, divergence="forward-kl", alpha=None, lr=0.01, decay=0.0, beta=0.3):
    """Random labels, targets, alpha (unless it is given) and learning rates that rise from nothing."""
    numbers = np.random.default_rng(seed)
    count = steps * BATCH
    odds = np.exp(numbers.normal(size=(count, shape.classes)))
    return Objective(
        labels=np.random.default_rng(7).integers(0, shape.classes, count),
        targets=odds / odds.sum(1, keepdims=True),
        alpha=numbers.random(count) if alpha is None else np.full(count, alpha),
        lr=lr * np.minimum(np.arange(steps) / 3, 1),
        decay=decay,
        divergence=DIVERGENCE_CODES[divergence],
        beta=beta,
    )


class ByHand:
    """A network in training by torch's plain AdamW on all positions of the full model."""

    def __init__(self, shape, network, betas=(0.9, 0.999)):
        self.shape = shape
        self.model = random_model(shape, 0)
        for name, parameter in self.model.named_parameters():
            parameter.data = torch.from_numpy(network.tensors[name].copy()).double()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=betas, foreach=False, fused=False)

    def train(self, bits, terms):
        tokens = tokens_of(self.shape, bits, D)
        labels, targets, alpha = (torch.from_numpy(terms[i]) for i in range(3))
        (group,) = self.optimizer.param_groups
        group["weight_decay"] = terms.decay
        for step, lr in enumerate(terms.lr.tolist()):
            batch = slice(step * BATCH, (step + 1) * BATCH)
            group["lr"] = lr
            log_p = self.model(tokens[batch]).logits[:, -1, : self.shape.classes].log_softmax(-1)
            p, q = log_p.exp(), targets[batch]
            mixture = (terms.beta * q + (1 - terms.beta) * p).log()
            divergence = {
                "forward-kl": -(q * log_p).sum(-1),
                "reverse-kl": (p * (log_p - q.log())).sum(-1),
                "jensen-shannon": (-terms.beta * q * mixture + (1 - terms.beta) * p * (log_p - mixture)).sum(-1),
            }
            (kind,) = [kind for kind, code in DIVERGENCE_CODES.items() if code == terms.divergence]
            from_labels = F.nll_loss(log_p, labels[batch], reduction="none")
            self.optimizer.zero_grad()
            (alpha[batch] * from_labels + (1 - alpha[batch]) * divergence[kind]).mean().backward()
            self.optimizer.step()
        return self

    def state(self):
        found = {}
        for name, parameter in self.model.named_parameters():
            kept = self.optimizer.state[parameter]
            found[name] = parameter.detach().numpy()
            found |= {prefix + name: kept[prefix.removesuffix("/")].numpy() for prefix in MOMENTS}
            found[STEP] = np.array(int(kept["step"]))
        return found


def assert_near(state, expected, atol=1e-10):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].shape == value.shape
        np.testing.assert_allclose(state[name], value, rtol=1e-6, atol=atol, err_msg=name)


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def make_engine(networks, **settings):
    return TransformerEngine(networks, D, AdamSettings(batch_size=BATCH, **settings))


# Single networks


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, None, 1.0])
@pytest.mark.parametrize("divergence", DIVERGENCE_CODES)
@pytest.mark.usefixtures("in_float64")
def test_steps_are_those_of_adamw_on_the_full_model(divergence, alpha, accumulate):
    shape = SHAPES["plain"]
    start, terms = network(shape, 0), objective(shape, 6, 1, divergence, alpha, decay=0.3)
    engine = make_engine([start], accumulate=accumulate, beta1=0.8, beta2=0.97)
    engine.train(stream(6), {0: terms})
    by_hand = ByHand(shape, start, (0.8, 0.97)).train(stream(6), terms)
    assert_near(engine.state(0), by_hand.state())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("in_float64")
def test_every_variant_is_trained_as_the_full_model(name):
    shape = SHAPES[name]
    start, terms = network(shape, 0), objective(shape, 6, 1)
    engine = make_engine([start])
    engine.train(stream(6), {0: terms})
    by_hand = ByHand(shape, start).train(stream(6), terms)
    assert_near(engine.state(0), by_hand.state())
    assert_equal(engine.tensors(0), {name: engine.state(0)[name] for name in start.tensors if "/" not in name})
    with torch.no_grad():
        logits = by_hand.model(tokens_of(shape, stream(20, 50), D)).logits[:, -1, : shape.classes]
    np.testing.assert_allclose(engine.logits(0, stream(20, 50)), logits, rtol=1e-6, atol=1e-8)


def test_the_engine_computes_in_float32_by_default():
    shape = SHAPES["three-layers"]
    terms = objective(shape, 6, 1)
    engine = make_engine([network(shape, 0, np.float32)])
    engine.train(stream(6), {0: terms})
    state = engine.state(0)
    assert {value.dtype for name, value in state.items() if name != STEP} == {np.dtype(np.float32)}
    expected = ByHand(shape, network(shape, 0, np.float32)).train(stream(6), terms).state()
    for name, value in expected.items():
        if not name.endswith("c_attn.bias"):  # no key's bias has a gradient, and Adam makes steps of its rounding
            np.testing.assert_allclose(state[name], value, rtol=1e-2, atol=1e-4, err_msg=name)


def test_a_new_network_begins_without_moments():
    shape = SHAPES["plain"]
    start = initial_network(shape, 0.3, 0)
    engine, other = (make_engine([Network(start.config, tensors)]) for tensors in (start.tensors, zeros(start)))
    for one in (engine, other):
        one.train(stream(3), {0: objective(shape, 3, 1)})
    assert_equal(engine.state(0), other.state(0))
    assert engine.state(0)[STEP] == 3


def zeros(start):
    moments = {prefix + name: np.zeros_like(value) for name, value in start.tensors.items() for prefix in MOMENTS}
    return start.tensors | moments


@pytest.mark.parametrize("part", [1, 7 * 16 * D * 6, 2**22])
def test_logits_do_not_depend_on_the_parts_in_which_they_are_computed(monkeypatch, part):
    shape = SHAPES["plain"]
    monkeypatch.setattr(last_position, "LOGITS_BYTES", part)
    with torch.no_grad():
        expected = random_model(shape, 0, 0.3)(tokens_of(shape, stream(4), D)).logits[:, -1]
    logits = make_engine([network(shape, 0, np.float32)]).logits(0, stream(4))
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# Several networks

STUDENTS = [
    ("plain", {"lr": 0.01}),
    ("plain", {"lr": 0.03, "alpha": 1.0}),
    ("three-layers", {"lr": 0.02}),
    ("plain", {"lr": 0.01, "alpha": 0.0}),
    ("all", {"lr": 0.01}),
]


def students(dtype=np.float64):
    return [network(SHAPES[name], seed, dtype) for seed, (name, _) in enumerate(STUDENTS)]


def terms_of(i, steps, **changed):
    name, settings = STUDENTS[i]
    return objective(SHAPES[name], steps, 10 + i, **{"decay": 0.2, **settings, **changed})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.usefixtures("in_float64")
def test_networks_of_several_shapes_and_rates_are_each_trained_as_alone(accumulate):
    engine = make_engine(students(), accumulate=accumulate)
    engine.train(stream(5), {i: terms_of(i, 5) for i in range(5)})
    for i, start in enumerate(students()):
        by_hand = ByHand(SHAPES[STUDENTS[i][0]], start).train(stream(5), terms_of(i, 5))
        assert_near(engine.state(i), by_hand.state())
        alone = make_engine([start], accumulate=accumulate)
        alone.train(stream(5), {0: terms_of(i, 5)})
        assert_near(engine.state(i), alone.state(0), atol=1e-13)


@pytest.mark.parametrize("first", ["forward-kl", "reverse-kl", "jensen-shannon"])
@pytest.mark.usefixtures("in_float64")
def test_students_trained_together_may_have_different_divergences(first):
    """A student of the labels has the forward KL, whatever divergence the others have."""
    others = [kind for kind in DIVERGENCE_CODES if kind != first]
    kinds = {0: first, 1: others[0], 3: others[1]}
    engine = make_engine(students())
    for start in (0, 4):
        engine.train(stream(4, start), {i: terms_of(i, 4, divergence=kind, alpha=None) for i, kind in kinds.items()})
    for i, kind in kinds.items():
        by_hand = ByHand(SHAPES["plain"], students()[i])
        for start in (0, 4):
            by_hand.train(stream(4, start), terms_of(i, 4, divergence=kind, alpha=None))
        assert_near(engine.state(i), by_hand.state())


@pytest.mark.parametrize(
    "calls", [[(0, 1, 3), (1,), (0, 1, 3)], [(1,), (3, 0), (0, 1)], [(0, 1, 2, 3, 4), (4, 2, 0), (0, 1, 2, 3, 4)]]
)
@pytest.mark.usefixtures("in_float64")
def test_a_stack_can_be_taken_apart_and_put_together_again(calls):
    engine = make_engine(students())
    by_hand = {i: ByHand(SHAPES[STUDENTS[i][0]], students()[i]) for call in calls for i in call}
    for number, call in enumerate(calls):
        terms = {i: terms_of(i, 4) for i in call}
        engine.train(stream(4, 4 * number), terms)
        for i in call:
            by_hand[i].train(stream(4, 4 * number), terms[i])
    for i, expected in by_hand.items():
        assert_near(engine.state(i), expected.state())


@pytest.mark.usefixtures("in_float64")
def test_networks_that_stopped_at_different_steps_resume_from_their_own():
    """One that is new begins with the bias correction of Adam's first step, whoever is beside it."""
    before = make_engine([students()[0]])
    before.train(stream(4), {0: terms_of(0, 4)})
    for order in ((0, 1), (1, 0)):
        networks = [Network(students()[0].config, before.state(0)), students()[1]]
        engine = make_engine([networks[i] for i in order])
        late, new = order.index(0), order.index(1)
        engine.train(stream(4), {new: terms_of(1, 4)})
        assert [int(engine.state(i)[STEP]) for i in (late, new)] == [4, 4]
        engine.train(stream(4, 4), {late: terms_of(0, 4), new: terms_of(1, 4)})
        for i, row in ((0, late), (1, new)):
            by_hand = ByHand(SHAPES["plain"], students()[i])
            for start in (0, 4):
                by_hand.train(stream(4, start), terms_of(i, 4))
            assert_near(engine.state(row), by_hand.state())


def test_a_network_that_is_not_finite_leaves_the_others_alone():
    shape = SHAPES["plain"]
    whole, broken = (make_engine(students(np.float32)[:2]) for _ in range(2))
    bad = students(np.float32)
    bad[1].tensors["transformer.wte.weight"][:] = np.inf
    broken = make_engine(bad[:2])
    for engine in (whole, broken):
        engine.train(stream(4), {i: objective(shape, 4, i) for i in range(2)})
    assert_equal(broken.state(0), whole.state(0))
    assert np.isnan(broken.logits(1, stream(1))).all()


# Resuming


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_new_engine_resumed_from_a_state_is_bit_identical(dropout):
    shapes = [replace(SHAPES[name], dropout=dropout) for name, _ in STUDENTS]
    start = [network(shape, i, np.float32) for i, shape in enumerate(shapes)]
    steps = [(0, 10), (10, 7), (17, 20)]

    def train(engine, number):
        first, count = steps[number]
        engine.train(stream(count, first), {i: terms_of(i, count) for i in range(5)})

    whole = make_engine(start, accumulate=2, seed=4)
    for number in range(3):
        train(whole, number)
    engine = make_engine(start, accumulate=2, seed=4)
    for number in range(3):
        torch.manual_seed(number)  # nothing that others draw may matter
        train(engine, number)
        states = [dict(sorted(engine.state(i).items(), reverse=True)) for i in range(5)]  # as a file may have them
        engine = make_engine(
            [Network(one.config, state) for one, state in zip(start, states, strict=True)], accumulate=2, seed=4
        )
    for i in range(5):
        assert_equal(engine.state(i), whole.state(i))
    if dropout:
        other = make_engine(start, accumulate=2, seed=5)
        for number in range(3):
            train(other, number)
        assert not np.array_equal(other.state(0)["lm_head.weight"], whole.state(0)["lm_head.weight"])


def test_a_state_is_a_copy():
    engine = make_engine(students(np.float32)[:1])
    before = engine.state(0)
    kept = {name: value.copy() for name, value in before.items()}
    engine.train(stream(3), {0: terms_of(0, 3)})
    assert_equal(before, kept)


# Dropout


def test_dropout_is_drawn_anew_for_every_step_part_process_and_seed(monkeypatch):
    keys = []
    monkeypatch.setattr(torch, "manual_seed", keys.append)
    shape = replace(SHAPES["plain"], dropout=0.2)

    def train(**settings):
        keys.clear()
        engine = make_engine([network(shape, 0, np.float32)], **settings)
        for start in (0, 3):
            engine.train(stream(3, start), {0: objective(shape, 3, 0)})
        return list(keys)

    drawn = [train(accumulate=2), train(accumulate=2, process=1), train(accumulate=2, seed=1)]
    assert [len(keys) for keys in drawn] == [12, 12, 12]
    assert len({key for keys in drawn for key in keys}) == 36
    assert train(accumulate=2) == drawn[0]


def test_no_evaluation_drops_anything():
    shape = replace(SHAPES["plain"], dropout=0.9)
    with torch.no_grad():
        expected = random_model(shape, 0, 0.3)(tokens_of(shape, stream(4), D)).logits[:, -1]
    logits = make_engine([network(shape, 0, np.float32)]).logits(0, stream(4))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# Precision and compilation


def test_bfloat16_trains_near_float32():
    shape = SHAPES["three-layers"]
    terms = objective(shape, 5, 1)
    states = []
    for precision in ("float32", "bf16"):
        engine = make_engine([network(shape, 0, np.float32)], precision=precision, beta1=0.0)
        engine.train(stream(5), {0: terms})
        states.append(engine.state(0))
    exact, rounded = states
    assert {value.dtype for name, value in rounded.items() if name != STEP} == {np.dtype(np.float32)}
    for name in ("transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight", "lm_head.weight"):
        one, other = (state[f"exp_avg/{name}"].ravel() for state in (exact, rounded))
        assert 1e-5 < np.linalg.norm(one - other) / np.linalg.norm(one) < 0.1


@pytest.mark.parametrize(
    ("name", "backend"), [("class-token", "aot_eager"), pytest.param("skip", "inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_loss_trains_as_the_eager_one(monkeypatch, name, backend):
    """All layers are traced; a small network is enough for the default backend."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: real(function, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    shape = replace(SHAPES[name], layers=2 if backend == "aot_eager" else 1)
    states = []
    for compiled in (False, True):
        assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
        engine = make_engine([network(shape, i, np.float32) for i in range(2)], compiled=compiled)
        engine.train(stream(4), {i: objective(shape, 4, i, lr=1e-3) for i in range(2)})
        states.append(engine.state(1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    eager, compiled = states
    for key in eager:
        if not key.endswith("c_attn.bias"):
            np.testing.assert_allclose(compiled[key], eager[key], rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_trains_as_the_cpu_does(tmp_path, precision):
    words = shlex.split(f"train smoke {SIZES} --steps 40 --eval-every 20 --checkpoint-every 20")
    for name, more in {
        "cpu": [],
        "eager": ["--device", "cuda"],
        "compiled": ["--device", "cuda", "--compile", "--precision", precision],
    }.items():
        done = python("-m", f"parity_mlp.{words[0]}", *words[1:], *more, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    expected, eager, compiled = (
        [r["loss"] for r in Run(tmp_path / name).records()] for name in ("cpu", "eager", "compiled")
    )
    np.testing.assert_allclose(eager, expected, rtol=1e-3)
    np.testing.assert_allclose(compiled, expected, rtol=1e-3 if precision == "float32" else 0.05)


# Several processes


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.usefixtures("in_float64")
def test_gradients_are_averaged_over_the_processes(monkeypatch, accumulate):
    """With the gradients of another process that are three times those of this one, and once for each step."""
    shape, calls = SHAPES["plain"], []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda gradients: calls.append(1) or gradients.mul_(4))
    alone, shared = (
        make_engine([network(shape, 0)], accumulate=accumulate, processes=processes, beta1=0.0) for processes in (1, 2)
    )
    for engine in (alone, shared):
        engine.train(stream(1), {0: objective(shape, 1, 1)})
    assert len(calls) == 1
    for name in network(shape, 0).tensors:
        if name.startswith("exp_avg/"):
            np.testing.assert_allclose(shared.state(0)[name], 2 * alone.state(0)[name], rtol=1e-9, atol=1e-15)


def run_command(directory, name, words):
    """Run a command here; its exit code."""
    where = ["--out", str(directory / name)]
    if words[0] == "distill":
        where += ["--teacher", str(directory / "teacher")]
    sys.argv = ["command.py", *words[1:], *where]
    try:
        command({"train": train, "distill": distill, "mlp": parity_mlp.train}[words[0]].main)
        return 0
    except SystemExit as stop:
        return stop.code


def in_each_process(directory):
    """What every one of two processes does; all commands share one group, as gloo does not come up twice."""
    rank, join = os.environ["RANK"], torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend: torch.distributed.is_initialized() or join(backend)
    for name, words in SHARED.items():
        assert run_command(directory, name, words) == 0
    said = {}
    for name, (words, _) in REFUSED.items():
        with redirect_stderr(io.StringIO()) as stderr:
            said[name] = run_command(directory, name, words), stderr.getvalue()
    (directory / f"said-{rank}.json").write_text(json.dumps(said))

    resume.RESUME_SECONDS, resume.RESUME_SHARE = 0, math.inf
    with_dropout = [*TRAIN, "--dropout", "0.3", "--accumulate", "2"]
    assert run_command(directory, "whole", with_dropout) == 0
    score, calls = training.score, []

    def score_until_killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return score(*arguments)

    training.score = score_until_killed
    with suppress(Killed):
        run_command(directory, "killed", with_dropout)
    training.score = score
    assert load_resume(directory / "killed").step == 8
    assert run_command(directory, "killed", with_dropout) == 0


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_processes")
    assert run_command(directory, "teacher", [*TRAIN, "--seed", "5"]) == 0
    two_forked(__file__, directory)
    return directory


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_make_the_runs_of_one(tmp_path, two_processes, name):
    shutil.copytree(two_processes / "teacher", tmp_path / "teacher")
    assert run_command(tmp_path, name, SHARED[name]) == 0
    alone = sorted(path.parent.relative_to(tmp_path) for path in tmp_path.glob(f"{name}/**/done.json"))
    assert len(alone) == (2 if name == "distill" else 1)
    for place in alone:
        here, there = Run(tmp_path / place), Run(two_processes / place)
        assert there.complete
        for one, other in zip(here.records(), there.records(), strict=True):
            assert other == {key: value and pytest.approx(value, rel=1e-4) for key, value in one.items()}
        steps = [checkpoint.step for checkpoint in find_checkpoints(here.directory)]
        assert steps == [checkpoint.step for checkpoint in find_checkpoints(there.directory)]
        for step in steps:
            mine, theirs = (read_checkpoint(run.directory / f"checkpoint-{step}")[1] for run in (here, there))
            for key, value in mine.items():
                if not key.endswith("c_attn.bias"):
                    np.testing.assert_allclose(theirs[key], value, rtol=1e-3, atol=1e-5, err_msg=key)


def test_two_processes_killed_and_rerun_are_bit_identical(two_processes):
    assert results(two_processes / "killed") == results(two_processes / "whole")
    assert results(two_processes / "whole") != results(two_processes / "train-accumulate")


@pytest.mark.parametrize("name", REFUSED)
def test_what_several_processes_cannot_train_is_one_line_of_each(two_processes, name):
    for rank in range(2):
        code, stderr = json.loads((two_processes / f"said-{rank}.json").read_text())[name]
        (line,) = stderr.splitlines()
        assert code == 2
        assert line.startswith(f"error: {REFUSED[name][1]}")
    assert not (two_processes / name).exists()


if __name__ == "__main__":
    in_each_process(Path(sys.argv[1]))
