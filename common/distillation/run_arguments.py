"""Arguments of a Trainer that distillation would ignore, and those with which a run would not resume bit-identically or
would not be recorded."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from common.distillation.batches import ReadyBatches
from common.distillation.dataset_source import is_streaming
from common.errors import UserError

IGNORED = ("label_smoothing_factor", "bf16_full_eval", "fp16_full_eval", "use_liger_kernel")
"""Arguments of the loss or of an evaluation by transformers, whose place others have here."""

WITHOUT = {
    "fp16": "its scale is not saved; use bf16",
    "auto_find_batch_size": "the batch size must stay the same",
    "load_best_model_at_end": "take the checkpoint with the best record in metrics.jsonl",
    "save_total_limit": "a run keeps all checkpoints; raise save_steps",
    "push_to_hub": "upload the run's checkpoints afterwards",
    "eval_on_start": "a run begins with an evaluation anyway",
    "deepspeed": "one process uses one device",
    "fsdp": "one process uses one device",
    "resume_from_checkpoint": "a run resumes from its own state",
    "enable_jit_checkpoint": "a run saves its own state on SIGTERM",
}
"""Arguments that must be left out, and why or what to do instead."""


def require_honoured_arguments(args: TrainingArguments, options: Mapping[str, Any], schedule_is_fixed: bool) -> None:
    """Refuse what would be ignored.

    Args:
        args: of a Trainer.
        options: further arguments of the trainer, by name.
        schedule_is_fixed: False for one that depends on the student's evaluations.

    Raises:
        UserError: names the argument.
    """
    for name in IGNORED:
        if getattr(args, name, None):
            raise UserError(f"{name} {getattr(args, name)} would be ignored: leave it out")
    if options.get("compute_loss_func") is not None:
        raise UserError("compute_loss_func would be ignored: the loss has the arguments alpha, divergence and others")
    several = isinstance(options.get("eval_dataset"), Mapping)
    if not schedule_is_fixed and (several or options.get("compute_metrics") is not None):
        raise UserError("a schedule that depends on evaluations needs one eval_dataset and no compute_metrics")


def require_run_arguments(args: TrainingArguments, options: Mapping[str, Any]) -> None:
    """Refuse what a run cannot have.

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
            "map-style dataset, such as the list of its first samples"
        )
