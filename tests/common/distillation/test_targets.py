"""Stored targets: what is kept of a teacher's logits, that samples are unbiased, and what students learn from them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from common.distillation import labelled_head
from common.distillation.chunks import objective_sums
from common.distillation.labelled_head import LabelledOutput
from common.distillation.losses import LossArguments
from common.distillation.sparse_targets import SparseTargets
from common.distillation.targets import (
    MOST_SAMPLES,
    Stored,
    TargetKind,
    class_dtype,
    decode,
    draw,
    encode,
    is_valid,
    kind_of,
)
from common.errors import UserError

CPU = torch.device("cpu")
CLASSES, POSITIONS = 12, 7
KINDS = (
    TargetKind("logits"),
    TargetKind("arg-max"),
    TargetKind("top-k", 1.5, 3),
    TargetKind("sampled", 1.5, 20),
)
LOSS = {"arg-max": 0.0, "top-k": 1.5, "sampled": 1.5, "logits": 1.5}
"""Temperatures."""


def random_logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(targets):
    """Probabilities (labelled, classes), in float64."""
    probabilities = torch.zeros(len(targets), targets.number_of_classes, dtype=torch.float64)
    return probabilities.scatter_add_(-1, targets.classes, targets.probabilities.double())


def stored_and_back(logits, kind, key=(0, 0, 0)):
    return decode(encode(LabelledOutput(logits), kind, key), CPU)


def loss_of(kind, **others):
    return LossArguments(
        temperature=(LOSS[kind.name],) * 2, top_k=kind.number if kind.name == "top-k" else None, **others
    )


# What is kept


def test_logits_come_back_to_the_last_bit():
    logits = random_logits(POSITIONS, CLASSES)
    assert torch.equal(stored_and_back(logits, KINDS[0]).logits(), logits)


def test_of_ties_the_first_class_is_kept():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    assert stored_and_back(logits, KINDS[1]).classes.tolist() == [[1], [0]]
    assert stored_and_back(logits, TargetKind("top-k", 1.0, 2)).classes.tolist() == [[1, 2], [0, 1]]


def test_top_k_targets_are_those_of_the_loss():
    logits = random_logits(POSITIONS, CLASSES)
    targets = stored_and_back(logits, KINDS[2])
    best = logits.double().argsort(-1, descending=True)[:, :3]
    expected = torch.zeros(POSITIONS, CLASSES, dtype=torch.float64)
    expected.scatter_(-1, best, (logits.double().gather(-1, best) / 1.5).softmax(-1))
    torch.testing.assert_close(dense(targets), expected, rtol=1e-6, atol=1e-7)
    entropies = -(expected * expected.clamp(min=1e-300).log()).sum(-1)
    assert float(targets.entropy) == pytest.approx(float(entropies.mean()), rel=1e-6)


@pytest.mark.parametrize("number", [1 << 16, (1 << 16) + 1])
def test_class_ids_are_as_short_as_they_can_be(number):
    logits = torch.zeros(3, number)
    logits[:, -1] = 50
    stored = encode(LabelledOutput(logits), TargetKind("sampled", 1.0, 50), (0, 0, 0))
    assert stored.fields["classes"].dtype == class_dtype(number) == (np.uint16 if number <= 1 << 16 else np.uint32)
    assert stored.fields["classes"].tolist() == [number - 1] * 3
    assert decode(stored, CPU).classes.tolist() == [[number - 1]] * 3


@pytest.mark.parametrize(("power", "entropy", "most"), [(1.7, 2.3, 40), (0.0, 10.8, 103)])
def test_sampled_targets_of_a_large_vocabulary_have_few_bytes(power, entropy, most):
    """At 50,000 classes and 50 samples, for probabilities of a power of the rank, and in the worst case."""
    ranks = torch.arange(1, 50_001, dtype=torch.float64)
    logits = (-power * ranks.log()).float().repeat(64, 1)
    assert float(torch.special.entr(logits[0].double().softmax(-1)).sum()) == pytest.approx(entropy, abs=0.05)
    stored = encode(LabelledOutput(logits), TargetKind("sampled", 1.0, 50), (0, 0, 0))
    assert stored.nbytes / 64 <= most


# Samples


@given(seed=st.integers(0, 10**6), samples=st.integers(1, MOST_SAMPLES), classes=st.integers(1, 40))
def test_each_sample_inverts_the_cumulative_probabilities_in_its_own_interval(seed, samples, classes):
    """Hence a class's count differs from its expectation by less than 2, and impossible classes are never drawn."""
    numbers = np.random.default_rng(seed)
    probabilities = numbers.dirichlet(np.full(classes, 0.3), 5)
    uniforms = numbers.random((5, samples), np.float32)
    drawn = draw(torch.from_numpy(probabilities), torch.from_numpy(uniforms)).numpy()
    assert (np.diff(drawn, axis=1) >= 0).all()
    counts = np.stack([np.bincount(row, minlength=classes) for row in drawn])
    assert counts.shape == (5, classes)
    assert (np.abs(counts - samples * probabilities) < 2 + 1e-9).all()
    assert (counts[probabilities == 0] == 0).all()
    upper = np.cumsum(probabilities, -1)
    points = (np.arange(samples) + uniforms.astype(float)) / samples
    for row, cumulative, own, places in zip(drawn, upper, probabilities, points, strict=True):
        assert (places < cumulative[row] + 1e-12).all()
        assert (places >= cumulative[row] - own[row] - 1e-12).all()


def test_impossible_classes_and_the_largest_random_number_are_safe():
    probabilities = torch.tensor([[0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    uniforms = torch.tensor([[0.0, np.nextafter(1.0, 0.0)]], dtype=torch.float64)
    assert draw(probabilities, uniforms).tolist() == [[1, 2]]


@given(seed=st.integers(0, 10**6), samples=st.integers(1, MOST_SAMPLES), sharpness=st.floats(0, 20))
def test_stored_samples_are_valid_and_have_the_counts(seed, samples, sharpness):
    logits = random_logits(5, 30, seed=seed, scale=sharpness)
    kind = TargetKind("sampled", 1.0, samples)
    stored = encode(LabelledOutput(logits), kind, (seed, 3, 1))
    assert is_valid(stored)
    philox = np.random.Philox(key=[seed, 0], counter=[0, 0, 1, 3])
    uniforms = torch.from_numpy(np.random.Generator(philox).random((5, samples), np.float32))
    drawn = draw(logits.softmax(-1).double(), uniforms)
    expected = torch.stack([row.bincount(minlength=30) for row in drawn]) / samples
    torch.testing.assert_close(dense(decode(stored, CPU)), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("chunk", [10**6, 2 * CLASSES])
def test_samples_depend_on_the_key_alone(monkeypatch, chunk):
    logits = random_logits(POSITIONS, CLASSES)
    once = encode(LabelledOutput(logits), KINDS[3], (5, 2, 1))
    monkeypatch.setattr(labelled_head, "CPU_CHUNK", chunk)
    monkeypatch.setattr(labelled_head, "CPU_ROWS", 1)
    again = encode(LabelledOutput(logits), KINDS[3], (5, 2, 1))
    for name in ("classes", "counts", "numbers", "repeated"):
        np.testing.assert_array_equal(once.fields[name], again.fields[name])
    for key in ((6, 2, 1), (5, 3, 1), (5, 2, 0)):
        other = encode(LabelledOutput(logits), KINDS[3], key)
        assert not np.array_equal(once.fields["classes"], other.fields["classes"])


@pytest.mark.parametrize("chunked", [False, True])
def test_the_mean_gradient_of_samples_is_the_dense_one_and_that_of_top_k_is_not(monkeypatch, chunked):
    """Over 1,000 draws; dense loss and gradient are from float64 autograd. Each has 6 classes of 40 to a position."""
    if chunked:
        monkeypatch.setattr(labelled_head, "CPU_CHUNK", 2)
        monkeypatch.setattr(labelled_head, "CPU_ROWS", 2)
    classes, draws, samples = 40, 1000, 6
    teacher, student = random_logits(3, classes, seed=1), random_logits(3, classes, seed=2)
    labels = torch.zeros(3, dtype=torch.int64)

    exact = student.double().requires_grad_()
    q = teacher.double().softmax(-1)
    loss = (q * (q.log() - exact.log_softmax(-1))).sum()
    (expected,) = torch.autograd.grad(loss, exact)

    def loss_and_gradient(kind, step):
        logits = student.clone().requires_grad_()
        targets = stored_and_back(teacher, kind, (0, step, 0))
        sums = objective_sums(LabelledOutput(logits), labels, targets, LossArguments(), 0, 1)
        assert sums[0].item() == sums[1].item()
        return sums[0].item(), torch.autograd.grad(sums[0], logits)[0].double()

    sampled = [loss_and_gradient(TargetKind("sampled", 1.0, samples), step) for step in range(draws)]
    losses = torch.tensor([value for value, _ in sampled], dtype=torch.float64)
    gradients = torch.stack([gradient for _, gradient in sampled])
    errors = gradients.mean(0) - expected
    assert errors.norm() < 3 * gradients.std(0).norm() / math.sqrt(draws)
    standard_errors = (q * (1 - q) / (samples * draws)).sqrt()  # of independent draws
    assert (errors.abs() <= 3 * standard_errors).all()
    assert abs(float(losses.mean()) - loss.item()) < 3 * float(losses.std()) / math.sqrt(draws)

    _, kept = loss_and_gradient(TargetKind("top-k", 1.0, samples), 0)
    assert float((kept - expected).norm()) > 8 * float(standard_errors.norm())


def test_sums_of_samples_vary_less_than_those_of_independent_draws():
    numbers = np.random.default_rng(0)
    q = torch.from_numpy(numbers.dirichlet(np.full(30, 0.3), 1))
    values, samples = torch.from_numpy(numbers.normal(size=30)), 10
    uniforms = torch.from_numpy(numbers.random((4000, samples), np.float32))
    means = values[draw(q.expand(4000, -1), uniforms)].mean(1)
    exact = float((q * values).sum())
    independent = float((q * (values - exact) ** 2).sum()) / samples
    assert float(means.mean()) == pytest.approx(exact, abs=3 * math.sqrt(independent / 4000))
    assert float(means.var()) < 0.75 * independent


# What students learn


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [10**6, 2 * CLASSES])
@pytest.mark.parametrize("kind", KINDS[:3], ids=lambda kind: kind.name)
def test_students_learn_what_they_learn_from_the_teacher(monkeypatch, kind, chunk, alpha):
    """To the last bit from logits and the arg-max, and up to rounding from the top k."""
    monkeypatch.setattr(labelled_head, "CPU_CHUNK", chunk)
    monkeypatch.setattr(labelled_head, "CPU_ROWS", 1)
    torch.manual_seed(0)
    teacher = LabelledOutput(random_logits(POSITIONS, 5, seed=1), nn.Linear(5, CLASSES))
    labels = torch.arange(POSITIONS) % CLASSES
    found = []
    for targets in (teacher, decode(encode(teacher, kind, (0, 0, 0)), CPU)):
        hidden, layer = random_logits(POSITIONS, 4, seed=2).requires_grad_(), nn.Linear(4, CLASSES)
        layer.load_state_dict({"weight": random_logits(CLASSES, 4, seed=3), "bias": random_logits(CLASSES, seed=4)})
        sums = objective_sums(LabelledOutput(hidden, layer), labels, targets, loss_of(kind, alpha=(alpha,)), 0, 1)
        (sums[0] / 3).backward()
        found.append([sums.detach(), hidden.grad, layer.weight.grad, layer.bias.grad])
    for live, cached in zip(*found, strict=True):
        if kind.is_exact:
            assert torch.equal(live, cached)
        else:
            torch.testing.assert_close(cached, live, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", ["reverse-kl", "jensen-shannon"])
def test_any_loss_is_exact_with_logits(divergence):
    logits = random_logits(POSITIONS, CLASSES)
    arguments = LossArguments(temperature=(2.0, 0.5), divergence=divergence, top_k=4)
    labels = torch.zeros(POSITIONS, dtype=torch.int64)
    student = LabelledOutput(random_logits(POSITIONS, CLASSES, seed=9))
    assert kind_of("exact", 50, arguments) == TargetKind("logits")
    live, cached = (
        objective_sums(student, labels, teacher, arguments, 3, 10)
        for teacher in (LabelledOutput(logits), stored_and_back(logits, KINDS[0]))
    )
    assert torch.equal(live, cached)


def test_other_numbers_of_classes_are_refused():
    targets = SparseTargets(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1), 0.0, CLASSES + 1)
    student, labels = LabelledOutput(random_logits(2, CLASSES)), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match=f"predicts {CLASSES} classes and the teacher {CLASSES + 1}"):
        objective_sums(student, labels, targets, LossArguments(), 0, 1)


# Which targets for which loss


@pytest.mark.parametrize(
    ("temperature", "others", "expected"),
    [
        ((0.0, 0.0), {}, "arg-max"),
        ((0.0, 0.0), {"top_k": 3}, "arg-max"),
        ((0.0, 0.0), {"divergence": "reverse-kl"}, "logits"),
        ((1.0, 0.0), {}, "logits"),
        ((1.0, 1.0), {}, "logits"),
    ],
)
def test_exact_targets_are_what_the_loss_needs(temperature, others, expected):
    assert kind_of("exact", 50, LossArguments(temperature=temperature, **others)).name == expected


@pytest.mark.parametrize(
    ("targets", "samples", "loss", "message"),
    [
        ("exact", 10, {}, "samples is only for targets sampled, got exact"),
        ("sampled", 0, {}, "samples must be from 1 to 255, got 0"),
        ("sampled", 256, {}, "samples must be from 1 to 255, got 256"),
        ("sampled", 50, {"divergence": "reverse-kl"}, "divergence reverse-kl needs the probabilities of all classes"),
        ("top-k", 50, {"divergence": "jensen-shannon", "top_k": 3}, "divergence jensen-shannon needs"),
        ("sampled", 50, {"temperature": (2.0, 1.0)}, "of one temperature, got 2.0 to 1.0: give targets exact"),
        ("sampled", 50, {"temperature": (0.0, 0.0)}, "at temperature 0.0 a target is one class: give targets exact"),
        ("sampled", 50, {"top_k": 3}, "sampled targets are of all classes: leave out top_k"),
        ("top-k", 50, {}, "targets top-k needs top_k"),
    ],
)
def test_losses_that_targets_cannot_give_are_refused(targets, samples, loss, message):
    with pytest.raises(UserError, match=message):
        kind_of(targets, samples, LossArguments(**loss))


# Targets from elsewhere


def changed(name, change):
    def apply(stored):
        return Stored(
            stored.kind, stored.classes, stored.positions, {**stored.fields, name: change(stored.fields[name])}
        )

    return apply


def filled(place, value):
    def fill(array):
        array = array.copy()
        array.reshape(-1)[place] = value
        return array

    return fill


def with_number(name, value):
    return lambda stored: Stored(**{**vars(stored), name: value})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_encode_makes_is_valid(kind):
    assert is_valid(encode(LabelledOutput(random_logits(POSITIONS, CLASSES)), kind, (0, 0, 0)))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (0, changed("logits", filled(slice(0, CLASSES), -np.inf))),
        (0, changed("logits", filled(3, np.nan))),
        (0, changed("logits", filled(3, np.inf))),
        (0, changed("logits", lambda array: array.astype(np.float64))),
        (0, with_number("classes", CLASSES + 1)),
        (0, with_number("positions", POSITIONS - 1)),
        (0, with_number("positions", -1)),
        (1, changed("classes", filled(0, CLASSES))),
        (1, changed("classes", lambda array: array.astype(np.int64))),
        (1, changed("classes", lambda array: array[None])),
        (1, with_number("positions", POSITIONS + 1)),
        (2, changed("classes", filled(4, CLASSES))),
        (2, changed("logits", filled(4, np.nan))),
        (2, changed("logits", lambda array: array[:, :2])),
        (3, changed("classes", filled(0, CLASSES))),
        (3, changed("classes", lambda array: array[:-1])),
        (3, changed("counts", lambda array: array[:-1])),
        (3, changed("counts", lambda array: array + np.uint8(1))),
        (3, changed("counts", filled(0, 0))),
        (3, changed("numbers", filled(0, 0))),
        (3, changed("repeated", lambda array: array + np.uint8(1))),
        (3, changed("entropy", filled(0, np.nan))),
        (3, changed("entropy", filled(0, -1.0))),
        (3, changed("entropy", filled(0, 1e9))),
        (3, changed("entropy", lambda array: array.repeat(2))),
    ],
)
def test_anything_else_is_not(kind, change):
    stored = encode(LabelledOutput(random_logits(POSITIONS, CLASSES)), KINDS[kind], (0, 0, 0))
    assert not is_valid(change(stored))
