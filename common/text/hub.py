"""Datasets on the hub as streams of rows.

A dataset is read at one commit, the one that its revision is when it is first read. Without a network, or with
HF_HUB_OFFLINE=1, it is read from what was downloaded before: from the cache of `datasets`, which `load_dataset` fills,
or from the cache of the hub, which `hf download --repo-type dataset` fills.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError, listed

NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile("[0-9a-f]{40}")


class _Opened(NamedTuple):
    builder: Any
    """Of `datasets`."""
    commit: str | None


@dataclass(frozen=True)
class HubDataset:
    """The split `train` of a dataset."""

    name: str
    """As `NAME`: org/name, org/name:config, and @revision may follow."""

    @property
    def commit(self) -> str | None:
        """The commit that is read, if it is known.

        Raises:
            UserError: the dataset is neither on the hub nor in a cache.
        """
        return self._opened.commit

    def values(self, column: str) -> Iterator[Any]:
        """A column, row by row.

        Raises:
            UserError: the dataset cannot be read, has no such column, or fewer rows than it should have.
        """
        builder, count = self._opened.builder, 0
        try:
            rows = builder.as_streaming_dataset(split="train")
            if rows.column_names is not None:
                if column not in rows.column_names:
                    raise no_column(self.name, column, rows.column_names)
                rows = rows.select_columns([column])
            for row in rows:
                if column not in row:
                    raise no_column(self.name, column, list(row))
                yield row[column]
                count += 1
        except UserError:
            raise
        except _errors() as error:
            raise self._unreadable(error) from error
        expected = _rows_of(builder)
        if expected is not None and count < expected:
            raise UserError(f"{self.name} has {count:,} of {expected:,} rows in the cache: download all of its files")

    @cached_property
    def _opened(self) -> _Opened:
        import datasets  # type: ignore[import-untyped]

        match = NAME.fullmatch(self.name)
        assert match is not None
        name, config, revision = match["name"], match["config"], match["revision"]
        try:
            builder = datasets.load_dataset_builder(name, config, revision=revision)
        except _errors() as error:
            folder = _snapshot(name, revision)
            if folder is None:
                raise self._unreadable(error) from error
            try:
                return _Opened(datasets.load_dataset_builder(str(folder), config), folder.name)
            except _errors() as other:
                raise self._unreadable(other) from other
        commit = builder.hash if COMMIT.fullmatch(str(builder.hash)) else None
        if revision and COMMIT.fullmatch(revision) and commit != revision:
            raise UserError(f"{self.name} is only in the cache with commit {commit}: give this one, or no revision")
        return _Opened(builder, commit)

    def _unreadable(self, error: Exception) -> UserError:
        import datasets

        offline = ", with HF_HUB_OFFLINE set" if datasets.config.HF_HUB_OFFLINE else ""
        return UserError(
            f"the dataset {self.name} cannot be read from the hub{offline} ({first_line(error)}): check its name and "
            "config and the network, or give docs or a local file"
        )


def no_column(place: str, column: str, columns: list[str]) -> UserError:
    """That a corpus lacks the column with the documents."""
    return UserError(f"{place} has no column {column}, only {listed(columns)}: give one of these as --text-column")


def first_line(error: Exception) -> str:
    """Of an error's message, without a full stop."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _errors() -> tuple[type[Exception], ...]:
    """What `datasets` raises where a dataset cannot be read."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    return (HfHubHTTPError, HFValidationError, HTTPError, OSError, ValueError, RuntimeError)


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a dataset's files in the cache of the hub, if some of them are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _rows_of(builder: Any) -> int | None:
    """How many rows there are, if the files in a cache of the hub say so."""
    splits = builder.info.splits or {}
    is_local = builder.repo_id is None
    return splits["train"].num_examples if is_local and "train" in splits else None
