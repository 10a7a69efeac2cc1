"""This setting: its task and its model, as `train.py`, `distill.py` and `probe.py` use them."""

from collections.abc import Mapping
from typing import Any

from common.pcfg.grammar_files import load_grammar
from common.pcfg.setting import grammar_setting
from PCFG_mlm.batches import MaskedTask
from PCFG_mlm.models import load_model, new_model


def task_of(arguments: Mapping[str, Any]) -> MaskedTask:
    """The task from a run's arguments, by name."""
    grammar = load_grammar(arguments["grammar"], arguments["start"])
    return MaskedTask(grammar, arguments["mask_rate"], arguments["hide_masked"])


SETTING = grammar_setting(
    name="PCFG_mlm",
    task=task_of,
    new_model=new_model,
    load_model=load_model,
    causal=False,
    prediction_arguments=("mask_rate", "hide_masked"),
)
