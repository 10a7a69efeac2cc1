"""This setting: its task and its model, as `train.py`, `distill.py` and `probe.py` use them."""

from collections.abc import Mapping
from typing import Any

from common.text.batches import MaskedText
from common.text.task import text_setting
from text_mlm.models import new_model


def masked_text(arguments: Mapping[str, Any]) -> MaskedText:
    """What is predicted, from a run's arguments, by name."""
    return MaskedText(arguments["mask_rate"], arguments["hide_masked"])


SETTING = text_setting("text_mlm", masked_text, new_model, "masked", ("mask_rate", "hide_masked"))
