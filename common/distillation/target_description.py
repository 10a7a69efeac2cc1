"""targets.json of a cache of targets: what the targets depend on, compared with what a student needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from common.distillation.targets import TargetKind
from common.errors import UserError, listed
from common.runs.files import json_object, read_json, to_json

DESCRIPTION = "targets.json"
FORMAT = 1


def described(facts: Mapping[str, Any]) -> bytes:
    """The content of the file."""
    return to_json({"format": FORMAT, **facts})


def require_same(directory: Path, facts: Mapping[str, Any]) -> None:
    """Refuse the targets of a directory, if there are any, that are not described by these facts.

    Raises:
        UserError: says what differs; or the description is damaged.
    """
    path = directory / DESCRIPTION
    if not path.exists():
        return
    there = read_json(path, "restore it, or give another directory")
    if there.get("format") != FORMAT:
        raise UserError(f"{path} is of another version: give another directory")
    if there != {"format": FORMAT, **facts}:
        raise UserError(f"{directory} holds other targets: {differing(there, facts)}; give another directory")


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs in two descriptions, in words."""
    pairs = [(name, there.get(name), here.get(name)) for name in here if name != "data"]
    theirs, ours = (values.get("data") for values in (there, here))
    if isinstance(theirs, dict) and isinstance(ours, dict):
        pairs += [(name, theirs.get(name), ours.get(name)) for name in {**ours, **theirs}]
    lines = [f"{name} is {_short(was)} there and {_short(now)} here" for name, was, now in pairs if was != now]
    return listed(lines, 3) or "their description differs"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def facts_of(
    kind: TargetKind,
    args: TrainingArguments,
    seed: int | None,
    teacher_dtype: torch.dtype | None,
    attention: str | None,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """What targets depend on besides the checkpoint, as JSON values.

    Args:
        kind: of the targets.
        args: of the student's trainer.
        seed: of the samples, if they are sampled.
        teacher_dtype: in which the teacher's weights are, if it is not that of the checkpoint.
        attention: of the teacher, if it has a name.
        data: that they are of.
    """
    parts = args.gradient_accumulation_steps * args.world_size
    facts = {
        "targets": kind.name,
        "temperature": kind.temperature,
        "number": kind.number,
        "seed": seed,
        "batch_size": args.per_device_train_batch_size * parts,
        "micro_batches": parts,
        "processes": args.world_size,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "teacher_dtype": None if teacher_dtype is None else str(teacher_dtype),
        "device": args.device.type if kind.is_exact else None,
        "attention": attention if kind.is_exact else None,
        "data": data,
    }
    return json_object(to_json(facts)) or {}
