"""Masked sentences of a grammar: token ids, masks, batches, and datasets on disk.

A sentence is BOS and the terminals that the grammar's sampler gives. Each of its positions, BOS included, is chosen
with the mask rate, independently of the others; a sentence that has all of them chosen is drawn again, so that at least
one is left to see. Of the chosen positions 80% show MASK, 10% a terminal that is uniformly random (and may be the true
one), 10% what they are; the loss is on all chosen positions. In Panigrahi et al. (2025), arXiv:2410.05464, attention is
kept from chosen positions as well, whatever they show; `hide_masked` is that switch, and changes nothing else.

The masks of sentence i of a stream depend on (seed, stream, i) alone: their bits come from Philox4x32-10 (Salmon et al.
2011, doi:10.1145/2063384.2063405) with the seed as key and the stream and i in the counter. So they are the same
however the sentences are batched, and a run can go on anywhere.

Sentences differ in length, and padding is wasted work. The training stream is therefore cut into groups of
`GROUP_BATCHES` batches; a group's sentences are ordered by length, cut into batches, and these come in a random order.
Every batch is as wide as its longest sentence.

    python data.py export --grammar cfg3b --sentences 100000 --out ../datasets/cfg3b

writes sentences as a Hugging Face dataset that `train.py --dataset` trains on.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
import tyro
from numba import njit
from numpy.typing import NDArray

from common.checkpoints import write_file
from common.errors import UserError
from common.pcfg.grammar import Grammar, load_grammar
from common.pcfg.sampler import Sentences, Stream, sample
from common.runs import command, progress

GROUP_BATCHES = 16
"""Batches whose sentences are ordered by length together."""
EVALUATION_SEED = 0
"""All runs on a grammar are evaluated on the same sentences."""
MAX_MASK_RATE = 0.99
IGNORED = -100
"""Label of the positions without a loss, as in torch and transformers."""

ROW_GROUP = 1024
"""Sentences that a dataset's reader has to decode at once."""

_MASK_STREAMS: dict[Stream, int] = {"train": 0x6D61736B, "evaluation": 0x6D61736C, "probe": 0x6D61736D}
_ORDER_STREAM = 0x6D61736E
"""Apart from the numbers that the sampler gives to streams, so that masks and order do not repeat its random bits."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TEN = np.uint64(10)
_PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_INCREMENTS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))


@dataclass(frozen=True)
class MaskedTask:
    """Masked prediction on a grammar. Token ids: the terminals, then BOS, EOS, PAD and MASK; one more is never used."""

    grammar: Grammar
    mask_rate: float = 0.3
    hide_masked: bool = True
    """Whether attention is kept from the chosen positions."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate <= MAX_MASK_RATE:
            raise UserError(f"the mask rate must be above 0 and at most {MAX_MASK_RATE}, got {self.mask_rate}")

    @property
    def terminals(self) -> int:
        return len(self.grammar.terminals)

    @property
    def bos(self) -> int:
        return self.terminals

    @property
    def eos(self) -> int:
        return self.terminals + 1

    @property
    def pad(self) -> int:
        return self.terminals + 2

    @property
    def mask(self) -> int:
        return self.terminals + 3

    @property
    def vocabulary(self) -> int:
        """Size of the embedding; 8 with three terminals, as published."""
        return self.terminals + 5


@dataclass(frozen=True)
class Batch:
    """Masked sentences; all tensors are int64, of shape (sentences, longest)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """0 at PAD and, with `hide_masked`, at chosen positions; 1 elsewhere."""
    labels: torch.Tensor
    """True token ids at chosen positions, `IGNORED` elsewhere."""


class TrainingBatches:
    """The batches of a training run; each depends on the arguments and its step alone.

    Args:
        task: what is masked, and how.
        seed: of the sentences (unless they come from a dataset), of their masks and of the order of batches.
        batch_size: sentences per batch.
        dataset: takes the place of the sampler; its groups of sentences are used in their order, each sentence once.
            The last group may have fewer batches; a rest that does not fill a batch is not used.
    """

    def __init__(self, task: MaskedTask, seed: int, batch_size: int, dataset: "SentenceDataset | None" = None) -> None:
        self._task, self._seed, self._batch_size, self._dataset = task, seed, batch_size, dataset
        self._group = -1
        self._sentences: Sentences
        self._batches: list[NDArray[np.int64]]

    def batch(self, step: int) -> Batch:
        """The batch of step `step`, from 0; cheap if the step before was of the same group.

        Raises:
            UserError: the dataset has too few sentences.
        """
        group, place = divmod(step, GROUP_BATCHES)
        if group != self._group:
            self._read(group)
        if self._dataset is not None and place >= len(self._batches):
            raise _too_few(self._dataset, (step + 1) * self._batch_size)
        first = group * GROUP_BATCHES * self._batch_size
        return mask_batch(self._task, self._seed, "train", self._sentences, first, self._batches[place])

    def _read(self, group: int) -> None:
        size = GROUP_BATCHES * self._batch_size
        if self._dataset is None:
            self._sentences = sample(self._task.grammar, self._seed, "train", group * size, size)
        else:
            left = max(len(self._dataset) - group * size, 0)
            self._sentences = self._dataset.sentences(group * size, min(size, left - left % self._batch_size))
        by_length = np.argsort(self._sentences.lengths, kind="stable").reshape(-1, self._batch_size)
        generator = np.random.Generator(np.random.Philox(key=[self._seed, _ORDER_STREAM], counter=[0, 0, 0, group]))
        self._batches = list(by_length[generator.permutation(len(by_length))])
        self._group = group


def evaluation_batches(task: MaskedTask, samples: int, batch_size: int) -> list[Batch]:
    """The held-out sentences, ordered by length; the last batch may be smaller than the others.

    They come from a stream of their own and do not depend on any run's seed; a grammar that makes few sentences, all of
    them short, makes the same ones in training of course.
    """
    sentences = sample(task.grammar, EVALUATION_SEED, "evaluation", 0, samples)
    by_length = np.argsort(sentences.lengths, kind="stable")
    starts = range(0, samples, batch_size)
    return [
        mask_batch(task, EVALUATION_SEED, "evaluation", sentences, 0, by_length[start : start + batch_size])
        for start in starts
    ]


def mask_batch(
    task: MaskedTask, seed: int, stream: Stream, sentences: Sentences, first: int, rows: NDArray[np.int64]
) -> Batch:
    """Some sentences with BOS, masked, as one batch.

    Args:
        task: what is masked, and how.
        seed: of the masks.
        stream: where the sentences are from.
        sentences: consecutive ones of the stream.
        first: place of their first one in the stream.
        rows: which of them, in the order wanted.
    """
    lengths = sentences.lengths[rows]
    shape = (len(rows), 1 + int(lengths.max(initial=0)))
    input_ids, attention_mask, labels = (np.full(shape, value, np.int64) for value in (task.pad, 0, IGNORED))
    _fill_batch(
        sentences.tokens,
        sentences.offsets[rows],
        lengths,
        (first + rows).astype(np.uint64),
        np.uint64(seed),
        np.uint64(_MASK_STREAMS[stream]),
        np.uint64(round(task.mask_rate * 2**32)),
        task.hide_masked,
        task.bos,
        task.mask,
        input_ids,
        attention_mask,
        labels,
    )
    return Batch(*(torch.from_numpy(array) for array in (input_ids, attention_mask, labels)))


@njit(cache=True, nogil=True)
def _fill_batch(  # type: ignore[no-untyped-def]
    tokens, starts, lengths, indices, key, stream, threshold, hide, bos, mask, input_ids, attention_mask, labels
):
    """Write masked sentences over PAD. A position has 64 bits: half of them choose, half say what it then shows."""
    for row in range(len(indices)):
        length = lengths[row] + 1
        block, chosen = np.uint64(0), length
        while chosen == length:
            chosen = 0
            for position in range(0, length, 2):
                words = philox(block, stream, indices[row] & _LOW, indices[row] >> _HALF, key)
                block += np.uint64(1)
                for i in range(position, min(position + 2, length)):
                    choose, show = (words[0], words[1]) if i == position else (words[2], words[3])
                    true = tokens[starts[row] + i - 1] if i > 0 else bos
                    input_ids[row, i], attention_mask[row, i], labels[row, i] = true, 1, IGNORED
                    if choose < threshold:
                        chosen += 1
                        labels[row, i] = true
                        attention_mask[row, i] = 0 if hide else 1
                        tenth, rest = (show * _TEN) >> _HALF, (show * _TEN) & _LOW
                        if tenth < 8:
                            input_ids[row, i] = mask
                        elif tenth == 8:
                            input_ids[row, i] = (rest * np.uint64(bos)) >> _HALF  # the ids below BOS are the terminals


@njit(inline="always")
def philox(a, b, c, d, key):  # type: ignore[no-untyped-def]
    """Philox4x32-10 of the counter (a, b, c, d), 32 bits each, with a key of 64 bits: four words of 32 bits.

    All are np.uint64.
    """
    left, right = key & _LOW, key >> _HALF
    for _ in range(10):
        first, second = a * _PHILOX_MULTIPLIERS[0], c * _PHILOX_MULTIPLIERS[1]
        a, b, c, d = (second >> _HALF) ^ b ^ left, second & _LOW, (first >> _HALF) ^ d ^ right, first & _LOW
        left, right = (left + _PHILOX_INCREMENTS[0]) & _LOW, (right + _PHILOX_INCREMENTS[1]) & _LOW
    return a, b, c, d


def rules_of(grammar: Grammar) -> list[str]:
    """A grammar's rules with their probabilities, each as a line of a grammar file."""
    return [f"{rule.left} -> {' '.join(rule.right)} [{rule.probability!r}]" for rule in grammar.rules]


@dataclass(frozen=True)
class SentenceDataset:
    """The training split of a dataset that `export` wrote; sentences are read when they are needed."""

    directory: Path
    files: tuple[Path, ...]
    first: tuple[int, ...]
    """Place of each file's first sentence, and the number of all sentences."""

    def __len__(self) -> int:
        return self.first[-1]

    def sentences(self, first: int, count: int) -> Sentences:
        """Sentences first .. first + count - 1, all of which must be there."""
        parts = [np.zeros(0, np.uint8)]
        lengths = [np.zeros(0, np.int64)]
        for file, (start, stop) in zip(self.files, pairwise(self.first), strict=True):
            for column, place in _row_groups(file, max(first - start, 0), min(first + count, stop) - start):
                rows = column[max(first - start - place, 0) : first + count - start - place]
                parts.append(rows.flatten().to_numpy())
                lengths.append(np.diff(rows.offsets.to_numpy()))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        return Sentences(tokens=np.concatenate(parts), offsets=offsets, ancestors=None, span_ends=None)


def open_dataset(directory: Path, grammar: Grammar, sentences: int) -> SentenceDataset:
    """A dataset to train on.

    Args:
        directory: where `export` wrote it.
        grammar: what its sentences must be of.
        sentences: how many a run will use: its steps times its batch size.

    Raises:
        UserError: not such a dataset, one of another grammar, one that is damaged, or too few sentences.
    """
    there = _read_description(directory)
    if there["grammar"] != _describe_grammar(grammar):
        raise UserError(
            f"{directory} holds sentences of {there['name']} from {there['grammar']['start']}, which is not this run's "
            f"grammar, {grammar.name} from {grammar.start}: give that --grammar and --start, or export another dataset"
        )
    files = tuple(sorted((directory / "data").glob("train-*.parquet")))
    first = [0]
    for file in files:
        try:
            first.append(first[-1] + pq.read_metadata(file).num_rows)
        except pa.ArrowInvalid as error:
            raise _damaged(file, error) from error
    if first[-1] != there["sentences"]:
        raise UserError(
            f"{directory} has {first[-1]:,} of {there['sentences']:,} sentences: remove it and export it again"
        )
    dataset = SentenceDataset(directory, files, tuple(first))
    if first[-1] < sentences:
        raise _too_few(dataset, sentences)
    return dataset


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged ({error}): remove its dataset and export it again")


def _too_few(dataset: SentenceDataset, needed: int) -> UserError:
    return UserError(
        f"{dataset.directory} has {len(dataset):,} sentences and the run needs {needed:,}, as each is used once: "
        f"export a dataset with --sentences {needed}, or give fewer --steps"
    )


@dataclass(frozen=True)
class ExportArguments:
    """Arguments of `data.py export`."""

    sentences: int
    """Sentences to train on."""
    out: Path
    """Directory of the dataset."""
    grammar: str = "cfg3b"
    """Name of a grammar, or a file that holds one."""
    start: str | None = None
    """Start symbol; by default the grammar's own."""
    validation: int = 4096
    """Held-out sentences: the first that runs are evaluated on."""
    seed: int = 0
    """Seed of the sentences to train on."""
    shard: int = 100_000
    """Sentences per file."""


def export(arguments: ExportArguments) -> None:
    """Write sentences as a Hugging Face dataset: parquet files, a dataset card, and a description for `open_dataset`.

    The sentences are those that a run with this seed draws by itself. The directory is made under a hidden name and
    renamed when it is whole.

    Raises:
        UserError: a number out of its range, no such grammar, or a place that is taken.
    """
    for name, least in (("sentences", 1), ("validation", 0), ("seed", 0), ("shard", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    if arguments.seed >= 2**63:
        raise UserError(f"--seed must be below 2^63, got {arguments.seed}")
    grammar = load_grammar(arguments.grammar, arguments.start)
    description = {
        "name": Path(grammar.name).stem,
        "grammar": _describe_grammar(grammar),
        "sentences": arguments.sentences,
        "validation": arguments.validation,
        "seed": arguments.seed,
    }
    if arguments.out.exists():
        if _read_description(arguments.out) != description:
            raise UserError(f"{arguments.out} holds another dataset: give another --out, or remove it")
        open_dataset(arguments.out, grammar, arguments.sentences)
        print(f"{arguments.out} is complete")
        return
    unfinished = arguments.out.with_name(f".{arguments.out.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    with (unfinished / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing {arguments.out}: let it end, or give another --out") from None
        shutil.rmtree(unfinished / "data", ignore_errors=True)
        (unfinished / "data").mkdir()
        splits: tuple[tuple[str, int, Stream, int], ...] = (
            ("train", arguments.seed, "train", arguments.sentences),
            ("validation", EVALUATION_SEED, "evaluation", arguments.validation),
        )
        total = arguments.sentences + arguments.validation
        with progress(total, 0, f"exporting {arguments.out.name}", 1) as show:
            done = 0
            for split, seed, stream, count in splits:
                for file, first, last in _shards(split, count, arguments.shard):
                    _write_shard(unfinished / "data" / file, grammar, seed, stream, first, last)
                    done += last - first
                    show(done)
        write_file(unfinished / "description.json", (json.dumps(description, indent=2) + "\n").encode())
        write_file(unfinished / "README.md", _card(arguments, grammar).encode())
        (unfinished / ".lock").unlink()
        os.rename(unfinished, arguments.out)
    print(arguments.out)


def _shards(split: str, sentences: int, shard: int) -> Iterator[tuple[str, int, int]]:
    """Name, first sentence and one past the last of each of a split's files."""
    count = -(-sentences // shard)
    for i in range(count):
        yield f"{split}-{i:05d}-of-{count:05d}.parquet", i * shard, min((i + 1) * shard, sentences)


def _write_shard(path: Path, grammar: Grammar, seed: int, stream: Stream, first: int, last: int) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.uint8()))])
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start in range(first, last, ROW_GROUP):
                sentences = sample(grammar, seed, stream, start, min(ROW_GROUP, last - start))
                offsets = pa.array(sentences.offsets.astype(np.int32))
                column = pa.ListArray.from_arrays(offsets, pa.array(sentences.tokens))
                writer.write_table(pa.table([column], schema=schema), row_group_size=ROW_GROUP)
        file.flush()
        os.fsync(file.fileno())


def _row_groups(file: Path, first: int, last: int) -> Iterator[tuple[pa.ListArray, int]]:
    """The row groups of a file that hold any of its rows first .. last - 1, and the place of each one's first row."""
    if first >= last:
        return
    with pq.ParquetFile(file) as content:
        place = 0
        for i in range(content.num_row_groups):
            rows = content.metadata.row_group(i).num_rows
            if place < last and first < place + rows:
                try:
                    table = content.read_row_group(i, columns=["tokens"])
                except (pa.ArrowInvalid, OSError) as error:
                    raise _damaged(file, error) from error
                yield table.column(0).combine_chunks(), place
            place += rows


def _describe_grammar(grammar: Grammar) -> dict[str, Any]:
    """All that decides which sentences a grammar makes and how, as JSON gives it back."""
    return {"start": grammar.start, "terminals": list(grammar.terminals), "rules": rules_of(grammar)}


def _read_description(directory: Path) -> dict[str, Any]:
    try:
        description = json.loads((directory / "description.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        description = None
    if not isinstance(description, dict) or not {"name", "grammar", "sentences"} <= set(description):
        raise UserError(f"{directory} is not a dataset that data.py export wrote: it has no description.json of one")
    return description


def _card(arguments: ExportArguments, grammar: Grammar) -> str:
    splits = ["train", "validation"] if arguments.validation else ["train"]
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits)
    rules = "\n".join(rules_of(grammar))
    table = "\n".join(f"| {token} | {symbol} |" for token, symbol in enumerate(grammar.terminals))
    start = f" --start {arguments.start}" if arguments.start else ""
    validation = f"{arguments.validation:,} held-out ones" if arguments.validation else "no held-out ones"
    return f"""---
configs:
- config_name: default
  data_files:
{files}
---

# Sentences of the grammar {Path(grammar.name).stem}

{arguments.sentences:,} sentences to train on and {validation}, drawn independently. Column `tokens`: the terminals of
one sentence as token ids, without BOS or EOS.

    python data.py export --grammar {arguments.grammar}{start} --sentences {arguments.sentences} \\
        --validation {arguments.validation} --seed {arguments.seed} --out {arguments.out.name}

## Grammar

The start is {grammar.start}; probabilities are in brackets.

```
{rules}
```

## Token ids

| id | terminal |
|---|---|
{table}
"""


def main() -> None:
    """Parse the command line."""
    export(tyro.extras.subcommand_cli_from_dict({"export": ExportArguments}, description=__doc__))


if __name__ == "__main__":
    command(main)
