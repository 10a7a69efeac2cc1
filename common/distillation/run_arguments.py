"""Trainer arguments that distillation would ignore, and those with which a run would not be recorded or would not
resume bit-identically."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from common.distillation.adapters import is_adapted, require_no_prompt
from common.distillation.batches import ReadyBatches
from common.distillation.dataset_source import is_streaming
from common.distillation.losses import LossArguments
from common.errors import UserError, listed
from common.teachers.objective import Objective

IGNORED = ("label_smoothing_factor", "bf16_full_eval", "fp16_full_eval", "use_liger_kernel")
"""Arguments of transformers' own loss and evaluation, which are not used here."""

WITHOUT = {
    "fp16": "its loss scale is not saved; use bf16",
    "auto_find_batch_size": "the batch size must stay the same",
    "load_best_model_at_end": "choose the checkpoint with the best record in metrics.jsonl",
    "save_total_limit": "a run keeps all checkpoints; raise save_steps",
    "push_to_hub": "upload the run's checkpoints afterwards",
    "eval_on_start": "a run begins with an evaluation anyway",
    "deepspeed": "use fsdp",
    "resume_from_checkpoint": "a run resumes from its own state",
    "enable_jit_checkpoint": "a run saves its own state on SIGTERM",
}
"""Arguments that must be left out, and why or what to do instead."""

DEFINING = (
    "max_steps",
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "bf16",
    "eval_steps",
)
"""Trainer arguments that a run's results depend on."""


def require_masking(options: Mapping[str, Any], objective: Objective) -> None:
    """Reject a collator of language models that masks for a causal student, or does not for a masked one.

    Args:
        options: further arguments of the trainer, by name.
        objective: what the student predicts.

    Raises:
        UserError: says which collator to give.
    """
    masks = getattr(options.get("data_collator"), "mlm", None)
    if isinstance(masks, bool) and masks != (objective == "masked"):
        name = type(options["data_collator"]).__name__
        raise UserError(f"the student is a {objective} language model: give {name}(..., mlm={not masks})")


def adapt_to_chunks(args: TrainingArguments) -> None:
    """Let no wrapper of several devices or processes separate the model from its labelled positions or its head."""
    args._n_gpu = min(args.n_gpu, 1)  # of DataParallel
    if args.ddp_find_unused_parameters is None:  # it takes a head that is applied outside the model for unused
        args.ddp_find_unused_parameters = False


def require_honoured_arguments(
    model: nn.Module, args: TrainingArguments, options: Mapping[str, Any], schedule_is_fixed: bool
) -> None:
    """Reject what would be ignored, and an adapter that adds tokens.

    Args:
        model: the student.
        args: of a Trainer.
        options: further arguments of the trainer, by name.
        schedule_is_fixed: False for one that depends on the student's evaluations.

    Raises:
        UserError: names it.
    """
    require_precision(args)
    if is_adapted(model):
        require_no_prompt(model)
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        raise UserError("the routers' auxiliary loss would be ignored: set the config's output_router_logits to False")
    for name in IGNORED:
        if getattr(args, name, None):
            raise UserError(f"{name} {getattr(args, name)} would be ignored: leave it out")
    if options.get("compute_loss_func") is not None:
        raise UserError("compute_loss_func would be ignored: use alpha, divergence and the other arguments of the loss")
    several = isinstance(options.get("eval_dataset"), Mapping)
    if not schedule_is_fixed and (several or options.get("compute_metrics") is not None):
        raise UserError("a schedule that depends on evaluations needs one eval_dataset and no compute_metrics")


def require_precision(args: TrainingArguments) -> None:
    """Reject a precision that `accelerate launch` asks for and the arguments do not.

    Raises:
        UserError: names both.
    """
    given = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    if args.mixed_precision not in ("no", given):
        raise UserError(
            f"accelerate is launched with mixed_precision {args.mixed_precision}, but the arguments say {given}: set "
            "mixed_precision to no, and give --precision bf16 (bf16=True) for bf16"
        )


def require_run_arguments(args: TrainingArguments, options: Mapping[str, Any]) -> None:
    """Reject arguments that a run cannot have.

    Args:
        args: of a Trainer.
        options: further arguments of the trainer, by name.

    Raises:
        UserError: names the argument and what to do.
    """
    for name, advice in WITHOUT.items():
        if getattr(args, name, None):
            raise UserError(f"a run cannot have {name} {getattr(args, name)}: {advice}")
    if args.max_steps <= 0:
        raise UserError("a run needs max_steps, the number of optimiser steps, instead of num_train_epochs")
    evaluates, saves = IntervalStrategy(args.eval_strategy).value, SaveStrategy(args.save_strategy).value
    if evaluates != "steps":
        raise UserError(f'a run needs eval_strategy "steps", not "{evaluates}", and eval_steps: it records evaluations')
    if saves not in ("steps", "no"):
        raise UserError(f'a run needs save_strategy "steps" or "no", not "{saves}"')
    scheduler = SchedulerType(args.lr_scheduler_type).value
    if scheduler in ("reduce_lr_on_plateau", "greedy"):
        raise UserError(f"a run cannot have lr_scheduler_type {scheduler}: it must depend on the step alone")
    if options.get("compute_metrics") is not None:
        raise UserError("a run cannot have compute_metrics: its records are the loss and the accuracy per label")
    held_out = options.get("eval_dataset")
    if held_out is None:
        raise UserError("a run needs an eval_dataset: ReadyBatches or a map-style dataset")
    if not isinstance(held_out, ReadyBatches) and is_streaming(held_out):
        raise UserError(
            f"the eval_dataset of a run cannot be a stream, as {type(held_out).__name__} is: give ReadyBatches or a "
            "map-style dataset, such as a list of its first samples"
        )


def training_facts(
    args: TrainingArguments,
    batch_size: int,
    schedule: Sequence[tuple[int, int | None]] | None,
    loss_arguments: LossArguments,
    classes: int | None,
) -> dict[str, Any]:
    """What a run's results depend on besides the models and the data, by name, as JSON values.

    Args:
        args: of a Trainer.
        batch_size: samples per step, over all processes.
        schedule: start and checkpoint of each segment; None if it depends on the evaluations.
        loss_arguments: of the student's loss.
        classes: number of classes that student and teacher share.
    """
    facts = {name: getattr(args, name) for name in DEFINING}
    facts |= {"batch_size": batch_size, "schedule": schedule, "classes": classes, **asdict(loss_arguments)}
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain


def require_same_training(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Reject resuming a run with different arguments.

    Args:
        directory: of the run, for the error.
        before: the `training_facts` that it was saved with.
        now: those that it would resume with.

    Raises:
        UserError: names what differs.
    """
    names = [name for name, value in before.items() if value != now.get(name)]
    differing = [f"{name} was {before[name]} and is {now.get(name)}" for name in names]
    if differing:
        raise UserError(
            f"{directory} began with other arguments: {listed(differing, 3)}; give the same ones, or another directory"
        )
