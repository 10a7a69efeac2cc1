"""What `train.py`, `distill.py` and `probe.py` share: the task and the model, and the arguments of the task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.pcfg import training
from common.pcfg.grammar import load_grammar
from common.pcfg.training import Setting
from PCFG_mlm.data import MaskedTask, TrainingBatches, evaluation_batches
from PCFG_mlm.models import load_model, new_model


@dataclass(frozen=True, kw_only=True)
class Arguments(training.Arguments):
    """What `train.py` and `distill.py` have in common."""

    mask_rate: float = 0.3
    """Share of the positions that are to be predicted."""
    hide_masked: bool = True
    """Keep attention from the positions that are to be predicted."""


def task_of(arguments: Mapping[str, Any]) -> MaskedTask:
    """From a run's arguments, by name."""
    grammar = load_grammar(arguments["grammar"], arguments["start"])
    return MaskedTask(grammar, arguments["mask_rate"], arguments["hide_masked"])


SETTING = Setting(
    name="PCFG_mlm",
    task=task_of,
    batches=TrainingBatches,
    evaluation_batches=evaluation_batches,
    new_model=new_model,
    load_model=load_model,
)
