"""A study of its own: a figure with what it shows, from committed data or from the runs of a sweep."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finding_runs import FoundRun, MissingError, find_runs
from findings import Describe, Finding
from matplotlib.figure import Figure

from common.plotting import save
from common.runs.files import write_file

FIGURES = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class StudyArguments:
    """What the commands of all studies take."""

    runs: Path | None = None
    """Directory of runs, at any depth, to collect data from; by default the committed data are drawn."""
    preset: Literal["smoke", "laptop", "paper"] = "laptop"
    """Preset of the runs."""
    out: Path | None = None
    """Directory for the picture and collected data; by default figures/, or figures/ inside --runs."""


def present(
    study: str,
    key: str,
    arguments: StudyArguments,
    collect: Callable[[Sequence[FoundRun]], Mapping[str, Any]],
    draw: Callable[[Mapping[str, Any]], Figure],
    describe: Describe,
) -> None:
    """Collect data, if runs are given, draw, and print what the figure shows.

    Args:
        study: names data/STUDY/KEY.json and figure_STUDY_KEY.png.
        key: of the data, such as a preset.
        arguments: of the command.
        collect: makes data of runs.
        draw: draws data.
        describe: says what they show.

    Raises:
        UserError: there are no data, or runs are missing or ambiguous.
    """
    runs = arguments.runs
    out = arguments.out or (FIGURES if runs is None else runs / "figures")
    path = Path("data") / study / f"{key}.json"
    if runs is None:
        if not (FIGURES / path).exists():
            raise MissingError(f"figures has no {path}: give --runs, or a preset with committed data")
        data = json.loads((FIGURES / path).read_bytes())
    else:
        data = collect(find_runs(runs))
        write_file(out / path, (json.dumps(data) + "\n").encode())
    out.mkdir(parents=True, exist_ok=True)
    picture = out / f"figure_{study}_{key}.png"
    save(draw(data), picture)
    print(picture)
    print(markdown(describe(data)))


def markdown(finding: Finding) -> str:
    """A finding as text."""
    lines = [f"{finding.title}\n", f"{finding.claim}\n"]
    lines += [
        f"* {verdict.statement}: {'yes' if verdict.holds else 'no'} ({verdict.numbers})" for verdict in finding.verdicts
    ]
    for table in finding.tables:
        rows = [table.header, ["---"] * len(table.header), *table.rows]
        lines += [f"\n{table.caption}\n", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
