"""Draw the figures, from committed data or from a folder of runs.

    python figures/make_figures.py parity_mlp
    python figures/make_figures.py PCFG_mlm --runs runs
    python figures/make_figures.py --runs runs

The first draws the data in figures/data/. The second collects the data of every complete run in the folder, whatever
the names and at any depth. The third does so for all settings. A figure is drawn if its runs are there; for every other
one a line says what is missing and the command that makes it. That is an error (exit code 2) if a setting was named;
without one it is an error only if nothing can be drawn, or if it is not clear which runs are meant.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import parity_figures
import pcfg_figures
import tyro
from finding_runs import Collected, FoundRun, MissingError, find_runs
from matplotlib.figure import Figure

from common.cli import command
from common.errors import UserError
from common.plotting import save
from common.runs.files import write_file

FIGURES = Path(__file__).resolve().parent
SettingName = Literal["parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive"]
Preset = Literal["smoke", "laptop", "paper"]
Collect = Callable[[Sequence[FoundRun], str], Collected]
Draw = Callable[[dict[str, Any]], Figure]
SETTINGS: dict[SettingName, tuple[Collect, Mapping[str, tuple[Draw, tuple[str, ...]]]]] = {
    "parity_mlp": (parity_figures.collect, parity_figures.FIGURES),
    "parity_gpt2": (partial(parity_figures.collect, model="gpt2"), parity_figures.FIGURES),
    "PCFG_mlm": (pcfg_figures.collect, pcfg_figures.FIGURES["PCFG_mlm"]),
    "PCFG_autoregressive": (
        partial(pcfg_figures.collect, setting="PCFG_autoregressive"),
        pcfg_figures.FIGURES["PCFG_autoregressive"],
    ),
}
"""How a setting's data are collected, and what is drawn from which parts of them."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of `make_figures.py`."""

    setting: Annotated[SettingName | None, tyro.conf.Positional] = None
    """Whose figures; by default those of all settings."""
    runs: Path | None = None
    """Folder of runs, at any depth, to collect the data from; by default the data are those that are committed."""
    preset: Preset = "laptop"
    """Preset of the runs."""
    out: Path | None = None
    """Where pictures and collected data go; by default figures/, or figures/ in the directory of --runs."""


@dataclass(frozen=True)
class Drawn:
    """The figures of a setting that could be drawn."""

    setting: SettingName
    data: Mapping[str, Any]
    """What they were drawn from; empty if there are no data at all."""
    pictures: Mapping[str, Path]
    """PNG files, by the figure's name without the setting."""
    errors: Mapping[str, UserError]
    """Why a figure was not drawn, by its name."""


def main(arguments: Arguments) -> None:
    """Collect, if runs are given, and draw.

    Raises:
        UserError: as this file's first paragraph says.
    """
    settings = get_args(SettingName) if arguments.setting is None else (arguments.setting,)
    drawn = draw_settings(settings, arguments.preset, arguments.runs, arguments.out)
    for one in drawn:
        for picture in one.pictures.values():
            print(picture)
    say_what_is_missing(drawn, arguments.preset, required=arguments.setting is not None)


def say_what_is_missing(drawn: Sequence[Drawn], preset: Preset, required: bool) -> None:
    """One line on stderr for each reason that keeps figures from being drawn.

    Args:
        drawn: the settings.
        preset: of the runs.
        required: whether every figure has to be there.

    Raises:
        UserError: a figure is not there though it has to be; there is none at all; or there are runs for one, but it is
            not clear which are meant, or they are damaged.
    """
    failed = []
    for message, error in [reason for one in drawn for reason in what_is_missing(one, preset)]:
        if isinstance(error, MissingError) and not required:
            print(message, file=sys.stderr)
        else:
            failed.append(message)
    if failed:
        raise UserError("; ".join(failed))
    if not any(one.pictures for one in drawn):
        raise UserError(f"there is nothing of the preset {preset} to draw")


def draw_settings(
    settings: Sequence[SettingName], preset: Preset, runs: Path | None = None, out: Path | None = None
) -> list[Drawn]:
    """Collect the data of settings, if runs are given, write them down, and draw what they suffice for.

    Args:
        settings: whose figures.
        preset: of the runs.
        runs: folder of runs; without one, the committed data are drawn.
        out: where pictures and collected data go; by default figures/, or figures/ in the folder of runs.

    Raises:
        UserError: there is no such folder, or a run's config.json is damaged.
    """
    out = out or (FIGURES if runs is None else runs / "figures")
    found = None if runs is None else find_runs(runs)
    return [_draw_setting(setting, preset, found, out) for setting in settings]


def _draw_setting(setting: SettingName, preset: Preset, found: Sequence[FoundRun] | None, out: Path) -> Drawn:
    collect, figures = SETTINGS[setting]
    path = Path("data") / f"{setting}_{preset}.json"
    try:
        collected = _committed(FIGURES / path) if found is None else collect(found, preset)
    except UserError as error:
        return Drawn(setting, {}, {}, dict.fromkeys(figures, error))
    if found is not None:
        write_file(out / path, (json.dumps(collected.data) + "\n").encode())
    pictures, errors = {}, {}
    for name, (draw, parts) in figures.items():
        lacking = [part for part in parts if part not in collected.data]
        if lacking:
            not_there = MissingError(f"{path.name} has no {lacking[0]}")
            errors[name] = collected.errors.get(lacking[0], not_there)
            continue
        out.mkdir(parents=True, exist_ok=True)
        pictures[name] = out / f"{name}_{setting}_{preset}.png"
        save(draw(collected.data), pictures[name])
    return Drawn(setting, collected.data, pictures, errors)


def _committed(path: Path) -> Collected:
    if not path.exists():
        raise MissingError(f"there is no {path.name} in {path.parent}; give --runs, or a preset whose data are there")
    return Collected(json.loads(path.read_bytes()), {})


def what_is_missing(drawn: Drawn, preset: Preset) -> list[tuple[str, UserError]]:
    """One message for each reason: the figures that it keeps from being drawn, and what to do."""
    reasons: dict[str, tuple[list[str], UserError]] = {}
    for name, error in drawn.errors.items():
        reasons.setdefault(str(error), ([], error))[0].append(f"{name}_{drawn.setting}_{preset}")
    return [(f"{', '.join(names)}: {reason}", error) for reason, (names, error) in reasons.items()]


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
