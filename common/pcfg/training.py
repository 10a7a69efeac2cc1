"""What training and distillation on grammars share: arguments, presets, and runs from their first step to their last.

A setting is a task on a grammar and a model for it; its folder says what these are, and its commands are those here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
import tyro
from transformers import PreTrainedModel, TrainingArguments

from common.arguments import require_at_least, require_seed
from common.distillation.arguments import DistillationArguments, require_distinct, resolve_teacher, student_arguments
from common.distillation.batches import ReadyBatches
from common.distillation.run_loop import RunTrainer, train_run, training_arguments
from common.distillation.supervision import FROM_LABELS, Supervision, own_teacher, supervision
from common.errors import DivergedError, UserError
from common.pcfg.dataset import SentenceDataset, open_dataset
from common.pcfg.models import require_room
from common.pcfg.task import GrammarTask, rules_of
from common.runs.names import EXECUTION_ARGUMENTS, ROOT, RUNS, default_name
from common.runs.processes import Processes, open_shared_run
from common.runs.run import Run
from common.runs.tracking import WandbMode
from common.teachers.discovery import find_checkpoints, local_path

EVALUATION_BATCH = 128
"""Sentences per batch of the evaluation."""

PLURAL = ("methods", "student_heads", "steps", "seeds", "checkpoint")
"""Arguments of distillation of which each run has one value."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What training and distillation have in common."""

    preset: Annotated[str, tyro.conf.Suppress]
    grammar: str
    """Name of a grammar, or a file that holds one."""
    start: str | None = None
    """Start symbol; by default the grammar's own."""
    layers: int
    """Transformer blocks."""
    head_dim: int = 8
    """Dimensions per attention head."""
    batch_size: int
    """Sentences per step."""
    lr: float
    """Largest learning rate."""
    eval_every: int
    """Steps between two evaluations."""
    checkpoint_every: int
    """Steps between two checkpoints; 0 saves the final one only."""
    dropout: float = 0.1
    """Share of hidden states and attention that is dropped in training."""
    warmup: float = 0.06
    """Share of the steps in which the learning rate rises linearly; after that it falls to zero as a cosine."""
    eval_samples: int = 4096
    """Held-out sentences per evaluation."""
    dataset: Path | None = None
    """Train on the sentences of a dataset that `data.py export` wrote, each used once, instead of sampling."""
    accumulate: int = 1
    """Parts into which a batch is cut to save memory."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 computes matrix products in bfloat16; the weights stay in float32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a GPU if there is one; several GPUs are used by torchrun."""
    out: Path | None = None
    """Run directory; by default a name made of all arguments that differ from the preset, in the setting's runs."""
    wandb: WandbMode = "disabled"
    """Weights & Biases logging."""
    force: bool = False
    """Remove what an earlier run wrote there and start over."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """Arguments of `train.py`."""

    heads: int
    """Attention heads."""
    steps: int
    """Optimiser steps."""
    seed: int = 0
    """Seed of the initial weights, of dropout and of the data stream."""


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Arguments, DistillationArguments):
    """Arguments of `distill.py`."""

    student_heads: tuple[int, ...]
    """Attention heads of the students."""
    steps: tuple[int, ...]
    """Optimiser steps, one run for each."""
    temperature: float = 0.0
    """Temperature of the teacher's logits; 0 is the arg-max."""


class Batch(Protocol):
    """The tensors of a batch by the names of the model's arguments, and labels."""

    @property
    def input_ids(self) -> torch.Tensor:
        """(sentences, longest)"""


class Batches(Protocol):
    """Training batches as a function of the step."""

    def batch(self, step: int) -> Batch:
        """That of step `step`, from 0."""


@dataclass(frozen=True)
class Setting:
    """A task on a grammar and a model for it."""

    name: str
    """As in config.json, and of the folder in runs/."""
    task: Callable[[Mapping[str, Any]], Any]
    """From a run's arguments, by name."""
    batches: Callable[[Any, int, int, SentenceDataset | None], Batches]
    """Training batches of a task, from the seed, the batch size and a dataset, if there is one."""
    evaluation_batches: Callable[[Any, int, int], Sequence[Batch]]
    """Held-out batches of a task, from the number of sentences and the batch size."""
    new_model: Callable[[Any, int, int, int, float, int], PreTrainedModel]
    """From the task, the layers, heads, dimensions per head, dropout and the seed."""
    load_model: Callable[[Path, Any], PreTrainedModel]
    """From a checkpoint's directory and the task."""
    needs_trees: Callable[[Any], bool] = lambda task: False
    """Whether batches of a task need to know which tokens end spans."""


def task_of(arguments: Arguments, setting: Setting) -> Any:
    return setting.task(asdict(arguments))


def config_of(arguments: Arguments, task: GrammarTask) -> dict[str, Any]:
    """What a run's config.json says of it: the arguments, and the rules, as a grammar's file may change."""
    return {**asdict(arguments), "start": task.grammar.start, "rules": rules_of(task.grammar)}


def task_of_run(run: Path, setting: Setting) -> Any:
    """What a run was trained on.

    Raises:
        UserError: the directory is not a run's of this setting, or its grammar's file has changed since.
    """
    if Run(run).setting != setting.name:
        raise UserError(f"{run} is a run of {Run(run).setting}, not of {setting.name}: give one of its runs")
    config = Run(run).config["arguments"]
    task = setting.task(config)
    if rules_of(task.grammar) != config["rules"]:
        raise UserError(f"the grammar {config['grammar']} has changed since {run} was trained on it: give it back")
    return task


def check(arguments: Arguments) -> None:
    """Refuse arguments that no run could have.

    Raises:
        UserError: a number out of its range.
    """
    require_at_least(1, arguments, "layers", "head_dim", "batch_size", "eval_every", "eval_samples", "accumulate")
    require_at_least(0, arguments, "checkpoint_every")
    if not 0 < arguments.lr < math.inf:
        raise UserError(f"--lr must be positive and finite, got {arguments.lr}")
    if not 0 <= arguments.warmup <= 1:
        raise UserError(f"--warmup is a share of the steps, between 0 and 1; got {arguments.warmup}")
    if not 0 <= arguments.dropout < 1:
        raise UserError(f"--dropout must be at least 0 and below 1, got {arguments.dropout}")


def settings_of(arguments: Arguments, directory: Path, steps: int, seed: int) -> TrainingArguments:
    """The Trainer's arguments for a run.

    Raises:
        UserError: as `training_arguments`.
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


def processes_of(settings: TrainingArguments) -> Processes:
    return Processes(settings.process_index, settings.world_size)


@dataclass(frozen=True)
class FittingBatches:
    """Training batches whose sentences fit into a model."""

    batches: Batches
    task: GrammarTask

    def batch(self, step: int) -> Batch:
        """That of step `step`.

        Raises:
            UserError: a sentence is longer than models of the task have positions.
        """
        batch = self.batches.batch(step)
        require_room(batch.input_ids.shape[1], self.task)
        return batch


def source_of(arguments: Arguments, setting: Setting, task: GrammarTask, steps: int, seed: int) -> FittingBatches:
    """The training batches of a run.

    Raises:
        UserError: the dataset is of another grammar, lacks what the task needs, or is too small for the steps.
    """
    dataset = None
    if arguments.dataset is not None:
        needed = steps * arguments.batch_size
        dataset = open_dataset(arguments.dataset, task.grammar, needed, setting.needs_trees(task))
    return FittingBatches(setting.batches(task, seed, arguments.batch_size, dataset), task)


def train_to_end(
    arguments: Arguments,
    setting: Setting,
    run: Run,
    settings: TrainingArguments,
    source: FittingBatches,
    heads: int,
    seed: int,
    supervision: Supervision,
) -> None:
    """Train a model from `seed`, or go on with the run, mark it complete, and say so.

    Raises:
        DivergedError: the loss or the weights are not finite; nothing of that is saved.
    """
    task, processes = source.task, processes_of(settings)
    if run.complete:
        processes.say(f"{run.directory} is complete")
        return
    held_out = setting.evaluation_batches(task, arguments.eval_samples, EVALUATION_BATCH)
    for batch in held_out:
        require_room(batch.input_ids.shape[1], task)
    trainer = RunTrainer(
        setting.new_model(task, arguments.layers, heads, arguments.head_dim, arguments.dropout, seed),
        settings,
        train_dataset=source,
        eval_dataset=ReadyBatches(held_out),
        load_teacher=lambda path: setting.load_model(path, task),
        run=run,
        **vars(supervision),
    )
    train_run(trainer, run.directory.name)
    processes.say(f"{run.directory}: accuracy {trainer.records[-1]['accuracy']:.3f}")


def train(
    arguments: TrainArguments, presets: Mapping[str, TrainArguments], setting: Setting, argv: Sequence[str] = ()
) -> None:
    """Make the run that the arguments of a setting's train.py describe, or finish it."""
    check(arguments)
    require_at_least(1, arguments, "heads", "steps")
    require_seed(arguments, "seed")
    task = task_of(arguments, setting)
    source = source_of(arguments, setting, task, arguments.steps, arguments.seed)
    name = default_name(arguments, presets[arguments.preset], arguments.preset)
    directory = arguments.out or RUNS / setting.name / name
    settings = settings_of(arguments, directory, arguments.steps, arguments.seed)
    options = {"setting": setting.name, "argv": argv, "force": arguments.force, "wandb": arguments.wandb}
    with open_shared_run(directory, config_of(arguments, task), processes_of(settings), **options) as run:
        train_to_end(arguments, setting, run, settings, source, arguments.heads, arguments.seed, FROM_LABELS)


Students = TypeVar("Students", bound=DistillArguments)


def distill(arguments: Students, presets: Mapping[str, Students], setting: Setting, argv: Sequence[str] = ()) -> None:
    """Make one run for every method, size, budget and seed (and first checkpoint of two-shot), or finish them.

    Raises:
        DivergedError: a student's loss is not finite; the other students are trained first.
    """
    check(arguments)
    require_distinct(arguments, PLURAL)
    require_at_least(1, arguments, "student_heads", "steps")
    require_seed(arguments, "seeds", "stream_seed")
    task = task_of(arguments, setting)
    default = _default_teacher(arguments.preset, setting)
    arguments = replace(arguments, teacher=resolve_teacher(arguments.teacher, default, ROOT))
    directory = ROOT / arguments.teacher
    teacher = find_checkpoints(directory if directory.exists() else arguments.teacher)
    setting.load_model(local_path(teacher[-1]), task)
    teacher_id = _check_own_teacher(arguments, setting, task, directory)
    planned = [
        (
            single,
            source_of(single, setting, task, single.steps[0], single.stream_seed),
            supervision(single, single.steps[0], teacher, directory, task.vocabulary, lambda record: record["loss"]),
        )
        for single in student_arguments(arguments, PLURAL)
    ]
    diverged: list[DivergedError] = []
    for single, source, taught in planned:
        run_directory = _run_directory(arguments, single, presets, setting)
        settings = settings_of(single, run_directory, single.steps[0], single.seeds[0])
        config = {**config_of(single, task), "teacher_id": teacher_id}
        options = {
            "setting": setting.name,
            "argv": argv,
            "force": single.force,
            "wandb": single.wandb,
            "group": single.preset,
        }
        with open_shared_run(run_directory, config, processes_of(settings), **options) as run:
            try:
                train_to_end(single, setting, run, settings, source, single.student_heads[0], single.seeds[0], taught)
            except DivergedError as error:
                diverged.append(error)
    if diverged:
        raise diverged[0]


def _default_teacher(preset: str, setting: Setting) -> str:
    return (RUNS / setting.name / preset).relative_to(ROOT).as_posix()


def _run_directory(arguments: Students, single: Students, presets: Mapping[str, Students], setting: Setting) -> Path:
    """`--out` itself for a single run, a folder in it for one of several; by default a folder in the setting's runs."""
    sizes = [f"heads{single.student_heads[0]}", f"steps{single.steps[0]}", f"seed{single.seeds[0]}"]
    parts = [*single.methods, *single.checkpoint, *sizes]
    if arguments.out is not None:
        return arguments.out / "-".join(parts) if len(student_arguments(arguments, PLURAL)) > 1 else arguments.out
    name = "-".join([arguments.preset, *parts])
    preset = replace(presets[arguments.preset], teacher=_default_teacher(arguments.preset, setting))
    return RUNS / setting.name / default_name(single, preset, name, exclude=(*EXECUTION_ARGUMENTS, *PLURAL))


def _check_own_teacher(arguments: DistillArguments, setting: Setting, task: GrammarTask, directory: Path) -> str | None:
    """The id of a teacher that one of our runs made; None for any other.

    Raises:
        UserError: the run is not complete, its config.json is damaged, or it was trained on another grammar.
    """
    config = own_teacher(directory, (setting.name,))
    if config is None:
        return None
    theirs, ours = config["arguments"], config_of(arguments, task)
    if (theirs["start"], theirs["rules"]) != (ours["start"], ours["rules"]):
        raise UserError(
            f"{directory} was trained on {theirs['grammar']} from {theirs['start']}, but here the grammar is "
            f"{arguments.grammar} from {ours['start']}"
        )
    return config.get("id")
