"""A table of runs, one line each: its arguments, when it passed its transition, its results and its time.

Runs are identified by their config.json, whatever their directories are called. A column is a result, or any argument
of the runs' commands by its name; an argument that takes several values, of which each run has one, is named in the
singular: `method`, `width`, `heads`, `seed`.
"""

import csv
import datetime
import io
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from common.errors import UserError, one_line
from common.runs.files import write_file
from common.runs.finding import find_runs, passed_at
from common.runs.run import Run

COLUMNS = ("setting", "method", "checkpoint", "width", "heads", "layers", "seed", "lr", "steps")

RESULTS = ("passed_at", "final_accuracy", "final_loss", "time", "state", "run")

SINGULAR = {"methods": "method", "widths": "width", "student_heads": "heads", "seeds": "seed"}

USED_BY = {
    "teacher_every": ("progressive", "refreshed"),
    "teacher_checkpoints": ("progressive",),
    "teacher_range": ("progressive",),
    "first_steps": ("two-shot", "designed"),
    "speed": ("accelerated", "refreshed"),
    "segments": ("custom",),
    "saturation_window": ("until-saturation",),
    "saturation_threshold": ("until-saturation",),
    "saturation_steps": ("until-saturation",),
}
"""Methods that use an argument; for others its column is empty."""

FORMATS: Mapping[str, Callable[[Any], str]] = {
    "final_accuracy": "{:.4f}".format,
    "final_loss": "{:.4f}".format,
    "time": lambda seconds: str(datetime.timedelta(seconds=round(seconds))),
}
"""How results are shown; everything else is shown as it is."""

MIN_COLUMN_WIDTH = 12
"""Characters to which a column of text may be cut to fit a terminal."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TableArguments:
    """A table of all runs in a directory, at any depth, complete or not.

    Columns: run (its directory), setting, method (train for train.py), steps (its budget), passed_at (first evaluated
    step with accuracy above 95%), final_accuracy, final_loss, time (wall time; seconds in CSV), state (complete,
    the number of steps done, or damaged), and every argument of the commands.
    """

    runs: Annotated[Path, tyro.conf.Positional]
    """Directory that contains runs, at any depth."""
    where: tuple[str, ...] = ()
    """Keep only runs with these values, such as method=progressive heads=2; several values of one column are
    alternatives, and != excludes a value."""
    sort: tuple[str, ...] = ()
    """Columns to sort by; by default all, from left to right."""
    reverse: bool = False
    """Sort in descending order."""
    columns: tuple[str, ...] = ()
    """Columns to show; by default those with a value for any of these runs."""
    csv: str | None = None
    """Write a CSV file instead, or - for CSV on stdout."""


def table(arguments: TableArguments) -> None:
    """Print the table, or write it to a file.

    Raises:
        UserError: the directory does not exist or contains no run, or is itself a damaged run; or a column is unknown.
    """
    runs = find_runs(arguments.runs)
    if [run.directory for run in runs] == [arguments.runs]:
        _ = runs[0].config, runs[0].records()
    rows = [table_row(run) for run in runs]
    if not rows:
        raise UserError(f"there is no run in {arguments.runs}")
    columns = arguments.columns or (*COLUMNS, *RESULTS)
    known = {*COLUMNS, *RESULTS}.union(*rows)
    conditions = [_condition(text) for text in arguments.where]
    for name in (*columns, *arguments.sort, *(name for name, _, _ in conditions)):
        if name not in known:
            raise UserError(f"unknown column {name!r}: choose from {', '.join(sorted(known))}")
    rows = [row for row in rows if _meets(row, conditions)]
    order = arguments.sort or columns
    rows.sort(key=lambda row: [_sort_key(row.get(name)) for name in order], reverse=arguments.reverse)
    if arguments.csv is None:
        shown = [name for name in columns if arguments.columns or any(row.get(name) is not None for row in rows)]
        print("\n".join(aligned(shown, rows, _terminal_width())))
    elif arguments.csv == "-":
        sys.stdout.write(as_csv(columns, rows))
    else:
        write_file(Path(arguments.csv), as_csv(columns, rows).encode("utf-8", "backslashreplace"))
        print(f"{len(rows)} runs in {arguments.csv}")


def table_row(run: Run) -> dict[str, Any]:
    """A run's results and arguments by column name; None where it lacks or does not use one.

    The row of a run that is damaged or of an earlier version has only its state; the reason is printed on stderr.
    """
    try:
        config, records = run.config, run.records()
        if run.complete:
            run.require_results()
    except UserError as error:
        print(one_line(f"warning: {error}"), file=sys.stderr)
        return {"run": str(run.directory), "state": "damaged"}
    arguments = _columns_of(config["arguments"])
    last = records[-1] if records else {"step": 0}
    return {
        **arguments,
        "setting": config["setting"],
        "passed_at": passed_at(records),
        "final_accuracy": last.get("accuracy"),
        "final_loss": last.get("loss"),
        "time": round(run.seconds, 2),
        "state": "complete" if run.complete else f"{last['step']} of {arguments.get('steps')}",
        "run": str(run.directory),
    }


def as_csv(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """The rows as CSV with a header; numbers have all their digits, and None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def aligned(columns: Sequence[str], rows: Sequence[Row], width: int | None) -> list[str]:
    """Lines of an aligned table, the first with the names of the columns; numbers are right-aligned.

    Names and values may be from a file: what would change what a terminal shows is escaped.

    Args:
        columns: to show.
        rows: a value, or none, for each column.
        width: of the terminal, in characters; the widest columns of text are cut until the lines fit, but not below
            `MIN_COLUMN_WIDTH`; numbers are never cut. None cuts nothing.
    """
    values = [columns, *([_shown(name, row.get(name)) for name in columns] for row in rows)]
    texts = [list(map(one_line, line)) for line in values]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numeric = [name in FORMATS or any(isinstance(row.get(name), (int, float)) for row in rows) for name in columns]
    too_many = 0 if width is None else sum(widths) + 2 * (len(widths) - 1) - width
    for _ in range(too_many):
        widest = max(range(len(columns)), key=lambda i: 0 if numeric[i] else widths[i])
        if not numeric[widest] and widths[widest] > MIN_COLUMN_WIDTH:
            widths[widest] -= 1
    return ["  ".join(map(_fitted, line, widths, numeric)).rstrip() for line in texts]


def _columns_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    plain = {SINGULAR.get(name, name): _plain(value) for name, value in arguments.items()}
    plain.setdefault("method", "train")
    method = plain["method"]
    plain["teacher"] = None if method in ("train", "ce") else Path(str(arguments.get("teacher", ""))).name
    return {name: value if method in USED_BY.get(name, (method,)) else None for name, value in plain.items()}


def _plain(value: Any) -> Any:
    """A list of one element as that element, one of several as on a command line, and an empty one as None."""
    if not isinstance(value, list):
        return value
    return (value[0] if len(value) == 1 else " ".join(map(str, value))) if value else None


def _condition(text: str) -> tuple[str, bool, str]:
    """Column, whether the value must be equal, and the value."""
    match = re.fullmatch("([^=!]+)(!?)=(.*)", text, re.DOTALL)
    if match is None:
        raise UserError(f"--where takes column=value or column!=value, got {text!r}")
    return match[1], not match[2], match[3]


def _meets(row: Row, conditions: Sequence[tuple[str, bool, str]]) -> bool:
    for name, equal, _ in conditions:
        values = [value for other, same, value in conditions if (other, same) == (name, equal)]
        if any(_equals(row.get(name), value) for value in values) != equal:
            return False
    return True


def _equals(value: Any, text: str) -> bool:
    """Whether a value equals a text: numbers by their value, all else as text regardless of case, None as empty."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return ("" if value is None else str(value)).casefold() == text.casefold()


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Missing values, then numbers, then text."""
    if value is None:
        return 0, 0.0, ""
    return (1, value, "") if isinstance(value, (int, float)) else (2, 0.0, str(value))


def _shown(name: str, value: Any) -> str:
    return "" if value is None else FORMATS.get(name, str)(value)


def _fitted(text: str, width: int, numeric: bool) -> str:
    """Text padded or cut to a width; one that is too long keeps a third of its beginning, and its end."""
    if len(text) > width:
        begin = (width - 1) // 3
        text = f"{text[:begin]}…{text[len(text) - (width - 1 - begin) :]}"
    return text.rjust(width) if numeric else text.ljust(width)


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
