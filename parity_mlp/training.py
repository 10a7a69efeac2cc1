"""The training loop that `train.py` and `distill.py` share: several students, one stream, one pass.

The students' steps are cut into the same ranges whatever happens: at every evaluation, at every checkpoint and at
multiples of `RANGE_STEPS` (fewer if a step has several samples). What a student computes in a range depends on its own
weights and on the stream only, so students can be trained together or apart, and a run that goes on after a kill gets
the same bits.
"""

import datetime
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from common import losses
from common.arguments import require_at_least, require_seed
from common.checkpoints import Checkpoint, load_resume, local_path, save_checkpoint, save_resume
from common.distillation import Supervision
from common.errors import DivergedError, UserError
from common.runs import Run, WandbMode, progress, worker_threads
from common.schedules import Segment, checkpoint_at, spans
from parity_mlp.data import ParityTask, make_task
from parity_mlp.models import Tensors, architecture, load_tensors
from parity_mlp.sgd.engine import Engine, make_engine
from parity_mlp.sgd.objective import DIVERGENCE_CODES, Objective

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "parity_mlp"

RANGE_STEPS = 4096
RESUME_SECONDS = 10.0
"""Time between two writes of the resume state. It never changes a result, only how much a killed run does again."""
ESTIMATE_SECONDS = 5.0
"""Time after which the rest of a run is estimated."""
ADAPTIVE_CHANGE = 0.02
"""Change of the evaluation loss, in nats, that makes `--adaptive-checkpoints` save."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What `train.py` and `distill.py` have in common."""

    preset: Annotated[str, tyro.conf.Suppress]
    d: int
    """Number of coordinates."""
    k: int
    """Coordinates in the hidden support (of each node, if there are more than two labels)."""
    steps: int
    """SGD steps."""
    lr: float
    """Learning rate."""
    eval_every: int
    """Steps between two evaluations."""
    checkpoint_every: int
    """Steps between two checkpoints; 0 saves the final one only."""
    checkpoint_from: int = 0
    """Save no checkpoint before this step."""
    labels: int = 2
    """Number of classes, a power of two; above 2 the parity is hierarchical."""
    support: str = "first"
    """Hidden support: first, random, or comma-separated coordinates (k for each node in heap order)."""
    support_seed: int = 0
    """Seed of a random support."""
    layers: int = 1
    """Hidden layers. More than one is trained by plain PyTorch."""
    batch_size: int = 1
    """Samples per step. More than one is trained by plain PyTorch."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up; linear and cosine end at zero."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """L2 weight decay on all weights and biases, as in torch.optim.SGD."""
    label_temperature: float = 0.0
    """Without a teacher, learn from softmax(one-hot label / temperature); 0 is the plain label."""
    end_label_temperature: float | None = None
    """Label temperature at the last step, if it is annealed linearly."""
    adaptive_checkpoints: bool = False
    """Save at the evaluations at which the loss has moved, and else every --checkpoint-every steps."""
    eval_samples: int = 4096
    """Held-out samples per evaluation."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the weights."""
    device: str = "cpu"
    """Torch device."""
    out: Path | None = None
    """Run directory; by default runs/parity_mlp/ and a name made of all arguments that differ from the preset."""
    wandb: WandbMode = "disabled"
    """Weights & Biases logging."""
    force: bool = False
    """Remove what an earlier run wrote there and start over."""


@dataclass
class Student:
    """A network in training and the run that it writes."""

    run: Run
    supervision: Supervision
    initial: Tensors
    step: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def schedule(self) -> list[Segment]:
        return self.supervision.schedule(
            [(record["step"], record["accuracy"]) for record in self.records if record["step"]]
        )


def task_of(arguments: Arguments) -> ParityTask:
    return make_task(arguments.d, arguments.k, arguments.labels, arguments.support, arguments.support_seed)


def check(arguments: Arguments) -> None:
    """Refuse arguments that no run could have.

    Raises:
        UserError: a number out of its range, or a device that is not there.
    """
    require_at_least(1, arguments, "steps", "eval_every", "eval_samples", "batch_size", "layers")
    require_at_least(0, arguments, "checkpoint_every", "checkpoint_from", "label_temperature")
    require_seed(arguments, "support_seed")
    if arguments.end_label_temperature is not None:
        require_at_least(0, arguments, "end_label_temperature")
    if not 0 < arguments.lr < math.inf:
        raise UserError(f"--lr must be positive and finite, got {arguments.lr}")
    if not 0 <= arguments.lr * arguments.weight_decay <= 0.5:
        raise UserError(f"--weight-decay must be at least 0 and at most 0.5 / lr, got {arguments.weight_decay}")
    if not 0 <= arguments.warmup <= 1:
        raise UserError(f"--warmup is a share of the steps, between 0 and 1; got {arguments.warmup}")
    check_device(arguments.device)


def check_device(device: str) -> None:
    """Refuse a torch device that is not there.

    Raises:
        UserError: torch's reason.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def train_together(arguments: Arguments, students: list[Student], stream_seed: int, description: str) -> None:
    """Train all students to the end of their runs, each from where it was left.

    Raises:
        DivergedError: a student's loss or weights are not finite; nothing of that is saved, and the other students are
            trained to their end first.
    """
    task = task_of(arguments)
    engine = make_engine(
        [_restore(student) for student in students], arguments.device, arguments.batch_size, worker_threads()
    )
    eval_bits = task.sample(stream_seed, "evaluation", 0, arguments.eval_samples)
    eval_labels = task.labels(eval_bits)
    teachers = _Teachers(task, arguments)
    first = min(student.step for student in students)
    clock = _Clock(description, arguments.steps)
    diverged: dict[int, DivergedError] = {}

    def evaluate_and_save(i: int) -> None:
        try:
            evaluate_and_save_finite(i)
        except DivergedError as error:
            diverged[i] = error

    def evaluate_and_save_finite(i: int) -> None:
        student = students[i]
        if student.step % arguments.eval_every == 0 or student.step == arguments.steps:
            loss, accuracy = _score(engine.logits(i, eval_bits), eval_labels)
            if not np.isfinite(loss):
                raise _diverged(student)
            supervisor = checkpoint_at(student.schedule, max(student.step - 1, 0))
            samples = student.step * arguments.batch_size
            record = {
                "step": student.step,
                "samples": samples,
                "loss": loss,
                "accuracy": accuracy,
                "teacher": supervisor,
            }
            student.records.append(record)
            student.run.log(record)
        if _checkpoint_is_due(arguments, student):
            tensors = engine.tensors(i)
            if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
                raise _diverged(student)
            save_checkpoint(student.run.directory, student.step, tensors, architecture(tensors))

    with progress(arguments.steps, first, description, arguments.batch_size) as show:
        for i, student in enumerate(students):
            if not student.records:
                evaluate_and_save(i)
        for start, stop in _ranges(arguments, first):
            group = [i for i, student in enumerate(students) if student.step == start and i not in diverged]
            if not group:
                continue
            samples = (start * arguments.batch_size, (stop - start) * arguments.batch_size)
            bits = task.sample(stream_seed, "train", *samples)
            labels = task.labels(bits)
            engine.train(
                bits,
                {i: _objective(arguments, students[i], start, stop, bits, labels, teachers) for i in group},
            )
            teachers.end_range()
            for i in group:
                students[i].step = stop
                evaluate_and_save(i)
            if clock.resume_state_is_due(stop):
                for i in group:
                    if i not in diverged:
                        save_resume(students[i].run.directory, stop, engine.tensors(i), {})
            latest = students[group[-1]].records[-1]
            show(stop, **{name: latest[name] for name in ("loss", "accuracy", "teacher") if latest[name] is not None})
    for i, student in enumerate(students):
        if i not in diverged:
            student.run.finish({name: student.records[-1][name] for name in ("step", "loss", "accuracy")})
    if diverged:
        raise next(iter(diverged.values()))


def learning_rates(arguments: Arguments, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Learning rate of each of `steps` (from 0)."""
    warm = arguments.warmup * arguments.steps
    left = np.clip((arguments.steps - steps) / max(arguments.steps - warm, 1), 0, 1)
    course = {"constant": np.ones_like(left), "linear": left, "cosine": 0.5 - 0.5 * np.cos(np.pi * left)}
    rise = np.minimum((steps + 1) / max(warm, 1), 1)  # the warm-up may end inside a step
    return arguments.lr * np.where(steps < warm, rise, course[arguments.lr_schedule])


def adaptive_checkpoints(evaluations: Sequence[tuple[int, float]], longest: int) -> list[int]:
    """Evaluation steps at which to save: where the loss has moved by `ADAPTIVE_CHANGE` since the last save.

    Args:
        evaluations: (step, loss), in order; the first is what the loss moves from.
        longest: largest number of steps between two saves; 0 means no limit.
    """
    saved: list[tuple[int, float]] = []
    for step, loss in evaluations:
        due = not saved or abs(loss - saved[-1][1]) >= ADAPTIVE_CHANGE
        if due or 0 < longest <= step - saved[-1][0]:
            saved.append((step, loss))
    return [step for step, _ in saved]


class _Clock:
    """Says when a resume state is due, and once, after a few seconds, how long the rest will take."""

    def __init__(self, description: str, steps: int) -> None:
        self._description, self._steps = description, steps
        self._saved = time.monotonic()
        self._begin: tuple[float, int] | None = None  # after the first range, so that compilation does not count
        self._estimated = False

    def resume_state_is_due(self, step: int) -> bool:
        """To be called once after each range, which ended at `step`."""
        now = time.monotonic()
        self._begin = self._begin or (now, step)
        elapsed, done = now - self._begin[0], step - self._begin[1]
        if elapsed > ESTIMATE_SECONDS and not self._estimated:
            self._estimated = True
            left = datetime.timedelta(seconds=round(elapsed / done * (self._steps - step)))
            tqdm.write(f"{self._description}: {1e6 * elapsed / done:.1f} us a step, about {left} to go", sys.stderr)
        if now - self._saved < RESUME_SECONDS or step == self._steps:
            return False
        self._saved = now
        return True


class _Teachers:
    """Frozen teacher checkpoints, each loaded when first needed; students of one range share their logits."""

    def __init__(self, task: ParityTask, arguments: Arguments) -> None:
        self._task, self._arguments = task, arguments
        self._engines: dict[int, Engine] = {}
        self._logits: dict[tuple[int, int, int], NDArray[np.float64]] = {}

    def logits(
        self, teacher: Sequence[Checkpoint], step: int, bits: NDArray[np.uint64], start: int, stop: int
    ) -> NDArray[np.float64]:
        """Logits of the checkpoint at teacher step `step` for samples start .. stop - 1 of a range's `bits`."""
        if step not in self._engines:
            found = next(checkpoint for checkpoint in teacher if checkpoint.step == step)
            tensors = load_tensors(local_path(found), self._task.d, self._task.classes)
            self._engines[step] = make_engine([tensors], self._arguments.device, 1, worker_threads())
        if (step, start, stop) not in self._logits:
            self._logits[step, start, stop] = self._engines[step].logits(0, bits[start:stop])
        return self._logits[step, start, stop]

    def end_range(self) -> None:
        """Forget the logits, and the checkpoints that this range did not use."""
        used = {step for step, _, _ in self._logits}
        self._engines = {step: engine for step, engine in self._engines.items() if step in used}
        self._logits = {}


def _objective(
    arguments: Arguments,
    student: Student,
    start: int,
    stop: int,
    bits: NDArray[np.uint64],
    labels: NDArray[np.int64],
    teachers: _Teachers,
) -> Objective:
    """What a student learns from in steps start .. stop - 1, whose samples are `bits` and `labels`."""
    supervision, size = student.supervision, arguments.batch_size
    steps = np.repeat(np.arange(start, stop), size)
    targets = np.zeros((len(labels), arguments.labels))
    alpha = losses.stepwise(supervision.alpha, supervision.alpha_steps, steps)
    temperatures = losses.annealed_temperature(
        steps, *supervision.temperature, total=max(arguments.steps - 1, 1), kind=supervision.annealing
    )
    label_end = arguments.end_label_temperature
    label_temperatures = losses.annealed_temperature(
        steps,
        arguments.label_temperature,
        arguments.label_temperature if label_end is None else label_end,
        total=max(arguments.steps - 1, 1),
    )
    for first, last, checkpoint in spans(student.schedule, start, stop):
        part = slice((first - start) * size, (last - start) * size)
        if checkpoint is not None:
            logits = teachers.logits(supervision.teacher, checkpoint, bits, part.start, part.stop)
            probabilities = losses.teacher_probabilities(
                torch.from_numpy(logits), torch.from_numpy(temperatures[part]), supervision.top_k
            )
            targets[part] = probabilities.numpy()
        elif label_temperatures[part].any():
            alpha[part] = 0
            smoothed = losses.one_hot_probabilities(
                torch.from_numpy(labels[part]), arguments.labels, torch.from_numpy(label_temperatures[part])
            )
            targets[part] = smoothed.numpy()
        else:
            alpha[part] = 1
    return Objective(
        labels=labels,
        targets=targets,
        alpha=alpha,
        lr=learning_rates(arguments, np.arange(start, stop)),
        decay=arguments.weight_decay,
        divergence=DIVERGENCE_CODES[supervision.divergence],
        beta=supervision.beta,
    )


def _restore(student: Student) -> Tensors:
    """Set a student to where its run was left and return its weights there."""
    resume = load_resume(student.run.directory)
    student.run.rewind(resume.step if resume else -1)
    student.records = student.run.records()
    student.step = resume.step if resume else 0
    return resume.tensors if resume else student.initial


def _ranges(arguments: Arguments, first: int) -> Iterator[tuple[int, int]]:
    """The ranges of steps from step `first` on; it is where one of them starts."""
    cadences = [max(1, RANGE_STEPS // arguments.batch_size), arguments.eval_every]
    if arguments.checkpoint_every > 0:
        cadences.append(arguments.checkpoint_every)
    start = first
    while start < arguments.steps:
        stop = min(arguments.steps, *(start - start % cadence + cadence for cadence in cadences))
        yield start, stop
        start = stop


def _checkpoint_is_due(arguments: Arguments, student: Student) -> bool:
    if student.step == arguments.steps:
        return True
    if student.step < max(1, arguments.checkpoint_from):
        return False
    if arguments.adaptive_checkpoints:
        evaluations = [(record["step"], record["loss"]) for record in student.records]
        return student.step in adaptive_checkpoints(evaluations, arguments.checkpoint_every)
    return arguments.checkpoint_every > 0 and student.step % arguments.checkpoint_every == 0


def _diverged(student: Student) -> DivergedError:
    return DivergedError(f"{student.run.directory}: the loss is not finite at step {student.step:,}: give a lower --lr")


def _score(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross entropy, in nats, and accuracy."""
    loss = losses.label_cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).mean().item()
    return loss, float((logits.argmax(axis=1) == labels).mean())
