"""Draw the figures, from the committed data or from runs.

    python figures/make_figures.py parity_mlp
    python figures/make_figures.py PCFG_mlm --runs runs
    python figures/make_figures.py --runs runs

The first command draws the data in figures/data/. The second collects data from all complete runs in a directory, at
any depth and under any name. The third does so for all settings. A figure is drawn if its runs exist; for every other
figure, one line says which run is missing and names the command that creates it. A missing figure is an error (exit
code 2) if a setting and --runs were given; otherwise it is an error only if nothing can be drawn or the runs are
ambiguous.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import designed
import method_data
import parity_data
import parity_figures
import pcfg_data
import pcfg_figures
import text_data
import text_figures
import tyro
from finding_runs import Collected, FoundRun, MissingError, find_runs
from matplotlib.figure import Figure

from common.cli import command
from common.errors import UserError, one_line
from common.plotting import save
from common.runs.files import write_file

FIGURES = Path(__file__).resolve().parent
SettingName = Literal["parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive", "text_mlm", "text_autoregressive"]
Preset = Literal["smoke", "laptop", "workstation", "paper"]
Collect = Callable[[Sequence[FoundRun], str], Collected]
Draw = Callable[[dict[str, Any]], Figure]
SETTINGS: dict[SettingName, tuple[Collect, Mapping[str, tuple[Draw, tuple[str, ...]]]]] = {
    "parity_mlp": (partial(parity_data.collect, setting="parity_mlp"), parity_figures.FIGURES),
    "parity_gpt2": (partial(parity_data.collect, setting="parity_gpt2"), parity_figures.FIGURES),
    "PCFG_mlm": (partial(pcfg_data.collect, setting="PCFG_mlm"), pcfg_figures.FIGURES["PCFG_mlm"]),
    "PCFG_autoregressive": (
        partial(pcfg_data.collect, setting="PCFG_autoregressive"),
        pcfg_figures.FIGURES["PCFG_autoregressive"],
    ),
    "text_mlm": (partial(text_data.collect, setting="text_mlm"), text_figures.FIGURES),
    "text_autoregressive": (partial(text_data.collect, setting="text_autoregressive"), text_figures.FIGURES),
}
"""How the data of a setting are collected, and how each figure is drawn from which parts of them."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of `make_figures.py`."""

    setting: Annotated[SettingName | None, tyro.conf.Positional] = None
    """Setting whose figures are drawn; by default all settings."""
    runs: Path | None = None
    """Directory of runs, at any depth, to collect data from; by default the committed data are drawn."""
    preset: Preset = "laptop"
    """Preset of the runs."""
    out: Path | None = None
    """Directory for pictures and collected data; by default figures/, or figures/ inside --runs."""


@dataclass(frozen=True)
class Drawn:
    """The figures of a setting that could be drawn."""

    setting: SettingName
    data: Mapping[str, Any]
    """The data behind them; empty if there are none."""
    pictures: Mapping[str, Path]
    """PNG files, by the figure's name without the setting."""
    errors: Mapping[str, UserError]
    """Why a figure was not drawn, by its name."""

    def missing(self, preset: Preset) -> list[tuple[str, UserError]]:
        """One message for each reason why figures were not drawn, naming these figures, with the error."""
        reasons: dict[str, tuple[list[str], UserError]] = {}
        for name, error in self.errors.items():
            reasons.setdefault(str(error), ([], error))[0].append(f"{name}_{self.setting}_{preset}")
        return [(f"{', '.join(names)}: {reason}", error) for reason, (names, error) in reasons.items()]


def main(arguments: Arguments) -> None:
    """Collect data, if runs are given, and draw.

    Raises:
        UserError: as in the docstring of this file.
    """
    if arguments.setting is not None and not has_preset(arguments.setting, arguments.preset):
        raise UserError(f"{arguments.setting} has no preset {arguments.preset}: only the settings on grammars have it")
    settings = get_args(SettingName) if arguments.setting is None else (arguments.setting,)
    drawn = draw_settings(settings, arguments.preset, arguments.runs, arguments.out)
    for figures in drawn:
        for picture in figures.pictures.values():
            print(picture)
    from_runs = arguments.runs is not None or not any(figures.pictures for figures in drawn)
    report_missing(drawn, arguments.preset, required=arguments.setting is not None and from_runs)


def report_missing(drawn: Sequence[Drawn], preset: Preset, required: bool) -> None:
    """Print one line on stderr for each reason why figures were not drawn.

    Args:
        drawn: figures by setting.
        preset: of the runs.
        required: whether every figure must exist.

    Raises:
        UserError: a required figure is missing, all figures are missing, or the runs behind one are ambiguous or
            damaged.
    """
    failed = []
    for message, error in [reason for figures in drawn for reason in figures.missing(preset)]:
        if isinstance(error, MissingError) and not required:
            print(one_line(message), file=sys.stderr)
        else:
            failed.append(message)
    if failed:
        raise UserError("; ".join(failed))
    if not any(figures.pictures for figures in drawn):
        setting = "PCFG_mlm" if preset == "workstation" else "all"
        raise UserError(
            f"there is nothing of the preset {preset} to draw: run scripts/reproduce.sh {setting} {preset} first"
        )


def draw_settings(
    settings: Sequence[SettingName], preset: Preset, runs: Path | None = None, out: Path | None = None
) -> list[Drawn]:
    """Collect the data of settings, if runs are given, write them to files, and draw every figure they suffice for.

    Args:
        settings: whose figures; those without the preset are left out.
        preset: of the runs.
        runs: directory of runs; without it, the committed data are drawn.
        out: directory for pictures and collected data; by default figures/, or figures/ in the directory of runs.

    Raises:
        UserError: there is no such directory, or the config.json of a run is damaged.
    """
    out = out or (FIGURES if runs is None else runs / "figures")
    found = None if runs is None else find_runs(runs)
    return [_draw_setting(setting, preset, found, out) for setting in settings if has_preset(setting, preset)]


def has_preset(setting: SettingName, preset: Preset) -> bool:
    """Whether a setting has a preset: only those on grammars have `workstation`."""
    return preset != "workstation" or setting in pcfg_figures.FIGURES


def _draw_setting(setting: SettingName, preset: Preset, found: Sequence[FoundRun] | None, out: Path) -> Drawn:
    collect, figures = SETTINGS[setting]
    if preset == "workstation":
        figures = pcfg_figures.WORKSTATION
    path = Path("data") / f"{setting}_{preset}.json"
    try:
        collected = _committed(FIGURES / path) if found is None else collect(found, preset)
    except UserError as error:
        return Drawn(setting, {}, {}, dict.fromkeys(figures, error))
    if found is not None:
        write_file(out / path, (json.dumps(collected.data) + "\n").encode())
    pictures, errors = {}, {}
    for name, (draw, parts) in figures.items():
        missing = [part for part in parts if part not in collected.data]
        if missing:
            default = MissingError(f"{path.name} has no {missing[0]}")
            errors[name] = collected.errors.get(missing[0], default)
            continue
        out.mkdir(parents=True, exist_ok=True)
        pictures[name] = out / f"{name}_{setting}_{preset}.png"
        save(draw(collected.data), pictures[name])
    data = collected.data
    try:
        targets = designed_data(setting, preset, found)
    except UserError as error:
        errors["figure_designed"] = error
        targets = None
    if targets is not None:
        out.mkdir(parents=True, exist_ok=True)
        pictures["figure_designed"] = out / f"figure_designed_{setting}_{preset}.png"
        save(designed.draw(targets), pictures["figure_designed"])
        data = {**data, "designed": targets}
    return Drawn(setting, data, pictures, errors)


def designed_data(setting: SettingName, preset: Preset, found: Sequence[FoundRun] | None) -> dict[str, Any] | None:
    """The data on designed targets, of runs or committed; None if there are none, as only a sweep makes them.

    Raises:
        UserError: two runs are the same student.
    """
    if setting not in method_data.PACKAGES or preset == "workstation":
        return None
    if found is None:
        path = FIGURES / "data" / "designed" / f"{setting}_{preset}.json"
        return dict(json.loads(path.read_bytes())) if path.exists() else None
    has_any = any(
        run.setting == setting
        and run.arguments.get("methods") == ["designed"]
        and run.arguments["seeds"][0] in designed.SEEDS
        for run in found
    )
    return designed.collect_designed(found, setting, preset) if has_any else None


def _committed(path: Path) -> Collected:
    if not path.exists():
        raise MissingError(f"{path.parent} has no {path.name}: give --runs, or a preset with committed data")
    return Collected(json.loads(path.read_bytes()), {})


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
