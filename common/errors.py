"""Errors that a command reports in one line instead of a traceback."""


class UserError(ValueError):
    """Invalid input or environment; the message says what is wrong and what to do. Exit code 2."""

    exit_code = 2


class DivergedError(UserError):
    """The loss or a weight is not finite. Exit code 3."""

    exit_code = 3
