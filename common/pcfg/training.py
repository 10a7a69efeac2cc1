"""One training run on a grammar, from its arguments to its last step.

A `Setting` is a prediction task on the sentences of a grammar and a model for it; each setting's folder defines one.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import RunTrainer, train_run, training_arguments
from common.distillation.supervision import Supervision
from common.errors import UserError
from common.pcfg.arguments import Arguments
from common.pcfg.batches import TrainingBatches, evaluation_batches
from common.pcfg.dataset import open_dataset
from common.pcfg.models import require_room
from common.pcfg.task import GrammarTask, rules_of
from common.runs.processes import Processes
from common.runs.run import Run

EVALUATION_BATCH_SIZE = 128
"""Sentences per evaluation batch."""


@dataclass(frozen=True)
class Setting:
    """A prediction task on a grammar and a model for it."""

    name: str
    """As in config.json; also the setting's folder in runs/."""
    task: Callable[[Mapping[str, Any]], Any]
    """From a run's arguments, by name, to a `GrammarTask`."""
    new_model: Callable[[Any, int, int, int, float, int], PreTrainedModel]
    """From the task, layers, heads, dimensions per head, dropout rate and seed."""
    load_model: Callable[[Path, Any], PreTrainedModel]
    """From a checkpoint's directory and the task; raises `UserError` if it does not fit the task."""


def task_of(arguments: Arguments, setting: Setting) -> Any:
    """The setting's kind of `GrammarTask` that a command's arguments describe, with the grammar loaded.

    Raises:
        UserError: the grammar cannot be loaded, or an argument of the task is out of range.
    """
    return setting.task(asdict(arguments))


def config_of(arguments: Arguments, task: GrammarTask) -> dict[str, Any]:
    """The arguments as config.json stores them: with the grammar's rules, as its file may change later."""
    return {**asdict(arguments), "start": task.grammar.start, "rules": rules_of(task.grammar)}


def task_of_run(directory: Path, setting: Setting) -> Any:
    """The task that a run was trained on.

    Raises:
        UserError: the directory is not a run of this setting, or the grammar's file has changed since.
    """
    run = Run(directory)
    if run.setting != setting.name:
        raise UserError(f"{directory} is a run of {run.setting}, not of {setting.name}: give one of its runs")
    config = run.config["arguments"]
    task = setting.task(config)
    if rules_of(task.grammar) != config["rules"]:
        raise UserError(
            f"the grammar {config['grammar']} has changed since {directory} was trained on it: restore the file"
        )
    return task


def trainer_arguments(arguments: Arguments, directory: Path, steps: int, seed: int) -> TrainingArguments:
    """The arguments of transformers' Trainer for one run; the seed is that of dropout.

    Raises:
        UserError: the device or the precision cannot be used, or the batch cannot be split evenly.
    """
    return training_arguments(
        directory,
        steps=steps,
        batch_size=arguments.batch_size,
        accumulate=arguments.accumulate,
        lr=arguments.lr,
        warmup=arguments.warmup,
        eval_every=arguments.eval_every,
        checkpoint_every=arguments.checkpoint_every,
        seed=seed,
        precision=arguments.precision,
        compiled=arguments.compile,
        device=arguments.device,
    )


def processes_of(trainer_args: TrainingArguments) -> Processes:
    """This process among those that torchrun started."""
    return Processes(trainer_args.process_index, trainer_args.world_size)


def training_batches(arguments: Arguments, task: GrammarTask, steps: int, seed: int) -> TrainingBatches:
    """The training batches of one run, sampled or from `--dataset`, which must have enough for `steps`.

    Raises:
        UserError: the dataset is of another grammar, lacks what the task needs, or is too small.
    """
    dataset = None
    if arguments.dataset is not None:
        needed = steps * arguments.batch_size
        dataset = open_dataset(arguments.dataset, task.grammar, needed, task.tree_levels > 0)
    return TrainingBatches(task, seed, arguments.batch_size, dataset)


def train_to_end(
    arguments: Arguments,
    setting: Setting,
    run: Run,
    trainer_args: TrainingArguments,
    batches: TrainingBatches,
    heads: int,
    seed: int,
    supervision: Supervision,
) -> None:
    """Train a model to its last step, mark the run complete, and print its accuracy.

    An unfinished run is resumed from its resume state; of a complete one, only a line is printed.

    Args:
        arguments: of the command.
        setting: makes and loads models.
        run: opened for writing.
        trainer_args: from `trainer_arguments` for this run.
        batches: from `training_batches`.
        heads: attention heads.
        seed: of the initial weights.
        supervision: what the model learns from; `FROM_LABELS` for a teacher.

    Raises:
        UserError: a sentence does not fit into the model, or a teacher's checkpoint cannot be loaded.
        DivergedError: the loss or the weights are not finite; nothing invalid is saved.
    """
    task, processes = batches.task, processes_of(trainer_args)
    if run.complete:
        processes.print(f"{run.directory} is complete")
        return
    held_out = evaluation_batches(task, arguments.eval_samples, EVALUATION_BATCH_SIZE)
    for batch in held_out:
        require_room(batch.input_ids.shape[1], task)
    trainer = RunTrainer(
        setting.new_model(task, arguments.layers, heads, arguments.head_dim, arguments.dropout, seed),
        trainer_args,
        train_dataset=batches,
        eval_dataset=ReadyBatches(held_out),
        load_teacher=lambda path: setting.load_model(path, task),
        run=run,
        check_teacher=False,  # the command has done so, once for all students
        **vars(supervision),
    )
    train_run(trainer, run.directory.name)
    processes.print(f"{run.directory}: accuracy {trainer.records[-1]['accuracy']:.3f}")
