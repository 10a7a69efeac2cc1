"""This setting: its task and its model, as `train.py`, `distill.py` and `probe.py` use them."""

from collections.abc import Mapping
from typing import Any

from common.pcfg.grammar_files import load_grammar
from common.pcfg.setting import grammar_setting
from PCFG_autoregressive.batches import NextTokenTask
from PCFG_autoregressive.models import load_model, new_model


def task_of(arguments: Mapping[str, Any]) -> NextTokenTask:
    """The task from a run's arguments, by name."""
    return NextTokenTask(load_grammar(arguments["grammar"], arguments["start"]), arguments["label_level"])


SETTING = grammar_setting(
    name="PCFG_autoregressive",
    task=task_of,
    new_model=new_model,
    load_model=load_model,
    causal=True,
    prediction_arguments=("label_level",),
)
