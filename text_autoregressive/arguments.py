"""Arguments of this setting's commands."""

from dataclasses import dataclass
from typing import Any, Literal

from common.errors import UserError
from common.text import arguments

SMALLEST_ROTATED_HEAD = 8
"""Dimensions of a head of which a quarter is a pair, the least that is rotated."""

SMOKE: dict[str, Any] = {**arguments.SMOKE, "tokenizer": "bpe"}
LAPTOP: dict[str, Any] = {**arguments.LAPTOP, "tokenizer": "bpe", "batch_size": 32}
PAPER: dict[str, Any] = {**arguments.PAPER, "tokenizer": "EleutherAI/pythia-160m", "lr": 6e-4}
"""What `train.py` and `distill.py` share of each preset."""


@dataclass(frozen=True, kw_only=True)
class Arguments(arguments.Arguments):
    """Shared by `train.py` and `distill.py`."""

    architecture: Literal["gpt2", "gpt-neox"] = "gpt-neox"
    """Of new models; teachers may be of any."""


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(arguments.PrepareArguments):
    """Make blocks of tokens from documents."""

    tokenizer: str = "bpe"
    """wordpiece or bpe, to be trained on the corpora; or a directory or a model on the hub."""


def require_rotated_positions(arguments: Arguments) -> None:
    """Reject heads that are too small for GPT-NeoX to see positions, of which a quarter of the dimensions is rotated.

    Raises:
        UserError: names the option.
    """
    if arguments.architecture == "gpt-neox" and arguments.head_dim < SMALLEST_ROTATED_HEAD:
        raise UserError(
            f"--head-dim must be at least {SMALLEST_ROTATED_HEAD} for GPT-NeoX, or it would not see positions; got "
            f"{arguments.head_dim}"
        )
