"""Draw every figure of a setting, from committed data or from a folder of runs.

    python figures/make_figures.py parity_mlp
    python figures/make_figures.py PCFG_mlm --runs runs

The first draws the data in figures/data/, the second those of the runs.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import parity_figures
import pcfg_figures
import tyro
from matplotlib.figure import Figure

from common.checkpoints import write_file
from common.errors import UserError
from common.plotting import save
from common.runs import command

FIGURES = Path(__file__).resolve().parent
Collect = Callable[[Path, str], dict[str, Any]]
Draw = Callable[[dict[str, Any]], Figure]
SETTINGS: dict[str, tuple[Collect, Mapping[str, Draw]]] = {
    "parity_mlp": (parity_figures.collect, parity_figures.MLP_FIGURES),
    "parity_gpt2": (partial(parity_figures.collect, model="gpt2"), parity_figures.GPT2_FIGURES),
    "PCFG_mlm": (pcfg_figures.collect, pcfg_figures.MLM_FIGURES),
    "PCFG_autoregressive": (
        partial(pcfg_figures.collect, setting="PCFG_autoregressive"),
        pcfg_figures.AUTOREGRESSIVE_FIGURES,
    ),
}
"""How a setting's data are collected, and what is drawn from them."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of `make_figures.py`."""

    setting: Annotated[Literal["parity_mlp", "parity_gpt2", "PCFG_mlm", "PCFG_autoregressive"], tyro.conf.Positional]
    """Whose figures."""
    runs: Path | None = None
    """Directory of runs to collect the data from; by default the data are those that are committed."""
    preset: Literal["smoke", "laptop", "paper"] = "laptop"
    """Preset of the runs."""
    out: Path | None = None
    """Where pictures and collected data go; by default figures/, or figures/ in the directory of --runs."""


def main(arguments: Arguments) -> None:
    """Collect, if runs are given, and draw."""
    collect, figures = SETTINGS[arguments.setting]
    out = arguments.out or (FIGURES if arguments.runs is None else arguments.runs / "figures")
    path = Path("data") / f"{arguments.setting}_{arguments.preset}.json"
    if arguments.runs is not None:
        data = collect(arguments.runs, arguments.preset)
        (out / "data").mkdir(parents=True, exist_ok=True)
        write_file(out / path, (json.dumps(data) + "\n").encode())
    elif (FIGURES / path).exists():
        data = json.loads((FIGURES / path).read_text())
    else:
        raise UserError(f"there is no {FIGURES / path}; give --runs, or a preset whose data are there")
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in figures.items():
        picture = out / f"{name}_{arguments.preset}.png"
        save(draw(data), picture)
        print(picture)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
