"""Training runs of language models, from their arguments to their last steps."""

import gc
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from common.distillation.batch_checks import STEPS_WITHOUT_LABELS
from common.distillation.batches import ReadyBatches, Source, batch_tensors
from common.distillation.losses import IGNORED_LABEL
from common.distillation.run_arguments import require_precision
from common.distillation.run_loop import RunTrainer, train_run, training_arguments
from common.distillation.sharding import require_possible_fsdp
from common.distillation.supervision import Supervision
from common.distillation.together import train_together
from common.errors import UserError
from common.language_models.arguments import Arguments, DistillArguments, TrainArguments
from common.language_models.setting import Setting, Task
from common.resources import Needs, transformer_needs
from common.runs.checkpoints import number_of_checkpoints
from common.runs.processes import Processes
from common.runs.run import Run

ADVICE = "a larger --mask-rate, if the model is a masked one, or longer samples"
"""What to give where nothing is predicted."""


def trainer_arguments(arguments: Arguments, directory: Path, steps: int, seed: int) -> TrainingArguments:
    """The arguments of transformers' Trainer for one run; the seed is that of dropout.

    Raises:
        UserError: the device, the precision or FSDP cannot be used, or the batch cannot be split evenly.
    """
    made = training_arguments(
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
    require_precision(made)
    require_possible_fsdp(made)
    return made


def processes_of(trainer_args: TrainingArguments) -> Processes:
    """This process among those that torchrun started."""
    return Processes(trainer_args.process_index, trainer_args.world_size)


def trainer_of(
    arguments: Arguments,
    setting: Setting,
    run: Run,
    trainer_args: TrainingArguments,
    task: Task,
    batches: Source,
    heads: int,
    seed: int,
    supervision: Supervision,
    options: Mapping[str, Any],
) -> RunTrainer:
    """The trainer of one run.

    Args:
        arguments: of the command.
        setting: makes the model.
        run: opened for writing.
        trainer_args: from `trainer_arguments` for this run.
        task: of the run.
        batches: of the training data.
        heads: attention heads.
        seed: of the initial weights.
        supervision: what the model learns from; `FROM_LABELS` if it is itself a teacher.
        options: from `trainer_options`.

    Raises:
        UserError: a sample does not fit into the model, or a teacher's checkpoint cannot be loaded.
    """
    return RunTrainer(
        setting.new_model(task, arguments, heads, seed),
        trainer_args,
        train_dataset=batches,
        run=run,
        check_teacher=False,  # the command has done so, once for all students
        **options,
        **vars(supervision),
    )


def trainer_options(arguments: Arguments, setting: Setting, task: Task) -> dict[str, Any]:
    """What the trainers of all runs of a command share: the held-out data, and options of the setting.

    Raises:
        UserError: no position of the held-out data is predicted.
    """
    held_out = setting.evaluation_batches(task, arguments.eval_samples)
    if not any(map(_has_labels, held_out)):
        raise UserError(f"no position of the evaluation data is predicted: give more --eval-samples, or {ADVICE}")
    return {"eval_dataset": ReadyBatches(held_out), **setting.trainer_options(task)}


def require_first_labels(batches: Source, steps: int) -> None:
    """Refuse training data that ends a run of so many steps as it has no labels.

    Raises:
        UserError: no position of its first batches is predicted.
    """
    first = min(STEPS_WITHOUT_LABELS, steps)
    if not any(_has_labels(batches.batch(step)) for step in range(first)):
        raise UserError(f"no position of the first {first} batches is predicted: give {ADVICE}")


def _has_labels(batch: Any) -> bool:
    return bool((batch_tensors(batch)["labels"] != IGNORED_LABEL).any())


def train_to_end(trainers: Sequence[RunTrainer]) -> None:
    """Train models to their last steps, mark their runs complete, and print their accuracies.

    Unfinished runs are resumed from their resume states.

    Args:
        trainers: of runs that are not complete, at least one.

    Raises:
        UserError: a teacher's checkpoint cannot be loaded, or a run's state is damaged.
        DivergedError: the loss or the weights of a model are not finite; nothing invalid is saved, and the others are
            trained to their end first.
    """
    try:
        gc.collect()  # or trainers that have ended would stay
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the schedule is longer")  # the command says so, once for all students
            if len(trainers) == 1:
                train_run(trainers[0], trainers[0].run.directory.name)
            else:
                train_together(trainers, f"{len(trainers)} runs")
    finally:
        for trainer in trainers:
            if trainer.run.complete:
                accuracy = trainer.records[-1]["accuracy"]
                processes_of(trainer.args).print(f"{trainer.run.directory}: accuracy {accuracy:.3f}")


def needs_of(
    arguments: TrainArguments | DistillArguments, task: Task, heads: int, steps: int, processes: Processes
) -> Needs:
    """What training one model of `heads` heads for `steps` steps needs."""
    return transformer_needs(
        layers=arguments.layers,
        hidden=heads * arguments.head_dim,
        feed_forward=4 * heads * arguments.head_dim,
        vocabulary=task.vocabulary,
        positions=task.positions,
        batch_tokens=arguments.batch_size / (arguments.accumulate * processes.count) * task.expected_length,
        evaluation_tokens=arguments.eval_samples * task.expected_length,
        checkpoints=number_of_checkpoints(steps, arguments.checkpoint_every),
        half=arguments.precision == "bf16",
    )
