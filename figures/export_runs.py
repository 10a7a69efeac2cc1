"""Copy the config.json of a preset's runs, and some lines of their metrics.jsonl, to be committed.

    python figures/export_runs.py --runs runs --setting parity_mlp --preset paper --every 100000 \\
        --out figures/data/paper_runs

The copies are small: with the options above about 8 kB per run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from finding_runs import find_runs

from common.arguments import require_at_least
from common.cli import command
from common.errors import UserError
from common.runs.files import write_file


@dataclass(frozen=True)
class Arguments:
    """Arguments of `export_runs.py`."""

    runs: Path
    """Directory that contains runs, at any depth."""
    setting: str
    """Setting of the runs to copy."""
    preset: str
    """Preset of the runs to copy."""
    every: int
    """Keep the records at multiples of this number of steps, and the last record."""
    out: Path
    """Directory to copy to; runs keep their names."""


def main(arguments: Arguments) -> None:
    """Copy every complete run of the preset.

    Raises:
        UserError: there is none, or two have the same name.
    """
    require_at_least(1, arguments, "every")
    found = [run for run in find_runs(arguments.runs) if run.setting == arguments.setting]
    found = [run for run in found if run.arguments["preset"] == arguments.preset]
    if not found:
        raise UserError(f"no complete run of {arguments.setting} {arguments.preset} in {arguments.runs}")
    if len({run.directory.name for run in found}) < len(found):
        raise UserError(f"two runs of {arguments.setting} {arguments.preset} in {arguments.runs} have the same name")
    for run in found:
        records = run.records()
        kept = [record for record in records if record["step"] % arguments.every == 0 or record is records[-1]]
        target = arguments.out / run.directory.resolve().name
        target.mkdir(parents=True, exist_ok=True)
        write_file(target / "config.json", (run.directory / "config.json").read_bytes())
        write_file(target / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept).encode())


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
