"""The training loop that `train.py` and `distill.py` share: several students, one stream, one pass.

The students' steps are cut into the same ranges whatever happens: at every evaluation, at every checkpoint and at
multiples of `RANGE_STEPS` (fewer if a step has several samples). What an MLP computes in a range depends on its own
weights and on the stream only, to the bit, so students can be trained together or apart; a GPT-2 depends on the others
by rounding. Resume states are written so that students who are trained together go on together: a run that was killed
ends with the same bits. A signal to stop is obeyed between two ranges, once the state there is saved.
"""

import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from common.distillation import losses
from common.distillation.schedules import Segment, checkpoint_at, spans
from common.distillation.supervision import Supervision
from common.errors import DivergedError
from common.parity.arguments import Arguments, GPT2Arguments, task_of
from common.parity.engine import Engine
from common.parity.mlp import Network
from common.parity.networks import engine_for_logits, engine_for_training, load_network
from common.parity.objective import DIVERGENCE_CODES, Objective
from common.parity.task import ParityTask
from common.runs.checkpoints import save_checkpoint
from common.runs.processes import Processes
from common.runs.progress import progress
from common.runs.resume import add_resume, keep_resume, load_resume, resume_steps
from common.runs.run import Run
from common.runs.stopping import stop_at_a_safe_point
from common.teachers.discovery import Checkpoint, local_path

RANGE_STEPS = 4096
RESUME_SECONDS = 10.0
"""Time between two writes of the resume state. It never changes a result, only how much a killed run does again."""
ESTIMATE_SECONDS = 5.0
"""Time after which the rest of a run is estimated."""
ADAPTIVE_CHANGE = 0.02
"""Change of the evaluation loss, in nats, that makes `--adaptive-checkpoints` save."""


@dataclass
class Student:
    """A network in training and the run that it writes."""

    run: Run
    supervision: Supervision
    initial: Network
    lr: float
    step: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def schedule(self) -> list[Segment]:
        return self.supervision.schedule(
            [(record["step"], record["accuracy"]) for record in self.records if record["step"]]
        )


@stop_at_a_safe_point()
def train_together(
    arguments: Arguments,
    students: list[Student],
    stream_seed: int,
    description: str,
    device: str,
    processes: Processes,
) -> None:
    """Train all students to the end of their runs, each from where it was left.

    Args:
        arguments: that they have in common.
        students: of which the first process writes the runs.
        stream_seed: of the samples.
        description: of the students.
        device: of this process.
        processes: those that share each batch.

    Raises:
        DivergedError: a student's loss or weights are not finite; nothing of that is saved, and the other students are
            trained to their end first.
        Stopped: by a signal; the states of all students are saved.
    """
    task = task_of(arguments)
    with processes.main_process_first():
        networks = _restore(students, processes)
    engine = engine_for_training(networks, arguments, device, stream_seed, processes)
    eval_bits = task.sample(stream_seed, "evaluation", 0, arguments.eval_samples)
    eval_labels = task.labels(eval_bits)
    teachers = _Teachers(task, arguments, device)
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
            if processes.first:
                student.run.log(record)
        if _checkpoint_is_due(arguments, student):
            tensors = engine.tensors(i)
            if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
                raise _diverged(student)
            if processes.first:
                save_checkpoint(student.run.directory, student.step, tensors, student.initial.config)

    def save_resume_states(step: int) -> None:
        saved = {i: students[i].run.directory for i in range(len(students)) if students[i].step == step}
        for i, directory in saved.items():
            if i not in diverged:
                add_resume(directory, step, engine.state(i), {})
        for i, directory in saved.items():
            if i not in diverged:
                keep_resume(directory, step)

    shown = progress(arguments.steps, first, description, arguments.batch_size)
    with shown if processes.first else nullcontext(lambda step, **values: None) as show:
        for i, student in enumerate(students):
            if not student.records:
                evaluate_and_save(i)
        if processes.first and len(students) > 1:
            save_resume_states(0)  # so that there is always a step at which those that begin together have one
        for start, stop in _ranges(arguments, first):
            if len(diverged) == len(students):
                break
            if number := processes.agree_to_stop():
                if processes.first:
                    save_resume_states(start)
                processes.stop(number, start)
            group = [i for i, student in enumerate(students) if student.step == start]
            if not group:
                continue
            samples = (start * arguments.batch_size, (stop - start) * arguments.batch_size)
            bits = _share(task.sample(stream_seed, "train", *samples), arguments, processes)
            labels = task.labels(bits)
            engine.train(
                bits,
                {i: _objective(arguments, students[i], start, stop, bits, labels, teachers) for i in group},
            )
            teachers.end_range()
            for i in group:
                students[i].step = stop
                if i not in diverged:
                    evaluate_and_save(i)
            if processes.first and (clock.resume_state_is_due(stop) or stop == arguments.steps):
                save_resume_states(stop)
            latest = students[group[-1]].records[-1]
            show(stop, **{name: latest[name] for name in ("loss", "accuracy", "teacher") if latest[name] is not None})
    for i, student in enumerate(students):
        if i not in diverged and processes.first:
            student.run.finish({name: student.records[-1][name] for name in ("step", "loss", "accuracy")})
    if diverged:
        raise next(iter(diverged.values()))


def learning_rates(arguments: Arguments, lr: float, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Learning rate of each of `steps` (from 0); `lr` is the largest."""
    warm = arguments.warmup * arguments.steps
    left = np.clip((arguments.steps - steps) / max(arguments.steps - warm, 1), 0, 1)
    course = {"constant": np.ones_like(left), "linear": left, "cosine": 0.5 - 0.5 * np.cos(np.pi * left)}
    rise = np.minimum((steps + 1) / max(warm, 1), 1)  # the warm-up may end inside a step
    return lr * np.where(steps < warm, rise, course[arguments.lr_schedule])


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

    def __init__(self, task: ParityTask, arguments: Arguments, device: str) -> None:
        self._task, self._device = task, device
        self._precision = arguments.precision if isinstance(arguments, GPT2Arguments) else "float32"
        self._engines: dict[int, Engine] = {}
        self._logits: dict[tuple[int, int, int], NDArray[np.float64]] = {}

    def logits(
        self, teacher: Sequence[Checkpoint], step: int, bits: NDArray[np.uint64], start: int, stop: int
    ) -> NDArray[np.float64]:
        """Logits of the checkpoint at teacher step `step` for samples start .. stop - 1 of a range's `bits`."""
        if step not in self._engines:
            found = next(checkpoint for checkpoint in teacher if checkpoint.step == step)
            network = load_network(local_path(found), self._task)
            self._engines[step] = engine_for_logits(network, self._task.d, self._device, self._precision)
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
    supervision, size = student.supervision, len(labels) // (stop - start)
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
        lr=learning_rates(arguments, student.lr, np.arange(start, stop)),
        decay=arguments.weight_decay,
        divergence=DIVERGENCE_CODES[supervision.divergence],
        beta=supervision.beta,
    )


def _restore(students: Sequence[Student], processes: Processes) -> list[Network]:
    """Set all students to where their runs were left and return them as they were there.

    That is a step at which all who were trained together have a state, so that they stay together: all whose states
    have a step in common. A student that had diverged, or one that is added later, goes on from its own.
    """
    states = [set(resume_steps(student.run.directory)) for student in students]
    networks = []
    for student, own in zip(students, states, strict=True):
        common = own.intersection(*(other for other in states if other & own))
        resume = load_resume(student.run.directory, max(common, default=None))
        if processes.first:
            student.run.truncate_records(resume.step if resume else -1)
        student.records = student.run.records()
        student.step = resume.step if resume else 0
        networks.append(Network(student.initial.config, resume.tensors) if resume else student.initial)
    return networks


def _share(bits: NDArray[np.uint64], arguments: Arguments, processes: Processes) -> NDArray[np.uint64]:
    """What one process computes of each step's samples."""
    steps = bits.reshape(-1, processes.count, arguments.batch_size // processes.count, bits.shape[-1])
    return np.ascontiguousarray(steps[:, processes.index]).reshape(-1, bits.shape[-1])


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
