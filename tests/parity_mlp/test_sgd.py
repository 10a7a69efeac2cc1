"""Every engine against single steps of torch.optim.SGD, in float64; then float32, threads, chunks and layout."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from common.distillation.losses import forward_kl, jensen_shannon, label_cross_entropy, reverse_kl
from common.parity.mlp import initial_tensors
from common.parity.objective import DIVERGENCE_CODES, Objective
from common.parity.task import make_task, unpack_signs
from parity_mlp.data import signs
from parity_mlp.sgd import block_cpu, block_torch, gradient as gradients, tiles
from parity_mlp.sgd.block_torch import TorchBlockEngine
from parity_mlp.sgd.engine import CPUBlockEngine, make_engine
from parity_mlp.sgd.plain import PlainEngine
from parity_mlp.sgd.simd import LANES

STEPS = 400
FLOOR = -30.0
BLOCK_ENGINES = {
    "cpu": lambda networks: CPUBlockEngine(networks, threads=1),
    "torch": lambda networks: TorchBlockEngine(networks, "cpu"),
}
ENGINES = {
    **BLOCK_ENGINES,
    "cpu-threads": lambda networks: CPUBlockEngine(networks, threads=3),
    "plain": lambda networks: PlainEngine(networks, "cpu", batch_size=1),
}


@dataclass(frozen=True)
class Case:
    d: int
    width: int
    classes: int = 2
    divergence: str = "forward-kl"
    beta: float = 0.5
    alpha: tuple[float, float] = (0.0, 0.0)
    """Range that the weights of the labels are drawn from."""
    decay: float = 0.0
    lr: float = 0.03
    """Low enough that SGD itself is not chaotic: rounding must not grow on the way."""
    varying_lr: bool = False
    seed: int = 0


CASES = {
    "ce-2": Case(20, 37, alpha=(1, 1)),
    "ce-8": Case(63, 100, 8, alpha=(1, 1)),
    "ce-schedule": Case(21, 130, alpha=(1, 1), varying_lr=True),
    "ce-decay": Case(22, 64, alpha=(1, 1), decay=0.01, varying_lr=True),
    "forward-2": Case(64, 130),
    "forward-8-mixed": Case(23, 37, 8, alpha=(0, 1), varying_lr=True),
    "forward-2-mixed-decay": Case(130, 65, alpha=(0.2, 0.6), decay=1e-3),
    "reverse-2": Case(65, 37, divergence="reverse-kl", lr=0.003),
    "reverse-8-mixed-decay": Case(
        66, 63, 8, divergence="reverse-kl", alpha=(0, 1), decay=1e-3, lr=0.01, varying_lr=True
    ),
    "jensen-shannon-2": Case(100, 64, divergence="jensen-shannon", beta=0.3, varying_lr=True),
    "jensen-shannon-8-mixed-decay": Case(67, 100, 8, divergence="jensen-shannon", beta=0.7, alpha=(0, 1), decay=0.01),
}
STUDENTS = [
    Case(41, 37, 4, alpha=(1, 1), seed=1),
    Case(41, 130, 4, divergence="reverse-kl", decay=1e-3, lr=0.003, varying_lr=True, seed=2),
    Case(41, 100, 4, divergence="jensen-shannon", alpha=(0, 1), seed=3),
]


def stream(d, classes, count=STEPS):
    task = make_task(d, 2, classes)
    bits = task.sample(7, "train", 0, count)
    return bits, task.labels(bits)


def make_objective(case, count=STEPS):
    random = np.random.default_rng(case.seed)
    targets = random.dirichlet(np.ones(case.classes), count)
    targets[::5] = np.eye(case.classes)[random.integers(case.classes, size=len(targets[::5]))]
    lr = np.full(count, case.lr)
    if case.varying_lr:
        lr *= 2 * random.random(count)
        lr[100:110] = 0
    return Objective(
        labels=stream(case.d, case.classes, count)[1],
        targets=targets,
        alpha=random.uniform(*case.alpha, count),
        lr=lr,
        decay=case.decay,
        divergence=DIVERGENCE_CODES[case.divergence],
        beta=case.beta,
    )


def initial(case, dtype="float64"):
    return initial_tensors(case.d, case.width, case.classes, 1, case.seed, dtype)


def reference_loss(logits, labels, targets, alpha, case):
    """Losses of single samples, written out."""
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    match case.divergence:
        case "forward-kl":
            divergence = -(targets * log_p).sum(-1)
        case "reverse-kl":
            divergence = (p * (log_p - targets.log().clamp(min=FLOOR))).sum(-1)
        case "jensen-shannon":
            mixture = (case.beta * targets + (1 - case.beta) * p).log()
            divergence = (-case.beta * targets * mixture + (1 - case.beta) * p * (log_p - mixture)).sum(-1)
    return alpha * F.cross_entropy(logits, labels, reduction="none") + (1 - alpha) * divergence


def reference_sgd(model, x, terms, case, batch_size=1):
    """torch.optim.SGD, step by step, on a model of nn.Linear layers."""
    labels, targets, alpha = (torch.from_numpy(terms[i]) for i in range(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=case.decay)
    for step, lr in enumerate(terms.lr.tolist()):
        batch = slice(step * batch_size, (step + 1) * batch_size)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        reference_loss(model(x[batch]), labels[batch], targets[batch], alpha[batch], case).mean().backward()
        optimizer.step()
    return [parameter.detach().numpy() for parameter in model.parameters()]


def sequential(tensors):
    """The network as nn.Linear layers with ReLU between them."""
    arrays = [torch.from_numpy(value.copy()) for value in tensors.values()]
    layers = []
    for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@functools.cache
def oracle(case):
    """Weights after all steps, in the order of a checkpoint's tensors."""
    x = torch.from_numpy(signs(stream(case.d, case.classes)[0], case.d, np.float64))
    return reference_sgd(sequential(initial(case)), x, make_objective(case), case)


def train(engine, cases):
    engine.train(stream(cases[0].d, cases[0].classes)[0], {i: make_objective(case) for i, case in enumerate(cases)})
    return engine


def largest_error(tensors, expected):
    """Largest difference in any tensor, relative to that tensor's largest number."""
    return np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(tensors.values(), expected, strict=True)])


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Single steps on small tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("block", [1, 7, 16, 64])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cpu_blocks_are_single_steps(case, block):
    engine = train(CPUBlockEngine([initial(case)], threads=1, block=block), [case])
    assert largest_error(engine.tensors(0), oracle(case)) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_torch_blocks_are_single_steps(name):
    block = 7 if name.endswith("decay") else 64
    engine = train(TorchBlockEngine([initial(CASES[name])], "cpu", block), [CASES[name]])
    assert largest_error(engine.tensors(0), oracle(CASES[name])) < 1e-9


def test_plain_steps_are_single_steps_when_the_batch_is_one_sample():
    case = CASES["jensen-shannon-8-mixed-decay"]
    plain = train(PlainEngine([initial(case)], "cpu", 1), [case]).tensors(0)
    assert largest_error(plain, oracle(case)) < 1e-9
    blocks = train(CPUBlockEngine([initial(case)], threads=1), [case]).tensors(0)
    assert largest_error(plain, blocks.values()) < 1e-9


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_students_of_different_width_lr_and_objective_share_a_stream(make):
    engine = train(make([initial(case) for case in STUDENTS]), STUDENTS)
    for i, case in enumerate(STUDENTS):
        assert largest_error(engine.tensors(i), oracle(case)) < 1e-9


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_only_networks_with_an_objective_learn(make):
    engine = make([initial(case) for case in STUDENTS])
    bits, _ = stream(41, 4, 50)
    engine.train(bits, {1: make_objective(STUDENTS[1], 50)})
    assert_equal(engine.tensors(0), initial(STUDENTS[0]))
    assert_equal(engine.tensors(2), initial(STUDENTS[2]))
    assert largest_error(engine.tensors(1), initial(STUDENTS[1]).values()) > 1e-6


def test_plain_takes_the_mean_over_batches_through_deep_networks():
    case = Case(20, 33, 4, divergence="reverse-kl", alpha=(0, 1), decay=1e-3)
    terms = make_objective(case, 800)._replace(lr=np.linspace(0.1, 0, 100))
    tensors = initial_tensors(20, 33, 4, 2, 0, "float64")
    bits, _ = stream(20, 4, 800)
    engine = PlainEngine([tensors], "cpu", batch_size=8)
    engine.train(bits, {0: terms})
    x = torch.from_numpy(signs(bits, 20, np.float64))
    model = sequential(tensors)
    assert largest_error(engine.tensors(0), reference_sgd(model, x, terms, case, batch_size=8)) < 1e-9
    np.testing.assert_allclose(engine.logits(0, bits), model(x).detach(), rtol=1e-9)


def test_plain_leaves_the_global_generator_and_its_arguments_alone():
    tensors = initial(STUDENTS[0])
    state = torch.get_rng_state()
    train(PlainEngine([tensors], "cpu", 1), STUDENTS[:1])
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(tensors, initial(STUDENTS[0]))


FLOAT32 = Case(100, 1000, alpha=(1, 1))
"""1,000 steps. W is rounded once per block, 31 times by up to 6e-8: 2e-6 if all errors had one sign. V is rounded at
every step, in random directions: sqrt(1,000) times 6e-8, 2e-6 again. The bound, 1e-5 of the largest weight, leaves room
for their growth on the way; it is below the effect of one wrong ReLU derivative, lr * |delta * v|, about 1e-4."""


@pytest.mark.parametrize("make", BLOCK_ENGINES.values(), ids=BLOCK_ENGINES)
def test_float32_stays_within_rounding_of_float64(make):
    bits, _ = stream(FLOAT32.d, 2, 1000)
    start = initial(FLOAT32, "float32")
    single, double = make([start]), CPUBlockEngine([initial(FLOAT32)], threads=1)
    for engine in (single, double):
        engine.train(bits, {0: make_objective(FLOAT32, 1000)})
    assert all(value.dtype == np.float32 for value in single.tensors(0).values())
    assert largest_error(single.tensors(0), start.values()) > 1e-3
    assert largest_error(single.tensors(0), double.tensors(0).values()) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_neither_threads_nor_other_networks_change_a_bit(dtype):
    cases = [Case(70, width, divergence="reverse-kl", alpha=(0, 1), decay=1e-3) for width in (100, 1000, 5000, 100)]
    bits, _ = stream(70, 2, 300)
    terms = [make_objective(case, 300) for case in cases]
    alone = []
    for case, objective_alone in zip(cases, terms, strict=True):
        engine = CPUBlockEngine([initial(case, dtype)], threads=1)
        engine.train(bits, {0: objective_alone})
        alone.append((engine.tensors(0), engine.logits(0, bits)))
    for threads in (1, 2, 3):
        together = CPUBlockEngine([initial(case, dtype) for case in cases], threads)
        together.train(bits, dict(enumerate(terms)))
        for i in range(len(cases)):
            assert_equal(together.tensors(i), alone[i][0])
            np.testing.assert_array_equal(together.logits(i, bits), alone[i][1])
        wide = CPUBlockEngine([initial(cases[1], dtype)], threads)
        wide.train(bits, {0: terms[1]})
        assert_equal(wide.tensors(0), alone[1][0])


@pytest.mark.parametrize("make", BLOCK_ENGINES.values(), ids=BLOCK_ENGINES)
def test_calls_may_end_anywhere(make):
    case = CASES["reverse-8-mixed-decay"]
    bits, _ = stream(case.d, case.classes, 1000)
    terms = make_objective(case, 1000)
    whole, parts = make([initial(case)]), make([initial(case)])
    whole.train(bits, {0: terms})
    for start, end in [(0, 1), (1, 32), (32, 64), (64, 164), (164, 500), (500, 1000)]:
        part = terms._replace(
            **{name: getattr(terms, name)[start:end] for name in ("labels", "targets", "alpha", "lr")}
        )
        parts.train(bits[start:end], {0: part})
    assert largest_error(parts.tensors(0), whole.tensors(0).values()) < 1e-12


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_logits_are_those_of_a_dense_network(make, dtype, tolerance, monkeypatch):
    monkeypatch.setattr("parity_mlp.sgd.block_torch.LOGITS_BATCH", 200)
    monkeypatch.setattr("common.parity.mlp.LOGITS_BATCH", 200)
    for d, width, classes, count in [(63, 64, 2, 1), (64, 65, 8, 65), (65, 37, 4, 256), (130, 130, 2, 601)]:
        tensors = initial_tensors(d, width, classes, 1, 0, dtype)
        bits, _ = stream(d, classes, count)
        hidden, hidden_bias, output, output_bias = (value.astype(np.float64) for value in tensors.values())
        expected = np.maximum(signs(bits, d, np.float64) @ hidden.T + hidden_bias, 0) @ output.T + output_bias
        logits = make([tensors]).logits(0, bits)
        assert logits.dtype == np.float64
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 9), st.sampled_from(["float32", "float64"]))
@settings(deadline=None, max_examples=50)
def test_unpack_inverts_pack(width, d, classes, dtype):
    tensors = initial_tensors(d, width, classes, 1, 0, dtype)
    assert_equal(tiles.unpack(tiles.pack(tensors), d, width), tensors)


@pytest.mark.parametrize("name", ["ce-2", "reverse-2", "jensen-shannon-8-mixed-decay"])
def test_padding_stays_zero(name):
    case = CASES[name]
    network = tiles.pack(initial(case))
    inputs = tiles.prepare(stream(case.d, case.classes)[0], case.d, "float64")
    block_cpu.sgd_steps([network], [block_cpu.workspace(network)], [make_objective(case)], inputs, threads=1)
    number = -(-case.width // LANES)
    padded = tiles.unpack(network, case.d, number * LANES)
    for array in (padded["hidden.0.weight"], padded["hidden.0.bias"], padded["output.weight"].T):
        assert array[: case.width].any()
        assert not array[case.width :].any()
    columns = network.hidden.reshape(number, -1, LANES)
    assert columns.shape[1] == (case.d + 4) // 4 * 4
    assert not columns[:, case.d + 1 :].any()


def cpu_gradient(logits, target, label, alpha, divergence, beta):
    gradient = np.full(len(logits), np.nan)
    gradients.logit_gradient(logits, target, label, alpha, divergence, beta, gradient)
    return gradient


def torch_gradient(logits, target, label, alpha, divergence, beta):
    one_hot = F.one_hot(torch.tensor(label), len(logits)).double()
    arguments = torch.from_numpy(logits), torch.from_numpy(target), one_hot, alpha, divergence, beta
    return block_torch.logit_gradient(*arguments).numpy()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 9),
    st.sampled_from([0.1, 1.0, 10.0, 1000.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(sorted(DIVERGENCE_CODES)),
    st.floats(0.05, 0.95),
)
@settings(deadline=None, max_examples=300)
def test_logit_gradient_is_that_of_the_losses(seed, classes, spread, alpha, divergence, beta):
    random = np.random.default_rng(seed)
    logits, label = spread * random.standard_normal(classes), int(random.integers(classes))
    target = random.dirichlet(np.ones(classes)) * random.integers(2, size=classes)
    target[label] += 1e-20  # a target below exp(LOG_PROBABILITY_FLOOR), if it is the only one not 0
    target /= target.sum()
    variable = torch.tensor(logits, requires_grad=True)
    losses = {"forward-kl": forward_kl, "reverse-kl": reverse_kl, "jensen-shannon": lambda *a: jensen_shannon(*a, beta)}
    loss = (1 - alpha) * losses[divergence](variable, torch.from_numpy(target))
    (loss + alpha * label_cross_entropy(variable, torch.tensor(label))).backward()
    for gradient in (cpu_gradient, torch_gradient):
        actual = gradient(logits, target, label, alpha, DIVERGENCE_CODES[divergence], beta)
        np.testing.assert_allclose(actual, variable.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCE_CODES)
@pytest.mark.parametrize("gradient", [cpu_gradient, torch_gradient])
def test_logit_gradient_vanishes_at_the_teacher(gradient, name):
    logits = np.random.default_rng(0).standard_normal(5)
    target = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(gradient(logits, target, 0, 0.0, DIVERGENCE_CODES[name], 0.3), 0, atol=1e-15)


@pytest.mark.parametrize("name", DIVERGENCE_CODES)
@pytest.mark.parametrize("gradient", [cpu_gradient, torch_gradient])
def test_logit_gradient_keeps_nan(gradient, name):
    logits = np.array([0.0, np.nan, 1.0])
    assert np.isnan(gradient(logits, np.full(3, 1 / 3), 0, 0.0, DIVERGENCE_CODES[name], 0.3)).all()


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_learning_rate_that_is_not_a_number_shows_in_every_weight(make, decay):
    case = Case(20, 600, alpha=(1, 1), decay=decay)
    terms = make_objective(case, 100)
    terms.lr[50] = np.nan
    engine = make([initial(case)])
    engine.train(stream(20, 2, 100)[0], {0: terms})
    assert all(np.isnan(value).all() for value in engine.tensors(0).values())


@given(st.integers(1, 200), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_inputs_on_a_device_are_those_of_the_data(d, seed):
    bits = make_task(d, 1).sample(seed, "train", 0, 10)
    np.testing.assert_array_equal(unpack_signs(bits, d, "cpu", torch.float64).numpy(), signs(bits, d, np.float64))


@pytest.mark.parametrize("case", STUDENTS, ids=lambda case: case.divergence)
def test_torch_blocks_never_wait_for_a_number(case):
    """Tensors on the meta device hold no numbers: to read one is an error."""
    TorchBlockEngine([initial(case)], "meta").train(stream(41, 4, 100)[0], {0: make_objective(case, 100)})


def test_make_engine_picks_blocks_where_they_are_exact():
    shallow, deep = (initial_tensors(5, 4, 2, layers, 0, "float32") for layers in (1, 2))
    assert isinstance(make_engine([shallow], "cpu", batch_size=1, threads=1), CPUBlockEngine)
    assert isinstance(make_engine([shallow], "cpu", batch_size=2, threads=1), PlainEngine)
    assert isinstance(make_engine([shallow, deep], "cpu", batch_size=1, threads=1), PlainEngine)
    assert isinstance(make_engine([shallow], "meta", batch_size=1, threads=1), TorchBlockEngine)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_blocks_on_a_gpu_are_those_on_the_cpu():
    cpu = train(CPUBlockEngine([initial(case) for case in STUDENTS], threads=1), STUDENTS)
    gpu = train(TorchBlockEngine([initial(case) for case in STUDENTS], "cuda"), STUDENTS)
    bits, _ = stream(41, 4)
    for i in range(len(STUDENTS)):
        assert largest_error(gpu.tensors(i), cpu.tensors(i).values()) < 1e-9
        np.testing.assert_allclose(gpu.logits(i, bits), cpu.logits(i, bits), atol=1e-9)


def test_a_vanishing_gradient_leaves_no_denormal_numbers():
    """Logits far apart make gradients too small for float32; products of such numbers are a hundred times slower."""
    task = make_task(20, 2)
    bits = task.sample(0, "train", 0, 64)
    labels = task.labels(bits)
    tensors = initial_tensors(20, 64, 2, 1, 0, "float32")
    tensors["output.bias"] = np.array([90.0, 0.0], np.float32)
    network = tiles.pack(tensors)
    work = block_cpu.workspace(network)
    objective = Objective(
        0 * labels, np.zeros((64, 2)), np.ones(64), np.full(64, 0.01), 0.0, DIVERGENCE_CODES["forward-kl"], 0.5
    )
    block_cpu.sgd_steps([network], [work], [objective], tiles.prepare(bits, 20, "float32"), threads=1)
    tiny = np.finfo(np.float32).tiny
    assert not any(((array != 0) & (abs(array) < tiny)).any() for array in (work.steps, network.hidden, network.output))
