"""Draw every figure of a setting, from committed data or from a folder of runs.

    python figures/make_figures.py parity_mlp
    python figures/make_figures.py PCFG_mlm --runs runs

The first draws the data in figures/data/, the second those of the runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import parity_figures
import pcfg_figures
import tyro

from common.checkpoints import write_file
from common.errors import UserError
from common.plotting import save
from common.runs import command

FIGURES = Path(__file__).resolve().parent
SETTINGS = {"parity_mlp": parity_figures, "PCFG_mlm": pcfg_figures}


@dataclass(frozen=True)
class Arguments:
    """Arguments of `make_figures.py`."""

    setting: Annotated[Literal["parity_mlp", "PCFG_mlm"], tyro.conf.Positional]
    """Whose figures."""
    runs: Path | None = None
    """Directory of runs to collect the data from; by default the data are those that are committed."""
    preset: Literal["smoke", "laptop", "paper"] = "laptop"
    """Preset of the runs."""
    out: Path | None = None
    """Where pictures and collected data go; by default figures/, or figures/ in the directory of --runs."""


def main(arguments: Arguments) -> None:
    """Collect, if runs are given, and draw."""
    setting = SETTINGS[arguments.setting]
    out = arguments.out or (FIGURES if arguments.runs is None else arguments.runs / "figures")
    path = Path("data") / f"{arguments.setting}_{arguments.preset}.json"
    if arguments.runs is not None:
        data = setting.collect(arguments.runs, arguments.preset)
        (out / "data").mkdir(parents=True, exist_ok=True)
        write_file(out / path, (json.dumps(data) + "\n").encode())
    elif (FIGURES / path).exists():
        data = json.loads((FIGURES / path).read_text())
    else:
        raise UserError(f"there is no {FIGURES / path}; give --runs, or a preset whose data are there")
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in setting.FIGURES.items():
        picture = out / f"{name}_{arguments.preset}.png"
        save(draw(data), picture)
        print(picture)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
