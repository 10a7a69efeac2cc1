"""Batches of training data as a function of the step, and evaluation data in batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Trainer

from common.distillation.dataset_source import DatasetSource, collator_of
from common.distillation.losses import IGNORED_LABEL
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
    """Evaluation data in batches like those of a `Source`; processes take them in turn."""

    batches: Sequence[Any]


class Share:
    """A process's part of evaluation data; processes take its batches in turn.

    Args:
        batches: all of them; `batches[i]` is one, for i below their number.
        process: index of the process.
        processes: number of processes.
        even: whether each process gets equally many batches; what some lack are batches without labels.
    """

    def __init__(self, batches: Any, process: int, processes: int, even: bool) -> None:
        self._batches = batches
        end = math.ceil(len(batches) / processes) * processes if even else len(batches)
        self._numbers = range(process, end, processes)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in self._numbers:
            if i < len(self._batches):
                yield batch_tensors(self._batches[i])
            else:
                batch = batch_tensors(self._batches[0])
                yield {**batch, "labels": torch.full_like(batch["labels"], IGNORED_LABEL)}


class SourceLoader:
    """A source's batches, split into micro-batches, from the trainer's current step on.

    The next batch is made while the model computes. Those of a `DatasetSource`, which may draw random numbers, are made
    by worker processes or, without any (`dataloader_num_workers` 0), between the model's steps.

    A global batch is split into equal parts, one for each gradient accumulation step and process.
    """

    def __init__(self, source: Source, trainer: Trainer) -> None:
        self._source, self._trainer = source, trainer

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        args = self._trainer.args
        size = args.per_device_train_batch_size
        total = self._trainer.get_total_train_batch_size(args)
        for batch in self._batches(range(self._trainer.state.global_step, self._trainer.state.max_steps)):
            if any(len(tensor) != total for tensor in batch.values()):
                raise UserError(f"the source gives batches of {len(batch['labels'])} samples, not {total}")
            for i in range(args.gradient_accumulation_steps):
                start = (i * args.world_size + args.process_index) * size
                yield {name: tensor[start : start + size] for name, tensor in batch.items()}

    def _batches(self, steps: range) -> Iterator[dict[str, Tensor]]:
        if isinstance(self._source, DatasetSource):
            yield from map(self._pinned, self._source.batches(steps, self._trainer.args))
            return
        with ThreadPoolExecutor(1, "batches") as thread:
            following = thread.submit(self._batch, steps.start)
            for step in steps:
                batch = following.result()
                if step + 1 < steps.stop:
                    following = thread.submit(self._batch, step + 1)
                yield batch

    def _batch(self, step: int) -> dict[str, Tensor]:
        return self._pinned(batch_tensors(self._source.batch(step)))

    def _pinned(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch, in pinned memory if it is for a GPU."""
        if self._trainer.args.device.type == "cuda":
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch


def is_source(dataset: Any) -> bool:
    """Whether training data is a `Source`. A dataset may also have a `batch`, with another meaning."""
    return hasattr(dataset, "batch") and not hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


def source_of(trainer: Trainer) -> Source:
    """A trainer's training data as a `Source`.

    Raises:
        UserError: it is not a dataset, has fewer samples than a batch, or the sampling strategy is not supported.
    """
    dataset: Any = trainer.train_dataset
    args = trainer.args
    if is_source(dataset):
        return dataset
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise UserError(f'train_sampling_strategy {args.train_sampling_strategy}: give "random" or "sequential"')
    seed = args.seed if args.data_seed is None else args.data_seed
    size, shuffle = trainer.get_total_train_batch_size(args), args.train_sampling_strategy == "random"
    return DatasetSource(dataset, collator_of(trainer, "training"), size, seed, shuffle)


def batch_tensors(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch (a mapping or a dataclass) by name."""
    return dict(batch) if isinstance(batch, Mapping) else dict(vars(batch))


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch whose tensors are on the device; what else it has stays."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
