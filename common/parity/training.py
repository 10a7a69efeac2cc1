"""The training loop of the settings on parity: several students, one stream of samples, one pass.

The students' steps are always cut into the same ranges: at every evaluation, at every checkpoint and at multiples of
`RANGE_STEPS` (fewer if a step has several samples). What an MLP computes in a range depends, to the bit, only on its
own weights and on the stream, so students can be trained together or apart; a GPT-2 also depends on the others, but
only by rounding. Resume states are written so that students that are trained together are resumed together: a run that
was killed ends bit-identical to an uninterrupted one. A signal to stop takes effect between two ranges, once the state
there is saved.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.distillation import losses
from common.distillation.automatic import divergence
from common.distillation.schedules import checkpoint_at
from common.errors import DivergedError
from common.parity.arguments import Arguments, Precision
from common.parity.engine import Engine
from common.parity.frozen import Logits
from common.parity.networks import Network
from common.parity.students import Student, Teachers
from common.parity.task import ParityTask, task_of
from common.resources import EVALUATION_DATA, SAMPLES, Needs
from common.runs.checkpoints import number_of_checkpoints, save_checkpoint
from common.runs.processes import Processes
from common.runs.progress import RemainingTime, progress
from common.runs.resume import ResumeClock, add_resume, keep_resume, load_resume, resume_steps
from common.runs.stopping import stop_at_a_safe_point

RANGE_STEPS = 4096
ADAPTIVE_CHANGE = 0.02
"""Change of the evaluation loss, in nats, at which `--adaptive-checkpoints` saves."""


@dataclass(frozen=True)
class Setting:
    """A kind of network, and how it is trained."""

    name: str
    """Of the folder, as in config.json."""
    size: str
    """Argument of train.py that is the size of a network."""
    sizes: str
    """Argument of distill.py with the sizes of the students."""
    check_processes: Callable[[Any, Processes], None]
    """Rejects a number of processes that cannot share a batch."""
    new_network: Callable[[Any, int, int], Network]
    """From the arguments, the size and the seed."""
    training_engine: Callable[[Sequence[Network], Any, int, str, Processes], Engine]
    """From networks, new or resumed, the arguments, the seed of dropout, the device and the processes."""
    frozen_logits: Callable[..., Logits]
    """The logits of any network, of this setting or another; arguments as `common.parity.frozen.frozen_logits`."""
    needs: Callable[[Any, int, Processes], Needs]
    """Memory and disk for one network, from the arguments, its size and the processes."""
    precision: Callable[[Any], Precision] = lambda arguments: "float32"
    """In which a run computes its teacher's logits."""
    check: Callable[[Any], None] = lambda arguments: None
    """Refuses arguments that no run of the setting could have."""


@stop_at_a_safe_point()
def train_together(
    setting: Setting,
    arguments: Arguments,
    students: Sequence[Student],
    stream_seed: int,
    description: str,
    device: str,
    processes: Processes,
) -> None:
    """Train all students to the end of their runs, each from its last state.

    Args:
        setting: of the students.
        arguments: that they have in common.
        students: at least one; the first process writes their runs.
        stream_seed: of the samples, and of dropout.
        description: of the students, for the progress bar.
        device: of this process.
        processes: those that share each batch.

    Raises:
        DivergedError: a student's loss or weights are not finite; nothing invalid is saved, and the other students are
            trained to their end first.
        Stopped: by a signal; the states of all students are saved.
    """
    training = _Training(setting, arguments, students, stream_seed, device, processes)
    first = training.first_step
    clock, remaining = ResumeClock(), RemainingTime(description, arguments.steps)
    shown = progress(arguments.steps, first, description, arguments.batch_size)
    with shown if processes.first else nullcontext(lambda step, **values: None) as show:
        training.begin()
        for start, stop in step_ranges(arguments, first):
            if training.all_diverged:
                break
            if number := processes.agree_to_stop():
                training.save_states(start)
                processes.stop(number, start)
            if not training.train_range(start, stop):
                continue
            if processes.first:
                remaining.update(stop)
            if clock.is_due or stop == arguments.steps:
                began = time.monotonic()
                training.save_states(stop)
                clock.saved(time.monotonic() - began)
            show(stop, **training.latest(stop))
    training.finish()


class _Training:
    """Students, their engine and their stream, between `begin` and `finish`. Steps must be taken in order."""

    def __init__(
        self,
        setting: Setting,
        arguments: Arguments,
        students: Sequence[Student],
        stream_seed: int,
        device: str,
        processes: Processes,
    ) -> None:
        self._arguments, self._students, self._processes = arguments, students, processes
        self._stream_seed = stream_seed
        self._task = task_of(vars(arguments))
        with processes.main_process_first():
            networks = _restore(students, processes)
        self._engine = setting.training_engine(networks, arguments, stream_seed, device, processes)
        self._eval_bits = self._task.sample(stream_seed, "evaluation", 0, arguments.eval_samples)
        self._eval_labels = self._task.labels(self._eval_bits)
        precision = setting.precision(arguments)
        self._teachers = Teachers(
            self._task, lambda network: setting.frozen_logits(network, self._task.d, device, precision)
        )
        self._diverged: dict[int, DivergedError] = {}
        self.first_step = min(student.step for student in students)

    @property
    def all_diverged(self) -> bool:
        return len(self._diverged) == len(self._students)

    def begin(self) -> None:
        """Evaluate new students."""
        for i, student in enumerate(self._students):
            if not student.records:
                self._evaluate_and_save(i)
        if len(self._students) > 1:
            self.save_states(0)  # so that there is always a step of which all that begin together have a state

    def train_range(self, start: int, stop: int) -> bool:
        """Train, evaluate and save the students that have taken `start` steps; returns whether there are any."""
        arguments, students = self._arguments, self._students
        group = [i for i, student in enumerate(students) if student.step == start]
        if not group:
            return False
        bits = self._task.sample(
            self._stream_seed, "train", start * arguments.batch_size, (stop - start) * arguments.batch_size
        )
        bits = _share(bits, arguments.batch_size, self._processes)
        labels = self._task.labels(bits)
        objectives = {i: students[i].objective(arguments, start, stop, bits, labels, self._teachers) for i in group}
        self._engine.train(bits, objectives)
        self._teachers.end_range()
        for i in group:
            students[i].step = stop
            if i not in self._diverged:
                self._evaluate_and_save(i)
        return True

    def save_states(self, step: int) -> None:
        """Save the resume states of all students at a step, before any of their earlier ones is removed."""
        if not self._processes.first:
            return
        saved = {i: student.run.directory for i, student in enumerate(self._students) if student.step == step}
        saved = {i: directory for i, directory in saved.items() if i not in self._diverged}
        for i, directory in saved.items():
            add_resume(directory, step, self._engine.state(i), {})
        for directory in saved.values():
            keep_resume(directory, step)

    def latest(self, step: int) -> dict[str, Any]:
        """What to show of the last student at a step."""
        record = next(student for student in reversed(self._students) if student.step == step).records[-1]
        return {name: record[name] for name in ("loss", "accuracy", "teacher") if record[name] is not None}

    def finish(self) -> None:
        """Mark the runs complete.

        Raises:
            DivergedError: of the first student that diverged.
        """
        for i, student in enumerate(self._students):
            if i not in self._diverged and self._processes.first:
                student.run.finish({name: student.records[-1][name] for name in ("step", "loss", "accuracy")})
        if self._diverged:
            raise next(iter(self._diverged.values()))

    def _evaluate_and_save(self, i: int) -> None:
        """Write what is due of a student, unless it has diverged."""
        student, arguments = self._students[i], self._arguments
        try:
            if student.step % arguments.eval_every == 0 or student.step == arguments.steps:
                self._evaluate(i)
            if _checkpoint_is_due(arguments, student):
                self._save_checkpoint(i)
        except DivergedError as error:
            self._diverged[i] = error

    def _evaluate(self, i: int) -> None:
        student = self._students[i]
        logits = self._engine.logits(i, self._eval_bits)
        loss, accuracy = score(logits, self._eval_labels)
        if not np.isfinite(loss):
            raise _diverged(student)
        taught_by = checkpoint_at(student.schedule, max(student.step - 1, 0))
        record = {
            "step": student.step,
            "samples": student.step * self._arguments.batch_size,
            "loss": loss,
            "accuracy": accuracy,
            "teacher": taught_by,
        }
        if student.records_divergence and taught_by is not None:
            theirs = self._teachers.logits(student.supervision, taught_by, self._eval_bits, slice(None))
            record["kl"] = divergence(probabilities(theirs), probabilities(logits))
        student.records.append(record)
        if self._processes.first:
            student.run.log(record)

    def _save_checkpoint(self, i: int) -> None:
        student, tensors = self._students[i], self._engine.tensors(i)
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise _diverged(student)
        if self._processes.first:
            save_checkpoint(student.run.directory, student.step, tensors, student.initial.config)


def data_needs(arguments: Arguments, task: ParityTask) -> Needs:
    """The memory for the samples of a range of steps, their labels, targets and weights, and those of an evaluation."""
    sample = 8 * (task.words + 1 + task.classes)
    steps = max(1, RANGE_STEPS // arguments.batch_size)
    data = {SAMPLES: steps * arguments.batch_size * sample, EVALUATION_DATA: arguments.eval_samples * sample}
    return Needs({}, data, {})


def least_checkpoints(arguments: Arguments) -> int:
    """How many checkpoints a run saves at least; adaptive ones only at evaluations."""
    every, evaluated = arguments.checkpoint_every, arguments.eval_every
    if arguments.adaptive_checkpoints and every > 0:
        every = -(-every // evaluated) * evaluated
    return number_of_checkpoints(arguments.steps, every, arguments.checkpoint_from)


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


def step_ranges(arguments: Arguments, first: int) -> Iterator[tuple[int, int]]:
    """The ranges of steps, (first, step after the last), from step `first` on, at which a range must start."""
    cadences = [max(1, RANGE_STEPS // arguments.batch_size), arguments.eval_every]
    if arguments.checkpoint_every > 0:
        cadences.append(arguments.checkpoint_every)
    start = first
    while start < arguments.steps:
        stop = min(arguments.steps, *(start - start % cadence + cadence for cadence in cadences))
        yield start, stop
        start = stop


def score(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross entropy, in nats, and accuracy of logits (samples, classes) for labels (samples,)."""
    loss = losses.label_cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).mean().item()
    return loss, float((logits.argmax(axis=1) == labels).mean())


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the classes, from logits (samples, classes)."""
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def _restore(students: Sequence[Student], processes: Processes) -> list[Network]:
    """Set all students to the last state of their runs and return their networks there.

    That is a step at which all students that were trained together (whose states have a step in common) have a state,
    so that they stay together. A student that had diverged, or one that is added later, is resumed from its own last
    state.
    """
    states = [set(resume_steps(student.run.directory)) for student in students]
    resumes = []
    for student, own in zip(students, states, strict=True):
        common = own.intersection(*(other for other in states if other & own))
        resumes.append(load_resume(student.run.directory, max(common, default=None)))
    networks = []
    for student, resume in zip(students, resumes, strict=True):
        if processes.first:
            student.run.rewind(resume)
        student.records = student.run.records()
        student.step = resume.step if resume else 0
        networks.append(Network(student.initial.config, resume.tensors) if resume else student.initial)
    return networks


def _share(bits: NDArray[np.uint64], batch_size: int, processes: Processes) -> NDArray[np.uint64]:
    """This process's part of each step's samples."""
    steps = bits.reshape(-1, processes.count, batch_size // processes.count, bits.shape[-1])
    return np.ascontiguousarray(steps[:, processes.index]).reshape(-1, bits.shape[-1])


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
