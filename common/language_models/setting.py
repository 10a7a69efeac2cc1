"""A setting with a Transformer on sequences of tokens; each setting's folder defines one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from common.distillation.batches import Source
from common.errors import UserError
from common.runs.run import Run
from common.teachers.discovery import Checkpoint


class Task(Protocol):
    """What is predicted, and on which data."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids, which are the classes."""

    @property
    def positions(self) -> int:
        """Tokens that a model must have room for."""

    @property
    def expected_length(self) -> float:
        """Tokens of a sample on average."""


@dataclass(frozen=True)
class Setting:
    """A prediction task, its data, and models for it."""

    name: str
    """As in config.json; also the setting's folder in runs/."""
    task: Callable[[Mapping[str, Any]], Any]
    """From a run's arguments, by name, to a `Task`."""
    training_batches: Callable[[Any, Any, int, int], Source]
    """From a command's arguments, the task, the number of steps and the seed of the data stream."""
    evaluation_batches: Callable[[Any, int], list[Any]]
    """From the task and a number of samples to held-out batches."""
    new_model: Callable[[Any, Any, int, int], PreTrainedModel]
    """From the task, a command's arguments, the number of attention heads and the seed."""
    load_model: Callable[[Path, Any], PreTrainedModel]
    """From a checkpoint's directory and the task; raises `UserError` if it does not fit the task."""
    trainer_options: Callable[[Any], dict[str, Any]]
    """From a task to further arguments of its trainers, such as how a teacher is loaded."""
    check_checkpoints: Callable[[Sequence[Checkpoint], Any], None]
    """From all that teach a student, of which `load_model` is called for one only, and the task; raises `UserError` if
    one does not fit the task, as far as that can be seen without its model."""
    notes: Callable[[Path, Any], list[str]]
    """From a checkpoint's directory and the task: lines on what `load_model` changes about it."""
    identity: Callable[[Any], dict[str, Any]]
    """From a task to what identifies its data in config.json, such as a grammar's rules, as its file may change."""
    resolved: Callable[[Any], dict[str, Any]]
    """From a task to arguments as config.json stores them, such as names of files that do not depend on the folder."""
    own_data: Callable[[Any], dict[str, Any]]
    """From a command's arguments to what identifies data that this run alone is trained on, such as a digest of its
    dataset; that of its teacher may be another."""
    as_given: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """From a run's arguments, by name, to what its command said of the data: None where that is the default."""
    data_arguments: tuple[str, ...]
    """Names of the arguments that say what the data is, which a student has from its teacher."""
    prediction_arguments: tuple[str, ...]
    """Names of the arguments that say what is predicted, such as a mask rate, in which a student may differ."""
    describe: Callable[[Mapping[str, Any]], str]
    """From a run's arguments, by name, to its data in words."""
    designs: Callable[[Any], Sequence[Any]] = lambda arguments: ()
    """From a student's arguments to the designed targets that it learns from in turn."""
    designed_model: Callable[[Any, Any], nn.Module] | None = None
    """From a task and a designed target to the model that predicts it; the same one for the same target."""


def task_of(arguments: Any, setting: Setting) -> Any:
    """The task that a command's arguments describe, with its data opened.

    Raises:
        UserError: the data cannot be opened, or an argument of the task is out of range.
    """
    return setting.task(asdict(arguments))


def config_of(arguments: Any, task: Any, setting: Setting) -> dict[str, Any]:
    """The arguments as config.json stores them, with what identifies the data."""
    return {**asdict(arguments), **setting.own_data(arguments), **setting.resolved(task), **setting.identity(task)}


def task_of_run(directory: Path, setting: Setting) -> Any:
    """The task that a run was trained on.

    Raises:
        UserError: the directory is not a run of this setting, or its data has changed since.
    """
    run = Run(directory)
    if run.setting != setting.name:
        raise UserError(f"{directory} is a run of {run.setting}, not of {setting.name}: give one of its runs")
    config = run.config["arguments"]
    task = setting.task(config)
    if any(config.get(name) != value for name, value in setting.identity(task).items()):
        raise UserError(
            f"{setting.describe(config)} has changed since {directory} was trained on it: restore what it is made from"
        )
    return task
