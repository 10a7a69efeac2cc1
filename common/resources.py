"""Memory and disk: what a command will need of them, and what there is, compared before anything is allocated."""

import contextlib
import math
import os
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from common.errors import UserError, listed

if TYPE_CHECKING:
    import torch

UNITS = ("kB", "MB", "GB", "TB", "PB")
RESUME_STATE = "a resume state"
EVALUATION_DATA = "evaluation data"
BATCH, WHOLE_BATCH, SAMPLES = "a batch", "a whole batch", "samples"
"""Parts of memory: what is computed at a time, with and without the option --accumulate; samples of several steps."""
TARGETS = "the teacher's targets"
"""On the disk, and those of them in memory."""
SMALLER = {
    EVALUATION_DATA: "a smaller --eval-samples",
    BATCH: "a smaller --batch-size or a larger --accumulate",
    WHOLE_BATCH: "a smaller --batch-size",
    SAMPLES: "a smaller --batch-size",
    TARGETS: "--targets sampled or a smaller --batch-size",
}
"""What to give if a part of memory is too large; for others, a smaller model."""
LARGE = 10**8
"""Bytes of memory or disk from which on a command says what it needs."""

OTHER_FILES = 8
"""That a command opens for a moment, while those of its runs are open."""

STATE = 16
"""Bytes per parameter: the weight, its gradient and Adam's two moments."""
SAVED = 12
"""Bytes per parameter in a resume state: the weight and the moments."""
TOKEN = 24
"""Bytes per token of a batch: three tensors of 64-bit integers."""


@dataclass(frozen=True)
class Needs:
    """The least that a command needs, in bytes, by what it is for."""

    memory: Mapping[str, int]
    """Where the model is: on a GPU, the GPU's."""
    host: Mapping[str, int]
    """In the host's memory, wherever the model is."""
    disk: Mapping[str, int]
    files: int = 1
    """Open at the same time; each run has one."""


def transformer_needs(
    *,
    layers: int,
    hidden: int,
    feed_forward: int,
    vocabulary: int,
    positions: int,
    batch_tokens: float,
    evaluation_tokens: float,
    checkpoints: int,
    half: bool = False,
) -> Needs:
    """What training one Transformer needs at least, in each process.

    Args:
        layers: blocks.
        hidden: dimensions of the hidden state.
        feed_forward: width of the feed-forward layers; 0 if there are none.
        vocabulary: number of token ids.
        positions: of the position embedding.
        batch_tokens: tokens that a process computes at a time.
        evaluation_tokens: tokens of all evaluation samples.
        checkpoints: number that will be saved.
        half: whether activations are in bfloat16, the weights being in float32.
    """
    parameters = hidden * (layers * (4 * hidden + 2 * feed_forward) + vocabulary + positions)
    activations = (2 if half else 4) * (4 * hidden + 2 * feed_forward)
    return Needs(
        memory={
            "weights and their optimiser": STATE * parameters,
            BATCH: int(batch_tokens * (activations * layers + TOKEN)),
        },
        host={RESUME_STATE: SAVED * parameters, EVALUATION_DATA: int(evaluation_tokens * TOKEN)},
        disk={"checkpoints": 4 * parameters * checkpoints, RESUME_STATE: SAVED * parameters},
    )


def one_after_another(needs: Sequence[Needs]) -> Needs:
    """What runs need that are trained one after another: the memory of the largest, and the disk of all."""
    largest = max(needs, key=lambda each: sum(each.memory.values()) + sum(each.host.values()))
    disk = _added([each.disk for each in needs]) | _largest(needs, "disk", RESUME_STATE)
    return Needs(largest.memory, largest.host, disk, max(each.files for each in needs))


def together(needs: Sequence[Needs]) -> Needs:
    """What runs need that are trained at the same time; their resume states are made one at a time."""
    return Needs(
        _added([each.memory for each in needs]),
        _added([each.host for each in needs]) | _largest(needs, "host", RESUME_STATE),
        _added([each.disk for each in needs]),
        sum(each.files for each in needs),
    )


def in_turn(needs: Sequence[Needs]) -> Needs:
    """What runs need that take their steps in turn, so that one batch is computed at a time, on one evaluation data."""
    all_needs = together(needs)
    memory = {**all_needs.memory, **_largest(needs, "memory", BATCH)}
    return replace(all_needs, memory=memory, host={**all_needs.host, **_largest(needs, "host", EVALUATION_DATA)})


def fitting_groups(needs: Sequence[Needs], most: float, device: str) -> list[list[int]]:
    """Consecutive runs in groups that can be trained in turn.

    Args:
        needs: of each run, in each of its processes.
        most: bytes of memory that all runs of a group may need together, where their models are; a run that needs more
            is a group of its own.
        device: type of the models' device.

    Returns:
        The indices of each group's runs.
    """
    on_gpu = device.startswith("cuda")
    groups: list[list[int]] = []
    for i in range(len(needs)):
        if groups:
            all_needs = in_turn([needs[j] for j in [*groups[-1], i]])
            parts = all_needs.memory if on_gpu else _on_host(all_needs)
            if sum(parts.values()) <= most:
                groups[-1].append(i)
                continue
        groups.append([i])
    return groups


def _on_host(needs: Needs, on_gpu: bool = False) -> dict[str, int]:
    """Bytes of the host's memory that all of this host's processes need."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    in_each = needs.host if on_gpu else _added([needs.memory, needs.host])
    return {name: processes * size for name, size in in_each.items()}


def _added(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = {name: None for part in parts for name in part}
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def _largest(needs: Sequence[Needs], where: str, part: str) -> dict[str, int]:
    return {part: max(getattr(each, where).get(part, 0) for each in needs)}


def require_resources(needs: Needs, directories: Sequence[Path], device: str) -> list[str]:
    """Refuse a command that needs more than there is.

    Args:
        needs: of the command, in each of its processes.
        directories: of its runs, at least one, all on one disk; what they already hold is part of what is needed.
        device: of the models.

    Returns:
        One line, or an empty list if less than `LARGE` is needed.

    Raises:
        UserError: says how much is needed, for what, and how much there is.
    """
    _require_files(needs.files)
    on_gpu = device.startswith("cuda")
    host = _on_host(needs, on_gpu)
    memory, where = free_memory()
    _require("memory", host, memory, where, _smaller(host))
    if on_gpu:
        _require("GPU memory", needs.memory, *free_gpu_memory(device), _smaller(needs.memory))
    disk = free_disk(directories[0]) + sum(map(_size, directories))
    advice = "free some space, give a larger --checkpoint-every, or --out on another disk"
    _require("disk", needs.disk, disk, f"on the disk of {directories[0]}", advice)
    memory_needed, disk_needed = sum(host.values()), sum(needs.disk.values())
    if max(memory_needed, disk_needed) < LARGE:
        return []
    return [
        f"needs at least {size_text(memory_needed)} of memory and {size_text(disk_needed)} of disk; "
        f"{size_text(memory)} and {size_text(disk)} are free"
    ]


def require_disk(parts: Mapping[str, int], directory: Path, advice: str) -> None:
    """Refuse what needs more of a disk than is free.

    Args:
        parts: bytes that are needed at least, by what they are for.
        directory: on the disk; it need not exist.
        advice: how the message ends.

    Raises:
        UserError: says how much is needed, for what, and how much there is.
    """
    _require("disk", parts, free_disk(directory), f"on the disk of {directory}", advice)


def _smaller(parts: Mapping[str, int]) -> str:
    """What to give if these parts of memory are too large together: what makes the largest one smaller."""
    return f"give {SMALLER.get(max(parts, key=lambda name: parts[name], default=''), 'a smaller model')}"


def require_memory(parts: Mapping[str, int], advice: str = "give smaller numbers") -> None:
    """Refuse what needs more of this machine's memory than is free.

    Args:
        parts: bytes that are needed at least, by what they are for, such as an option and its value.
        advice: how the message ends.

    Raises:
        UserError: says how much is needed, for what, and how much there is.
    """
    if sum(parts.values()) > LARGE // 16:
        _require("memory", parts, *free_memory(), advice)


def _require_files(count: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = limit - psutil.Process().num_fds() - OTHER_FILES
    if limit != resource.RLIM_INFINITY and count > free:
        raise UserError(
            f"this needs {count:,} open files at a time, as each run has one, but only {max(free, 0):,} more can be "
            f"open: raise the limit of {limit:,} with ulimit -n, or give fewer runs"
        )


def _require(what: str, parts: Mapping[str, int], free: int, where: str, advice: str) -> None:
    total = sum(parts.values())
    if total > free:
        large = sorted((name for name in parts if parts[name] > total / 100), key=lambda name: -parts[name])
        raise UserError(
            f"this needs at least {size_text(total)} of {what} "
            f"({listed(f'{name} {size_text(parts[name])}' for name in large)}), "
            f"but {size_text(free)} are free {where}: {advice}"
        )


def free_memory() -> tuple[int, str]:
    """Bytes that this process can still allocate, and where they are free: the machine, a control group or ulimit."""
    free = [(psutil.virtual_memory().available, "on this machine")]
    used = psutil.Process().memory_info()
    for name, kind, now in (("-v", resource.RLIMIT_AS, used.vms), ("-d", resource.RLIMIT_DATA, used.rss)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            free.append((limit - now, f"within ulimit {name}"))
    free += [(number, "in this control group") for number in _control_group_memory()]
    amount, where = min(free)
    return max(amount, 0), where


def free_memory_of(device: "torch.device") -> int:
    """Bytes that are free on a device: a GPU's memory, or the host's."""
    return free_gpu_memory(str(device))[0] if device.type == "cuda" else free_memory()[0]


def free_gpu_memory(device: str) -> tuple[int, str]:
    """Bytes that are free on a GPU, and words for where."""
    import torch  # slow, and not needed by the other functions

    return torch.cuda.mem_get_info(torch.device(device))[0], f"on {device}"


def free_disk(directory: Path) -> int:
    """Bytes that are free where a directory is or would be created."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free


def _size(directory: Path) -> int:
    """Bytes of a run; 0 for a directory that is none, such as a home directory."""
    if not (directory / "config.json").is_file():
        return 0
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process may be using the run
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def size_text(size: float) -> str:
    """A number of bytes as people read it, such as 1.5 GB."""
    if size < 1000:
        return f"{size:.0f} bytes"
    power = min(int(math.log10(size)) // 3, len(UNITS))
    return f"{size / 1000**power:,.1f} {UNITS[power - 1]}"


def _control_group_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that each control group above this process still allows; pages of files do not count as used."""
    free = []
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = root / controllers / path.lstrip("/")
            names = ("memory.max", "memory.current") if not controllers else _FIRST_VERSION
            for group in (folder, *folder.parents):
                limit, used = (_number(group / name) for name in names)
                if limit is not None and used is not None:
                    free.append(limit - used + _reclaimable(group / "memory.stat"))
                if group == root:
                    break
    return free


_FIRST_VERSION = ("memory.limit_in_bytes", "memory.usage_in_bytes")
"""Files of control groups of the first version."""


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no such file, or no limit."""
    text = file.read_text().strip() if _is_readable(file) else ""
    return int(text) if text.isdecimal() else None


def _reclaimable(file: Path) -> int:
    """Bytes of cached files in a group's memory, which the kernel frees when memory is short."""
    words = [line.split() for line in file.read_text().splitlines()] if _is_readable(file) else []
    return next((int(number) for name, number in words if name in ("inactive_file", "total_inactive_file")), 0)


def _is_readable(file: Path) -> bool:
    return file.is_file() and os.access(file, os.R_OK)
