"""Checks whether a teacher's checkpoints are what their names say, without loading them.

Published checkpoints are not always: in several models of https://github.com/EleutherAI/pythia (issues 83, 108, 205 and
206), revisions hold the weights of another step, often the final ones, or share some of their files. Local checkpoints
are compared by digests of their tensors or, of large ones, of samples; revisions by the hub's digests of their files.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

from common.errors import UserError, listed
from common.runs.files import digest_of, read_json
from common.teachers import hub
from common.teachers.discovery import Checkpoint, local_path, saved_step
from common.teachers.weights import (
    FLOATS,
    StoredTensor,
    digest,
    is_finite,
    read_header,
    same_up_to_rounding,
    weight_files,
)

NOT_ARCHITECTURE = {"_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Entries of config.json that may change; dtypes are compared tensor by tensor."""
LARGE = 256
"""Number of elements from which on a tensor's values do not recur by chance."""
WHOLE_BYTES = 2**24
"""Of a checkpoint's weights, up to which all values are compared, and above it samples."""
READ_BYTES = 2**30
"""Of all checkpoints' weights, up to which all values are read before training."""
SHOWN = 3
"""Number of findings in an error message."""
THREADS = 8
"""Number of checkpoints read or looked up at a time."""


@dataclass(frozen=True)
class Finding:
    """A problem in a trajectory."""

    steps: tuple[int, ...]
    """Teacher steps affected."""
    line: str
    """Describes the problem and names the steps."""
    is_fatal: bool = False
    """Whether the checkpoint cannot be used at all."""


@dataclass(frozen=True)
class Contents:
    """What is known about a checkpoint without loading it."""

    step: int
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    """Empty if it is on the hub."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By tensor, or by file if it is on the hub or in its cache; equal ones mean equal weights."""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Number of parameters by dtype."""
    saved_step: int | None = None
    """The step in its trainer_state.json."""
    problem: str = ""
    """Why it cannot be used."""


def check_trajectory(checkpoints: Sequence[Checkpoint], full: bool = False) -> list[Finding]:
    """What is wrong with a teacher's checkpoints; only configs are downloaded.

    Args:
        checkpoints: in the order of their steps.
        full: read every value of the tensors in local checkpoints, not only samples of large ones.
    """
    return findings(read_contents(checkpoints, full))


def require_trajectory(checkpoints: Sequence[Checkpoint], trust: bool, full: bool = False) -> list[Finding]:
    """Like `check_trajectory`, but raises an error if there are findings, unless the checkpoints are trusted.

    Raises:
        UserError: names the first findings, and the number of others; of checkpoints that are trusted, only those that
            cannot be used at all.
    """
    found = check_trajectory(checkpoints, full)
    refused = [finding for finding in found if finding.is_fatal or not trust]
    if refused:
        more = [f"and {len(refused) - SHOWN:,} more"] if len(refused) > SHOWN else []
        lines = "; ".join([finding.line for finding in refused[:SHOWN]] + more)
        what = "are not what their steps say"
        anyway = ", or use them anyway with --trust-trajectory (trust_trajectory=True)"
        if any(finding.is_fatal for finding in refused):
            what, anyway = "cannot all be used", ""
        raise UserError(
            f"the teacher's checkpoints {what}: {lines}; exclude those steps (--teacher-range, --segments or "
            f"--teacher-pattern){anyway}"
        )
    return found


def are_small(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether checkpoints are local, and all of their weights can be read before training."""
    directories = [checkpoint.location for checkpoint in checkpoints if isinstance(checkpoint.location, Path)]
    sizes = [path.stat().st_size for directory in directories for path in directory.glob("*.safetensors")]
    return len(directories) == len(checkpoints) and sum(sizes) <= READ_BYTES


def read_contents(checkpoints: Sequence[Checkpoint], full: bool = False) -> list[Contents]:
    """What is known about each checkpoint, in the order given."""
    configs = Configs()
    with ThreadPoolExecutor(THREADS, "check") as threads:
        return list(threads.map(partial(_read, full=full, configs=configs), checkpoints))


def checkpoint_digests(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """A digest of each checkpoint's config and weights, by its step as text; of large ones, of samples.

    Raises:
        UserError: one cannot be read.
    """
    contents = read_contents(checkpoints)
    for entry in contents:
        if entry.problem:
            raise UserError(f"step {entry.step}: {entry.problem}")
    known = {str(entry.step): [_architecture(entry), entry.digests] for entry in contents}
    return {step: digest_of([sorted(part.items()) for part in parts]) for step, parts in known.items()}


class Configs:
    """Configs on the hub; identical ones are downloaded once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: dict[str, Mapping[str, Any]] = {}

    def read(self, name: str, revision: hub.Revision) -> Mapping[str, Any]:
        """The config of a revision."""
        digest = revision.files["config.json"].digest
        with self._lock:
            if digest not in self._known:
                path = hub.download_file(name, revision.commit, "config.json")
                self._known[digest] = read_json(path, "download it again")
            return self._known[digest]


def findings(contents: Sequence[Contents]) -> list[Finding]:
    """Everything that is wrong with these checkpoints."""
    found = list(_order([entry.step for entry in contents]))
    for entry in contents:
        if entry.problem:
            found.append(Finding((entry.step,), f"step {entry.step}: {entry.problem}", is_fatal=True))
        if entry.saved_step not in (None, entry.step):
            found.append(
                Finding((entry.step,), f"trainer_state.json of step {entry.step} says step {entry.saved_step}")
            )
    usable = sorted((entry for entry in contents if not entry.problem), key=lambda entry: entry.step)
    usable = list({entry.step: entry for entry in reversed(usable)}.values())[::-1]
    if usable:
        found += _changes(usable, "a different config", _architecture, of_both=True)
        found += _changes(
            usable, "different tensors", lambda entry: {k: tensor.kind for k, tensor in entry.tensors.items()}
        )
        found += _repeats(usable)
    return found


def named(steps: Sequence[int]) -> str:
    """Steps as text."""
    return f"step{'s' if len(steps) > 1 else ''} {listed(steps)}"


def _read(checkpoint: Checkpoint, full: bool, configs: Configs) -> Contents:
    try:
        if isinstance(checkpoint.location, Path) or hub.is_offline():
            return _read_directory(checkpoint, full)
    except UserError as error:
        return Contents(checkpoint.step, problem=str(error))
    return _ask_hub(checkpoint, configs)


def _read_directory(checkpoint: Checkpoint, full: bool) -> Contents:
    directory = local_path(checkpoint)
    files = weight_files(directory)
    config = read_json(directory / "config.json", "copy or download it again")
    tensors = {name: tensor for file in files for name, tensor in read_header(file).items()}
    blobs = {file.name: file.resolve() for file in files if file.is_symlink()}
    is_cached = len(blobs) == len(files) and all(blob.parent.name == "blobs" for blob in blobs.values())
    full = full or (not is_cached and sum(path.stat().st_size for path in files) <= WHOLE_BYTES)
    if is_cached and not full:  # blobs are named by their SHA-256
        digests = {name: blob.name for name, blob in blobs.items()}
    else:
        states = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
        found = {name: _digest(tensor, full, *states[tensor.file]) for name, tensor in tensors.items()}
        if invalid := [name for name, value in found.items() if value is None]:
            raise UserError(f"{directory} has weights that are NaN or infinite, such as {invalid[0]}")
        digests = {name: value for name, value in found.items() if value is not None}
    parameters: dict[str, int] = defaultdict(int)
    for tensor in tensors.values():
        if tensor.dtype in FLOATS:
            parameters[tensor.dtype] += tensor.elements
    return Contents(checkpoint.step, config, tensors, digests, parameters, saved_step(directory))


@lru_cache(maxsize=2**16)
def _digest(tensor: StoredTensor, full: bool, inode: int, modified: int) -> str | None:
    """The digest of a tensor, computed again only if its file was modified; None if a value is NaN or infinite."""
    return digest(tensor, full) if is_finite(tensor, full) else None


def _ask_hub(checkpoint: Checkpoint, configs: Configs) -> Contents:
    name, _, revision = str(checkpoint.location).partition("@")
    known = hub.describe(name, revision)
    if not known.weights:
        return Contents(checkpoint.step, problem=hub.without_weights(name, revision, known))
    if "config.json" not in known.files:
        return Contents(checkpoint.step, problem=f"{name}@{revision} has no config.json")
    digests = {path: file.digest for path, file in known.weights.items()}
    return Contents(checkpoint.step, configs.read(name, known), {}, digests, known.parameters)


def _order(steps: Sequence[int]) -> Iterator[Finding]:
    """Steps that are repeated or out of order."""
    for step in sorted({step for step in steps if steps.count(step) > 1}):
        yield Finding((step,), f"step {step} is given {steps.count(step)} times")
    for before, step in pairwise(steps):
        if step < before:
            yield Finding((before, step), f"step {step} is given after step {before}")


def _architecture(entry: Contents) -> dict[str, object]:
    return {key: value for key, value in entry.config.items() if key not in NOT_ARCHITECTURE}


def _changes(
    contents: Sequence[Contents],
    what: str,
    entries: Callable[[Contents], Mapping[str, object]],
    of_both: bool = False,
) -> Iterator[Finding]:
    """Checkpoints that differ from the last one, grouped by their differences.

    Args:
        contents: all checkpoints.
        what: the last one has, in which others differ.
        entries: of a checkpoint, to compare.
        of_both: compare only entries that both have, as versions of transformers write different ones.
    """
    last = contents[-1]
    wanted = entries(last)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for entry in contents[:-1]:
        has = entries(entry)
        names = sorted(has.keys() & wanted.keys() if of_both else has.keys() | wanted.keys())
        pairs = ((name, has.get(name, "absent"), wanted.get(name, "absent")) for name in names)
        groups[tuple(f"{name} is {one}, then {other}" for name, one, other in pairs if one != other)].append(entry.step)
    for differences, steps in groups.items():
        if differences:
            line = f"the last step, {last.step}, has {what} from {named(steps)}: {listed(differences, 3)}"
            yield Finding((*steps, last.step), line)


def _repeats(contents: Sequence[Contents]) -> Iterator[Finding]:
    """Steps that hold all or some of the weights of another step."""
    last = contents[-1]
    equal = _grouped((frozenset(entry.digests.items()), entry) for entry in contents)
    for group in equal:
        steps = [entry.step for entry in group if entry is not last]
        if last in group and steps:
            yield _repeat(steps, last, "")
        elif len(steps) > 1:
            yield Finding(tuple(steps), f"{named(steps)} hold the same weights")
    different = [group[0] for group in equal]
    if rounded := [entry.step for entry in different if _is_rounded(entry, last)]:
        yield _repeat(rounded, last, ", rounded to another dtype")
    yield from _returns(different)


def _repeat(steps: Sequence[int], last: Contents, how: str) -> Finding:
    return Finding((*steps, last.step), f"{named(steps)} and the last step, {last.step}, hold the same weights{how}")


def _is_rounded(entry: Contents, last: Contents) -> bool:
    """Whether the weights equal the last ones up to rounding to another dtype."""
    if not entry.tensors or entry.tensors.keys() != last.tensors.keys():
        return False
    pairs = [(tensor, last.tensors[name]) for name, tensor in entry.tensors.items()]
    return any(one.dtype != other.dtype for one, other in pairs) and all(same_up_to_rounding(*pair) for pair in pairs)


def _returns(contents: Sequence[Contents]) -> Iterator[Finding]:
    """Tensors, or files on the hub, that return to an earlier value: they belong to another step."""
    names = {name for entry in contents for name in entry.digests}
    again: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in sorted(names):
        having = [entry for entry in contents if name in entry.digests and _is_large(entry, name)]
        places = {entry.step: place for place, entry in enumerate(having)}
        for group in _grouped((entry.digests[name], entry) for entry in having):
            if places[group[-1].step] - places[group[0].step] >= len(group):
                again[tuple(entry.step for entry in group)].append(name)
    what = "tensors" if names & contents[-1].tensors.keys() else "files"
    for steps, having_again in again.items():
        share = f"{len(having_again)} of {len(names)} {what} ({listed(having_again, 3)})"
        yield Finding(
            steps, f"{named(steps)} hold the same values in {share}, but steps between them hold different ones"
        )


def _is_large(entry: Contents, name: str) -> bool:
    return name not in entry.tensors or entry.tensors[name].elements >= LARGE


def _grouped(pairs: Iterable[tuple[Hashable, Contents]]) -> list[list[Contents]]:
    """Checkpoints with the same key together, in the order given."""
    groups: dict[Hashable, list[Contents]] = defaultdict(list)
    for key, entry in pairs:
        groups[key].append(entry)
    return list(groups.values())
