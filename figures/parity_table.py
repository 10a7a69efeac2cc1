"""Write a CSV with one line per run on parity: what it was, when it passed its transition, where it ended.

python figures/parity_table.py --runs runs/parity_mlp --preset laptop --out figures/data/parity_mlp_laptop_runs.csv
python figures/parity_table.py --runs runs --preset laptop --model gpt2 --out figures/data/parity_gpt2_laptop_runs.csv
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from parity_figures import passed_at

from common.checkpoints import write_file
from common.runs import Run, command
from parity_mlp.arguments import Model

MLP_COLUMNS = ("labels", "teacher", "method", "checkpoint", "width", "lr", "seed")
GPT2_COLUMNS = ("d", "k", "teacher", "method", "checkpoint", "teacher_range", "teacher_every")
GPT2_COLUMNS += ("heads", "initial_std", "lr", "seed")
RESULTS = ("steps", "passed_at", "final_accuracy")


@dataclass(frozen=True)
class Arguments:
    """Arguments of `parity_table.py`."""

    runs: Path
    """Directory of runs, at any depth."""
    preset: str
    """Preset of the runs to list."""
    out: Path
    """CSV file to write."""
    model: Model = "mlp"
    """Model of the runs to list."""


def main(arguments: Arguments) -> None:
    """List every complete run of the preset."""
    columns = (MLP_COLUMNS if arguments.model == "mlp" else GPT2_COLUMNS) + RESULTS
    runs = [Run(path.parent) for path in arguments.runs.rglob("done.json")]
    lines = [_line(run) for run in runs if _was_made_by(run, arguments)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(sorted(lines, key=lambda line: [str(line.get(name)) for name in columns]))
    write_file(arguments.out, text.getvalue().encode())


def _was_made_by(run: Run, arguments: Arguments) -> bool:
    config = run.config["arguments"]
    return (config["preset"], config.get("model", "mlp")) == (arguments.preset, arguments.model)


def _line(run: Run) -> dict[str, Any]:
    arguments, records = run.config["arguments"], run.records()
    passed = passed_at([record["step"] for record in records], [record["accuracy"] for record in records])
    results = {
        "steps": records[-1]["step"],
        "passed_at": "" if passed is None else passed,
        "final_accuracy": records[-1]["accuracy"],
    }
    if "methods" not in arguments:
        return {**arguments, "teacher": "", "method": "teacher", **results}
    progressive = arguments["methods"][0] == "progressive"
    taught = {
        "teacher": "" if arguments["methods"][0] == "ce" else Path(arguments["teacher"]).name,
        "method": arguments["methods"][0],
        "checkpoint": ",".join(arguments["checkpoint"]),
        "teacher_range": "-".join(map(str, arguments["teacher_range"] or ())) if progressive else "",
        "teacher_every": arguments["teacher_every"] if progressive else "",
        "lr": arguments["lr"][0],
        "seed": arguments["seeds"][0],
    }
    size = {"width": arguments["widths"][0]} if "widths" in arguments else {"heads": arguments["student_heads"][0]}
    return {**arguments, **taught, **size, **results}


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
