"""Which code makes a run: versions of Python and of packages, and the git commit."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import one_line
from common.runs.names import ROOT

PACKAGES = ("torch", "numpy", "numba", "transformers", "progressive-distillation")
THEN = ", then "
"""Separates the versions of a run's sessions."""


def versions() -> dict[str, str | None]:
    """Versions of Python and of `PACKAGES`; None for one that is not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The git commit of this process's code, with `-dirty` if files have changed since; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def resumed_config(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run that is resumed, with the versions and the commit of this session after the earlier ones.

    Prints a warning if versions have changed, as the results may then differ from those of an uninterrupted run.
    """
    now = versions()
    before = {name: str(version).split(THEN)[-1] for name, version in config.get("versions", {}).items()}
    changed = [name for name, version in before.items() if name in now and version != str(now[name])]
    if changed:
        said = ", ".join(f"{name} {now[name]} instead of {before[name]}" for name in changed)
        line = f"warning: {directory} resumes with {said}: its results may differ from those of an uninterrupted run"
        sys.stderr.write(one_line(line) + "\n")
    known = {**now, **config.get("versions", {})}
    merged = {name: f"{known[name]}{THEN}{now[name]}" if name in changed else known[name] for name in known}
    return {**config, "versions": merged, "commit": _continued(config.get("commit"), commit())}


def _continued(before: str | None, now: str | None) -> str | None:
    return now if before is None else before if now in (None, before.split(THEN)[-1]) else f"{before}{THEN}{now}"
