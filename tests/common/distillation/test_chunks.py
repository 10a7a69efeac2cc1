"""Losses and gradients chunk by chunk are those of the plain computation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from common.distillation import labelled_head, losses
from common.distillation.chunks import correct, objective_sums
from common.distillation.labelled_head import LabelledOutput

POSITIONS, HIDDEN, CLASSES = 13, 5, 9
TEMPERATURES, ALPHAS, DIVERGENCES, TOP_K = (
    (0.0, 1.0, 2.5),
    (0.0, 0.4),
    ("forward-kl", "reverse-kl", "jensen-shannon"),
    (None, 3),
)


def numbers(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(seed, classes=CLASSES, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Linear(HIDDEN, classes, dtype=dtype)


def sums_of(student, teacher, labels, arguments):
    return objective_sums(student, labels, teacher, arguments, 0, 1)[:2]


@pytest.mark.parametrize("given", ["hidden states", "logits"])
@pytest.mark.parametrize(
    ("temperature", "alpha", "divergence", "top_k"), list(itertools.product(TEMPERATURES, ALPHAS, DIVERGENCES, TOP_K))
)
def test_chunks_have_the_losses_and_gradients_of_float64_autograd(
    monkeypatch, given, temperature, alpha, divergence, top_k
):
    """The oracle is written out, in float64, without a function of the package."""
    monkeypatch.setattr(labelled_head, "CHUNK", 4 * CLASSES)
    layer, teacher_layer = linear(0), linear(1, CLASSES + 2)
    hidden, teacher_hidden = numbers(POSITIONS, HIDDEN, seed=2).requires_grad_(), numbers(POSITIONS, HIDDEN, seed=3)
    labels = torch.arange(POSITIONS) % CLASSES
    arguments = losses.LossArguments(
        temperature=(temperature, temperature), alpha=(alpha,), divergence=divergence, top_k=top_k, beta=0.3
    )
    student = LabelledOutput(hidden, layer) if given == "hidden states" else LabelledOutput(layer(hidden))
    sums = sums_of(student, LabelledOutput(teacher_hidden, teacher_layer, CLASSES), labels, arguments)
    (2.5 * sums[0]).backward()

    exact = linear(0).double()
    exact_hidden = hidden.detach().double().requires_grad_()
    log_p = exact(exact_hidden).log_softmax(-1)
    t = (teacher_hidden.double() @ teacher_layer.weight.double().T + teacher_layer.bias.double())[:, :CLASSES].detach()
    if temperature == 0:
        q = nn.functional.one_hot(t.argmax(-1), CLASSES).double()
    else:
        kept = t >= t.sort(-1, descending=True).values[:, (top_k or CLASSES) - 1 : (top_k or CLASSES)]
        q = torch.where(kept, (t / temperature).exp(), 0.0)
        q = q / q.sum(-1, keepdim=True)
    kl = (torch.xlogy(q, q) - q * log_p).sum(-1)
    if divergence == "forward-kl":
        distance = kl
    elif divergence == "reverse-kl":
        distance = (log_p.exp() * (log_p - q.log().clamp(min=-30))).sum(-1)
    else:
        m = 0.3 * q + 0.7 * log_p.exp()
        distance = (0.3 * (torch.xlogy(q, q) - torch.xlogy(q, m)) + 0.7 * log_p.exp() * (log_p - m.log())).sum(-1)
    loss = (alpha * -log_p[torch.arange(POSITIONS), labels] + (1 - alpha) * distance).sum()
    (2.5 * loss).backward()

    torch.testing.assert_close(sums.double(), torch.stack([loss, kl.sum()]).detach(), rtol=1e-5, atol=1e-5)
    for here, there in zip((hidden, *layer.parameters()), (exact_hidden, *exact.parameters()), strict=True):
        torch.testing.assert_close(here.grad.double(), there.grad, rtol=1e-4, atol=1e-5)


def test_labels_alone_have_the_loss_and_the_gradients_of_float64_autograd(monkeypatch):
    monkeypatch.setattr(labelled_head, "CHUNK", 4 * CLASSES)
    layer, hidden = linear(0), numbers(POSITIONS, HIDDEN, seed=2).requires_grad_()
    labels = torch.arange(POSITIONS) % CLASSES
    sums = objective_sums(LabelledOutput(hidden, layer), labels, None, losses.LossArguments(), 0, 1)
    (2.5 * sums[0]).backward()
    exact, exact_hidden = linear(0).double(), hidden.detach().double().requires_grad_()
    logits = exact(exact_hidden)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    (2.5 * loss).backward()
    hits = (logits.argmax(-1) == labels).sum()
    torch.testing.assert_close(sums.double(), torch.stack([loss.detach(), torch.zeros_like(loss), hits.double()]))
    for here, there in zip((hidden, *layer.parameters()), (exact_hidden, *exact.parameters()), strict=True):
        torch.testing.assert_close(here.grad.double(), there.grad, rtol=1e-4, atol=1e-5)


def test_large_logits_do_not_overflow(monkeypatch):
    monkeypatch.setattr(labelled_head, "CHUNK", CLASSES)
    logits = (1e4 * numbers(POSITIONS, CLASSES, seed=0)).requires_grad_()
    teacher = LabelledOutput(1e4 * numbers(POSITIONS, CLASSES, seed=1))
    labels = torch.arange(POSITIONS) % CLASSES
    sums = objective_sums(LabelledOutput(logits), labels, teacher, losses.LossArguments(alpha=(0.5,)), 0, 1)
    sums[0].backward()
    exact = logits.detach().double().requires_grad_()
    log_p, q = exact.log_softmax(-1), teacher.values.double().softmax(-1)
    kl = (torch.xlogy(q, q) - q * log_p).sum()
    (0.5 * kl - 0.5 * log_p[torch.arange(POSITIONS), labels].sum()).backward()
    torch.testing.assert_close(sums[1].double(), kl.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@given(arrays(np.float32, (7, 5), elements=st.sampled_from([-1.0, 0.0, 2.0])), st.integers(0, 4))
def test_of_equal_logits_the_first_is_the_prediction(logits, label):
    logits, labels = torch.from_numpy(logits), torch.full((7,), label)
    assert correct(logits, labels).tolist() == [row.tolist().index(max(row.tolist())) == label for row in logits]


def test_a_frozen_layer_gets_no_gradient_and_a_tied_weight_gets_both(monkeypatch):
    monkeypatch.setattr(labelled_head, "CHUNK", 4 * CLASSES)
    layer, teacher = linear(0).requires_grad_(False), LabelledOutput(numbers(POSITIONS, CLASSES, seed=1))
    hidden = numbers(POSITIONS, HIDDEN, seed=2).requires_grad_()
    labels = torch.zeros(POSITIONS, dtype=torch.long)
    sums_of(LabelledOutput(hidden, layer), teacher, labels, losses.LossArguments())[0].backward()
    assert hidden.grad is not None
    assert layer.weight.grad is None
    layer.requires_grad_(True)
    tied = layer.weight[: POSITIONS % CLASSES].sum() * numbers(POSITIONS, HIDDEN, seed=4)
    sums_of(LabelledOutput(tied, layer), teacher, labels, losses.LossArguments())[0].backward()
    by_chunks = layer.weight.grad.clone()
    layer.weight.grad = None
    tied = layer.weight[: POSITIONS % CLASSES].sum() * numbers(POSITIONS, HIDDEN, seed=4)
    losses.objective(layer(tied), labels, teacher.logits(), losses.LossArguments(), 0, 1)[0].sum().backward()
    torch.testing.assert_close(by_chunks, layer.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weights", "autocast"), [(torch.bfloat16, None), (torch.float32, torch.bfloat16)])
def test_bfloat16_is_as_exact_as_the_plain_computation_in_bfloat16(monkeypatch, weights, autocast):
    monkeypatch.setattr(labelled_head, "CHUNK", 4 * CLASSES)
    layer, teacher = linear(0, dtype=weights), LabelledOutput(numbers(POSITIONS, CLASSES, seed=1))
    labels = torch.zeros(POSITIONS, dtype=torch.long)
    gradients = []
    for by_chunks in (True, False):
        hidden = numbers(POSITIONS, HIDDEN, seed=2).requires_grad_()
        layer.weight.grad = None
        if by_chunks:
            sums = sums_of(LabelledOutput(hidden, layer, dtype=autocast), teacher, labels, losses.LossArguments())
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
                logits = layer(hidden.to(weights)).float()
            sums = losses.objective(logits, labels, teacher.logits(), losses.LossArguments(), 0, 1)[0].sum()[None]
        sums[0].backward()
        gradients.append((sums[0].item(), hidden.grad.float(), layer.weight.grad.float()))
    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(here, there, rtol=0.03, atol=0.02)
