"""Copy the config.json of a preset's runs, and their metrics.jsonl with fewer lines, to where they can be committed.

    python figures/export_runs.py --runs runs/parity_mlp --preset paper --every 100000 --out figures/data/paper_runs

The copies are small: with the options above about 8 kB a run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.cli import command
from common.runs.files import write_file
from common.runs.run import Run


@dataclass(frozen=True)
class Arguments:
    """Arguments of `export_runs.py`."""

    runs: Path
    """Directory of runs."""
    preset: str
    """Preset of the runs to copy."""
    every: int
    """Keep the records at multiples of so many steps, and the last."""
    out: Path
    """Directory to copy to."""


def main(arguments: Arguments) -> None:
    """Copy every complete run of the preset."""
    for done in sorted(arguments.runs.glob(f"{arguments.preset}*/done.json")):
        run = Run(done.parent)
        records = run.records()
        kept = [record for record in records if record["step"] % arguments.every == 0 or record is records[-1]]
        target = arguments.out / run.directory.name
        target.mkdir(parents=True, exist_ok=True)
        write_file(target / "config.json", (run.directory / "config.json").read_bytes())
        write_file(target / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept).encode())


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
