"""What the commands' arguments have in common: presets, and checks whose messages name the flag."""

from collections.abc import Callable, Mapping
from typing import Any

import tyro

from common.errors import UserError

DESCRIPTIONS = {"smoke": "seconds", "laptop": "shows the effect in minutes", "paper": "the published size"}
"""Of the presets."""


def run_command(presets: Mapping[str, Any], run: Callable[[Any], None], description: str | None) -> None:
    """Parse a command line that begins with the name of a preset, and run the command."""
    described = {name: (DESCRIPTIONS[name], arguments) for name, arguments in presets.items()}
    run(tyro.extras.overridable_config_cli(described, description=description))


def require_at_least(least: int, arguments: object, *names: str) -> None:
    """Refuse arguments, numbers or tuples of numbers, below `least`.

    Raises:
        UserError: names the flag.
    """
    for name in names:
        value = getattr(arguments, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {number}")


def require_seed(arguments: object, *names: str) -> None:
    """Refuse seeds, numbers or tuples of numbers, that are negative or do not fit into 63 bits.

    Raises:
        UserError: names the flag.
    """
    require_at_least(0, arguments, *names)
    for name in names:
        value = getattr(arguments, name)
        if max(value if isinstance(value, tuple) else (value,)) >= 2**63:
            raise UserError(f"--{name.replace('_', '-')} must be below 2^63, got {value}")
