"""Batches of training data as a function of the step, and evaluation data in batches."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from transformers import Trainer

from common.errors import UserError


class Source(Protocol):
    """Training data as a function of the step, so that a run can resume anywhere without reading earlier batches.

    Unlike a dataset it has no `__getitem__` and no `__iter__`.
    """

    def batch(self, step: int) -> Any:
        """The global batch of step `step` (from 0): tensors of shape (samples, ...) by the names of the model's
        arguments, and `labels`, as a mapping or as the fields of a dataclass."""


@dataclass(frozen=True)
class ReadyBatches:
    """Evaluation data in batches, each like a `Source`'s; processes take them in turn."""

    batches: Sequence[Any]


class SourceLoader:
    """A source's batches in micro-batches, from the trainer's step on; the next one is made while the model computes.

    A global batch is cut into equal parts, one for each gradient accumulation step and process.
    """

    def __init__(self, source: Source, trainer: Trainer) -> None:
        self._source, self._trainer = source, trainer

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        args = self._trainer.args
        size = args.per_device_train_batch_size
        total = self._trainer.get_total_train_batch_size(args)
        with ThreadPoolExecutor(1, "batches") as thread:
            steps = range(self._trainer.state.global_step, self._trainer.state.max_steps)
            following = thread.submit(self._batch, steps.start)
            for step in steps:
                batch = following.result()
                if step + 1 < steps.stop:
                    following = thread.submit(self._batch, step + 1)
                if any(len(tensor) != total for tensor in batch.values()):
                    raise UserError(f"the source gives batches of {len(batch['labels'])} samples, not of {total}")
                for i in range(args.gradient_accumulation_steps):
                    start = (i * args.world_size + args.process_index) * size
                    yield {name: tensor[start : start + size] for name, tensor in batch.items()}

    def _batch(self, step: int) -> dict[str, Tensor]:
        """In pinned memory if it is for a GPU."""
        batch = batch_tensors(self._source.batch(step))
        if self._trainer.args.device.type == "cuda":
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch


def is_source(dataset: Any) -> bool:
    """Whether training data is a `Source`. A dataset may have a `batch`, too, which is something else."""
    return hasattr(dataset, "batch") and not hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


def batch_tensors(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch, a mapping or a dataclass, by name."""
    return dict(batch) if isinstance(batch, Mapping) else dict(vars(batch))
