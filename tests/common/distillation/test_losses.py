"""Losses in closed form, their gradients against autograd, and their limits. All in float64 unless it matters."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from common.distillation.losses import (
    IGNORED_LABEL,
    LOG_PROBABILITY_FLOOR,
    annealed_temperature,
    cross_entropy,
    distillation_loss,
    forward_kl,
    jensen_shannon,
    label_cross_entropy,
    masked_mean,
    one_hot_probabilities,
    reverse_kl,
    stepwise,
    teacher_probabilities,
)
from common.errors import UserError

DIVERGENCES = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jensen-shannon": lambda logits, targets: jensen_shannon(logits, targets, 0.3),
}
LOGITS = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)


@pytest.fixture
def student():
    return 3 * torch.randn(4, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def teacher():
    logits = 3 * torch.randn(4, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return teacher_probabilities(logits, 1)


def gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    loss(logits).sum().backward()
    return logits.grad


def test_temperature_divides_the_logits():
    logits = torch.tensor([math.log(9), 0.0], dtype=torch.float64)
    torch.testing.assert_close(teacher_probabilities(logits, 1), torch.tensor([0.9, 0.1], dtype=torch.float64))
    torch.testing.assert_close(teacher_probabilities(logits, 2), torch.tensor([0.75, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-20, 1e-10, 1.1e-10])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_vanishing_temperature_is_exactly_the_arg_max(temperature, top_k):
    logits = torch.tensor([[1.0, 1.0 + 2**-23, -1e30], [-3e38, 3e38, 2e38]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(teacher_probabilities(logits, temperature, top_k), expected)


def test_the_arg_max_of_equal_logits_is_the_first():
    assert teacher_probabilities(torch.tensor([0.0, 2.0, 2.0]), 1e-20).tolist() == [0, 1, 0]


def test_a_high_temperature_is_uniform(student):
    uniform = torch.full_like(student, 1 / 7)
    torch.testing.assert_close(teacher_probabilities(student, 1e12), uniform)


@settings(deadline=None)
@given(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9), st.data())
def test_of_equal_logits_the_first_are_kept_at_every_temperature(values, data):
    if max(values) == -math.inf:
        values.append(0.0)
    top_k = data.draw(st.integers(1, len(values)))
    logits = torch.tensor([values, values[::-1]], dtype=torch.float64)
    for row, temperature in itertools.product(logits, (0, 1, 3)):
        order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))
        kept = {i for i in order[:top_k] if row[i] > -math.inf}
        kept = kept if temperature else {order[0]}
        weights = [math.exp(float(row[i]) / (temperature or 1)) if i in kept else 0.0 for i in range(len(row))]
        expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        torch.testing.assert_close(teacher_probabilities(row, temperature, top_k), expected)
    batch = teacher_probabilities(logits, 1, top_k)
    assert torch.equal(batch, torch.stack([teacher_probabilities(row, 1, top_k) for row in logits]))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_teacher_may_exclude_classes(divergence, student):
    """As if their logits were very low, but not more than the floor of the reverse divergence allows."""
    excluding = torch.randn(student.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    low = excluding.clone()
    excluding[..., 2:4], low[..., 2:4] = -math.inf, -1e4
    expected, actual = (DIVERGENCES[divergence](student, teacher_probabilities(each, 1)) for each in (low, excluding))
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected)


def test_top_k_keeps_the_largest_classes_and_renormalises():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64).log()
    expected = torch.tensor([4 / 7, 0, 3 / 7, 0], dtype=torch.float64)
    torch.testing.assert_close(teacher_probabilities(logits, 1, top_k=2), expected)
    torch.testing.assert_close(teacher_probabilities(logits, 1, top_k=4), logits.exp())
    assert teacher_probabilities(torch.zeros(5), 1, top_k=3).count_nonzero() == 3


def test_smoothed_labels():
    labels = torch.tensor([[2, 0]])
    smoothed = one_hot_probabilities(labels, 3, temperature=0.5)
    other = 1 / (math.exp(2) + 2)
    expected = torch.tensor([[[other, other, 1 - 2 * other], [1 - 2 * other, other, other]]])
    torch.testing.assert_close(smoothed, expected)
    assert torch.equal(one_hot_probabilities(labels, 3, 0), F.one_hot(labels, 3).float())


def test_closed_forms():
    """p = (0.8, 0.2) and q = (0.5, 0.5), so that at beta = 1/4 the mixture is (0.725, 0.275)."""

    def close(value, expected):
        assert value.shape == ()
        assert value.item() == pytest.approx(expected, rel=1e-12)

    close(label_cross_entropy(LOGITS, torch.tensor(1)), math.log(5))
    close(cross_entropy(LOGITS, HALF), -math.log(0.4))
    close(forward_kl(LOGITS, HALF), math.log(1.25))
    close(reverse_kl(LOGITS, HALF), 0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    from_targets = 0.5 * math.log(0.5 / 0.725) + 0.5 * math.log(0.5 / 0.275)
    from_student = 0.8 * math.log(0.8 / 0.725) + 0.2 * math.log(0.2 / 0.275)
    close(jensen_shannon(LOGITS, HALF, 0.25), 0.25 * from_targets + 0.75 * from_student)


def test_closed_forms_for_arg_max_targets():
    """q = (1, 0): H(q, p) = KL(q || p) = -log p_0, and log q_1 counts as the floor."""
    targets = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert forward_kl(LOGITS, targets).item() == pytest.approx(math.log(1.25), rel=1e-12)
    expected = 0.8 * math.log(0.8) + 0.2 * (math.log(0.2) - LOG_PROBABILITY_FLOOR)
    assert reverse_kl(LOGITS, targets).item() == pytest.approx(expected, rel=1e-12)
    expected = 0.5 * math.log(1 / 0.9) + 0.5 * (0.8 * math.log(0.8 / 0.9) + 0.2 * math.log(2))
    assert jensen_shannon(LOGITS, targets, 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_forward_kl_is_cross_entropy_less_the_entropy_of_the_targets(student, teacher):
    entropy = -(teacher * teacher.log()).sum(-1)
    torch.testing.assert_close(forward_kl(student, teacher), cross_entropy(student, teacher) - entropy)


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())
def test_a_divergence_is_positive_and_zero_only_at_equality(divergence, student, teacher):
    assert divergence(student, teacher).min() > 1e-3
    torch.testing.assert_close(divergence(student, student.softmax(-1)), torch.zeros(4, 5, dtype=torch.float64))


@pytest.mark.parametrize("arg_max", [False, True])
def test_gradients_are_the_documented_ones(student, teacher, arg_max):
    targets = teacher_probabilities(teacher.log(), 0) if arg_max else teacher
    p = student.softmax(-1)

    def centred(v):
        return p * (v - (p * v).sum(-1, keepdim=True))

    labels = targets.argmax(-1)
    expected = p - F.one_hot(labels, 7)
    torch.testing.assert_close(gradient(lambda logits: label_cross_entropy(logits, labels), student), expected)
    for loss in (cross_entropy, forward_kl):
        torch.testing.assert_close(gradient(lambda logits, loss=loss: loss(logits, targets), student), p - targets)
    log_ratio = p.log() - targets.log().clamp(min=LOG_PROBABILITY_FLOOR)
    torch.testing.assert_close(gradient(lambda logits: reverse_kl(logits, targets), student), centred(log_ratio))
    for beta in (0.1, 0.5, 0.9):
        log_ratio = (1 - beta) * (p / (beta * targets + (1 - beta) * p)).log()
        actual = gradient(lambda logits, beta=beta: jensen_shannon(logits, targets, beta), student)
        torch.testing.assert_close(actual, centred(log_ratio))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0, 1])
def test_gradcheck(divergence, temperature, student, teacher):
    targets = teacher_probabilities(teacher[0].log(), temperature)
    labels, mask = torch.tensor([0, 1, -100, 3, 4]), torch.tensor([True, True, False, False, True])

    def loss(logits):
        return distillation_loss(logits, labels, targets, alpha=0.3, divergence=divergence, beta=0.3, mask=mask)

    assert torch.autograd.gradcheck(loss, student[0].requires_grad_())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_float32_logits_give_finite_losses_and_gradients(divergence):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    targets = teacher_probabilities(torch.tensor([1.0, 0.0, 0.0]).expand(2, 3), 1e-20)
    labels = torch.tensor([0, 0])
    actual = gradient(lambda s: distillation_loss(s, labels, targets, divergence=divergence), logits)
    assert actual.isfinite().all()
    assert distillation_loss(logits, labels, targets, divergence=divergence).isfinite()


def test_jensen_shannon_is_symmetric_at_one_half(student, teacher):
    swapped = jensen_shannon(teacher.log(), student.softmax(-1), 0.5)
    torch.testing.assert_close(jensen_shannon(student, teacher, 0.5), swapped)


def test_jensen_shannon_tends_to_the_two_kl_divergences():
    # Moderate logits: the first error term is beta times a chi-squared divergence, huge where p or q is tiny.
    student, targets = torch.tensor([0.5, -0.3, 1.0]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    forward, reverse = forward_kl(student, targets), reverse_kl(student, targets)
    torch.testing.assert_close(jensen_shannon(student, targets, 1e-6) / 1e-6, forward, rtol=1e-5, atol=0)
    torch.testing.assert_close(jensen_shannon(student, targets, 1 - 1e-6) / 1e-6, reverse, rtol=1e-5, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_alpha_mixes_labels_and_teacher(divergence, student, teacher):
    labels = torch.arange(20).reshape(4, 5) % 7
    hard = label_cross_entropy(student, labels).mean()
    soft = DIVERGENCES[divergence](student, teacher).mean()

    def loss(alpha):
        return distillation_loss(student, labels, teacher, alpha=alpha, divergence=divergence, beta=0.3)

    torch.testing.assert_close(loss(0), soft)
    torch.testing.assert_close(loss(1), hard)
    torch.testing.assert_close(loss(0.25), 0.25 * hard + 0.75 * soft)


def test_the_mask_leaves_out_positions(student, teacher):
    mask = torch.arange(20).reshape(4, 5) % 3 == 0
    labels = torch.where(mask, 2, -100)
    student[~mask] = torch.nan
    kept = labels[mask]
    torch.testing.assert_close(
        distillation_loss(student, labels, teacher, alpha=0.5, mask=mask),
        distillation_loss(student[mask], kept, teacher[mask], alpha=0.5),
    )


def test_masked_mean():
    values = torch.tensor([[1.0, 2.0], [4.0, torch.inf]])
    assert masked_mean(values, torch.tensor([[True, False], [True, False]])).item() == 2.5
    assert masked_mean(values[0]).item() == 1.5


def test_stepwise_holds_each_value_from_its_boundary_on():
    steps = np.array([0, 9, 10, 19, 20, 10**12])
    values = stepwise([1.0, 0.5, 0.0], [10, 20], steps)
    assert values.tolist() == [1, 1, 0.5, 0.5, 0, 0]
    assert [float(stepwise([1.0, 0.5, 0.0], [10, 20], step)) for step in steps] == values.tolist()
    assert float(stepwise([0.3], [], 7)) == 0.3


@pytest.mark.parametrize(("kind", "middle"), [("linear", 0.505), ("logarithmic", 0.1)])
def test_annealed_temperature_goes_from_start_to_end_and_stays(kind, middle):
    steps = np.array([[0, 50], [100, 10**12]])
    temperatures = annealed_temperature(steps, 1.0, 0.01, total=100, kind=kind)
    assert temperatures == pytest.approx(np.array([[1.0, middle], [0.01, 0.01]]), rel=1e-12)
    assert float(annealed_temperature(50, 1.0, 0.01, total=100, kind=kind)) == temperatures[0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teacher_probabilities(LOGITS, -1), "temperature must be 0 or more"),
        (lambda: teacher_probabilities(LOGITS, math.nan), "temperature must be 0 or more"),
        (lambda: teacher_probabilities(LOGITS, 1, top_k=3), "number of classes, 2, got 3"),
        (lambda: teacher_probabilities(LOGITS, 1, top_k=0), "number of classes, 2, got 0"),
        (lambda: jensen_shannon(LOGITS, HALF, 0.0), "beta must be between 0 and 1"),
        (lambda: jensen_shannon(LOGITS, HALF, 1.0), "beta must be between 0 and 1"),
        (lambda: distillation_loss(LOGITS, torch.tensor(0), HALF, alpha=1.5), "alpha must be from"),
        (lambda: distillation_loss(LOGITS, torch.tensor(0), HALF, divergence="kl"), "unknown divergence 'kl'"),
        (lambda: masked_mean(HALF, torch.tensor([False, False])), "selects no position"),
        (lambda: stepwise([1.0], [10], 0), "one fewer than the 1 values"),
        (lambda: stepwise([1.0, 0.5, 0.0], [20, 20], 0), "must increase"),
        (lambda: annealed_temperature(0, 1.0, 0.1, total=0), "at least 1 step"),
        (lambda: annealed_temperature(0, -1.0, 0.1, total=10), "0 or more"),
        (lambda: annealed_temperature(0, 1.0, 0.0, total=10, kind="logarithmic"), "above 0"),
        (lambda: annealed_temperature(0, 1.0, 0.1, total=10, kind="cosine"), "unknown annealing 'cosine'"),
    ],
)
def test_a_wrong_argument_is_an_error(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_positions_without_labels_do_not_count(alpha):
    drawn = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 4, 5, 7, generator=drawn)
    labels = torch.randint(7, (4, 5), generator=drawn)
    labels[torch.rand(4, 5, generator=drawn) < 0.4] = IGNORED_LABEL
    chosen = labels != IGNORED_LABEL
    found = distillation_loss(logits, labels, teacher.softmax(-1), alpha=alpha)
    expected = distillation_loss(logits[chosen], labels[chosen], teacher[chosen].softmax(-1), alpha=alpha)
    torch.testing.assert_close(found, expected)
