"""What students minimise: targets from the checkpoints of their schedule, or labels; and their learning rates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.distillation import losses
from common.distillation.schedules import Segment, segments_at, spans
from common.distillation.supervision import Supervision
from common.parity.arguments import Arguments
from common.parity.designed import Monomials
from common.parity.frozen import Logits, teacher_logits
from common.parity.networks import Network
from common.parity.objective import DIVERGENCE_CODES, Objective
from common.parity.task import ParityTask
from common.runs.run import Run
from common.teachers.discovery import Checkpoint, local_path


class Teachers:
    """Frozen teacher checkpoints, each loaded when first needed; the students of a range share their logits."""

    def __init__(self, task: ParityTask, frozen_logits: Callable[[Network], Logits]) -> None:
        self._task, self._frozen_logits = task, frozen_logits
        self._networks: dict[Checkpoint | Monomials, Logits] = {}
        self._cache: dict[tuple[Checkpoint | Monomials, int, int], NDArray[np.float64]] = {}

    def logits(
        self, supervision: Supervision, step: int, bits: NDArray[np.uint64], samples: slice
    ) -> NDArray[np.float64]:
        """Logits (samples, classes) of a teacher checkpoint, or of a designed target, for some samples of a range.

        Args:
            supervision: of the student.
            step: that stands for it in the student's schedule.
            bits: (samples, words), those of the range.
            samples: which of them.

        Raises:
            UserError: the checkpoint cannot be loaded, or its weights or logits are not finite.
        """
        if step in supervision.designs:
            chosen: Checkpoint | Monomials = supervision.designs[step]
        else:
            chosen = next(checkpoint for checkpoint in supervision.teacher if checkpoint.step == step)
        if chosen not in self._networks:
            if isinstance(chosen, Monomials):
                self._networks[chosen] = chosen.logits
            else:
                self._networks[chosen] = teacher_logits(local_path(chosen), self._task, self._frozen_logits)
        key = chosen, samples.start, samples.stop
        if key not in self._cache:
            self._cache[key] = self._networks[chosen](bits[samples])
        return self._cache[key]

    def end_range(self) -> None:
        """Free the logits, and the checkpoints that this range did not use."""
        used = {chosen for chosen, _, _ in self._cache}
        self._networks = {chosen: network for chosen, network in self._networks.items() if chosen in used}
        self._cache = {}


@dataclass
class Student:
    """A network in training and the run that it writes."""

    run: Run
    supervision: Supervision
    initial: Network
    lr: float
    """Peak learning rate."""
    records_divergence: bool = False
    """Whether its evaluations have the divergence from what it learns from, which its schedule depends on."""
    step: int = 0
    """Steps taken."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations so far."""

    @property
    def schedule(self) -> Sequence[Segment]:
        """The teacher's checkpoints that supervise it, as far as its evaluations decide them."""
        return segments_at(self.supervision.schedule, self.records)

    def objective(
        self,
        arguments: Arguments,
        start: int,
        stop: int,
        bits: NDArray[np.uint64],
        labels: NDArray[np.int64],
        teachers: Teachers,
    ) -> Objective:
        """What the student minimises in a range of steps.

        Args:
            arguments: of the run.
            start: first step, from 0.
            stop: step after the last.
            bits: (n, words), the samples of the range: n / (stop - start) of them for each step.
            labels: (n,), their classes.
            teachers: give the logits.
        """
        supervision, size = self.supervision, len(labels) // (stop - start)
        steps = np.repeat(np.arange(start, stop), size)
        total = max(arguments.steps - 1, 1)
        targets = np.zeros((len(labels), arguments.labels))
        alpha = losses.stepwise(supervision.alpha, supervision.alpha_steps, steps)
        temperatures = losses.annealed_temperature(
            steps, *supervision.temperature, total=total, kind=supervision.annealing
        )
        first, last = arguments.label_temperature, arguments.end_label_temperature
        label_temperatures = losses.annealed_temperature(steps, first, first if last is None else last, total=total)
        for span_start, span_stop, checkpoint in spans(self.schedule, start, stop):
            samples = slice((span_start - start) * size, (span_stop - start) * size)
            if checkpoint is not None:
                logits = teachers.logits(supervision, checkpoint, bits, samples)
                targets[samples] = losses.teacher_probabilities(
                    torch.from_numpy(logits), torch.from_numpy(temperatures[samples]), supervision.top_k
                ).numpy()
            elif label_temperatures[samples].any():
                alpha[samples] = 0
                targets[samples] = losses.one_hot_probabilities(
                    torch.from_numpy(labels[samples]), arguments.labels, torch.from_numpy(label_temperatures[samples])
                ).numpy()
            else:
                alpha[samples] = 1
        return Objective(
            labels=labels,
            targets=targets,
            alpha=alpha,
            lr=learning_rates(arguments, self.lr, np.arange(start, stop)),
            decay=arguments.weight_decay,
            divergence=DIVERGENCE_CODES[supervision.divergence],
            beta=supervision.beta,
        )


def learning_rates(arguments: Arguments, lr: float, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Learning rates (steps,) at some steps, counted from 0; `lr` is the largest one."""
    warm = arguments.warmup * arguments.steps
    left = np.clip((arguments.steps - steps) / max(arguments.steps - warm, 1), 0, 1)
    decay = {"constant": np.ones_like(left), "linear": left, "cosine": 0.5 - 0.5 * np.cos(np.pi * left)}
    rise = np.minimum((steps + 1) / max(warm, 1), 1)  # the warm-up may end inside a step
    return lr * np.where(steps < warm, rise, decay[arguments.lr_schedule])
