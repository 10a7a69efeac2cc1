"""Corpora as iterators of documents, by name.

    docs                        documentation of the installed packages, without a download (see docstrings.py)
    wikipedia-books             English Wikipedia of November 2023, then BookCorpus, both from the hub
    org/name, org/name:config   the split train of a dataset on the hub; @revision may follow
    a.txt                       UTF-8 text; blank lines separate documents
    a.jsonl                     an object per line
    a.parquet                   rows

Files are read and hub datasets streamed a little at a time, so that a corpus of any size fits into memory.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.files import open_to_read, require_regular
from common.text import docstrings
from common.text.hub import NAME, HubDataset, first_line, no_column

DOCS = "docs"
WIKIPEDIA_BOOKS = "wikipedia-books"
NAMED = (DOCS, WIKIPEDIA_BOOKS)
WIKIPEDIA = "wikimedia/wikipedia:20231101.en"
BOOKS = "bookcorpus/bookcorpus@refs/convert/parquet"
"""The hub's own conversion: `datasets` no longer runs the script that the dataset has."""

BOOK_CHARACTERS = 4096
"""BookCorpus has a sentence per row; successive ones are joined into documents of slightly more characters."""

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_ENDS = 1 << 20
"""Bytes at either end of a file that identify it, with its size and time."""

MOST_CHARACTERS = 1 << 28
"""Of the longest document, and of the longest line of JSON."""

_ROWS = 1024
"""Rows of a parquet file that are read together."""


@dataclass(frozen=True)
class Corpus:
    """A corpus that can be read from its beginning any number of times.

    Raises:
        UserError: there is no such corpus.
    """

    name: str
    """See above."""
    column: str = "text"
    """Column with the documents, of JSON, parquet and hub datasets."""

    def __post_init__(self) -> None:
        if self.name in NAMED:
            return
        path = Path(self.name)
        if path.suffix in _SUFFIXES:
            if not path.is_file():
                kind = "a directory" if path.is_dir() else "no regular file" if path.exists() else "missing"
                raise UserError(f"{path} is {kind}: give an existing file")
            if path.stat().st_size == 0:
                raise UserError(f"{path} is empty: give a file with documents")
        elif path.exists() or not NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name} is no corpus: give {DOCS}, {WIKIPEDIA_BOOKS}, a .txt, .jsonl or .parquet "
                "file, or a dataset on the hub as org/name or org/name:config"
            )

    def identity(self) -> dict[str, Any]:
        """JSON values that change if the corpus does; cheap, so of a file only its ends are hashed.

        A hub dataset without @revision has the same identity when it changes there; its commit is among the notes.
        """
        if self.name == DOCS:
            sources = docstrings.sources()
            return {"docs": 1, "python": sources.python, "packages": sources.packages}
        if Path(self.name).suffix in _SUFFIXES:
            status = Path(self.name).stat()
            with open_to_read(Path(self.name)) as file:
                ends = hashlib.sha256(file.read(_ENDS))
                file.seek(-min(_ENDS, status.st_size), os.SEEK_END)
                ends.update(file.read(_ENDS))
            identity = {"bytes": status.st_size, "changed": status.st_mtime_ns, "sha256_of_ends": ends.hexdigest()}
            return identity if self.name.endswith(".txt") else {**identity, "column": self.column}
        return {"hub": self.name, **({} if self.name == WIKIPEDIA_BOOKS else {"column": self.column})}

    def notes(self) -> dict[str, Any]:
        """For the record, once the documents have been read: what was left out of `docs`; commits of hub datasets."""
        if self.name != DOCS:
            return {"commits": {dataset.name: dataset.commit for dataset in self._hub}} if self._hub else {}
        collected = docstrings.collect()
        return {
            "packages_missing": list(docstrings.sources().missing),
            "files_unreadable": collected.unreadable,
            "duplicates_left_out": collected.duplicates,
        }

    @cached_property
    def _hub(self) -> tuple[HubDataset, ...]:
        """The datasets on the hub that it consists of; each is read at the same commit every time."""
        if self.name == WIKIPEDIA_BOOKS:
            return HubDataset(WIKIPEDIA), HubDataset(BOOKS)
        is_elsewhere = self.name == DOCS or Path(self.name).suffix in _SUFFIXES
        return () if is_elsewhere else (HubDataset(self.name),)

    def documents(self) -> Iterator[str]:
        """The documents, in order; those of whitespace only are left out.

        Raises:
            UserError: the corpus cannot be read, has no such column, or no documents.
        """
        found = False
        for document in self._documents():
            if document and not document.isspace():
                found = True
                yield document
        if not found:
            raise UserError(f"{self.name} has no documents: give another corpus")

    def _documents(self) -> Iterator[str]:
        if self.name == DOCS:
            yield from docstrings.collect().documents
        elif self.name == WIKIPEDIA_BOOKS:
            articles, books = self._hub
            yield from _read_hub(articles, "text")
            yield from _joined(_read_hub(books, "text"))
        else:
            path = Path(self.name)
            match path.suffix:
                case ".txt":
                    yield from _read_text(path)
                case ".jsonl":
                    yield from _read_json_lines(path, self.column)
                case ".parquet":
                    yield from _read_parquet(path, self.column)
                case _:
                    yield from _read_hub(self._hub[0], self.column)


def _read_text(path: Path) -> Iterator[str]:
    lines: list[str] = []
    characters = 0
    for number, line in enumerate(_lines(path), 1):
        if line.isspace():
            yield "".join(lines).strip("\n")
            lines, characters = [], 0
        else:
            lines.append(line)
            characters += len(line)
            if characters > MOST_CHARACTERS:
                advice = "separate its documents by blank lines"
                raise UserError(f"the document at line {number:,} of {path} has {_too_many()}: {advice}")
    yield "".join(lines).strip("\n")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text; one that is too long is cut in pieces, each longer than `MOST_CHARACTERS`."""
    try:
        with io.TextIOWrapper(open_to_read(path), "utf-8-sig") as file:
            while line := file.readline(MOST_CHARACTERS + 1):
                if "\0" in line:
                    raise _no_text(path)
                yield line
    except UnicodeDecodeError:
        raise _no_text(path) from None


def _too_many() -> str:
    return f"more than {MOST_CHARACTERS:,} characters"


def _no_text(path: Path) -> UserError:
    return UserError(f"{path} is not UTF-8 text: convert it, for example with iconv -t UTF-8")


def _read_json_lines(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        place = f"line {number} of {path}"
        if len(line) > MOST_CHARACTERS:
            raise UserError(f"{place} has {_too_many()}: give one object per line")
        if line.isspace():
            continue
        try:
            row = json.loads(line, object_pairs_hook=tuple)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, tuple):
            raise UserError(f"{place} is not a JSON object: give one object per line")
        value = _only(row, place, column)
        # an escape may be half of a surrogate pair, which UTF-8 lacks
        yield _text(value, place, column).encode("utf-8", "replace").decode()


def _only(row: Sequence[tuple[str, Any]], place: str, column: str) -> Any:
    """The value of a column in a row, given as pairs of names and values."""
    values = [value for name, value in row if name == column]
    if not values:
        raise no_column(place, column, [name for name, _ in row])
    if len(values) > 1:
        raise _twice(place, column)
    return dict(values[0]) if isinstance(values[0], tuple) else values[0]


def _twice(place: str, column: str) -> UserError:
    return UserError(
        f"{place} has the column {column} more than once: rename the others, or give another --text-column"
    )


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(require_regular(path)) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise no_column(str(path), column, names)
            if names.count(column) > 1:
                raise _twice(str(path), column)
            for batch in file.iter_batches(_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield _text(value, str(path), column)
    except UnicodeDecodeError:
        raise _no_text(path) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file, or is damaged ({first_line(error)}): give another") from error


def _read_hub(dataset: HubDataset, column: str) -> Iterator[str]:
    for value in dataset.values(column):
        yield _text(value, dataset.name, column)


def _joined(sentences: Iterator[str]) -> Iterator[str]:
    document: list[str] = []
    characters = 0
    for sentence in sentences:
        document.append(sentence)
        characters += len(sentence) + 1
        if characters > BOOK_CHARACTERS:
            yield " ".join(document)
            document, characters = [], 0
    yield " ".join(document)


def _text(value: Any, place: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"column {column} in {place} is {type(value).__name__}, not text: give another --text-column")
    return value
