"""Sentences of a grammar as a Hugging Face dataset on disk, as an alternative to sampling.

A dataset has the columns

    tokens      the terminals of one sentence, as token ids, without BOS or EOS
    span_ends   if it was exported with trees: for each token a number whose bit L is set if the token is the last of a
                span of a nonterminal at depth L of the tree, the root being at depth 0
"""

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
from numpy.typing import NDArray

from common.arguments import is_of_type, require_at_least, require_seed
from common.errors import UserError
from common.pcfg.arguments import ExportArguments
from common.pcfg.grammar import MAX_TOKENS, Grammar
from common.pcfg.grammar_files import load_grammar
from common.pcfg.sampler import Sentences, Stream, sample
from common.pcfg.task import rules_of
from common.resources import Needs, require_resources
from common.runs.files import (
    digest_of,
    find_json,
    locked,
    make_directory,
    require_regular,
    sampled_digest,
    to_json,
    write_file,
)
from common.runs.progress import progress

EVALUATION_SEED = 0
"""Seed of the sentences that all runs on a grammar are evaluated on."""

ROW_GROUP = 1024
"""Sentences that are decoded together."""

LARGEST_GROUP = 2**30
"""Bytes of a row group, before it is compressed."""

SMALLEST_FILE = 256
"""Bytes of a parquet file, at least."""

MOST_DESCRIPTION = 1 << 30
"""Bytes of the largest description: a grammar has at most 16 MB, and takes several times as much as indented JSON."""

NAME_MAX = 255
"""Characters of the name of a grammar's file, and of a start symbol."""

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for damaged files."""

LEVELS = 8
"""Depths of the tree, from 0, in a dataset with trees."""


@dataclass(frozen=True)
class SentenceDataset:
    """The training split of an exported dataset; sentences are read on demand."""

    directory: Path
    files: tuple[Path, ...]
    first: tuple[int, ...]
    """Index of each file's first sentence, and the number of all sentences."""
    trees: bool
    """Whether it has the column `span_ends`."""
    terminals: int
    """Of its grammar; token ids are below it."""

    def __len__(self) -> int:
        return self.first[-1]

    def sentences(self, first: int, count: int) -> Sentences:
        """Sentences first .. first + count - 1, all of which must exist, with `LEVELS` levels of `span_ends`.

        Raises:
            UserError: a file is damaged, or has values that are no sentences of the grammar's terminals.
        """
        names = _columns(self.trees)
        parts = {name: [np.zeros(0, np.uint8)] for name in names}
        lengths = [np.zeros(0, np.int64)]
        for file, (start, stop) in zip(self.files, pairwise(self.first), strict=True):
            for table, place in _row_groups(file, names, max(first - start, 0), min(first + count, stop) - start):
                rows = slice(max(first - start - place, 0), first + count - start - place)
                _check_sentences(table, self.terminals, file)
                for name in names:
                    parts[name].append(table[name][rows].flatten().to_numpy())
                lengths.append(np.diff(table["tokens"][rows].offsets.to_numpy()))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        read = {name: np.concatenate(values) for name, values in parts.items()}
        return Sentences(read["tokens"], offsets, None, _unpacked(read["span_ends"]) if self.trees else None)


def open_dataset(directory: Path, grammar: Grammar, sentences: int, trees: bool = False) -> SentenceDataset:
    """A dataset to train on.

    Args:
        directory: where `export` wrote it.
        grammar: what its sentences must be of.
        sentences: number that a run will use, its steps times its batch size.
        trees: whether the run needs `span_ends`.

    Raises:
        UserError: not an exported dataset, of another grammar, damaged, without the trees, or with too few sentences.
    """
    description = _read_description(directory)
    if description["grammar"] != _describe_grammar(grammar):
        raise UserError(
            f"{directory} holds sentences of {description['name']} from {description['grammar']['start']}, which is not"
            f" this run's grammar, {grammar.name} from {grammar.start}: give that --grammar and --start, or export "
            "another dataset"
        )
    if trees and not description.get("trees", False):
        raise UserError(f"{directory} does not say which tokens end spans: export a dataset with --trees")
    files = _training_files(directory)
    first = [0]
    for file in files:
        first.append(first[-1] + _rows_of(file, trees))
    if first[-1] != description["sentences"]:
        raise UserError(
            f"{directory} has {first[-1]:,} of {description['sentences']:,} sentences: remove it and export it again"
        )
    dataset = SentenceDataset(directory, files, tuple(first), trees, len(grammar.terminals))
    if first[-1] < sentences:
        raise too_few(dataset, sentences)
    return dataset


def dataset_digest(directory: Path) -> str:
    """A digest of a dataset's description and training files, of each of these that of `sampled_digest`.

    Raises:
        UserError: not an exported dataset, or a file cannot be read.
    """
    description = {"trees": False, **_read_description(directory)}
    digests = []
    for file in _training_files(directory):
        try:
            digests.append([file.name, sampled_digest(file)])
        except OSError as error:
            raise _damaged(file, error) from error
    return digest_of([sorted(description.items()), digests])


def _training_files(directory: Path) -> tuple[Path, ...]:
    return tuple(sorted((directory / "data").glob("train-*.parquet")))


def _rows_of(file: Path, trees: bool) -> int:
    """The number of sentences of a file that has the columns of a dataset, in groups that fit into memory."""
    try:
        with pq.ParquetFile(require_regular(file)) as content:
            schema, metadata = content.schema_arrow, content.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    except UNREADABLE as error:
        raise _damaged(file, error) from error
    if missing := [
        name for name in _columns(trees) if name not in schema.names or not _holds_bytes(schema.field(name))
    ]:
        raise _damaged(file, f"it has no column {missing[0]} with lists of bytes")
    if max((group.total_byte_size for group in groups), default=0) > LARGEST_GROUP:
        raise _damaged(file, "a row group is too large")
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise _damaged(file, "its row groups have other numbers of rows than it says")
    return metadata.num_rows


def _holds_bytes(field: pa.Field) -> bool:
    return pa.types.is_list(field.type) and field.type.value_type == pa.uint8()


def _check_sentences(table: dict[str, pa.ListArray], terminals: int, file: Path) -> None:
    """Reject a row group with nulls, empty sentences, unknown tokens, or ends of spans of other sentences."""
    tokens = table["tokens"]
    lengths = [np.diff(column.offsets.to_numpy()) for column in table.values()]
    values = [column.flatten() for column in table.values()]
    if any(column.null_count for column in (*table.values(), *values)) or lengths[0].min(initial=1) < 1:
        raise _damaged(file, "a sentence is missing or empty")
    if not all(np.array_equal(lengths[0], other) for other in lengths):
        raise _damaged(file, "its columns have different lengths")
    if len(tokens) and (largest := values[0].to_numpy().max()) >= terminals:
        raise _damaged(file, f"it has the token {largest}, and the grammar {terminals} terminals")


def _damaged(file: Path, error: Exception | str) -> UserError:
    shown = " ".join(str(error).split())[:200]
    return UserError(f"{file} is damaged ({shown}): remove its dataset and export it again")


def too_few(dataset: SentenceDataset, needed: int) -> UserError:
    """The error for a run that needs more sentences than the dataset has."""
    return UserError(
        f"{dataset.directory} has {len(dataset):,} sentences and the run needs {needed:,}, as each is used once: "
        f"export a dataset with --sentences {needed}, or give fewer --steps"
    )


def export(arguments: ExportArguments) -> None:
    """Write sentences as a Hugging Face dataset: parquet files, a dataset card, and a description for `open_dataset`.

    The sentences are the ones that a run with this seed would sample. The directory is made under a hidden name and
    renamed once it is complete.

    Raises:
        UserError: an argument is out of range, the grammar cannot be loaded, or `--out` holds something else.
    """
    require_at_least(1, arguments, "sentences", "shard")
    require_at_least(0, arguments, "validation")
    require_seed(arguments, "seed")
    grammar = load_grammar(arguments.grammar, arguments.start)
    description = {
        "name": Path(grammar.name).stem,
        "grammar": _describe_grammar(grammar),
        "sentences": arguments.sentences,
        "validation": arguments.validation,
        "seed": arguments.seed,
        "trees": arguments.trees,
    }
    if arguments.out.exists():
        if {"trees": False, **_read_description(arguments.out)} != description:
            raise UserError(f"{arguments.out} holds another dataset: give another --out, or remove it")
        open_dataset(arguments.out, grammar, arguments.sentences, arguments.trees)
        print(f"{arguments.out} is complete")
        return
    require_resources(_needs(arguments, grammar), [arguments.out], "cpu")
    unfinished = arguments.out.with_name(f".{arguments.out.name}.unfinished")
    make_directory(unfinished)
    with locked(unfinished, f"another process is writing {arguments.out}: wait until it ends, or give another --out"):
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
                    _write_shard(unfinished / "data" / file, grammar, seed, stream, first, last, arguments.trees)
                    done += last - first
                    show(done)
        write_file(unfinished / "description.json", to_json(description))
        write_file(unfinished / "README.md", _card(arguments, grammar).encode())
        (unfinished / ".lock").unlink()
        os.rename(unfinished, arguments.out)
    print(arguments.out)


def _needs(arguments: ExportArguments, grammar: Grammar) -> Needs:
    """What the sentences need at least: a bit per token, and the ends of each file."""
    tokens = min(grammar.expected_length, MAX_TOKENS)
    sentences = arguments.sentences + arguments.validation
    files = -(-arguments.sentences // arguments.shard) - (-arguments.validation // arguments.shard)
    together = min(ROW_GROUP, max(arguments.sentences, arguments.validation))
    return Needs(
        memory={},
        host={f"{together:,} sentences": int(together * tokens * (1 + 3 * LEVELS * arguments.trees))},
        disk={f"{sentences:,} sentences": int(sentences * tokens / 8), f"{files:,} files": SMALLEST_FILE * files},
    )


def _shards(split: str, sentences: int, shard: int) -> Iterator[tuple[str, int, int]]:
    """Name, first sentence and one past the last of each of a split's files."""
    count = -(-sentences // shard)
    for i in range(count):
        yield f"{split}-{i:05d}-of-{count:05d}.parquet", i * shard, min((i + 1) * shard, sentences)


def _columns(trees: bool) -> list[str]:
    return ["tokens", "span_ends"] if trees else ["tokens"]


def _unpacked(column: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(tokens, LEVELS) from the column `span_ends`."""
    return np.unpackbits(column[:, None], axis=1, bitorder="little").astype(bool)


def _packed(span_ends: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(span_ends, axis=1, bitorder="little")[:, 0]


def _write_shard(path: Path, grammar: Grammar, seed: int, stream: Stream, first: int, last: int, trees: bool) -> None:
    schema = pa.schema([(name, pa.list_(pa.uint8())) for name in _columns(trees)])
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start in range(first, last, ROW_GROUP):
                count = min(ROW_GROUP, last - start)
                sentences = sample(grammar, seed, stream, start, count, trees, LEVELS if trees else None)
                offsets = pa.array(sentences.offsets.astype(np.int32))
                parts = [sentences.tokens, *([_packed(sentences.span_ends)] if sentences.span_ends is not None else [])]
                columns = [pa.ListArray.from_arrays(offsets, pa.array(part)) for part in parts]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)
        file.flush()
        os.fsync(file.fileno())


def _row_groups(file: Path, names: list[str], first: int, last: int) -> Iterator[tuple[dict[str, pa.ListArray], int]]:
    """Columns of the row groups of a file that hold any of its rows first .. last - 1, and each one's first row."""
    if first >= last:
        return
    try:
        content = pq.ParquetFile(require_regular(file))
    except UNREADABLE as error:
        raise _damaged(file, error) from error
    with content:
        place = 0
        for i in range(content.num_row_groups):
            rows = content.metadata.row_group(i).num_rows
            if place < last and first < place + rows:
                try:
                    table = content.read_row_group(i, columns=names)
                except UNREADABLE as error:
                    raise _damaged(file, error) from error
                if table.num_rows != rows:
                    raise _damaged(file, f"a row group has {table.num_rows} of {rows} rows")
                yield {name: table.column(name).combine_chunks() for name in names}, place
            place += rows


def _describe_grammar(grammar: Grammar) -> dict[str, Any]:
    """All that determines a grammar's sentences, as JSON values."""
    return {"start": grammar.start, "terminals": list(grammar.terminals), "rules": rules_of(grammar)}


def _read_description(directory: Path) -> dict[str, Any]:
    description = find_json(directory / "description.json", MOST_DESCRIPTION)
    if description is None or not _is_description(description):
        raise UserError(f"{directory} is not a dataset that data.py export wrote: it has no valid description.json")
    return description


def _is_description(value: Any) -> bool:
    """Whether a JSON value is what `export` writes; datasets of an earlier version do not say whether there are
    trees."""
    types = {"name": str, "grammar": dict, "sentences": int, "trees": bool}
    return (
        isinstance(value, dict)
        and all(is_of_type({"trees": False, **value}.get(name), hint) for name, hint in types.items())
        and isinstance(start := value["grammar"].get("start"), str)
        and all(name.isprintable() and len(name) <= NAME_MAX for name in (value["name"], start))
    )


def _card(arguments: ExportArguments, grammar: Grammar) -> str:
    splits = ["train", "validation"] if arguments.validation else ["train"]
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits)
    rules = "\n".join(rules_of(grammar))
    table = "\n".join(f"| {token} | {symbol} |" for token, symbol in enumerate(grammar.terminals))
    start = f" --start {arguments.start}" if arguments.start else ""
    validation = f"{arguments.validation:,} held-out ones" if arguments.validation else "no held-out ones"
    trees, flag = "", ""
    if arguments.trees:
        flag = " --trees"
        trees = """ Column `span_ends`: for each token
a number whose bit L is set if the token is the last of a span of a nonterminal at depth L of the tree; the root is at
depth 0."""
    return f"""---
configs:
- config_name: default
  data_files:
{files}
---

# Sentences of the grammar {Path(grammar.name).stem}

{arguments.sentences:,} sentences to train on and {validation}, drawn independently. Column `tokens`: the terminals of
one sentence as token ids, without BOS or EOS.{trees}

    python data.py export --grammar {arguments.grammar}{start} --sentences {arguments.sentences} \\
        --validation {arguments.validation} --seed {arguments.seed}{flag} --out {arguments.out.name}

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
