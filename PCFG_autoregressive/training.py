"""What `train.py`, `distill.py` and `probe.py` share: the task and the model, and the arguments of the task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.pcfg import training
from common.pcfg.grammar import load_grammar
from common.pcfg.training import Setting
from PCFG_autoregressive.data import LabelLevel, NextTokenTask, TrainingBatches, evaluation_batches
from PCFG_autoregressive.models import load_model, new_model


@dataclass(frozen=True, kw_only=True)
class Arguments(training.Arguments):
    """What `train.py` and `distill.py` have in common."""

    label_level: LabelLevel = "all"
    """Predict the tokens that close a span of a nonterminal at this depth of the tree (the root is at depth 0), or
    all."""


def task_of(arguments: Mapping[str, Any]) -> NextTokenTask:
    """From a run's arguments, by name."""
    return NextTokenTask(load_grammar(arguments["grammar"], arguments["start"]), arguments["label_level"])


SETTING = Setting(
    name="PCFG_autoregressive",
    task=task_of,
    batches=TrainingBatches,
    evaluation_batches=evaluation_batches,
    new_model=new_model,
    load_model=load_model,
    needs_trees=lambda task: task.tree_levels > 0,
)
