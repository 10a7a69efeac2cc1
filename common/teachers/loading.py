"""Teachers in memory."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import nn

from common.distillation.labelled_head import LabelledHead
from common.distillation.schedules import Segment, checkpoint_at
from common.teachers.discovery import Checkpoint, local_path


@dataclass(frozen=True)
class Teacher:
    """A frozen checkpoint in use."""

    step: int
    model: nn.Module
    head: "LabelledHead | None"


class Teachers:
    """Frozen checkpoints, one in use and the next on its way: it is loaded into the host's memory in a thread.

    Args:
        checkpoints: all that may be asked for.
        load: makes a model from a checkpoint's directory.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], load: Callable[[Path], nn.Module]) -> None:
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in checkpoints}
        self._load = load
        self._thread = ThreadPoolExecutor(1, "teacher")
        self._current: Teacher | None = None
        self._coming: tuple[int, Future[nn.Module]] | None = None

    @property
    def steps(self) -> set[int]:
        """Teacher steps that may be asked for."""
        return set(self._checkpoints)

    def at(self, schedule: Sequence[Segment], step: int, device: torch.device) -> Teacher | None:
        """The teacher of student step `step`; None without one. The one before is freed first.

        Raises:
            Exception: whatever went wrong when it was loaded.
        """
        wanted = checkpoint_at(schedule, step)
        if wanted is None:
            return None
        if self._current is None or self._current.step != wanted:
            self._current = None
            model = self._loaded(wanted).to(device).eval().requires_grad_(False)
            self._current = Teacher(wanted, model, LabelledHead.of(model))
            later = [segment.checkpoint for segment in schedule if segment.start > step]
            if later:
                self._coming = later[0], self._start(later[0])
        return self._current

    def release(self) -> None:
        """Free all models, once none is being loaded: `from_pretrained` keeps every model that is made meanwhile, in
        any thread, from being initialised."""
        if self._coming is not None:
            wait([self._coming[1]])
        self._current = self._coming = None

    def _loaded(self, step: int) -> nn.Module:
        coming, self._coming = self._coming, None
        return (coming[1] if coming is not None and coming[0] == step else self._start(step)).result()

    def _start(self, step: int) -> "Future[nn.Module]":
        return self._thread.submit(lambda: self._load(local_path(self._checkpoints[step])))
