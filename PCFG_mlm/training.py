"""What `train.py` and `distill.py` share: their common arguments, and one run from its first step to its last."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from transformers import TrainingArguments

from common.arguments import require_at_least
from common.distillation import Supervision
from common.errors import UserError
from common.pcfg.grammar import load_grammar
from common.processes import Processes
from common.runs import Run, WandbMode
from common.trainer import ProgressiveDistillationTrainer, ReadyBatches, train_run, training_arguments
from PCFG_mlm.data import Batch, MaskedTask, TrainingBatches, evaluation_batches, open_dataset, rules_of
from PCFG_mlm.models import load_model, new_model, require_room

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "PCFG_mlm"

EVALUATION_BATCH = 128
"""Sentences per batch of the evaluation."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What `train.py` and `distill.py` have in common."""

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
    mask_rate: float = 0.3
    """Share of the positions that are to be predicted."""
    hide_masked: bool = True
    """Keep attention from the positions that are to be predicted."""
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
    """Run directory; by default runs/PCFG_mlm/ and a name made of all arguments that differ from the preset."""
    wandb: WandbMode = "disabled"
    """Weights & Biases logging."""
    force: bool = False
    """Remove what an earlier run wrote there and start over."""


def task_of(arguments: Arguments) -> MaskedTask:
    return MaskedTask(load_grammar(arguments.grammar, arguments.start), arguments.mask_rate, arguments.hide_masked)


def config_of(arguments: Arguments, task: MaskedTask) -> dict[str, Any]:
    """What a run's config.json says of it: the arguments, and the rules, as a grammar's file may change."""
    return {**asdict(arguments), "start": task.grammar.start, "rules": rules_of(task.grammar)}


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

    batches: TrainingBatches
    task: MaskedTask

    def batch(self, step: int) -> Batch:
        return require_room(self.batches.batch(step), self.task)


def source_of(arguments: Arguments, task: MaskedTask, steps: int, seed: int) -> FittingBatches:
    """The training batches of a run.

    Raises:
        UserError: the dataset is of another grammar, or too small for the steps.
    """
    dataset = None
    if arguments.dataset is not None:
        dataset = open_dataset(arguments.dataset, task.grammar, steps * arguments.batch_size)
    return FittingBatches(TrainingBatches(task, seed, arguments.batch_size, dataset), task)


def train_to_end(
    arguments: Arguments,
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
    task, first = source.task, settings.process_index == 0
    if run.complete:
        if first:
            print(f"{run.directory} is complete")
        return
    held_out = evaluation_batches(task, arguments.eval_samples, EVALUATION_BATCH)
    trainer = ProgressiveDistillationTrainer(
        new_model(task, arguments.layers, heads, arguments.head_dim, arguments.dropout, seed),
        settings,
        train_dataset=source,
        eval_dataset=ReadyBatches([require_room(batch, task) for batch in held_out]),
        load_teacher=lambda path: load_model(path, task),
        run=run,
        **vars(supervision),
    )
    train_run(trainer, run.directory.name)
    if first:
        print(f"{run.directory}: accuracy {trainer.records[-1]['accuracy']:.3f}")
