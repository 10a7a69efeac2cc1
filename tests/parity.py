"""The two settings on parity, as the tests that are the same for both call them."""

import itertools
import math
import shlex
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
import pytest

from common.parity import training
from common.parity.students import Student
from common.parity.task import make_task
from common.runs import resume
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from parity_mlp.distill import DistillArguments
from parity_mlp.train import TrainArguments
from tests.commands import Killed, exit_code, succeed


@dataclass(frozen=True)
class Case:
    """Commands of a setting: a teacher with checkpoints at 10, 20 and 30 units, and students that take 12.

    A unit is a number of steps, and evaluations are 5 units apart.
    """

    setting: str
    unit: int
    d: int
    k: int
    sizes: str
    teacher: str
    student: str
    student_name: str
    long: str
    """Arguments of train.py for a run that takes long enough to be killed."""
    long_students: str
    """The same for distill.py."""

    def module(self, name):
        return import_module(f"{self.setting}.{name}")

    def main(self, words):
        return self.module(words[0]).main

    @property
    def task(self):
        return make_task(self.d, self.k)

    @property
    def train(self):
        """Words of train.py."""
        return [*self._command("train"), *shlex.split(self.teacher), *self.steps(steps=30, checkpoint_every=10)]

    @property
    def distill(self):
        """Words of distill.py, without a teacher."""
        steps = self.steps(steps=12, first_steps=5, teacher_every=4)
        return [*self._command("distill"), *shlex.split(self.student), "--seeds", "0", *steps]

    def _command(self, name):
        return [name, "smoke", *shlex.split(self.sizes), *self.steps(eval_every=5)]

    def steps(self, **units):
        """Flags in units."""
        return [
            word for name, count in units.items() for word in (f"--{name.replace('_', '-')}", str(count * self.unit))
        ]

    def student_run(self, method):
        return f"{method}-{self.student_name}-seed0"

    def start(self, capsys, *words):
        """Run a command in this process; its exit code and the lines that it wrote on stderr."""
        capsys.readouterr()
        code = exit_code(self.main(words), *words[1:])
        return code, capsys.readouterr().err.splitlines()

    def succeed(self, capsys, *words):
        return succeed(capsys, self.main(words), *words[1:])

    def patch_engine(self, patch, change):
        """Let a function change what makes the engine that trains."""
        module = self.module("training")
        engine = change(module.SETTING.training_engine)
        patch.setattr(module, "SETTING", replace(module.SETTING, training_engine=engine))


TEACHER = TrainArguments(
    preset="smoke",
    d=10,
    k=2,
    width=32,
    steps=4000,
    lr=0.05,
    eval_every=500,
    checkpoint_every=1000,
    eval_samples=512,
)
STUDENTS = DistillArguments(
    preset="smoke",
    d=10,
    k=2,
    widths=(8,),
    seeds=(0,),
    steps=3000,
    lr=(0.05,),
    eval_every=400,
    checkpoint_every=0,
    eval_samples=512,
    teacher_every=700,
    first_steps=900,
)

CASES = {
    "parity_mlp": Case(
        "parity_mlp",
        unit=100,
        d=10,
        k=3,
        sizes="--d 10 --k 3 --lr 0.05 --eval-samples 512",
        teacher="--width 40",
        student="--widths 8",
        student_name="width8",
        long="--width 2000 --steps 45000 --eval-every 300 --checkpoint-every 1500",
        long_students="--steps 4000 --eval-every 50 --teacher-every 333",
    ),
    "parity_gpt2": Case(
        "parity_gpt2",
        unit=1,
        d=6,
        k=2,
        sizes="--d 6 --batch-size 8 --head-dim 3 --lr 0.01 --eval-samples 32",
        teacher="--heads 2",
        student="--student-heads 1",
        student_name="heads1",
        long="--steps 150 --eval-every 3 --checkpoint-every 15 --dropout 0.2 --accumulate 2",
        long_students="--steps 100 --eval-every 3 --teacher-every 30 --dropout 0.2 --divergence reverse-kl",
    ),
}


def steps_of(run):
    """Steps at which a run saved checkpoints."""
    return [checkpoint.step for checkpoint in find_checkpoints(run)]


@contextmanager
def recorded_objectives():
    """What students that are trained meanwhile minimise, over all ranges, by the names of their runs and terms."""
    seen, found = {}, {}
    make = Student.objective

    def kept(student, *rest):
        seen.setdefault(student.run.directory.name, []).append(make(student, *rest))
        return seen[student.run.directory.name][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "objective", kept)
        yield found
    for name, objectives in seen.items():
        terms = ("labels", "targets", "alpha")
        found[name] = {term: np.concatenate([getattr(each, term) for each in objectives]) for term in terms}


def assert_taught(task, seen, logits_at, checkpoints, temperature, batch_size=8):
    """Targets are softmax(logits / temperature) of the checkpoint of each step, for samples of the stream 1000."""
    bits = task.sample(1000, "train", 0, batch_size * len(checkpoints))
    np.testing.assert_array_equal(seen["labels"], task.labels(bits))
    for step, checkpoint in enumerate(checkpoints):
        batch = slice(batch_size * step, batch_size * (step + 1))
        odds = np.exp(logits_at(checkpoint, bits[batch]).numpy() / temperature)
        np.testing.assert_allclose(seen["targets"][batch], odds / odds.sum(1, keepdims=True), atol=1e-5)


def save_often(patch):
    """Write the resume state after every range."""
    patch.setattr(resume, "RESUME_SECONDS", 0)
    patch.setattr(resume, "RESUME_SHARE", math.inf)


def writes_until_killed(patch, number):
    """Let the process end before the write of this number, among those that end or begin a resume state."""
    calls = itertools.count()

    def until_killed(real):
        def call(*arguments):
            if next(calls) == number:
                raise Killed
            return real(*arguments)

        return call

    save_often(patch)
    for owner, name in ((training, "add_resume"), (training, "keep_resume"), (Run, "finish")):
        patch.setattr(owner, name, until_killed(getattr(owner, name)))
    return calls
