"""Checks of command line arguments that every command makes; the messages name the flag."""

from common.errors import UserError


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
