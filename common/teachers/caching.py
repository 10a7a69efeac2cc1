"""The command that downloads a teacher's checkpoints ahead of time, for machines without internet access."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from common.errors import UserError
from common.teachers import hub
from common.teachers.discovery import named_checkpoints

THREADS = 8
"""Number of concurrent requests to the hub."""


@dataclass(frozen=True, kw_only=True)
class CacheArguments:
    """Download checkpoints from the Hugging Face hub into its cache, for use with HF_HUB_OFFLINE=1."""

    teacher: Annotated[str, tyro.conf.Positional]
    """A model's id on the hub."""
    steps: tuple[int, int] | None = None
    """First and last step; all by default."""
    revisions: tuple[str, ...] = ()
    """Branches, tags or commits to download instead of steps."""
    teacher_pattern: str | None = None
    """Regular expression for checkpoint names, with a group named step."""
    dry_run: bool = False
    """Only list the sizes."""


def cache(arguments: CacheArguments) -> None:
    """Download the revisions that are not cached yet, if the disk has enough free space.

    Raises:
        UserError: a revision does not exist or has no weights, the disk is too small, or a download failed.
    """
    name = arguments.teacher
    if Path(name).is_dir():
        raise UserError(f"{name} is a directory: there is nothing to download")
    if hub.is_offline():
        raise UserError("HF_HUB_OFFLINE is set, which forbids downloads: unset it")
    names = _chosen(arguments)
    with ThreadPoolExecutor(THREADS, "describe") as threads:
        described = list(threads.map(partial(hub.describe, name), names))
    for revision, description in zip(names, described, strict=True):
        if not description.weights:
            raise UserError(hub.without_weights(name, revision, description))
    sizes = _new_bytes(name, described)
    print("\n".join(f"{size(new):>9}  {revision}" for revision, new in zip(names, sizes, strict=True)))
    print(f"{size(sum(sizes)):>9}  to download for {len(names):,} revisions; the rest is cached", flush=True)
    free = _free_bytes()
    if sum(sizes) > free:
        raise UserError(f"the cache's disk has only {size(free)} free: choose fewer with --steps, or set HF_HUB_CACHE")
    if arguments.dry_run:
        return
    for number, revision in enumerate(names, 1):
        print(f"{number:,} of {len(names):,}: {revision}", flush=True)
        hub.download(name, revision)


def size(count: int) -> str:
    """A number of bytes in human-readable form."""
    scaled, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while scaled >= 1000 and len(units) > 1:
        scaled, units = scaled / 1000, units[1:]
    return f"{scaled:.1f} {units[0]}"


def _chosen(arguments: CacheArguments) -> list[str]:
    """Names of the revisions to download."""
    if arguments.revisions and (arguments.steps or arguments.teacher_pattern):
        raise UserError("--revisions replaces --steps and --teacher-pattern: give one or the other")
    if arguments.revisions:
        return list(arguments.revisions)
    checkpoints = named_checkpoints(arguments.teacher, arguments.teacher_pattern)
    first, last = arguments.steps or (checkpoints[0].step, checkpoints[-1].step)
    chosen = [str(entry.location).partition("@")[2] for entry in checkpoints if first <= entry.step <= last]
    if not chosen:
        ends = f"{checkpoints[0].step} to {checkpoints[-1].step}"
        raise UserError(f"no checkpoints in --steps {first} {last}: the teacher's are at {ends}")
    return chosen


def _new_bytes(name: str, described: Sequence[hub.Revision]) -> list[int]:
    """The bytes that each revision adds to the cache, which stores identical files once."""
    known: set[str] = set()
    sizes = []
    for description in described:
        new = {file.digest: file.size for file in description.files.values() if file.digest not in known}
        known |= new.keys()
        sizes.append(sum(count for digest, count in new.items() if not hub.has_blob(name, digest)))
    return sizes


def _free_bytes() -> int:
    folder = hub.cache_folder()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
