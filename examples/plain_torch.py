"""Progressive distillation in your own training loop, with your own modules.

    python examples/plain_torch.py

A teacher learns the parity of 3 of 12 bits and saves its state as it goes. Three smaller students learn from the
labels, from its final state and from its successive states, respectively.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.cli import command
from common.distillation.losses import distillation_loss, teacher_probabilities
from common.distillation.schedules import (
    Segment,
    ce_only,
    checkpoint_at,
    next_checkpoint,
    one_shot,
    progressive,
)
from common.teachers.discovery import Checkpoint
from common.teachers.loading import Teachers

BITS, RELEVANT = 12, 3


def network(width: int) -> nn.Module:
    """A model of any kind."""
    return nn.Sequential(nn.Linear(BITS, width), nn.ReLU(), nn.Linear(width, 2))


def make_batch(step: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Bits of -1 and 1, and the parity of the first ones."""
    bits = torch.randint(2, (size, BITS), generator=torch.Generator().manual_seed(step))
    return (2.0 * bits - 1).to(device), (bits[:, :RELEVANT].sum(1) % 2).to(device)


def train_teacher(directory: Path, width: int, steps: int, every: int, device: str) -> list[Checkpoint]:
    """Learn from the labels, and save a file per checkpoint."""
    model = network(width).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    checkpoints = []
    directory.mkdir(parents=True, exist_ok=True)
    for step in range(1, steps + 1):
        inputs, labels = make_batch(step, 64, device)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if step % every == 0:
            checkpoints.append(Checkpoint(step, directory / f"{step}.safetensors"))
            save_file(model.state_dict(), directory / f"{step}.safetensors")
    return checkpoints


def train_student(
    student: nn.Module, teachers: Teachers, schedule: Sequence[Segment], steps: int, device: str
) -> nn.Module:
    """Learn from the checkpoint that the schedule names for each step, or from the labels if it names none."""
    student.to(device)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(steps):
        inputs, labels = make_batch(10**6 + step, 64, device)
        logits = student(inputs)
        teacher = teachers.load(checkpoint_at(schedule, step), next_checkpoint(schedule, step), device)
        if teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            targets = teacher_probabilities(teacher(inputs), temperature=1.0)
            loss = distillation_loss(logits, labels, targets, alpha=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


def main(
    directory: Path = Path("runs/plain_torch"),
    width: int = 256,
    student_width: int = 16,
    steps: int = 1000,
    every: int = 100,
    device: str = "cpu",
) -> None:
    """Train a teacher and three students of it.

    Args:
        directory: for the teacher's checkpoints.
        width: of the teacher.
        student_width: of the students.
        steps: of each training.
        every: steps between checkpoints of the teacher, and steps per checkpoint of the student.
        device: of all models.
    """

    def load(path: Path) -> nn.Module:
        """Your own module; the file may be in any format."""
        model = network(width)
        model.load_state_dict(load_file(path))
        return model

    torch.manual_seed(0)
    checkpoints = train_teacher(directory, width, steps, every, device)
    saved = [checkpoint.step for checkpoint in checkpoints]
    schedules = {"labels": ce_only(), "final teacher": one_shot(saved), "progressive": progressive(saved, every)}
    inputs, labels = make_batch(0, 4096, device)
    for name, schedule in schedules.items():
        torch.manual_seed(1)
        teachers = Teachers(checkpoints, load)
        student = train_student(network(student_width), teachers, schedule, steps, device)
        accuracy = (student(inputs).argmax(-1) == labels).float().mean().item()
        print(f"{name:13}  accuracy {accuracy:.3f}")


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
