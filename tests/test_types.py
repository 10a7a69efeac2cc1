"""The public names have types that a caller's mypy knows."""

import subprocess
import sys

import pytest

from tests.commands import ROOT

PROGRAM = """
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import TrainingArguments

from common.distillation.choosing import choose_schedule
from common.distillation.losses import distillation_loss, teacher_probabilities
from common.distillation.schedules import Segment, ce_only, checkpoint_at, next_checkpoint, progressive
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.teachers.discovery import Checkpoint, find_checkpoints
from common.teachers.loading import Teachers


def load(path: Path) -> nn.Module:
    return nn.Linear(2, 2)


def train(model: nn.Module, args: TrainingArguments, directory: Path) -> torch.Tensor:
    schedule, choice = choose_schedule(directory, every=10)
    trainer = ProgressiveDistillationTrainer(model, args, teacher=directory, schedule=schedule, alpha=0.5)
    trainer.train()
    reveal_type(schedule)
    reveal_type(choice)
    checkpoints: Sequence[Checkpoint] = find_checkpoints("org/name", pattern="step(?P<step>[0-9]+)")
    teachers = Teachers(checkpoints, load)
    plan: list[Segment] = progressive([1, 2], every=3) or ce_only()
    teacher = teachers.load(checkpoint_at(plan, 0), next_checkpoint(plan, 0), "cpu")
    reveal_type(teacher)
    reveal_type(teachers.load(1))
    logits = model(torch.zeros(1, 2))
    if teacher is None:
        return logits
    return distillation_loss(logits, torch.zeros(1), teacher_probabilities(teacher(logits), 1.0))


ProgressiveDistillationTrainer(nn.Linear(1, 1), TrainingArguments("out"), objective="shifted")
ProgressiveDistillationTrainer(nn.Linear(1, 1), TrainingArguments("out"), prefetch="no")
"""
REVEALED = [
    'Revealed type is "list[common.distillation.schedules.Segment]"',
    'Revealed type is "common.distillation.choosing.Choice"',
    'Revealed type is "torch.nn.modules.module.Module | None"',
    'Revealed type is "torch.nn.modules.module.Module"',
]


@pytest.mark.slow
def test_a_caller_s_program_is_checked(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    # mypy's own cache has the packages once they were checked
    options = ["--config-file", ROOT / "pyproject.toml", "--no-error-summary"]
    words = [sys.executable, "-m", "mypy", *options, tmp_path / "program.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if "program.py" in line]
    notes = [line.split("note: ")[1] for line in lines if "note: Revealed" in line]
    assert notes == REVEALED, done.stdout + done.stderr
    errors = [line for line in lines if "error:" in line]
    assert len(errors) == 2, done.stdout
    assert all(word in line for word, line in zip(("objective", "prefetch"), errors, strict=True))
