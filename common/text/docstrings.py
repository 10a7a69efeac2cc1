"""The corpus `docs`: documentation strings of the standard library and of packages that requirements.txt pins.

It needs no download: the files that are installed are parsed, never imported or executed. Documents are the docstrings
of modules, classes and functions with more than `SHORTEST` characters, dedented by `inspect.cleandoc`, in the order of
packages, files and lines; one that nearly repeats an earlier one is left out (see near_duplicates.py). Tests and
vendored copies are skipped.

The corpus depends on the versions of Python and of the packages. A hash of its documents identifies it. Packages that
were added after results were published have the comment `NOT_READ` in requirements.txt: the corpus stays the same.
"""

import ast
import inspect
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

from common.errors import UserError
from common.runs.names import ROOT

REQUIREMENTS = ROOT / "requirements.txt"

NOT_READ = "# not in the corpus docs"

SHORTEST = 200
"""Characters that a docstring must exceed."""

SKIPPED = {"test", "tests", "_vendor", "vendor", "vendored", "third_party", "site-packages", "dist-packages"}
"""Folders that are skipped; so are files and folders named `test_*`."""

_BATCH = 1024
"""Documents that are compared with earlier ones at a time."""


@dataclass(frozen=True)
class Sources:
    """What the corpus is read from."""

    python: str
    """Version."""
    packages: dict[str, str]
    """Versions of the pinned packages that are installed, in the order of requirements.txt."""
    missing: tuple[str, ...]
    """Pinned packages that are not installed."""


@dataclass(frozen=True)
class Docstrings:
    """The corpus."""

    documents: tuple[str, ...]
    duplicates: int
    """Documents that nearly repeat an earlier one, and were left out."""
    unreadable: int
    """Files that are not UTF-8 or cannot be parsed, and were skipped."""


def pinned(requirements: Path = REQUIREMENTS) -> tuple[str, ...]:
    """Names of the packages that a requirements file pins by `==` without the comment `NOT_READ`, in its order.

    Raises:
        UserError: there is no such file, or it pins nothing.
    """
    try:
        lines = requirements.read_text().splitlines()
    except OSError:
        raise UserError(f"{requirements} is missing, which says what the corpus docs is made of: restore it") from None
    lines = [line for line in lines if NOT_READ not in line]
    names = tuple(match[1] for line in lines if (match := re.match(r"\s*([\w.-]+)\s*==", line)))
    if not names:
        raise UserError(f"{requirements} pins no package with ==, so that the corpus docs would not be repeatable")
    return names


def sources(requirements: Path = REQUIREMENTS, search: Sequence[str] | None = None) -> Sources:
    """Versions of what the corpus is read from; cheap.

    Args:
        requirements: pins the packages.
        search: directories with installed packages; by default those of this Python.
    """
    names = pinned(requirements)
    found = {name: _installed(name, search) for name in names}
    versions = {name: distribution.version for name, distribution in found.items() if distribution}
    return Sources(platform.python_version(), versions, tuple(name for name in names if name not in versions))


@cache
def collect(
    requirements: Path = REQUIREMENTS, library: Path | None = None, search: tuple[str, ...] | None = None
) -> Docstrings:
    """Read the corpus; takes about a minute.

    Args:
        requirements: pins the packages.
        library: the standard library; by default that of this Python.
        search: as of `sources`.
    """
    from common.text.near_duplicates import NearDuplicates, normalised

    library = library or Path(sysconfig.get_paths()["stdlib"])
    found = [_installed(name, search) for name in pinned(requirements)]
    files = [*_files_below(library), *(path for distribution in found if distribution for path in _files(distribution))]
    documents: list[str] = []
    unreadable = 0
    for path in files:
        try:
            documents += docstrings(path)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: not UTF-8, or null bytes
            unreadable += 1
    known, kept = NearDuplicates(), []
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        accepted = known.accept([normalised(document) for document in batch])
        kept += [document for document, is_new in zip(batch, accepted, strict=True) if is_new]
    return Docstrings(tuple(kept), len(documents) - len(kept), unreadable)


def docstrings(path: Path) -> list[str]:
    """The docstrings of a file with more than `SHORTEST` characters, dedented, in the order of its lines.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it cannot be decoded or parsed.
    """
    text = path.read_bytes().decode("utf-8-sig")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(text)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: 0 if isinstance(node, ast.Module) else node.lineno)
    found = [inspect.cleandoc(string) for node in nodes if (string := ast.get_docstring(node, clean=False))]
    # an escape may be half of a surrogate pair, which UTF-8 lacks
    return [string.encode("utf-8", "replace").decode() for string in found if len(string) > SHORTEST]


def _installed(name: str, search: Sequence[str] | None) -> Distribution | None:
    found = distributions(name=name) if search is None else distributions(name=name, path=list(search))
    return next(iter(found), None)


def _files(distribution: Distribution) -> Iterator[Path]:
    """The Python files of an installed package."""
    for path in sorted(distribution.files or (), key=lambda path: path.parts):
        if path.suffix == ".py" and ".." not in path.parts and not _is_skipped(path.parts):
            yield Path(str(distribution.locate_file(path)))


def _files_below(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).parts):
        if not _is_skipped(path.relative_to(library).parts):
            yield path


def _is_skipped(parts: Sequence[str]) -> bool:
    return any(part in SKIPPED or part.startswith("test_") for part in parts)
