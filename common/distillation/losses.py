"""What a student minimises: temperature, alpha and the divergences.

All functions take logits of shape (..., classes), in float32 or wider. A student's must be finite; a teacher may
exclude classes by -inf, but not all of a position. With student probabilities p, teacher probabilities q (the targets)
and labels y, the loss is

    alpha * CE(y, p) + (1 - alpha) * D(q, p)

In Panigrahi et al. (2025), arXiv:2410.05464, D is the forward KL divergence and temperature applies to the teacher
only. The reverse KL and generalised Jensen-Shannon divergences are those of Agarwal et al. (2024), arXiv:2306.13649.
Losses are in nats. Targets are constants, without a gradient. Of equal logits, the first classes count as the largest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from common.distillation.arguments import Annealing, Divergence
from common.distillation.sparse_targets import SparseTargets
from common.errors import UserError, listed

IGNORED_LABEL = -100
"""Label of positions without a loss, as in torch and transformers."""

ARG_MAX_TEMPERATURE = 1e-10
"""Temperatures up to this one mean the arg-max: the logits divided by them would overflow float32."""

LOG_PROBABILITY_FLOOR = -30.0
"""Lowest log q in the reverse KL divergence, which would be infinite for a class of teacher probability 0."""


@dataclass(frozen=True, kw_only=True)
class LossArguments:
    """What the objective depends on, besides logits and labels."""

    temperature: tuple[float, float] = (1.0, 1.0)
    """Of the teacher's logits, at the first step and at the last; 0 is the arg-max."""
    annealing: Annealing = "linear"
    """How the temperature changes from the first to the last."""
    top_k: int | None = None
    """Keep the teacher's `top_k` most probable classes."""
    alpha: tuple[float, ...] = (0.0,)
    """Weight of the cross entropy with the labels, piecewise constant."""
    alpha_steps: tuple[int, ...] = ()
    """Steps at which alpha changes to its next value."""
    divergence: Divergence = "forward-kl"
    """From the teacher."""
    beta: float = 0.5
    """Only for the Jensen-Shannon divergence."""


def loss_arguments(
    temperature: float | tuple[float, float], alpha: float | Sequence[float], alpha_steps: Sequence[int], **others: Any
) -> LossArguments:
    """`LossArguments` from a temperature or two, one alpha or several, and the other arguments by name.

    Raises:
        UserError: as for `check_loss_arguments`.
    """
    temperatures = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    alphas = (alpha,) if isinstance(alpha, float | int) else tuple(alpha)
    arguments = LossArguments(temperature=temperatures, alpha=alphas, alpha_steps=tuple(alpha_steps), **others)
    check_loss_arguments(arguments)
    return arguments


def check_loss_arguments(
    arguments: LossArguments, classes: int | None = None, spell: Callable[[str], str] = str
) -> None:
    """Check loss arguments before training starts.

    Args:
        arguments: to check.
        classes: of the teacher's output, if known.
        spell: maps an argument's name here to its name in messages.

    Raises:
        UserError: names the argument that is out of its range.
    """
    _require_alpha(arguments.alpha, spell("alpha"))
    stepwise(arguments.alpha, arguments.alpha_steps, 0, spell("alpha_steps"))
    annealed_temperature(0, *arguments.temperature, total=1, kind=arguments.annealing, name=spell("temperature"))
    _require_top_k(arguments.top_k, classes, spell("top_k"))
    if arguments.divergence not in get_args(Divergence):
        name = spell("divergence")
        raise UserError(f"{name} must be one of {listed(get_args(Divergence))}, got {arguments.divergence}")
    if arguments.divergence == "jensen-shannon":
        _require_beta(arguments.beta, spell("beta"))


def objective(
    student_logits: Tensor, labels: Tensor, teacher_logits: Tensor, arguments: LossArguments, step: int, last: int
) -> tuple[Tensor, Tensor]:
    """What the student minimises at `step`, and the forward KL divergence from the teacher, both of shape (samples,).

    Args:
        student_logits: (samples, classes).
        labels: (samples,).
        teacher_logits: (samples, classes).
        arguments: of the loss.
        step: from 0.
        last: step at which the temperature reaches its last value.
    """
    temperature = float(annealed_temperature(step, *arguments.temperature, max(last, 1), arguments.annealing))
    alpha = float(stepwise(arguments.alpha, arguments.alpha_steps, step))
    log_student = student_logits.log_softmax(-1)
    if arguments.divergence == "forward-kl" and temperature <= ARG_MAX_TEMPERATURE:
        kl = losses = _label_cross_entropy(log_student, teacher_logits.argmax(-1))
    else:
        targets = teacher_probabilities(teacher_logits, temperature, arguments.top_k)
        losses = _divergence(log_student, targets, arguments.divergence, arguments.beta)
        with torch.no_grad():
            kl = losses if arguments.divergence == "forward-kl" else _forward_kl(log_student, targets)
    if alpha > 0:
        losses = alpha * _label_cross_entropy(log_student, labels) + (1 - alpha) * losses
    return losses, kl.detach()


def sparse_objective(
    student_logits: Tensor, labels: Tensor, targets: SparseTargets, arguments: LossArguments, step: int
) -> tuple[Tensor, Tensor]:
    """As `objective`, with targets that stand for a teacher's probabilities, and the forward KL divergence from them.

    Args:
        student_logits: (samples, classes).
        labels: (samples,).
        targets: of the samples.
        arguments: of the loss, for their alpha.
        step: from 0.
    """
    alpha = float(stepwise(arguments.alpha, arguments.alpha_steps, step))
    log_student = student_logits.log_softmax(-1)
    kl = losses = targets.forward_kl(log_student)
    if alpha > 0:
        losses = alpha * _label_cross_entropy(log_student, labels) + (1 - alpha) * losses
    return losses, kl.detach()


def teacher_probabilities(teacher_logits: Tensor, temperature: float | Tensor, top_k: int | None = None) -> Tensor:
    """softmax(teacher_logits / temperature), of shape (..., classes).

    Args:
        teacher_logits: (..., classes).
        temperature: a scalar, or of shape (...). Up to `ARG_MAX_TEMPERATURE`, all probability is on the first of the
            largest logits.
        top_k: keep the `top_k` most probable classes and renormalise. Exactly `top_k` are kept: of ties, the first.

    Raises:
        UserError: a temperature that is negative or not finite, or `top_k` outside 1 to classes.
    """
    temperature = torch.as_tensor(temperature, dtype=teacher_logits.dtype)[..., None]
    if not (temperature.isfinite() & (temperature >= 0)).all():
        raise UserError(f"the temperature must be 0 or more, got {temperature.squeeze(-1).tolist()}")
    _require_top_k(top_k, teacher_logits.shape[-1])
    arg_max = temperature <= ARG_MAX_TEMPERATURE
    scaled = (teacher_logits - teacher_logits.amax(-1, keepdim=True)).div_(temperature.masked_fill(arg_max, 1))
    if top_k is not None:
        scaled = scaled.masked_fill(~largest(scaled, top_k), -math.inf)
    probabilities = scaled.softmax(-1)
    if not arg_max.any():
        return probabilities
    one_hot = torch.zeros_like(scaled).scatter_(-1, teacher_logits.argmax(-1, keepdim=True), 1.0)
    return torch.where(arg_max, one_hot, probabilities)


def largest(values: Tensor, count: int) -> Tensor:
    """True at the `count` largest of `values` along the last dimension; of ties, at the first."""
    least = values.topk(count).values[..., -1:]
    above, ties = values > least, values == least
    return above | ties & (ties.cumsum(-1, dtype=torch.int32) <= count - above.sum(-1, keepdim=True))


def one_hot_probabilities(labels: Tensor, classes: int, temperature: float | Tensor) -> Tensor:
    """softmax(one_hot(labels) / temperature): label smoothing without a teacher.

    Args:
        labels: (...), integers in [0, classes).
        classes: number of classes.
        temperature: a scalar, or of shape (...); 0 leaves the labels unchanged.

    Returns:
        (..., classes) in torch's default dtype.

    Raises:
        UserError: a temperature that is negative or not finite.
    """
    return teacher_probabilities(F.one_hot(labels, classes).to(torch.get_default_dtype()), temperature)


def label_cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """-log p[y], of shape (...); 0 where the label is -100. Gradient at the logits: p - one_hot(y)."""
    losses = F.cross_entropy(student_logits.reshape(-1, student_logits.shape[-1]), labels.reshape(-1), reduction="none")
    return losses.view(labels.shape)


def cross_entropy(student_logits: Tensor, targets: Tensor) -> Tensor:
    """H(q, p) = -sum q log p, of shape (...). Gradient at the logits: p - q."""
    return -(targets * student_logits.log_softmax(-1)).sum(-1)


def forward_kl(student_logits: Tensor, targets: Tensor) -> Tensor:
    """KL(q || p) = sum q log(q / p) = H(q, p) - H(q), of shape (...). Gradient at the logits: p - q."""
    return _forward_kl(student_logits.log_softmax(-1), targets)


def reverse_kl(student_logits: Tensor, targets: Tensor) -> Tensor:
    """KL(p || q) = sum p log(p / q), of shape (...), with log q at least `LOG_PROBABILITY_FLOOR`.

    Gradient at the logits: p * (v - sum p v) with v = log(p / q).
    """
    return _reverse_kl(student_logits.log_softmax(-1), targets)


def jensen_shannon(student_logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """beta * KL(q || m) + (1 - beta) * KL(p || m) with m = beta * q + (1 - beta) * p, of shape (...).

    Gradient at the logits: p * (v - sum p v) with v = (1 - beta) * log(p / m). Divided by beta, the divergence tends to
    the forward KL divergence as beta -> 0; divided by 1 - beta, to the reverse one as beta -> 1.

    Raises:
        UserError: beta not strictly between 0 and 1.
    """
    _require_beta(beta)
    return _jensen_shannon(student_logits.log_softmax(-1), targets, beta)


def distillation_loss(
    student_logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    alpha: float = 0.0,
    divergence: Divergence = "forward-kl",
    beta: float = 0.5,
    mask: Tensor | None = None,
) -> Tensor:
    """alpha * CE(labels) + (1 - alpha) * divergence from the targets, averaged over the mask.

    Args:
        student_logits: (..., classes).
        labels: (...), integers; `IGNORED_LABEL` where there is none.
        targets: (..., classes), the teacher's probabilities.
        alpha: weight of the labels, 0 in the paper.
        divergence: "forward-kl" has the gradient of the paper's H(q, p) and is lower by the teacher's entropy.
        beta: only for "jensen-shannon".
        mask: (...), True where the loss counts; by default at the labels.

    Returns:
        A scalar.

    Raises:
        UserError: alpha outside 0 to 1, an unknown divergence, beta outside its range, or an empty mask.
    """
    _require_alpha([alpha])
    if divergence == "jensen-shannon":
        _require_beta(beta)
    losses = _divergence(student_logits.log_softmax(-1), targets, divergence, beta)
    if mask is None and (labels == IGNORED_LABEL).any():
        mask = labels != IGNORED_LABEL
    if alpha > 0:
        losses = alpha * label_cross_entropy(student_logits, labels) + (1 - alpha) * losses
    return masked_mean(losses, mask)


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of `values` (...) where `mask` (...) is True, or of all of them without a mask.

    Raises:
        UserError: the mask is False everywhere.
    """
    if mask is None:
        return values.mean()
    if not mask.any():
        raise UserError("the mask selects no position, so the batch has no loss")
    return values[mask].mean()


def stepwise(
    values: npt.ArrayLike, boundaries: npt.ArrayLike, steps: npt.ArrayLike, name: str = "boundaries"
) -> npt.NDArray[np.float64]:
    """A piecewise constant function of the step, such as alpha: values[i] from step boundaries[i - 1] on.

    Args:
        values: (n + 1,).
        boundaries: (n,) steps from 1 on, increasing.
        steps: of any shape; the result has the same.
        name: of the boundaries, in messages.

    Raises:
        UserError: n boundaries without n + 1 values, or boundaries below 1 or that do not increase.
    """
    values, boundaries = np.asarray(values, np.float64), np.asarray(boundaries)
    if len(values) != len(boundaries) + 1:
        raise UserError(f"{name} {boundaries.tolist()} must be one fewer than the {len(values)} values they separate")
    if np.any(boundaries < 1):
        raise UserError(f"{name} must be at least 1, got {boundaries.tolist()}")
    if np.any(np.diff(boundaries) <= 0):
        raise UserError(f"{name} must increase, got {boundaries.tolist()}")
    return values[np.searchsorted(boundaries, steps, side="right")]


def annealed_temperature(
    steps: npt.ArrayLike,
    start: float,
    end: float,
    total: int,
    kind: Annealing = "linear",
    name: str = "temperature",
) -> npt.NDArray[np.float64]:
    """Temperature that changes from `start` at step 0 to `end` at step `total`, and then stays there.

    Args:
        steps: of any shape; the result has the same.
        start: temperature at step 0.
        end: temperature from step `total` on.
        total: steps of annealing.
        kind: "linear" in the temperature, or "logarithmic": linear in its logarithm.
        name: of the temperature, in messages.

    Raises:
        UserError: `total` below 1, a negative temperature, one of 0 with "logarithmic", or an unknown kind.
    """
    if total < 1:
        raise UserError(f"{name} must be annealed over at least 1 step, got {total}")
    if not min(start, end) >= 0:
        raise UserError(f"{name} must be 0 or more, got {start} and {end}")
    done = np.clip(np.asarray(steps) / total, 0, 1)
    if kind == "linear":
        return (1 - done) * start + done * end
    if kind != "logarithmic":
        raise UserError(f"unknown annealing {kind!r}; use linear or logarithmic")
    if min(start, end) == 0:
        raise UserError(f"{name} must be above 0 for logarithmic annealing; 1e-20 is low enough for the arg-max")
    return start ** (1 - done) * end**done


def _require_alpha(alpha: Sequence[float], name: str = "alpha") -> None:
    if not alpha or not all(0 <= value <= 1 for value in alpha):
        raise UserError(f"{name} must be from 0 to 1, got {', '.join(map(str, alpha)) or 'no value'}")


def _require_top_k(top_k: int | None, classes: int | None, name: str = "top_k") -> None:
    if top_k is None:
        return
    if classes is None and top_k < 1:
        raise UserError(f"{name} must be at least 1, got {top_k}")
    if classes is not None and not 1 <= top_k <= classes:
        raise UserError(f"{name} must be from 1 to the number of classes, {classes}, got {top_k}")


def _require_beta(beta: float, name: str = "beta") -> None:
    if not 0 < beta < 1:
        raise UserError(f"{name} must be between 0 and 1, both excluded, got {beta}")


# Divergences of log-probabilities log p, of shape (..., classes)


def _divergence(log_student: Tensor, targets: Tensor, divergence: Divergence, beta: float) -> Tensor:
    match divergence:
        case "forward-kl":
            return _forward_kl(log_student, targets)
        case "reverse-kl":
            return _reverse_kl(log_student, targets)
        case "jensen-shannon":
            return _jensen_shannon(log_student, targets, beta)
        case _:
            raise UserError(f"unknown divergence {divergence!r}; use forward-kl, reverse-kl or jensen-shannon")


def _label_cross_entropy(log_student: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(log_student, labels, reduction="none")


def _forward_kl(log_student: Tensor, targets: Tensor) -> Tensor:
    log_targets = targets.clamp(min=torch.finfo(targets.dtype).tiny).log_()  # 0 log 0 = 0, without the slow xlogy
    return (targets * log_targets.sub_(log_student)).sum(-1)


def _reverse_kl(log_student: Tensor, targets: Tensor) -> Tensor:
    log_targets = targets.log().clamp_(min=LOG_PROBABILITY_FLOOR)
    return F.kl_div(log_targets, log_student, reduction="none", log_target=True).sum(-1)


def _jensen_shannon(log_student: Tensor, targets: Tensor, beta: float) -> Tensor:
    log_mixture = torch.logaddexp(targets.log() + math.log(beta), log_student + math.log1p(-beta))
    from_targets = F.kl_div(log_mixture, targets, reduction="none").sum(-1)
    from_student = F.kl_div(log_mixture, log_student, reduction="none", log_target=True).sum(-1)
    return beta * from_targets + (1 - beta) * from_student
