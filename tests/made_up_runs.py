"""Runs that were never trained, as far as figures read them."""

import json


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_up_run(directory, setting, accuracies, losses=None, argv=(), **arguments):
    """A complete run as far as figures read it, evaluated every 100 steps."""
    losses = [1 - accuracy for accuracy in accuracies] if losses is None else losses
    records = [
        {"step": 100 * i, "loss": loss, "accuracy": accuracy}
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    about = {"versions": {}, "commit": "c0ffee", "id": f"id of {directory.name}"}
    write(directory / "config.json", {"setting": setting, "argv": argv, "arguments": arguments, **about})
    write(directory / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write(directory / "done.json", {})
