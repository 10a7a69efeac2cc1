"""This setting: its task and its model, as `train.py`, `distill.py` and `probe.py` use them."""

from common.text.batches import CausalText
from common.text.task import text_setting
from text_autoregressive.models import new_model

SETTING = text_setting("text_autoregressive", lambda arguments: CausalText(), new_model, "causal")
