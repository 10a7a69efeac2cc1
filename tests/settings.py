"""A setting and its commands, for tests that several settings must pass."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tests import commands


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Commands of a setting: a teacher with checkpoints at 10, 20 and 30 units, and students that take 12.

    A unit is a number of steps, and evaluations are 5 units apart.
    """

    name: str
    other: str
    """A setting whose runs are not this one's."""
    unit: int
    sizes: str
    teacher: str
    student: str
    student_name: str
    long: str
    """Arguments of train.py for a run that takes long enough to be killed."""
    long_students: str
    """The same for distill.py; every checkpoint teaches the student until saturation."""
    wide: str
    """Arguments of train.py for a network of more than 50,000 bytes."""
    saver: ModuleType
    """Where checkpoints are saved."""
    trainer: str
    """What trains, but not if a run is complete."""
    width_of_student: Callable[[Path], int]
    """From a checkpoint."""
    width: int
    rounding: float
    """Relative difference of the losses of students that learnt the same, next to different others."""

    def module(self, name):
        return import_module(f"{self.name}.{name}")

    def main(self, words):
        return self.module(words[0]).main

    @cached_property
    def train(self):
        """Words of train.py."""
        return [*self._command("train"), *shlex.split(self.teacher), *self.steps(steps=30, checkpoint_every=10)]

    @cached_property
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

    def student_run(self, method, **sizes):
        """The directory of a student among several."""
        return f"{method}-{self.student_name.format(**{'steps': 12, 'seed': 0, **sizes})}"

    def start(self, capsys, *words):
        """Run a command in this process; its exit code and the lines that it wrote on stderr."""
        code, stdout, stderr = commands.start(capsys, self.main(words), *words[1:])
        assert code == 0 or stdout == ""
        return code, stderr.splitlines()

    def succeed(self, capsys, *words):
        """Run a command; what it wrote on stdout."""
        return commands.succeed(capsys, self.main(words), *words[1:])

    def fail_in_one_line(self, capsys, *words):
        """Run a command that must fail; the line that it writes."""
        return commands.fail_in_one_line(capsys, self.main(words), *words[1:])

    def stopped(self, capsys, *words):
        """Run a command that must be stopped by SIGTERM; the step that it names, or None."""
        return commands.stopped(capsys, self.main(words), *words[1:])

    def train_teacher(self, directory, *words):
        assert commands.exit_code(self.main(self.train), *self.train[1:], *words, "--out", directory) == 0
        return directory
