"""Training data by the step."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from common.distillation.trainer import ProgressiveDistillationTrainer
from common.errors import UserError


class Source(Protocol):
    """Training data as a function of the step, so that a run can go on anywhere without reading what went before.

    It is told from a dataset by having neither samples (`__getitem__`) nor an order (`__iter__`).
    """

    def batch(self, step: int) -> Any:
        """The global batch of step `step` (from 0): tensors of shape (sentences, ...) by the names of the model's
        arguments, with `labels`, as a mapping or as the fields of a dataclass."""


@dataclass(frozen=True)
class ReadyBatches:
    """Evaluation data that is already in batches, each like a `Source`'s; processes take them in turn."""

    batches: Sequence[Any]


class _SourceLoader:
    """Parts of a source's batches, from the trainer's step on; the next batch is made while the model computes.

    A global batch is cut into one part for each gradient accumulation step and process; all are of one size.
    """

    def __init__(self, source: Source, trainer: ProgressiveDistillationTrainer) -> None:
        self._source, self._trainer = source, trainer

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        args = self._trainer.args
        size = args.per_device_train_batch_size
        total = self._trainer.get_total_train_batch_size(args)
        with ThreadPoolExecutor(1, "batches") as thread:
            steps = range(self._trainer.state.global_step, self._trainer.state.max_steps)
            coming = thread.submit(self._batch, steps.start)
            for step in steps:
                batch = coming.result()
                if step + 1 < steps.stop:
                    coming = thread.submit(self._batch, step + 1)
                if any(len(tensor) != total for tensor in batch.values()):
                    raise UserError(f"the source gives batches of {len(batch['labels'])} samples, not of {total}")
                for i in range(args.gradient_accumulation_steps):
                    start = (i * args.world_size + args.process_index) * size
                    yield {name: tensor[start : start + size] for name, tensor in batch.items()}

    def _batch(self, step: int) -> dict[str, Tensor]:
        """In memory from which a GPU can copy by itself, if it is for one."""
        batch = _tensors(self._source.batch(step))
        if self._trainer.args.device.type == "cuda":
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch


def _is_source(dataset: Any) -> bool:
    """Whether data comes by the step; a dataset's `batch`, where it has one, is something else."""
    return hasattr(dataset, "batch") and not hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


def _tensors(batch: Any) -> dict[str, Tensor]:
    """A batch's tensors by name."""
    return dict(batch) if isinstance(batch, Mapping) else dict(vars(batch))
