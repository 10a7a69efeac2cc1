"""Teacher checkpoints in memory: the one in use, and the next one, which is loaded in the background."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from common.errors import UserError
from common.teachers.discovery import Checkpoint, local_path


class Teachers:
    """Frozen checkpoints, of which at most two are in memory: one in use and one loaded in a thread ahead of its use.

    Args:
        checkpoints: all that may be asked for.
        load: makes a model from a checkpoint's directory.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], load: Callable[[Path], nn.Module]) -> None:
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in checkpoints}
        self._load = load
        self._thread = ThreadPoolExecutor(1, "teacher")
        self._current: tuple[int, nn.Module] | None = None
        self._prefetched: tuple[int, Future[nn.Module]] | None = None

    @property
    def steps(self) -> set[int]:
        """Teacher steps that may be asked for."""
        return set(self._checkpoints)

    @property
    def current_step(self) -> int | None:
        """Teacher step of the checkpoint in use."""
        return self._current and self._current[0]

    def load(self, step: int, then: int | None, device: torch.device) -> nn.Module:
        """The checkpoint of teacher step `step`, frozen and in evaluation mode; the previous one is freed first.

        Args:
            step: teacher step.
            then: teacher step that is asked for next; its checkpoint is loaded into host memory meanwhile.
            device: of the model.

        Raises:
            Exception: any error of loading the checkpoint, unchanged.
        """
        if self._current is None or self._current[0] != step:
            self._current = None
            self._current = step, self._loaded(step).to(device).eval().requires_grad_(False)
            if then is not None:
                self._prefetched = then, self._start_loading(then)
        return self._current[1]

    def release(self) -> None:
        """Free all models, after waiting for one that is being loaded: while `from_pretrained` runs in any thread,
        models created in the other threads are not initialised."""
        if self._prefetched is not None:
            wait([self._prefetched[1]])
        self._current = self._prefetched = None

    def _loaded(self, step: int) -> nn.Module:
        prefetched, self._prefetched = self._prefetched, None
        is_prefetched = prefetched is not None and prefetched[0] == step
        return (prefetched[1] if prefetched and is_prefetched else self._start_loading(step)).result()

    def _start_loading(self, step: int) -> "Future[nn.Module]":
        return self._thread.submit(lambda: self._load(local_path(self._checkpoints[step])))


def load_like(student: nn.Module, path: Path) -> nn.Module:
    """A checkpoint as a model of the student's class, with its attention implementation and dtype.

    Raises:
        UserError: the student's class has no `from_pretrained`.
    """
    if not isinstance(student, PreTrainedModel):
        raise UserError(f"{type(student).__name__} has no from_pretrained: give load_teacher")
    attention = student.config._attn_implementation
    # Loaded in float32: from_pretrained sets torch's default dtype, also for the thread that trains.
    teacher: nn.Module = type(student).from_pretrained(path, dtype=torch.float32, attn_implementation=attention)
    return teacher.to(student.dtype)
