"""The two settings on parity, as the tests that are the same for both call them."""

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
from transformers import GPT2LMHeadModel

from common.parity import mlp, training
from common.parity.students import Student
from common.parity.task import make_task
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints
from parity_mlp.distill import DistillArguments
from parity_mlp.train import TrainArguments
from tests.commands import Killed, save_often
from tests.settings import Setting


@dataclass(frozen=True, kw_only=True)
class Case(Setting):
    """A setting on parity."""

    d: int
    k: int
    saver: ModuleType = training
    trainer: str = "common.parity.commands.train_together"

    @property
    def task(self):
        return make_task(self.d, self.k)

    def patch_engine(self, patch, change):
        """Let a function change what makes the engine that trains."""
        module = self.module("training")
        engine = change(module.SETTING.training_engine)
        patch.setattr(module, "SETTING", replace(module.SETTING, training_engine=engine))


SIZES = {"preset": "smoke", "d": 10, "k": 2, "eval_samples": 512}
TEACHER = TrainArguments(**SIZES, width=32, steps=4000, lr=0.05, eval_every=500, checkpoint_every=1000)
STUDENTS = DistillArguments(
    **{**SIZES, "widths": (8,), "seeds": (0,), "steps": 3000, "lr": (0.05,), "eval_every": 400},
    **{"checkpoint_every": 0, "teacher_every": 700, "first_steps": 900},
)

MLP = Case(
    name="parity_mlp",
    other="parity_gpt2",
    unit=100,
    d=10,
    k=3,
    sizes="--d 10 --k 3 --lr 0.05 --eval-samples 512",
    teacher="--width 40",
    student="--widths 8",
    student_name="width8-seed{seed}",
    long="--width 2000 --steps 45000 --eval-every 300 --checkpoint-every 1500 --adaptive-checkpoints",
    long_students="--steps 4000 --eval-every 50 --teacher-every 333 --saturation-steps 600 "
    "--methods ce progressive until-saturation",
    wide="--width 4000",
    width_of_student=lambda checkpoint: mlp.load_model(checkpoint).output.in_features,
    width=8,
    rounding=0,
)
GPT2 = Case(
    name="parity_gpt2",
    other="parity_mlp",
    unit=1,
    d=6,
    k=2,
    sizes="--d 6 --batch-size 8 --head-dim 3 --lr 0.01 --eval-samples 32",
    teacher="--heads 2",
    student="--student-heads 1",
    student_name="heads1-seed{seed}",
    long="--steps 150 --eval-every 3 --checkpoint-every 15 --dropout 0.2 --accumulate 2 --adaptive-checkpoints",
    long_students="--steps 100 --eval-every 3 --teacher-every 30 --dropout 0.2 --divergence reverse-kl "
    "--saturation-steps 6 --methods ce progressive until-saturation",
    wide="--heads 10 --dropout 0.1",
    width_of_student=lambda checkpoint: GPT2LMHeadModel.from_pretrained(checkpoint).config.n_embd,
    width=3,
    rounding=1e-6,
)
CASES = {case.name: case for case in (MLP, GPT2)}


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
