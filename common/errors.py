"""Errors that a command reports in one line instead of a traceback, and how a line shows things."""

from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input or environment; the message says what is wrong and what to do. Exit code 2."""

    exit_code = 2


class DivergedError(UserError):
    """The loss or a weight is not finite. Exit code 3."""

    exit_code = 3


def listed(items: Iterable[object], limit: int = 8) -> str:
    """Items as a line of text lists them: "a", "a and b", or "a, b, c and 12 more" with the first `limit`."""
    names = [str(item) for item in items]
    more = [f"{len(names) - limit:,} more"] if len(names) > limit else []
    shown = names[:limit] + more
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def one_line(text: str) -> str:
    """A text in one line; what would change what a terminal shows, as a file's name or content may, is escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.splitlines()))
    return "".join(shown)
