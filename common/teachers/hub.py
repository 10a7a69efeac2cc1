"""Teachers on the Hugging Face hub: revisions, online or in the cache, downloads, and one-line error messages.

With HF_HUB_OFFLINE=1 only the cache is used; a cached revision counts if its config and all its weights are there.
Only safetensors weights, configs and tokenizers are downloaded, never pickles.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from common.cli import DISK_FULL, NO_ACCESS
from common.errors import UserError, listed
from common.teachers.weights import ADAPTER, weight_files

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
WANTED = (*WEIGHTS, "*.json", "*.txt", "*.model")
"""Files that are downloaded: weights with their index, configs, and the tokenizer's vocabulary, merges and pieces."""
IN_FOLDERS = "*/*"
"""Files that are not downloaded: those in subfolders, such as weights for other frameworks."""

FAILURES = (HTTPError, HFValidationError, OSError, RuntimeError)
"""What huggingface_hub raises if the input or the environment is at fault; its downloader raises RuntimeError."""

_lock = threading.Lock()
"""Held while a revision is downloaded or evicted: a blob must not disappear while another revision is linked to it."""
_downloaded: set[Path] = set()
"""Snapshots that this process started to download and of which nothing had been cached."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a revision."""

    size: int
    digest: str
    """Its SHA-256 if the hub stores it as a large file, else its git hash."""


@dataclass(frozen=True)
class Revision:
    """A revision on the hub, without its content."""

    commit: str
    files: Mapping[str, RemoteFile]
    """Those that are downloaded."""
    others: tuple[str, ...]
    """Names of its other files."""
    parameters: Mapping[str, int]
    """Number of parameters by dtype; empty if the hub does not know it."""

    @property
    def weights(self) -> dict[str, RemoteFile]:
        """The files that hold weights."""
        return {name: file for name, file in self.files.items() if _matches(name, WEIGHTS)}


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    return constants.HF_HUB_OFFLINE


def revisions(name: str) -> list[str]:
    """Branches and tags of a model; offline, those that are cached.

    Raises:
        UserError: there is no such model, or it cannot be listed.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"there is no directory {name}: give a run's directory, or a model's id on the hub, org/name")
    if is_offline():
        found = list(cached(name))
        if not found:
            raise UserError(f"there is no directory {name}, and {_why_offline(name)}")
        return found
    try:
        refs = huggingface_hub.HfApi().list_repo_refs(name)
    except FAILURES as error:
        raise UserError(f"there is no directory {name}, and {_why(error, name)}") from error
    return [ref.name for ref in [*refs.branches, *refs.tags]]


def cached(name: str) -> dict[str, Path]:
    """Cache directories of the branches and tags whose config and weights are complete."""
    repository = _cache_of(name)
    refs = sorted(path for path in (repository / "refs").rglob("*") if path.is_file())
    found = {path.relative_to(repository / "refs").as_posix(): _snapshot(name, path.read_text()) for path in refs}
    return {ref: snapshot for ref, snapshot in found.items() if not ref.startswith("refs/") and _is_complete(snapshot)}


def download(name: str, revision: str) -> Path:
    """Download what is not cached yet of a revision; returns its directory in the cache.

    Raises:
        UserError: the revision is not cached and cannot be downloaded, or has no config or no safetensors.
    """
    if is_offline():
        return _cached_revision(name, revision)
    with _downloading(name, revision):
        path = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED), ignore_patterns=[IN_FOLDERS]
        )
    snapshot = Path(path)
    if not any(_matches(file.name, WEIGHTS) for file in snapshot.iterdir()):
        raise UserError(without_weights(name, revision, describe(name, revision)))
    weight_files(snapshot)
    return snapshot


def download_file(name: str, commit: str, file: str) -> Path:
    """Download one file of a revision; returns its path in the cache.

    Raises:
        UserError: it cannot be downloaded.
    """
    with _downloading(name, commit):
        return Path(huggingface_hub.hf_hub_download(name, file, revision=commit))


@contextmanager
def _downloading(name: str, revision: str) -> Iterator[None]:
    """Record new snapshots, and turn failures into one-line errors."""
    with _lock:
        before = _snapshots(name)
        try:
            yield
        except FAILURES as error:
            raise UserError(f"cannot download {name}@{revision}: {_why(error, name, revision)}") from error
        finally:
            snapshot = _snapshot(name, _commit(name, revision))
            if snapshot.is_dir() and snapshot not in before:
                _downloaded.add(snapshot)


def is_downloaded(location: str) -> bool:
    """Whether this process downloaded `org/name@revision`, of which nothing was in the cache before."""
    name, _, revision = location.partition("@")
    return _snapshot(name, _commit(name, revision)) in _downloaded


def evict(location: str) -> int:
    """Delete `org/name@revision` from the cache if this process downloaded it; returns the number of bytes freed.

    Files that were cached before or that another cached revision shares are kept. Waits for a download in progress:
    call it in the thread that loads.
    """
    name, _, revision = location.partition("@")
    with _lock:
        snapshot = _snapshot(name, _commit(name, revision))
        if snapshot not in _downloaded:
            return 0
        cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
        snapshots = {entry.snapshot_path: (entry, repo) for repo in cache.repos for entry in repo.revisions}
        entry, repo = snapshots.get(snapshot, (None, None))
        if entry is None or repo is None:
            return 0
        strategy = cache.delete_revisions(entry.commit_hash)
        if strategy.repos:  # the model's whole folder, to which other processes may be downloading
            strategy = replace(
                strategy,
                repos=frozenset(),
                snapshots=frozenset([entry.snapshot_path]),
                refs=frozenset(repo.repo_path / "refs" / ref for ref in entry.refs),
                blobs=frozenset(file.blob_path for file in entry.files),
            )
        strategy.execute()
        _downloaded.discard(snapshot)
        return int(strategy.expected_freed_size)


def describe(name: str, revision: str) -> Revision:
    """What the hub knows about a revision, without downloading it.

    Raises:
        UserError: the revision does not exist or the hub cannot be reached.
    """
    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    except FAILURES as error:
        raise UserError(f"cannot look up {name}@{revision}: {_why(error, name, revision)}") from error
    siblings = {file.rfilename: file for file in info.siblings or []}
    files = {
        path: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for path, file in siblings.items()
        if _matches(path, WANTED) and not fnmatchcase(path, IN_FOLDERS)
    }
    parameters = info.safetensors.parameters if info.safetensors else {}
    return Revision(info.sha or revision, files, tuple(siblings.keys() - files.keys()), parameters)


def without_weights(name: str, revision: str, description: Revision) -> str:
    """The error message for a revision without safetensors."""
    if "adapter_config.json" in description.files:
        return f"{name}@{revision} {ADAPTER}"
    pickles = sorted(file for file in description.others if fnmatchcase(file, "pytorch_model*.bin"))
    if not pickles:
        return f"{name}@{revision} has no model.safetensors: choose others with --teacher-pattern"
    return (
        f"{name}@{revision} has only pickled weights ({listed(pickles)}): download it into a directory "
        "and convert it with `python -m common.teachers import DIRECTORY --out TEACHER`"
    )


def _why(error: BaseException, name: str, revision: str | None = None) -> str:
    """The cause of a failure, and what to do."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # raised before the cache was searched
    if isinstance(error, OfflineModeIsEnabled):
        return _why_offline(name)
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no branch or tag {revision}: check the spelling"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{name}@{revision} has no such file"
    if isinstance(error, HFValidationError):
        return f"{name} is not a valid model id: give org/name as spelled on the hub"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return (
            f"the Hugging Face hub has no model {name}, or does not let you read it: "
            "check the spelling, or log in with `hf auth login`"
        )
    if status is not None:
        return f"the Hugging Face hub answers with error {status}: try again later{_cache_advice(name)}"
    number = error.errno if isinstance(error, OSError) else None
    if number in DISK_FULL or re.search("no space left|disk quota", str(error), re.IGNORECASE):
        return f"the disk of the cache {constants.HF_HUB_CACHE} is full: free some space, or set HF_HUB_CACHE"
    if number in NO_ACCESS:
        return f"the cache {constants.HF_HUB_CACHE} is not writable: set HF_HUB_CACHE"
    if isinstance(error, RuntimeError):
        return f"the download failed ({' '.join(str(error).split())}): try again"
    return f"the Hugging Face hub cannot be reached ({type(error).__name__}): check the connection{_cache_advice(name)}"


def _cache_advice(name: str) -> str:
    count = len(cached(name))
    return f"; HF_HUB_OFFLINE=1 would use the {count:,} cached revision{'s' * (count > 1)}" if count else ""


def _why_offline(name: str) -> str:
    known = list(cached(name))
    what = f"only {listed(known)} of {name}" if known else f"nothing of {name}"
    return (
        f"HF_HUB_OFFLINE is set and {what} is cached completely: "
        f"download it with `python -m common.teachers cache {name}` while online"
    )


def _cached_revision(name: str, revision: str) -> Path:
    snapshot = _snapshot(name, _commit(name, revision))
    if not _is_complete(snapshot):
        raise UserError(f"{name}@{revision} cannot be loaded: {_why_offline(name)}")
    return snapshot


def cache_folder() -> Path:
    """The folder of downloads."""
    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def has_blob(name: str, digest: str) -> bool:
    """Whether a file of a model, by its digest, is in the cache."""
    return (_cache_of(name) / "blobs" / digest).is_file()


def _cache_of(name: str) -> Path:
    return cache_folder() / f"models--{name.replace('/', '--')}"


def _commit(name: str, revision: str) -> str:
    """The commit of a cached branch or tag; anything else is taken to be a commit."""
    ref = _cache_of(name) / "refs" / revision
    return ref.read_text() if ref.is_file() else revision


def _snapshot(name: str, commit: str) -> Path:
    return _cache_of(name) / "snapshots" / commit


def _snapshots(name: str) -> set[Path]:
    folder = _cache_of(name) / "snapshots"
    return set(folder.iterdir()) if folder.is_dir() else set()


def _is_complete(snapshot: Path) -> bool:
    try:
        return bool(weight_files(snapshot))
    except UserError:
        return False


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
