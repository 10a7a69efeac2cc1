"""One training run of a language model, from its arguments to its last step."""

from pathlib import Path

from transformers import TrainingArguments

from common.distillation.batches import ReadyBatches, Source
from common.distillation.run_loop import RunTrainer, train_run, training_arguments
from common.distillation.supervision import Supervision
from common.language_models.arguments import Arguments
from common.language_models.setting import Setting, Task
from common.runs.processes import Processes
from common.runs.run import Run


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


def train_to_end(
    arguments: Arguments,
    setting: Setting,
    run: Run,
    trainer_args: TrainingArguments,
    task: Task,
    batches: Source,
    heads: int,
    seed: int,
    supervision: Supervision,
) -> None:
    """Train a model to its last step, mark the run complete, and print its accuracy.

    An unfinished run is resumed from its resume state; of a complete one, only a line is printed.

    Args:
        arguments: of the command.
        setting: has held-out batches, and makes and loads models.
        run: opened for writing.
        trainer_args: from `trainer_arguments` for this run.
        task: of the run.
        batches: of the training data.
        heads: attention heads.
        seed: of the initial weights.
        supervision: what the model learns from; `FROM_LABELS` for a teacher.

    Raises:
        UserError: a sample does not fit into the model, or a teacher's checkpoint cannot be loaded.
        DivergedError: the loss or the weights are not finite; nothing invalid is saved.
    """
    processes = processes_of(trainer_args)
    if run.complete:
        processes.print(f"{run.directory} is complete")
        return
    held_out = setting.evaluation_batches(task, arguments.eval_samples)
    trainer = RunTrainer(
        setting.new_model(task, arguments, heads, seed),
        trainer_args,
        train_dataset=batches,
        eval_dataset=ReadyBatches(held_out),
        run=run,
        check_teacher=False,  # the command has done so, once for all students
        **setting.trainer_options(task),
        **vars(supervision),
    )
    train_run(trainer, run.directory.name)
    processes.print(f"{run.directory}: accuracy {trainer.records[-1]['accuracy']:.3f}")
