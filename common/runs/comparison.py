"""How two runs differ: in their arguments, versions and commit, and along their curves at common steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from common.arguments import require_at_least
from common.runs.differences import shortened
from common.runs.run import Run
from common.runs.table import aligned, table_row

FACTS = ("run", "state", "passed_at")
MEASURES = ("loss", "accuracy")


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """How two runs differ: arguments, versions, commit, and the curves of loss and accuracy."""

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of a run, complete or not."""
    other_run: Annotated[Path, tyro.conf.Positional]
    """Directory of another run."""
    lines: int = 20
    """Maximum number of evaluations to show, evenly spaced."""


def compare(arguments: CompareArguments) -> None:
    """Print the comparison.

    Raises:
        UserError: one of the two is not a run, or damaged.
    """
    require_at_least(2, arguments, "lines")
    runs = Run(arguments.run), Run(arguments.other_run)
    configs = [run.config for run in runs]
    records = [run.records() for run in runs]
    rows = [table_row(run) for run in runs]
    facts = [(name, *("" if row.get(name) is None else str(row[name]) for row in rows)) for name in FACTS]
    facts += differences(configs[0], configs[1])
    names = ("", "A", "B")
    print("\n".join(aligned(names, [dict(zip(names, fact, strict=True)) for fact in facts], None)))
    print()
    print("\n".join(curves(records[0], records[1], arguments.lines)))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name and both values, as text, of what differs in two configs: arguments, versions and commit."""
    texts = []
    for config in (one, other):
        versions = {f"version of {name}": version for name, version in (config.get("versions") or {}).items()}
        values = {**config["arguments"], **versions, "commit": config.get("commit")}
        texts.append({name: _text(value) for name, value in values.items()})
    names = list({**texts[0], **texts[1]})
    pairs = [(name, texts[0].get(name, "(absent)"), texts[1].get(name, "(absent)")) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def curves(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """Lines that show the records of two runs side by side at common steps, and where they differ.

    At most `most` steps are shown, with the first and the last common one, and the first at which they differ.
    """
    by_step = [{record["step"]: record for record in records} for records in (one, other)]
    common = sorted(by_step[0].keys() & by_step[1].keys())
    if not common:
        return [f"no common step: A has {_steps(one)}, B has {_steps(other)}"]
    lines = [f"{len(common)} evaluations at common steps; A has {_steps(one)}, B has {_steps(other)}"]
    rows = [_compared(step, by_step[0][step], by_step[1][step]) for step in common]
    shown = _evenly_spaced(range(len(rows)), most)
    for measure in MEASURES:
        different = [i for i, row in enumerate(rows) if row[f"{measure} A"] != row[f"{measure} B"]]
        if not different:
            lines.append(f"{measure}: identical at all of them")
            continue
        line = f"{measure}: first differs at step {rows[different[0]]['step']}"
        finite = [row for row in rows if row[f"{measure} B-A"] is not None]
        if finite:
            largest = max(finite, key=lambda row: abs(row[f"{measure} B-A"]))
            line += f", most at step {largest['step']}: B - A = {largest[f'{measure} B-A']:+.6g}"
        lines.append(line)
        shown = [*shown, different[0]]
    columns = ("step", *(f"{measure} {part}" for measure in MEASURES for part in ("A", "B", "B-A")))
    numbers = [{name: _rounded(rows[i][name]) for name in columns} for i in sorted(set(shown))]
    return [*lines, "", *aligned(columns, numbers, None)]


def _compared(step: int, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step}
    for measure in MEASURES:
        a, b = one.get(measure), other.get(measure)
        row |= {f"{measure} A": a, f"{measure} B": b, f"{measure} B-A": None if a is None or b is None else b - a}
    return row


def _evenly_spaced(indices: range, most: int) -> list[int]:
    """At most `most` of the indices, from the first to the last."""
    if len(indices) <= most:
        return list(indices)
    return [indices[round(i * (len(indices) - 1) / (most - 1))] for i in range(most)]


def _steps(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "none"
    return f"{len(records)} from step {records[0]['step']} to {records[-1]['step']}"


def _text(value: Any) -> str:
    """A value within a line: a list as on a command line, cut if it is long."""
    return shortened(" ".join(map(str, value)) if isinstance(value, list) else value)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
