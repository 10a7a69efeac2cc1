"""A teacher's targets on the disk: computed once, for students of any size that then need no teacher in memory.

    DIR/
      targets.json                                          what the targets depend on
      checkpoint-<step>-<first>-<stop>[-<p>].safetensors    a shard

A shard holds the targets of one checkpoint at the training steps from `first` to before `stop`; those of process p if
there are several. Targets that exist are read, a shard at a time; missing ones are computed by the teacher and added. A
shard is written at once, under its final name, and never changes, so any number of commands may read and write one
cache, and a killed one loses what it had not written yet. Since samples are a function of the seed, the step and the
micro-batch, targets that are computed again are the same.

A shard belongs to a teacher's checkpoint, identified by its digest, and to the entries of targets.json; each of its
micro-batches to inputs and labelled positions, by a hash of them. Anything else is refused.
"""

import fcntl
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import TrainingArguments

from common.distillation.arguments import TARGET_SAMPLES, Targets
from common.distillation.labelled_head import LabelledOutput
from common.distillation.losses import LossArguments
from common.distillation.target_description import DESCRIPTION, described, differing, facts_of, require_same
from common.distillation.target_shards import (
    MOST_SHARD,
    REMOVE,
    SHARD_BYTES,
    Shard,
    StoredBatches,
    damaged,
    read_metadata,
    read_shard,
    shard_content,
)
from common.distillation.targets import Stored, TargetKind, encode, kind_of
from common.errors import UserError
from common.resources import size_text
from common.runs.files import NUMBER, digest_of, make_directory, open_lock, require_regular, write_file

MOST_BATCHES = 1 << 12
"""Micro-batches of a shard."""
KEPT_BYTES = 1 << 28
"""Of shards that stay in memory, unless one alone is larger: the latest one of each checkpoint, as students that are
trained together may learn from several."""
LOCK = ".targets.lock"
NAME = re.compile(f"checkpoint-{NUMBER}-{NUMBER}-{NUMBER}(?:-{NUMBER})?\\.safetensors")
OWN_NAME = re.compile(f"{NAME.pattern}|{re.escape(LOCK)}|\\..*\\.unfinished")


@dataclass(frozen=True)
class Place:
    """Where targets belong."""

    checkpoint: int
    """Teacher step."""
    digest: str
    """Of the checkpoint."""
    step: int
    """Training step, from 0."""
    part: int
    """Number of the process's micro-batch."""
    batch: bytes
    """From `batch_hash`."""
    positions: int
    """Number of labelled positions."""
    classes: int | None = None
    """That student and teacher share; None if that is not known."""


class TargetCache:
    """The targets of one teacher's checkpoints on one stream of batches.

    Args:
        directory: of the cache; created when the first targets are written.
        targets: exact: whatever the loss depends on, for results that are bit-identical to those with the teacher;
            sampled: classes drawn from the teacher's probabilities; top-k: the most probable ones.
        samples: of each position, if they are sampled.
        seed: of the samples, from 0 to below 2^64.
        data: JSON values that identify the data and its order. Without them, other data is noticed at its first batch.

    Raises:
        UserError: there are no such targets, or the seed is out of range.
    """

    def __init__(
        self,
        directory: Path | str,
        targets: Targets = "exact",
        samples: int = TARGET_SAMPLES,
        seed: int = 0,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        if targets not in get_args(Targets):
            raise UserError(f"targets must be one of {', '.join(get_args(Targets))}; got {targets!r}")
        if not 0 <= seed < 1 << 64:
            raise UserError(f"the seed of the targets must be from 0 to below 2^64, got {seed}")
        self.directory = Path(directory)
        self._targets: Targets = targets
        self._samples, self._seed, self._data = samples, seed, dict(data or {})
        self._kind: TargetKind | None = None
        self._facts: dict[str, Any] = {}
        self._process = ""
        self._weights: dict[int, str] = {}
        """Digests of all values of the weights from which the targets of each checkpoint are."""
        self._index: dict[int, list[tuple[range, Path]]] = {}
        """Training steps and files of the shards of each checkpoint."""
        self._read: dict[int, tuple[Path, StoredBatches]] = {}
        """The latest shard of each checkpoint."""
        self._new: dict[int, Shard] = {}
        """Targets of each checkpoint that are not on the disk."""

    @property
    def kind(self) -> TargetKind:
        """What is stored.

        Raises:
            UserError: that is not known before `prepare`.
        """
        self._require_prepared()
        assert self._kind is not None
        return self._kind

    def prepare(
        self,
        args: TrainingArguments,
        arguments: LossArguments,
        teacher_dtype: torch.dtype | None = None,
        attention: str | None = None,
        spell: Callable[[str], str] = str,
    ) -> None:
        """Say what students the targets are for; to be called for each of them, before anything else.

        Args:
            args: of the student's trainer.
            arguments: of its loss.
            teacher_dtype: in which the teacher's weights are, if it is not that of the checkpoint.
            attention: of the student, and so of a teacher of its architecture, if it has a name.
            spell: maps an argument's name to its name in messages.

        Raises:
            UserError: the loss cannot be computed from such targets, or the directory's are of something else.
        """
        kind = kind_of(self._targets, self._samples, arguments, spell)
        seed = self._seed if kind.name == "sampled" else None
        facts = facts_of(kind, args, seed, teacher_dtype, attention, self._data)
        if self._kind is None:
            _require_own_directory(self.directory)
            self._process = f"-{args.process_index}" if args.world_size > 1 else ""
            require_same(self.directory, facts)
            self._kind, self._facts = kind, facts
            self._list()
        elif facts != self._facts:
            raise UserError(f"students that share the targets in {self.directory} need {differing(self._facts, facts)}")

    def require_teacher(self, digests: Mapping[str, str], classes: int | None = None) -> None:
        """Check that shards are whole and of these checkpoints, by their headers and sizes.

        Args:
            digests: of checkpoints, by their teacher steps as text.
            classes: that student and teacher share; None if that is not known.

        Raises:
            UserError: one is of another teacher or of other classes, or damaged.
        """
        self._require_prepared()
        for checkpoint, shards in self._index.items():
            for steps, path in shards if str(checkpoint) in digests else ():
                self._require_own(path, checkpoint, steps, digests[str(checkpoint)], classes)

    def require_writable(self) -> None:
        """Check that targets can be added, without a trace in the directory, which others may be about to create.

        Raises:
            UserError: they cannot.
        """
        place = self.directory.absolute()
        existing = next(path for path in (place, *place.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing, prefix=".", suffix=".unfinished") as trial:
                trial.write(b"0")
                trial.flush()
        except OSError as error:
            raise UserError(f"no targets can be written to {self.directory} ({error.strerror})") from None

    def missing(self, spans: Iterable[tuple[int, int, int | None]]) -> int:
        """How many pairs of a checkpoint and a training step have no shard.

        Args:
            spans: first training step, the one after the last, and what supervises them; as of `schedules.spans`.
        """
        self._require_prepared()
        wanted: dict[int, set[int]] = {}
        for first, stop, checkpoint in spans:
            if checkpoint is not None and checkpoint >= 0:
                wanted.setdefault(checkpoint, set()).update(range(first, stop))
        for checkpoint, steps in wanted.items():
            first, last = min(steps, default=0), max(steps, default=0)
            for there, _ in self._index.get(checkpoint, ()):
                steps.difference_update(range(max(there.start, first), min(there.stop, last + 1)))
        return sum(map(len, wanted.values()))

    def find(self, place: Place) -> Stored | None:
        """The targets of a micro-batch; None if they are not in the cache.

        Raises:
            UserError: its shard is damaged, or the batch or the teacher is another one.
        """
        self._require_prepared()
        key = place.step, place.part
        for batches in self._batches_at(place):
            if key in batches:
                batch, stored = batches[key]
                if batch != place.batch:
                    raise UserError(
                        f"the targets in {self.directory} are of other data: the batch of step {place.step:,} differs; "
                        "give the same data, order, mask and batch size, or another directory"
                    )
                if stored.positions != place.positions:
                    raise UserError(
                        f"the targets in {self.directory} are damaged: the batch of step {place.step:,} has "
                        f"{place.positions} positions, but targets for {stored.positions}; give a new directory"
                    )
                return stored
        return None

    def add(self, place: Place, output: LabelledOutput, weights: str) -> Stored:
        """Add the teacher's output on a micro-batch; what was added before is written if it is large enough.

        Args:
            place: of the micro-batch.
            output: of the teacher there.
            weights: a digest of all values of the checkpoint's weights.

        Raises:
            UserError: the targets of one step are too large, or the directory now holds targets of something else.
            OSError: the shard cannot be written.
        """
        self._require_weights(place.checkpoint, weights, "the teacher")
        stored = encode(output, self.kind, (self._seed, place.step, self._number(place.part)))
        shard = self._shard_for(place)
        shard.add(place.step, place.part, place.batch, stored)
        if shard.nbytes > MOST_SHARD // 2:
            raise UserError(
                f"{self.kind.name} targets of {stored.classes:,} classes need more than {size_text(MOST_SHARD // 2)} "
                "for a step: sample them, or give smaller batches"
            )
        return stored

    def add_nothing(self, place: Place) -> None:
        """Keep that a micro-batch has no labelled position, or its step would count as missing.

        Raises:
            UserError, OSError: as for `add`.
        """
        if not any(place.step in steps for steps, _ in self._index.get(place.checkpoint, ())):
            self._shard_for(place).extend(place.step)

    def flush(self) -> None:
        """Write all targets that are not on the disk yet; to be called between two training steps.

        Raises:
            UserError: the directory now holds targets of something else.
            OSError: they cannot be written.
        """
        for checkpoint in list(self._new):
            self._write(checkpoint)

    def _shard_for(self, place: Place) -> Shard:
        """The shard to which a micro-batch belongs; those before it are written if they are large enough."""
        shard = self._new.get(place.checkpoint)
        if shard is None or place.step != shard.steps[-1]:  # all steps before are complete, of every checkpoint
            if sum(each.nbytes for each in self._new.values()) >= SHARD_BYTES:
                self.flush()
            elif shard is not None and (len(shard.stored) >= MOST_BATCHES or place.step != shard.steps.stop):
                self._write(place.checkpoint)
        return self._new.setdefault(place.checkpoint, Shard(place.digest, place.step))

    # Files

    def _require_prepared(self) -> None:
        if self._kind is None:
            raise UserError(f"what the targets in {self.directory} are for is not known: call prepare first")

    def _number(self, part: int) -> int:
        """Of a micro-batch, among those of all processes."""
        return part * self._facts["processes"] + int(self._process[1:] or 0)

    def _list(self) -> None:
        """Find the shards of this process."""
        self._index = {}
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else ():
            match = NAME.fullmatch(path.name)
            if match and (f"-{match[4]}" if match[4] else "") == self._process:
                checkpoint, first, stop = (int(number) for number in match.groups()[:3])
                self._index.setdefault(checkpoint, []).append((range(first, stop), path))

    def _batches_at(self, place: Place) -> Iterator[StoredBatches]:
        """What may have the targets: new ones, the shard that was read last, and others of the directory."""
        if place.checkpoint in self._new:
            yield self._new[place.checkpoint].stored
        paths = [(path, steps) for steps, path in self._index.get(place.checkpoint, ()) if place.step in steps]
        latest, stored = self._read.get(place.checkpoint, (None, {}))
        if any(path == latest for path, _ in paths):
            yield stored
        for path, steps in paths:
            if path != latest:
                metadata = self._require_own(path, place.checkpoint, steps, place.digest, place.classes)
                self._make_room(place.checkpoint, path.stat().st_size)
                self._read[place.checkpoint] = path, read_shard(path, metadata, self.kind, steps)
                yield self._read[place.checkpoint][1]

    def _make_room(self, checkpoint: int, size: int) -> None:
        """Drop the shard of a checkpoint, and those that were read first, for another one of so many bytes."""
        self._read.pop(checkpoint, None)
        while self._read and size + sum(map(_nbytes, self._read.values())) > KEPT_BYTES:
            del self._read[next(iter(self._read))]

    def _require_own(
        self, path: Path, checkpoint: int, steps: range, digest: str, classes: int | None
    ) -> dict[str, Any]:
        """The metadata of a shard, if it is of this cache and teacher."""
        metadata = read_metadata(path)
        if metadata.get("identity") != digest_of(self._facts):
            raise UserError(f"{path} does not belong to {self.directory / DESCRIPTION}: {REMOVE}")
        if metadata.get("steps") != [steps.start, steps.stop]:
            raise damaged(path)
        if metadata.get("teacher") != digest:
            raise UserError(
                f"{path} has targets of another teacher: its checkpoint of step {checkpoint:,} has changed, or is not "
                "this teacher's; give another directory"
            )
        if classes is not None and metadata["classes"] not in (0, classes):
            raise UserError(
                f"{path} has targets of {metadata['classes']:,} classes, but student and teacher share {classes:,}: "
                "give another directory"
            )
        if metadata["classes"]:
            self._require_weights(checkpoint, str(metadata.get("weights")), str(path))
        return metadata

    def _require_weights(self, checkpoint: int, weights: str, owner: str) -> None:
        """Reject targets of a checkpoint that are from other weights than those before."""
        if self._weights.setdefault(checkpoint, weights) != weights:
            raise UserError(
                f"the weights of the checkpoint of step {checkpoint:,} have changed between {owner} and other targets "
                f"in {self.directory}: give a new directory"
            )

    def _write(self, checkpoint: int) -> None:
        """Write the new targets of a checkpoint as a shard."""
        shard = self._new.pop(checkpoint)
        name = f"checkpoint-{checkpoint}-{shard.steps.start}-{shard.steps.stop}{self._process}.safetensors"
        with self._lock():
            if not (self.directory / DESCRIPTION).exists():  # this is the first writer
                write_file(self.directory / DESCRIPTION, described(self._facts))
            require_same(self.directory, self._facts)
            self._list()
            for steps, path in self._index.get(checkpoint, ()):
                self._require_own(path, checkpoint, steps, shard.digest, None)
            content = shard_content(self.kind, shard, digest_of(self._facts), self._weights.get(checkpoint, ""))
            write_file(self.directory / name, content)
        self._list()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers out, and remove what killed ones left behind."""
        make_directory(self.directory)
        with open_lock(self.directory / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in self.directory.glob(".*.unfinished"):
                if leftover.is_file():
                    leftover.unlink()
            yield


def _require_own_directory(directory: Path) -> None:
    """Reject a path that is no directory, or one with other files."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is not a directory: give another one for the targets")
    if (directory / LOCK).exists():
        require_regular(directory / LOCK)
    is_new = directory.is_dir() and not (directory / DESCRIPTION).exists()
    if others := [path.name for path in directory.iterdir() if not OWN_NAME.fullmatch(path.name)] if is_new else []:
        raise UserError(f"{directory} has other files, such as {min(others)}: give a new directory for the targets")


def _nbytes(read: tuple[Path, StoredBatches]) -> int:
    return sum(stored.nbytes for _, stored in read[1].values())
