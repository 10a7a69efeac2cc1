"""A teacher's training curve, read from the log of its training.

Three kinds of logs are supported: `metrics.jsonl` of a run of this project, `trainer_state.json` of a
`transformers.Trainer`, and a CSV with a header, such as an export from Weights & Biases. Each is a list of rows, from
which the curve takes a step, a loss and, if every row with that loss has one, an accuracy. The loss is the first of
`LOSSES` with at least 8 values, or else the one with the most values; held-out losses come first. A log is a regular
file of at most 1 GB, with at most 5 million rows; rows of JSON lines and of a CSV without a loss do not count.
"""

import csv
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.resources import free_memory, size_text
from common.runs.files import NUMBER, read_json

STEPS = ("step", "global_step", "train_global_step", "iteration", "_step")
LOSSES = ("eval_loss", "val_loss", "loss", "train_loss")
"""Names in order of preference. CSV headers are case-insensitive, and `eval/loss` is read as `eval_loss`."""
NAMES = {*STEPS, *LOSSES, *(name.replace("loss", "accuracy") for name in LOSSES)}
"""Of all values that a curve may be made of."""
ENOUGH = 8
"""Number of evaluations in which phases can be found."""
ADVICE = "correct it or give another log"

MOST_BYTES = 10**9
"""Size of the largest log."""
PARSED = 3
"""Memory that a trainer_state.json needs at least, in its size: its bytes, its text and the values."""
MOST_ROWS = 5_000_000
"""Number of rows of the longest log."""

Rows = list[tuple[str, Mapping[str, Any]]]
"""Each row's location, for messages, and its values by name."""


@dataclass(frozen=True)
class Curve:
    """A teacher's training curve."""

    steps: tuple[int, ...]
    """Teacher steps of the evaluations, increasing."""
    losses: tuple[float, ...]
    """Finite, one per step."""
    source: str
    """Where the losses come from, for messages."""
    accuracies: tuple[float, ...] | None = None
    """Finite, one per step, if they were logged."""


def read_curve(path: str | Path) -> Curve:
    """Read the curve from a log, or from the log that `find_log` finds in a directory.

    If a step was logged twice, as by a run that was killed and resumed, the last value is used.

    Args:
        path: a .jsonl, .json or .csv file, or a directory.

    Raises:
        UserError: there is no log, it is empty, damaged or too large, a number is not finite, or steps do not
            increase; the message names the file and the line.
    """
    log = find_log(Path(path)) if Path(path).is_dir() else Path(path)
    if log is None:
        raise UserError(
            f"{path} has no metrics.jsonl, trainer_state.json or CSV file with a training curve: give a log"
        )
    if not log.is_file():
        raise UserError(f"{log} {'is not a regular file' if log.exists() else 'does not exist'}: give another log")
    readers = {".jsonl": _json_lines, ".json": _trainer_state, ".csv": _csv}
    if log.suffix not in readers:
        raise UserError(f"{log} is not a supported kind of log: give a metrics.jsonl, trainer_state.json or CSV file")
    try:
        return _curve(log, readers[log.suffix](log))
    except UnicodeDecodeError:
        raise UserError(f"{log} is not a text file: {ADVICE}") from None


def find_log(directory: Path) -> Path | None:
    """The log in a teacher's directory, or None.

    The first that exists of metrics.jsonl; trainer_state.json, in the directory or in its last `checkpoint-<step>`,
    whichever is longer; and a CSV file.

    Raises:
        UserError: there are several CSV files and no other log, or a trainer_state.json is damaged or too large.
    """
    if (directory / "metrics.jsonl").is_file():
        return directory / "metrics.jsonl"
    steps = [
        int(match[1]) for path in directory.iterdir() if (match := re.fullmatch(f"checkpoint-{NUMBER}", path.name))
    ]
    folders = [directory, *(directory / f"checkpoint-{step}" for step in sorted(steps)[-1:])]
    states = [state for folder in folders if (state := folder / "trainer_state.json").is_file()]
    if states:
        return max(states, key=lambda state: len(_trainer_state(state)))
    tables = sorted(path for path in directory.glob("*.csv") if path.is_file())
    if len(tables) > 1:
        raise UserError(
            f"{directory} has {len(tables)} CSV files, such as {tables[0].name}: give one of them as the log"
        )
    return tables[0] if tables else None


def _curve(path: Path, rows: Rows) -> Curve:
    counts = {name: sum(name in values for _, values in rows) for name in LOSSES}
    loss = next((name for name in LOSSES if counts[name] >= ENOUGH), max(LOSSES, key=lambda name: counts[name]))
    rows = [(place, values) for place, values in rows if loss in values]
    if not rows:
        raise UserError(f"{path} has no row with a loss ({', '.join(LOSSES)}): give another log")
    counter = next((name for name in STEPS if any(name in values for _, values in rows)), "step")
    accuracy = loss.replace("loss", "accuracy")
    has_accuracy = all(accuracy in values for _, values in rows)

    points: dict[int, tuple[float, float]] = {}
    last = -1
    for place, values in rows:
        number = _number(values.get(counter), counter, place)
        step = int(number)
        if step != number or step < 0:
            raise UserError(f"{place}: {counter} is {_shown(values[counter])}, not a whole number of steps: {ADVICE}")
        if step <= last and step not in points:
            raise UserError(f"{place}: {counter} {step} comes after {last}, so steps do not increase: {ADVICE}")
        last = step
        value = _number(values[loss], loss, place)
        points[step] = value, _number(values[accuracy], accuracy, place) if has_accuracy else math.nan

    steps = tuple(sorted(points))
    return Curve(
        steps=steps,
        losses=tuple(points[step][0] for step in steps),
        source=f"{loss} in {path}",
        accuracies=tuple(points[step][1] for step in steps) if has_accuracy else None,
    )


def _number(value: object, name: str, place: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {name} is {_shown(value)}, not a finite number: {ADVICE}")
    return number


def _shown(value: object) -> str:
    """The beginning of a value, which may be long or nested."""
    return f"{reprlib.repr(value):.40}"


def _require_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(
            f"{path} has {size_text(size)}, and a log at most {size_text(MOST_BYTES)}: keep only its steps and losses"
        )


def _require_rows(path: Path, number: int) -> None:
    if number > MOST_ROWS:
        raise UserError(f"{path} has more than {MOST_ROWS:,} rows: keep only some of them")


def _add(rows: Rows, path: Path, place: str, values: Iterable[tuple[str, Any]]) -> None:
    """Add what a curve may need of a row, if it has a loss."""
    kept = {name: value for name, value in values if name in NAMES}
    if kept.keys() & set(LOSSES):
        rows.append((place, kept))
        _require_rows(path, len(rows))


def _json_lines(path: Path) -> Rows:
    """A last line that was cut off when its writer was killed is ignored."""
    _require_size(path)
    rows: Rows = []
    with path.open(encoding="utf-8") as file:
        for i, line in enumerate(file):
            place = f"{path}, line {i + 1}"
            try:
                record = json.loads(line) if line.strip() else {}
            except ValueError:
                if not line.endswith("\n"):
                    break
                record = None
            except RecursionError:
                record = None
            if not isinstance(record, dict):
                raise UserError(f"{place}: not a JSON object: {ADVICE}")
            _add(rows, path, place, record.items())
    return rows


def _trainer_state(path: Path) -> Rows:
    _require_size(path)
    needed, (free, where) = PARSED * path.stat().st_size, free_memory()
    if needed > free:
        raise UserError(
            f"{path} needs at least {size_text(needed)} of memory, but {size_text(free)} are free {where}: keep only "
            "its steps and losses"
        )
    history = read_json(path, ADVICE, MOST_BYTES).get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UserError(f"{path} has no log_history, so it is not a trainer_state.json: give another log")
    _require_rows(path, len(history))
    return [(f"{path}, entry {i} of log_history", entry) for i, entry in enumerate(history)]


def _csv(path: Path) -> Rows:
    """An empty cell is a value that was not logged."""
    _require_size(path)
    rows: Rows = []
    header: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if not header:
                    header = [name.strip().lower().replace("/", "_") for name in cells]
                elif cells:
                    place = f"{path}, line {reader.line_num}"
                    if len(cells) != len(header):
                        raise UserError(f"{place}: {len(cells)} cells under a header of {len(header)}: {ADVICE}")
                    _add(rows, path, place, (pair for pair in zip(header, cells, strict=True) if pair[1].strip()))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}: {ADVICE}") from None
    if not set(header) & set(STEPS) or not set(header) & set(LOSSES):
        names = ", ".join(header)[:80] if header else "nothing"
        raise UserError(
            f"{path}, line 1: the header has {names}, but needs a step ({', '.join(STEPS)}) and a loss "
            f"({', '.join(LOSSES)}): rename its columns or give another log"
        )
    return rows
