"""Write runs/report.html: one page with every figure of a preset's runs beside the claim that it tests.

    python figures/report.py --runs runs --preset laptop

The figures are collected and drawn as by `make_figures.py --runs`, and `findings.py` says what they show. The page
holds everything that it needs, its pictures included, so that it can be opened or sent without a network. Times are
those that `scripts/reproduce.sh` wrote to figures/times.jsonl in the folder of runs, if it made them.
"""

import base64
import json
import shlex
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import jinja2
import tyro
from findings import FINDINGS, Finding
from make_figures import Drawn, Preset, SettingName, draw_settings, say_what_is_missing, what_is_missing

from common.cli import command
from common.runs.files import write_file

FIGURES = Path(__file__).resolve().parent
TITLES: dict[SettingName, str] = {
    "parity_mlp": "MLP on sparse parity",
    "parity_gpt2": "GPT-2 on sparse parity",
    "PCFG_mlm": "BERT on a grammar, masked prediction",
    "PCFG_autoregressive": "GPT-2 on a grammar, next-token prediction",
}
WIDE = 2.0
"""Figures with a larger ratio of width to height take the whole width of the page."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of `report.py`."""

    runs: Path
    """Folder of runs, at any depth."""
    preset: Preset = "laptop"
    """Preset of the runs."""
    out: Path | None = None
    """HTML file to write; by default report.html in the folder of runs."""


@dataclass(frozen=True)
class Time:
    """How long a command took, all times together that it was started."""

    command: str
    seconds: int
    starts: int

    @property
    def text(self) -> str:
        """Hours, minutes and seconds; and the starts, if there were several."""
        return f"{timedelta(seconds=self.seconds)}" + (f" in {self.starts} starts" if self.starts > 1 else "")


@dataclass(frozen=True)
class Picture:
    """A figure as the page has it."""

    anchor: str
    finding: Finding
    source: str
    """The PNG file as a data URL."""
    width: int
    """Pixels at which it is shown, if there is room."""
    wide: bool
    """Whether it takes the whole width of the page."""


@dataclass(frozen=True)
class Section:
    """A setting as the page has it."""

    name: SettingName
    title: str
    data: Mapping[str, Any]
    pictures: Sequence[Picture]
    missing: Sequence[str]
    times: Sequence[Time]
    """Of the commands that made the data, in their order, and then of others that `scripts/reproduce.sh` ran."""
    untimed: Sequence[str]
    """Commands that made the data and of which no time is known."""
    processors: Sequence[str]

    @property
    def total(self) -> str:
        """Hours, minutes and seconds of all commands."""
        return str(timedelta(seconds=sum(time.seconds for time in self.times)))


def main(arguments: Arguments) -> None:
    """Collect, draw, and write the page.

    Raises:
        UserError: there is nothing to draw, or it is not clear which runs are meant.
    """
    drawn = draw_settings(get_args(SettingName), arguments.preset, arguments.runs)
    times = arguments.runs / "figures" / "times.jsonl"
    log = [json.loads(line) for line in times.read_text().splitlines()] if times.exists() else []
    out = arguments.out or arguments.runs / "report.html"
    if any(one.pictures for one in drawn):
        write_file(out, page(drawn, arguments.preset, log).encode())
    say_what_is_missing(drawn, arguments.preset, required=False)
    print(out)


def page(drawn: Sequence[Drawn], preset: Preset, log: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as HTML.

    Args:
        drawn: settings with their data and figures.
        preset: of the runs.
        log: what `scripts/reproduce.sh` wrote down of its commands: setting, preset, command, seconds and processor.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FIGURES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["short"] = lambda commit: commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")
    return environment.get_template("report.html.jinja").render(
        preset=preset, sections=[section(one, preset, log) for one in drawn]
    )


def section(drawn: Drawn, preset: Preset, log: Sequence[Mapping[str, Any]]) -> Section:
    """What the page says of a setting; arguments as for `page`."""
    entries = [entry for entry in log if (entry["setting"], entry["preset"]) == (drawn.setting, preset)]
    made_by = drawn.data.get("commands", [])
    in_log = _sums(entries)
    timed = [in_log.pop(_words(line)) for line in made_by if _words(line) in in_log]
    return Section(
        name=drawn.setting,
        title=TITLES[drawn.setting],
        data=drawn.data,
        pictures=[_picture(drawn, name, path) for name, path in drawn.pictures.items()],
        missing=[message for message, _ in what_is_missing(drawn, preset)],
        times=[*timed, *in_log.values()],
        untimed=[line for line in made_by if _words(line) not in {_words(time.command) for time in timed}],
        processors=sorted({entry["processor"] for entry in entries}),
    )


def _sums(entries: Sequence[Mapping[str, Any]]) -> dict[frozenset[tuple[str, int]], Time]:
    """The time of each command, whatever the order of its words."""
    sums: dict[frozenset[tuple[str, int]], Time] = {}
    for entry in entries:
        so_far = sums.get(_words(entry["command"]), Time(entry["command"], 0, 0))
        sums[_words(entry["command"])] = Time(so_far.command, so_far.seconds + entry["seconds"], so_far.starts + 1)
    return sums


def _words(line: str) -> frozenset[tuple[str, int]]:
    return frozenset(Counter(shlex.split(line)).items())


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
