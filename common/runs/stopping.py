"""Stop when a cluster asks: SIGTERM or SIGUSR1 ends a command with exit code 75, and rerunning it resumes.

Slurm and torchrun send SIGTERM before they kill; `sbatch --signal=USR1@60` sends SIGUSR1 a minute before the time
limit. A command inside `catch_stop_signals` ends at once, which damages nothing, as everything is written atomically. A
training loop would lose its work since the last saved state. Inside `stop_at_a_safe_point` it therefore checks
`stop_requested` at its safe points, saves, and raises `Stopped` itself.

Only the first signal counts: it often comes twice, from the cluster and from torchrun.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """The command was told to stop; like KeyboardInterrupt, this is not an error that a library could handle.

    Args:
        number: of the signal.
        step: of the last saved state, in a training loop.
    """

    exit_code = os.EX_TEMPFAIL

    def __init__(self, number: int, step: int | None = None) -> None:
        where = "" if step is None else f" at step {step:,}"
        super().__init__(f"stopped by {signal.Signals(number).name}{where}: rerun the command to resume")


@dataclass
class _State:
    """The state of this process, like its signal handlers."""

    received: int = 0
    """Number of the first signal; 0 if none came."""
    deferred: bool = False
    """Whether the main thread checks for it at safe points."""


_state = _State()


@contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Raise `Stopped` inside this context, in the main thread, at the first SIGTERM or SIGUSR1.

    From then on these signals are ignored, so that a second one does not change how the process ends. In another thread
    this does nothing, as Python allows signal handlers in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
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
    """Inside this context a signal is only remembered, for `stop_requested`.

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
    """Number of the first signal, or 0."""
    return _state.received


def _receive(number: int, frame: FrameType | None) -> None:
    if not _state.received:
        _state.received = number
        if not _state.deferred:
            raise Stopped(number)
