"""A probe of every checkpoint of a run, and the JSON file that it writes in the run's directory.

The file has one entry for each checkpoint, and what is measured without one. It is written after each measurement, so
that an interrupted probe resumes and only new checkpoints are probed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.runs.files import write_file
from common.runs.names import default_name
from common.runs.progress import progress
from common.teachers.discovery import find_checkpoints, local_path

UNNAMED = ("run", "device", "columns")
"""Arguments that change no result, and are no part of the file's name."""


def probe_checkpoints(
    arguments: Any,
    argv: Sequence[str],
    name: str,
    measure: Callable[[Path], dict[str, Any]],
    once: Mapping[str, Callable[[], object]] | None = None,
    samples: int = 1,
) -> None:
    """Measure what is not in the probe's file yet, and print the file's name.

    Args:
        arguments: of the command, a dataclass with `run` and defaults for everything else.
        argv: the command, for the file.
        name: of the probe; arguments other than the defaults are appended to it.
        measure: from a checkpoint's directory to JSON values.
        once: what is measured without a checkpoint, by name.
        samples: per checkpoint, to show the speed.

    Raises:
        UserError: the run has no checkpoint.
    """
    checkpoints = find_checkpoints(arguments.run)
    defaults = type(arguments)(run=arguments.run)
    path = arguments.run / "probes" / f"{default_name(arguments, defaults, name, exclude=UNNAMED)}.json"
    settings = {key: value for key, value in asdict(arguments).items() if key not in UNNAMED}
    content: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"argv": list(argv), "settings": settings, "checkpoints": []}
    )
    done = {entry["step"]: entry for entry in content["checkpoints"]}
    for key, value in (once or {}).items():
        if key not in content:
            content[key] = value()
            write_file(path, json.dumps(content).encode())
    with progress(len(checkpoints), len(done), f"probing {arguments.run.name}", samples) as show:
        for checkpoint in checkpoints:
            if checkpoint.step in done:
                continue
            done[checkpoint.step] = {"step": checkpoint.step, **measure(local_path(checkpoint))}
            content["checkpoints"] = [done[step] for step in sorted(done)]
            write_file(path, json.dumps(content).encode())
            show(len(done), checkpoint=checkpoint.step)
    print(path)
