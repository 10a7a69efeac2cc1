"""Checks of arguments and environment variables; error messages name the option or the variable."""

import os
import re
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from common.errors import UserError

MAX_STEPS = 10**12
"""Largest number of steps of a run, so that the number of samples fits into 64 bits."""


def option_of(name: str) -> str:
    """The option that gives an argument: --eval-every for eval_every."""
    return f"--{name.replace('_', '-')}"


def require_at_least(least: int, arguments: object, *names: str) -> None:
    """Reject arguments (numbers or tuples of numbers, at least one) below `least`.

    Raises:
        UserError: names the option.
    """
    for name in names:
        value = getattr(arguments, name)
        if value == ():
            raise UserError(f"{option_of(name)} is empty: give at least one number")
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= least:
                raise UserError(f"{option_of(name)} must be at least {least}, got {number}")


def require_steps(arguments: object) -> None:
    """Reject `steps`, a number or a tuple of numbers, below 1 or above `MAX_STEPS`.

    Raises:
        UserError: names the option.
    """
    require_at_least(1, arguments, "steps")
    steps = arguments.steps  # type: ignore[attr-defined]
    if (most := max(steps if isinstance(steps, tuple) else (steps,))) > MAX_STEPS:
        raise UserError(f"--steps must be at most {MAX_STEPS:,}, got {most:,}")


def require_seed(arguments: object, *names: str) -> None:
    """Reject seeds (numbers or tuples of numbers) that are negative or do not fit into 63 bits.

    Raises:
        UserError: names the option.
    """
    require_at_least(0, arguments, *names)
    for name in names:
        value = getattr(arguments, name)
        if max(value if isinstance(value, tuple) else (value,)) >= 2**63:
            raise UserError(f"{option_of(name)} must be below 2^63, got {value}")


def is_of_type(value: object, hint: Any) -> bool:
    """Whether a JSON value can be an argument with this type hint, of those that commands have."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (Union, UnionType):
        return any(is_of_type(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, list) and all(is_of_type(item, parts[0]) for item in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def device_of(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """What --device means here: auto is a GPU if there is one.

    Raises:
        UserError: there is no GPU, and it is wanted.
    """
    import torch  # slow, and not needed by the other functions

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda cannot be used: torch finds no GPU")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def worker_threads() -> int:
    """Number of threads to use: OMP_NUM_THREADS if it is set, else the number of processors available to this process.

    Raises:
        UserError: OMP_NUM_THREADS is not a positive whole number.
    """
    wanted = os.environ.get("OMP_NUM_THREADS")
    if wanted is not None:
        if not re.fullmatch("[1-9][0-9]*", wanted):
            raise UserError(f"OMP_NUM_THREADS is {wanted!r}: set it to a positive whole number, or unset it")
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
