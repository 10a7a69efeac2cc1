"""Leave when a cluster asks for it: SIGTERM or SIGUSR1 ends a command with exit code 75, and the same command goes on.

Slurm and torchrun send SIGTERM before they kill; `sbatch --signal=USR1@60` sends SIGUSR1 a minute before the time is
up. A command that is at work in `catch_stop_signals` leaves at once, which damages nothing, as everything is written
atomically. A training loop would lose what it has done since its last saved state. It therefore asks `stop_requested`
at its safe points, inside `stop_at_a_safe_point`, saves, and raises `Stopped` itself.

Only the first signal counts: it often comes twice, from the cluster and from torchrun.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """The command was told to stop; like KeyboardInterrupt, it is no error that a library could handle.

    Args:
        number: of the signal.
        step: whose state was saved last, in a training loop.
    """

    exit_code = os.EX_TEMPFAIL

    def __init__(self, number: int, step: int | None = None) -> None:
        where = "" if step is None else f" at step {step:,}"
        super().__init__(f"stopped by {signal.Signals(number).name}{where}: the same command goes on")


@dataclass
class _State:
    """Of this process, as its signal handlers are."""

    received: int = 0
    """Number of the signal that came first; 0 if none did."""
    deferred: bool = False
    """Whether the main thread is where it is to be asked for."""


_state = _State()


@contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Raise `Stopped` in here, in the main thread, at the first SIGTERM or SIGUSR1.

    If it was raised, these signals are ignored from then on, so that a second one does not change how the process ends.
    """
    handlers = {number: signal.signal(number, _receive) for number in SIGNALS}
    try:
        yield
    except Stopped:
        handlers = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _state.received = 0


@contextmanager
def stop_at_a_safe_point() -> Iterator[None]:
    """In here a signal is only remembered, for `stop_requested`.

    Raises:
        Stopped: at the end, if a signal came after the last safe point.
    """
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False
    if _state.received:
        raise Stopped(_state.received)


def stop_requested() -> int:
    """Number of the signal that came, or 0."""
    return _state.received


def _receive(number: int, frame: FrameType | None) -> None:
    if not _state.received:
        _state.received = number
        if not _state.deferred:
            raise Stopped(number)
