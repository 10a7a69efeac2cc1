"""What every input must end in: work, or one line that names what is wrong; in bounded time and memory."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

from common.cli import one_line
from common.errors import UserError

SECONDS = 60
GROWTH = 2**30
"""Bytes by which a case may enlarge this process."""

LONGEST = 1000
"""Characters of an error."""


class TooSlow(BaseException):
    """Not to be caught by what is tested."""


def cases(number: int) -> settings:
    """So many examples, and 20 times as many with `--hypothesis-profile long`."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    scaled = number * settings.default.max_examples // 100
    return settings(max_examples=scaled, deadline=None, suppress_health_check=checks, print_blob=True)


@contextmanager
def within_limits() -> Iterator[None]:
    """Fail if this takes more than `SECONDS`, or more memory than `GROWTH`."""

    def interrupt(number: int, frame: object) -> None:
        raise TooSlow(f"this takes more than {SECONDS} seconds")

    handler = signal.signal(signal.SIGALRM, interrupt)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < GROWTH, f"{grown:,} bytes"


def attempt(function: Callable[..., Any], *arguments: Any, names: str) -> Any:
    """What the function returns, or None if it refuses its input in one line that contains `names`."""
    with within_limits():
        try:
            return function(*arguments)
        except UserError as error:
            message = one_line(str(error))
    assert len(message) < LONGEST, message
    assert names in message
    return None
