"""Any dataset as a `Source` of training batches, and as evaluation batches.

A map-style dataset is reshuffled in every epoch, by a permutation that depends on the seed and the epoch only. A
streaming dataset keeps its order and starts again when it ends. Every sample is used once per epoch; the last batch of
an epoch is filled up from the next one. All processes read the same batches, and each takes its part.

Random numbers that are drawn while samples are read and collated, such as those for masks, depend on the seed and the
step only, so resumed training draws the same ones. Afterwards, the generators of Python, NumPy and torch continue as if
nothing had been drawn. Dropout uses them too, so this must not happen in another thread.
"""

import copy
import itertools
import json
import math
import random
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from common.errors import UserError
from common.teachers.objective import class_of

READING, COLLATING, EVALUATING = range(3)
"""What random numbers are drawn for."""


@dataclass(frozen=True)
class Collator:
    """A data collator that receives the columns that a model takes, as in a Trainer, and must make labels."""

    collate: Callable[[list[Any]], Mapping[str, Any]]
    columns: Collection[str] | None
    """Arguments of the model and names of labels; None keeps all columns."""
    model: str
    """Name of the model's class."""
    data: str
    """What the data is for, for errors."""

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Make a batch from samples.

        Raises:
            UserError: no column is an argument of the model, collation fails, or the batch has no labels.
        """
        advice = "give a data_collator that pads and makes labels, such as DataCollatorForLanguageModeling"
        if self.columns is not None and isinstance(rows[0], Mapping):
            names = ", ".join(map(str, rows[0]))
            rows = [{name: value for name, value in row.items() if name in self.columns} for row in rows]
            if not rows[0]:
                raise UserError(
                    f"the {self.data} data has the columns {names}, none of which {self.model} takes: tokenize it, for "
                    "example with its map method"
                )
        try:
            batch = dict(self.collate(list(rows)))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"the {self.data} data cannot be collated ({error}): {advice}") from error
        if batch.get("labels") is None:
            found = ", ".join(batch)
            raise UserError(f"the {self.data} data has no labels, only {found} after collation: {advice}")
        return batch


class DatasetSource:
    """Batches of any dataset as a function of the step.

    Args:
        dataset: map-style or streaming.
        collate: makes a batch from samples; must depend on them and the global random number generators only.
        size: samples per batch.
        seed: for the order of a map-style dataset and for the random numbers.
        shuffle: whether to shuffle a map-style dataset.

    Raises:
        UserError: it is not a dataset, or has fewer samples than a batch.
    """

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], dict[str, Any]], size: int, seed: int, shuffle: bool = True
    ) -> None:
        streams = is_streaming(dataset)
        self._samples = _Stream(dataset, size) if streams else _Shuffled(dataset, size, seed, shuffle)
        self.stream = dataset if streams else None
        """The dataset, if it is a streaming one."""
        self._collate, self._seed = collate, seed
        self._latest: tuple[int, dict[str, Any]] | None = None
        self._is_checked = False

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of step `step`, from 0; those of a stream must be taken in order, or the latest again.

        Raises:
            UserError: as for `Collator`, or the batch depends on anything other than the samples and the global random
                number generators.
        """
        if self._latest is None or self._latest[0] != step:
            batch = self._make(step)
            if not self._is_checked and checksum(batch) != checksum(self._make(step)):
                raise UserError(
                    "the data collator makes a different batch when called again: it must not have its own generator "
                    "or seed, or a run could not resume"
                )
            self._latest, self._is_checked = (step, batch), True
        return self._latest[1]

    def batches(self, steps: range, args: TrainingArguments) -> Iterator[dict[str, Any]]:
        """Consecutive batches; those of a map-style dataset are made by worker processes, if there are any.

        Args:
            steps: of the batches.
            args: has the arguments of a torch DataLoader.
        """
        if isinstance(self._samples, _Stream) or not args.dataloader_num_workers:
            yield from map(self.batch, steps)
        else:
            yield from DataLoader(
                cast(Any, _BySteps(self)),
                batch_size=None,
                sampler=steps,
                generator=torch.Generator(),  # by default it would draw from dropout's
                num_workers=args.dataloader_num_workers,
                prefetch_factor=args.dataloader_prefetch_factor,
                multiprocessing_context=args.dataloader_multiprocessing_context,
            )

    def position(self, step: int) -> dict[str, Any]:
        """JSON values with which `restore` continues at a step: the next one, or the latest that was taken."""
        return {"checksum": checksum(self.batch(step)), **self._samples.position()}

    def restore(self, step: int, position: Mapping[str, Any]) -> None:
        """Continue at a step.

        A stream continues from its own saved state if it then gives the same samples. Streams that do not save their
        shuffle buffer do not, and are reread from the beginning of the epoch.

        Raises:
            UserError: the data is not the same as when the position was saved.
        """
        for reread in (False, True):
            with reproducible(self._seed, step, READING):
                self._samples.seek(position, reread)
            self._latest = None
            if checksum(self.batch(step)) == position.get("checksum"):
                return
        raise UserError(
            f"the training data at step {step:,} differs from before: give the same dataset (with a seed, if it is "
            "shuffled), data collator, batch size and seed, or start over with --force"
        )

    def _make(self, step: int) -> dict[str, Any]:
        with reproducible(self._seed, step, READING):
            rows = self._samples.read(step)
        with reproducible(self._seed, step, COLLATING):
            batch = self._collate(rows)
        for name, value in batch.items():
            if not isinstance(value, Tensor) or value.shape[:1] != (len(rows),):
                raise UserError(
                    f"{name} of the training data is not a tensor with a row for each of {len(rows)} samples after "
                    "collation: give a data_collator that makes one, for example by padding"
                )
        return batch


def collator_of(trainer: Trainer, data: str) -> Collator:
    """A trainer's data collator, which receives the columns that the model takes, or all if the trainer keeps them."""
    trainer._set_signature_columns_if_needed()
    columns = trainer._signature_columns if trainer.args.remove_unused_columns else None
    return Collator(trainer.data_collator, columns, class_of(trainer.model).__name__, data)


@dataclass(frozen=True)
class _BySteps:
    """A dataset of batches by step, for a torch DataLoader."""

    source: DatasetSource

    def __getitem__(self, step: int) -> dict[str, Any]:
        return self.source.batch(step)


class _Shuffled:
    """Samples of a map-style dataset, in a different order in each epoch."""

    def __init__(self, dataset: Any, size: int, seed: int, shuffle: bool) -> None:
        if len(dataset) < size:
            raise UserError(f"the training data has {len(dataset)} samples, fewer than a batch of {size}")
        self._dataset, self._size, self._seed, self._shuffle = dataset, size, seed, shuffle
        self._orders: dict[int, np.ndarray] = {}

    def read(self, step: int) -> list[Any]:
        numbers = range(step * self._size, (step + 1) * self._size)
        places = [divmod(number, len(self._dataset)) for number in numbers]
        if self._shuffle:
            kept, epochs = self._orders, {epoch for epoch, _ in places}
            self._orders = {epoch: kept[epoch] if epoch in kept else self._order(epoch) for epoch in epochs}
            places = [(epoch, int(self._orders[epoch][i])) for epoch, i in places]
        return samples_at(self._dataset, [i for _, i in places])

    def position(self) -> dict[str, Any]:
        return {}

    def seek(self, position: Mapping[str, Any], reread: bool) -> None:
        pass

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], np.uint64)))
        return generator.permutation(len(self._dataset))


class _Stream:
    """Samples of a streaming dataset, read in order."""

    def __init__(self, dataset: Any, size: int) -> None:
        self._dataset, self._size = dataset, size
        self._is_stateful = hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")
        self._beginning = copy.deepcopy(dataset.state_dict()) if self._is_stateful else None
        self._step = -1
        self._rows: list[Any] = []
        self._epoch, self._number = 0, 0
        self._iterator: Iterator[Any] | None = None
        self._before: dict[str, Any] = {}

    def read(self, step: int) -> list[Any]:
        """Copies, as a collator may change samples."""
        if step != self._step:
            state = copy.deepcopy(self._dataset.state_dict()) if self._is_stateful and self._iterator else None
            self._before = {"epoch": self._epoch, "number": self._number, "state": state}
            self._rows = [self._next() for _ in range(self._size)]
            self._step = step
        return [copy.copy(row) for row in self._rows]

    def position(self) -> dict[str, Any]:
        """The position before the latest batch; without a state if that does not survive a round trip through JSON."""
        try:
            survives = json.loads(json.dumps(self._before)) == self._before
        except TypeError:
            survives = False
        return self._before if survives else {**self._before, "state": None}

    def seek(self, position: Mapping[str, Any], reread: bool) -> None:
        self._step = -1
        state, number = None if reread else position.get("state"), position.get("number", 0)
        self._start(position.get("epoch", 0), state)
        if state is None:
            for _ in itertools.islice(self._iterator or (), number):
                pass
        self._number = number

    def _next(self) -> Any:
        if self._iterator is None:
            self._start(self._epoch)
        for row in self._iterator or ():
            self._number += 1
            return row
        if self._number < self._size:
            raise UserError(
                f"the training stream has {self._number} samples in epoch {self._epoch}, fewer than a batch of "
                f"{self._size}: give more, in a dataset that can be iterated over repeatedly"
            )
        self._start(self._epoch + 1)
        return self._next()

    def _start(self, epoch: int, state: Any = None) -> None:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        if self._is_stateful:
            self._dataset.load_state_dict(copy.deepcopy(self._beginning if state is None else state))
        self._iterator, self._epoch, self._number = iter(self._dataset), epoch, 0


class EvaluationBatches:
    """The batches of a map-style dataset, the same whenever they are made."""

    def __init__(self, dataset: Any, trainer: Trainer) -> None:
        self._dataset, self._collate = dataset, collator_of(trainer, "evaluation")
        self._size = trainer.args.per_device_eval_batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._dataset) / self._size)

    def __getitem__(self, i: int) -> dict[str, Any]:
        indices = range(i * self._size, min((i + 1) * self._size, len(self._dataset)))
        with reproducible(0, i, EVALUATING):
            return self._collate(samples_at(self._dataset, list(indices)))


@contextmanager
def reproducible(*key: int) -> Iterator[None]:
    """Seed Python, NumPy and torch on the CPU from the key; their states are restored afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = np.random.SeedSequence(key).generate_state(3)
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1])  # noqa: NPY002
        torch.default_generator.manual_seed(int(words[2]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def is_streaming(dataset: Any) -> bool:
    """Whether a dataset can only be iterated over.

    Raises:
        UserError: it is not a dataset.
    """
    if not isinstance(dataset, Mapping | str):
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return True
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            return False
        if hasattr(dataset, "__iter__"):
            return True
    splits = f" of {', '.join(map(str, dataset))}: give one of them" if isinstance(dataset, Mapping) else ""
    raise UserError(f"{type(dataset).__name__}{splits or ' is neither a dataset nor a Source'}")


def samples_at(dataset: Any, indices: list[int]) -> list[Any]:
    """Samples of a map-style dataset, fetched at once if it supports that."""
    fetch = getattr(dataset, "__getitems__", None)
    return list(fetch(indices)) if fetch else [dataset[i] for i in indices]


def checksum(batch: Mapping[str, Any]) -> int:
    """A checksum of the names and values of a batch."""
    total = 0
    for name, value in sorted(batch.items()):
        content = repr((name, tuple(value.shape)) if isinstance(value, Tensor) else (name, value)).encode()
        if isinstance(value, Tensor):
            content += value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        total = zlib.crc32(content, total)
    return total
