"""Write a CSV with one line per run of the parity MLP: what it was, when it passed its transition, where it ended.

python figures/parity_table.py --runs runs/parity_mlp --preset laptop --out figures/data/parity_mlp_laptop_runs.csv
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import tyro
from parity_figures import passed_at

from common.checkpoints import write_file
from common.runs import Run, command

COLUMNS = ("labels", "teacher", "method", "checkpoint", "width", "lr", "seed", "steps", "passed_at", "final_accuracy")


@dataclass(frozen=True)
class Arguments:
    """Arguments of `parity_table.py`."""

    runs: Path
    """Directory of runs."""
    preset: str
    """Preset of the runs to list."""
    out: Path
    """CSV file to write."""


def main(arguments: Arguments) -> None:
    """List every complete run of the preset."""
    lines = [_line(Run(path.parent)) for path in sorted(arguments.runs.glob(f"{arguments.preset}*/done.json"))]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(lines, key=lambda line: [str(line[name]) for name in COLUMNS]))
    write_file(arguments.out, text.getvalue().encode())


def _line(run: Run) -> dict[str, object]:
    arguments, records = run.config["arguments"], run.records()
    is_student = "methods" in arguments
    passed = passed_at([record["step"] for record in records], [record["accuracy"] for record in records])
    return {
        "labels": arguments["labels"],
        "teacher": Path(arguments["teacher"] or arguments["preset"]).name if is_student else "",
        "method": arguments["methods"][0] if is_student else "teacher",
        "checkpoint": ",".join(arguments["checkpoint"]) if is_student else "",
        "width": arguments["widths"][0] if is_student else arguments["width"],
        "lr": arguments["lr"][0] if is_student else arguments["lr"],
        "seed": arguments["seeds"][0] if is_student else arguments["seed"],
        "steps": records[-1]["step"],
        "passed_at": "" if passed is None else passed,
        "final_accuracy": records[-1]["accuracy"],
    }


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
