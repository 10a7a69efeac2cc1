"""Write report.html: one page with every figure of a preset's runs next to the claim that it tests.

    python figures/report.py --runs runs --preset laptop

The figures are drawn as by `make_figures.py --runs`; `parity_findings.py` and its like say what they show.
The page is self-contained, pictures included. It lists the times of commands if `scripts/reproduce.sh` made the runs,
from figures/times.jsonl in their directory.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import designed
import jinja2
import parity_findings
import pcfg_findings
import text_findings
import tyro
from findings import Describe, Finding
from make_figures import Drawn, Preset, SettingName, draw_settings, report_missing

from common.cli import command
from common.errors import UserError
from common.runs.files import json_lines, require_regular, write_file
from common.runs.versions import THEN

FIGURES = Path(__file__).resolve().parent
TITLES: dict[SettingName, str] = {
    "parity_mlp": "MLP on sparse parity",
    "parity_gpt2": "GPT-2 on sparse parity",
    "PCFG_mlm": "BERT on a grammar, masked prediction",
    "PCFG_autoregressive": "GPT-2 on a grammar, next-token prediction",
    "text_mlm": "BERT on natural language, masked prediction",
    "text_autoregressive": "GPT-NeoX on natural language, next-token prediction",
}
DESIGNED: dict[str, Describe] = {"figure_designed": lambda data: designed.describe(data["designed"])}
"""The figure of runs that only a sweep makes."""
FINDINGS: dict[str, Mapping[str, Describe]] = {
    "parity_mlp": {**parity_findings.FINDINGS, **DESIGNED},
    "parity_gpt2": {**parity_findings.FINDINGS, **DESIGNED},
    **{setting: {**findings, **DESIGNED} for setting, findings in pcfg_findings.FINDINGS.items()},
    **text_findings.FINDINGS,
}
"""By setting and figure."""
MOST_SECONDS = 10**9
"""That a command takes; so much more cannot be shown."""
WIDE = 2.0
"""Figures with a larger ratio of width to height take up the full width of the page."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of `report.py`."""

    runs: Path
    """Directory of runs, at any depth."""
    preset: Preset = "laptop"
    """Preset of the runs."""
    out: Path | None = None
    """HTML file to write; by default report.html in the directory of runs."""


@dataclass(frozen=True)
class Time:
    """How long a command took, all its starts together."""

    command: str
    seconds: int
    starts: int

    @property
    def text(self) -> str:
        """Hours, minutes and seconds, and the number of starts if there were several."""
        if not self.starts:
            return "not recorded"
        return f"{timedelta(seconds=self.seconds)}" + (f" in {self.starts} starts" if self.starts > 1 else "")


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    anchor: str
    finding: Finding
    source: str
    """The PNG file as a data URL."""
    width: int
    """Pixels at which it is shown, space permitting."""
    wide: bool
    """Whether it takes up the full width of the page."""


@dataclass(frozen=True)
class Section:
    """A setting on the page."""

    name: SettingName
    title: str
    data: Mapping[str, Any]
    pictures: Sequence[Picture]
    missing: Sequence[str]
    times: Sequence[Time]
    """Of the commands behind the data, in their order, then of others that `scripts/reproduce.sh` ran."""
    processors: Sequence[str]

    @property
    def total(self) -> str:
        """Hours, minutes and seconds of all commands together; empty if no time is known."""
        seconds = sum(time.seconds for time in self.times)
        return str(timedelta(seconds=seconds)) if seconds else ""


def main(arguments: Arguments) -> None:
    """Collect data, draw, and write the page.

    Raises:
        UserError: there is nothing to draw, the runs are ambiguous, a time is damaged, or `--out` is no file.
    """
    log = read_times(arguments.runs / "figures" / "times.jsonl")
    out = arguments.out or arguments.runs / "report.html"
    if out.exists():
        require_regular(out)
    drawn = draw_settings(get_args(SettingName), arguments.preset, arguments.runs)
    if any(figures.pictures for figures in drawn):
        write_file(out, page(drawn, arguments.preset, log).encode())
    report_missing(drawn, arguments.preset, required=False)
    print(out)


def read_times(path: Path) -> list[dict[str, Any]]:
    """The entries that `scripts/reproduce.sh` wrote, without a last one that was cut off; none if there is no file.

    Raises:
        UserError: an entry is damaged, or there is something else than a file.
    """
    kinds = {"setting": str, "preset": str, "command": str, "seconds": int, "processor": str}
    entries = []
    for number, entry in enumerate(json_lines(path, "remove it") if path.exists() else (), 1):
        is_valid = entry is not None and all(type(entry.get(name)) is kind for name, kind in kinds.items())
        if not is_valid or not 0 <= entry["seconds"] <= MOST_SECONDS:
            raise UserError(f"{path}, line {number}, is damaged: remove the line")
        entries.append(entry)
    return entries


def page(drawn: Sequence[Drawn], preset: Preset, log: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as HTML.

    Args:
        drawn: data and figures by setting.
        preset: of the runs.
        log: of `scripts/reproduce.sh`, one entry per command: setting, preset, command, seconds and processor.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FIGURES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["short"] = lambda commits: THEN.join(
        commit[:12] + ("-dirty" if commit.endswith("-dirty") else "") for commit in commits.split(THEN)
    )
    return environment.get_template("report.html.jinja").render(
        preset=preset, sections=[section(figures, preset, log) for figures in drawn]
    )


def section(drawn: Drawn, preset: Preset, log: Sequence[Mapping[str, Any]]) -> Section:
    """The section of a setting.

    Args:
        drawn: its data and figures.
        preset: of the runs.
        log: of `scripts/reproduce.sh`, of all settings.
    """
    entries = [entry for entry in log if (entry["setting"], entry["preset"]) == (drawn.setting, preset)]
    seconds: dict[str, list[int]] = {line: [] for line in drawn.data.get("commands", ())}
    for entry in entries:
        seconds.setdefault(entry["command"], []).append(entry["seconds"])
    return Section(
        name=drawn.setting,
        title=TITLES[drawn.setting],
        data=drawn.data,
        pictures=[_picture(drawn, name, path) for name, path in drawn.pictures.items()],
        missing=[message for message, _ in drawn.missing(preset)],
        times=[Time(line, sum(some), len(some)) for line, some in seconds.items()],
        processors=sorted({entry["processor"] for entry in entries}),
    )


def _picture(drawn: Drawn, name: str, path: Path) -> Picture:
    png = path.read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    return Picture(
        anchor=f"{drawn.setting}-{name}",
        finding=FINDINGS[drawn.setting][name](drawn.data),
        source=f"data:image/png;base64,{base64.b64encode(png).decode()}",
        width=width // 2,
        wide=width > WIDE * height,
    )


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
