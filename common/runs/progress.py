"""The progress of a command: a bar on a terminal or lines in a log file, and an estimate of the remaining time."""

import datetime
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

ESTIMATE_SECONDS = 5.0
"""Time after which the remaining time is estimated."""


@contextmanager
def progress(total: int, initial: int, description: str, batch_size: int) -> Iterator[Callable[..., None]]:
    """Show the progress of a run: a bar on a terminal, or a line in a log file at every tenth of the run.

    Args:
        total: steps of the whole run.
        initial: steps done before, in a run that is resumed.

    Yields:
        `show(step, **values)`, to be called with the steps done and what to show with them, such as `loss`, `accuracy`
        and the current `teacher` checkpoint. Samples per second are shown as well.
    """
    started, tenth = time.perf_counter(), max(1, total // 10)
    last = initial
    with tqdm(total=total, initial=initial, desc=description, unit="step", dynamic_ncols=True, disable=None) as bar:

        def show(step: int, **values: float) -> None:
            nonlocal last
            speed = (step - initial) * batch_size / max(time.perf_counter() - started, 1e-9)
            shown = [f"{name} {value:{',' if isinstance(value, int) else '.4g'}}" for name, value in values.items()]
            text = ", ".join([*shown, f"{speed:,.0f} samples/s"])
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - last)
            if bar.disable and (step // tenth > last // tenth or last < step == total):
                print(f"{description}: step {step:,} of {total:,}, {text}", file=sys.stderr, flush=True)
            last = step

        yield show


class RemainingTime:
    """Prints once, after `ESTIMATE_SECONDS`, how long the rest of a run will take."""

    def __init__(self, description: str, total: int) -> None:
        self._description, self._total = description, total
        self._start: tuple[float, int] | None = None
        self._printed = False

    def update(self, step: int) -> None:
        """To be called after `step` steps. The clock starts at the first call, so that compilation does not count."""
        now = time.monotonic()
        self._start = self._start or (now, step)
        elapsed, done = now - self._start[0], step - self._start[1]
        if elapsed > ESTIMATE_SECONDS and done > 0 and not self._printed:
            self._printed = True
            left = datetime.timedelta(seconds=round(elapsed / done * (self._total - step)))
            tqdm.write(f"{self._description}: {1e3 * elapsed / done:.3g} ms per step, about {left} to go", sys.stderr)
