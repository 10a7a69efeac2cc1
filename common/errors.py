"""Errors that a command reports in one line instead of a traceback."""


class UserError(ValueError):
    """Wrong input or surroundings; the message says what is wrong and what to do. Exit code 2."""

    exit_code = 2


class DivergedError(UserError):
    """Training produced a number that is not finite. Exit code 3."""

    exit_code = 3
