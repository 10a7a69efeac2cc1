"""Load a teacher's checkpoints, each with its own config.json: one in use and at most one prefetched.

The weights are read in a background thread while the current checkpoint is in use. The model is built from them in the
caller's thread, as `from_pretrained` changes torch's default dtype and the initialisation of modules in all threads.
For the same reason, of several teachers one is loaded at a time.
"""

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, overload

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from common.errors import UserError
from common.teachers.configs import INVALID, one_line, read_config
from common.teachers.discovery import Checkpoint, evict, is_evictable, local_path
from common.teachers.objective import Objective, kind_of_class
from common.teachers.tensors import read_weights, require_finite_weights

OTHER_HEADS = r"(^|\.)(pooler|cls\.seq_relationship)\."
"""Tensors of the heads that BERT was pre-trained with in addition to its language modelling head."""

MOST_MISSING = 10**6
"""Parameters that a checkpoint may lack before its model is built, which then names them."""

_LOADING = Lock()


class Teachers:
    """Frozen checkpoints, of which at most two are in memory: the one in use and one that is prefetched.

    Args:
        checkpoints: all that may be loaded.
        read: maps a checkpoint's directory to what `build` needs. It is called in a background thread and must not draw
            random numbers.
        build: makes a model from what `read` returned, in the caller's thread. By default `read` returns the model.
        prefetch: False keeps only one checkpoint in memory.
        downloads_kept: how many of the checkpoints downloaded by this process stay on the disk: those read most
            recently. None keeps all.
        place: puts a frozen model on a device.

    Raises:
        UserError: `downloads_kept` is below 1.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        read: Callable[[Path], Any],
        build: Callable[[Any], nn.Module] = lambda model: model,
        prefetch: bool = True,
        downloads_kept: int | None = None,
        place: Callable[[nn.Module, torch.device], nn.Module] = lambda model, device: model.to(device),
    ) -> None:
        if downloads_kept is not None and downloads_kept < 1:
            raise UserError(f"downloads_kept must be at least 1, got {downloads_kept}")
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in checkpoints}
        self._downloads_kept, self._on_disk = downloads_kept, list[int]()
        self._read, self._build, self._place, self._prefetch = read, build, place, prefetch
        self._thread = ThreadPoolExecutor(1, "teacher")
        self._digests: dict[int, str] = {}
        self._current: tuple[int, nn.Module] | None = None
        self._prefetched: tuple[int, Future[Any]] | None = None

    @property
    def steps(self) -> set[int]:
        """Teacher steps that can be loaded."""
        return set(self._checkpoints)

    @property
    def weight_digests(self) -> dict[int, str]:
        """Digests of all values of the weights read so far, by teacher step."""
        return self._digests

    def expect_weights(self, digests: Mapping[int, str]) -> None:
        """Refuse checkpoints whose weights do not have the digests that an earlier process saw.

        Raises:
            UserError: one of those read so far has others; the others raise it when they are read.
        """
        for step, digest in digests.items():
            self._require_same(step, digest)

    def share_weight_digests(self, other: "Teachers") -> None:
        """Have one record of digests with the same checkpoints elsewhere, of which each is read in one place only."""
        self._digests = other._digests

    @property
    def current_step(self) -> int | None:
        """Teacher step of the checkpoint in use."""
        return self._current and self._current[0]

    @overload
    def load(self, step: int, then: int | None = None, device: torch.device | str = "cpu") -> nn.Module: ...

    @overload
    def load(
        self, step: int | None, then: int | None = None, device: torch.device | str = "cpu"
    ) -> nn.Module | None: ...

    def load(self, step: int | None, then: int | None = None, device: torch.device | str = "cpu") -> nn.Module | None:
        """The checkpoint of teacher step `step`, frozen and in evaluation mode; the previous one is freed first.

        Args:
            step: teacher step; None returns None, as for the steps of `ce_only`.
            then: teacher step that is needed next; its weights are read into host memory in the background.
            device: of the model.

        Raises:
            Exception: any error raised while loading the checkpoint, unchanged.
        """
        if step is None:
            return None
        if self._current is None or self._current[0] != step:
            self._current = None
            model = self._loaded(step).eval().requires_grad_(False)
            self._current = step, self._place(model, torch.device(device))
            if then is not None and self._prefetch:
                self._prefetched = then, self._start_reading(then)
        return self._current[1]

    def release(self) -> None:
        """Free all models, after waiting for one that is being read."""
        if self._prefetched is not None:
            wait([self._prefetched[1]])
        self._current = self._prefetched = None

    def _loaded(self, step: int) -> nn.Module:
        prefetched, self._prefetched = self._prefetched, None
        is_prefetched = prefetched is not None and prefetched[0] == step
        reading = prefetched[1] if prefetched and is_prefetched else self._start_reading(step)
        content = reading.result()
        with _LOADING:
            return self._build(content)

    def _start_reading(self, step: int) -> "Future[Any]":
        return self._thread.submit(self._read_checkpoint, step)

    def _read_checkpoint(self, step: int) -> Any:
        """What `read` returns for the checkpoint of teacher step `step`; then too many downloads are evicted."""
        path = local_path(self._checkpoints[step])
        with _LOADING:
            content = self._read(path)
        self._require_same(step, _weights_digest(content))
        if self._downloads_kept is not None and is_evictable(self._checkpoints[step]):
            self._on_disk = [*(other for other in self._on_disk if other != step), step]
            while len(self._on_disk) > self._downloads_kept:
                evict(self._checkpoints[self._on_disk.pop(0)])
        return content

    def _require_same(self, step: int, digest: str) -> None:
        """Refuse weights that differ from those of the checkpoint when it was first read."""
        if self._digests.setdefault(step, digest) != digest:
            raise UserError(
                f"the weights in {self._checkpoints[step].location} have changed since they were first read: restore "
                "them, or start over with --force (force=True)"
            )


@dataclass(frozen=True)
class StoredModel:
    """The content of a checkpoint in the transformers layout, as read from disk."""

    path: Path
    config: PretrainedConfig
    tensors: dict[str, Tensor]
    """By name, in the dtypes in which they were saved."""


def read_model(path: Path) -> StoredModel:
    """The content of a checkpoint's directory; no random number is drawn.

    Raises:
        UserError: as for `read_config` and `read_weights`.
    """
    return StoredModel(path, read_config(path), read_weights(path))


def build_model(
    stored: StoredModel,
    objective: Objective,
    *,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    model_class: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """A model of the class that its checkpoint names, with exactly the checkpoint's weights, all of which are finite.

    Args:
        stored: as returned by `read_model`; its tensors become the model's.
        objective: what the model must predict.
        dtype: of the weights; by default the one that most of them were saved in.
        attention: attention implementation; by default transformers' choice.
        model_class: by default the class that its config.json names, or the one of transformers for the objective.

    Raises:
        UserError: the model predicts something else or its class is unknown, its weights do not match its config.json,
            or they are integers, NaN or infinite.
    """
    path, config = stored.path, stored.config
    chosen = _class_of(stored, objective, model_class)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    numbers = {name: tensor for name, tensor in stored.tensors.items() if tensor.is_floating_point()}
    with _quiet():
        try:
            _require_described(stored, chosen, numbers)
            loaded = chosen.from_pretrained(
                None,
                config=config,
                state_dict=numbers,
                dtype=dtype or _main_dtype(numbers),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        except UserError:
            raise
        except INVALID as error:
            raise UserError(f"{path} cannot be loaded as a {chosen.__name__} ({one_line(error)})") from error
    model, found = loaded
    _require_all_weights(path, type(model).__name__, found, stored.tensors.keys() - numbers.keys())
    require_finite_weights(model.state_dict(), path)
    return model


def _weights_digest(content: StoredModel | nn.Module) -> str:
    """A digest of the names, dtypes, shapes and values of all weights."""
    hashed = hashlib.blake2b(digest_size=16)
    tensors = content.tensors if isinstance(content, StoredModel) else content.state_dict()
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:  # the state of a custom module
            hashed.update(f"{name} {tensor!r}\n".encode())
    return hashed.hexdigest()


def _class_of(stored: StoredModel, objective: Objective, model_class: type[PreTrainedModel] | None) -> Any:
    """The class to load a checkpoint with."""
    path, config = stored.path, stored.config
    name = next(iter(config.architectures or []), None)
    kind = name and kind_of_class(name)
    if kind is not None and kind != objective:
        raise UserError(
            f"{path} is a {name:.80}, a {kind} model, but the student is {objective}: give a teacher of the student's "
            "kind"
        )
    if model_class is not None:
        return model_class
    if name is not None and not hasattr(transformers, name):
        raise UserError(f"{path} is a {name:.80}, which transformers does not have: give load_teacher")
    auto: Any = AutoModelForCausalLM if objective == "causal" else AutoModelForMaskedLM
    if type(config) not in auto._model_mapping:
        raise UserError(f"{path} is a {config.model_type} model, for which transformers has no {objective} model")
    return auto._model_mapping[type(config)]


def _require_described(stored: StoredModel, chosen: Any, numbers: Mapping[str, Tensor]) -> None:
    """Reject a config.json that describes a model far larger than its weights, before memory is allocated for it."""
    with torch.device("meta"):
        described = sum(parameter.numel() for parameter in chosen(copy.deepcopy(stored.config)).parameters())
    held = sum(tensor.numel() for tensor in numbers.values())
    if described > MOST_MISSING + 2 * held:
        raise UserError(
            f"{stored.path} is not a checkpoint of a {chosen.__name__}: its config.json describes a model of "
            f"{described:,} parameters, and it has {held:,}"
        )


def _main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The floating dtype of most weights."""
    sizes: dict[torch.dtype, int] = {torch.float32: 0}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def _require_all_weights(path: Path, name: str, found: Mapping[str, Any], integers: Set[str]) -> None:
    """Reject a checkpoint with missing, mismatched or unexpected weights, or with integers in their place."""
    mismatched = {tensor for tensor, *_ in found["mismatched_keys"]}
    unexpected = {tensor for tensor in found["unexpected_keys"] if not re.search(OTHER_HEADS, tensor)}
    for what, tensors in (
        ("has integers as the weights", integers & found["missing_keys"]),
        ("lacks the weights", found["missing_keys"]),
        ("has weights whose shapes do not match its config.json,", mismatched),
        ("has weights that the model lacks,", unexpected),
    ):
        if tensors:
            shown = f"{min(tensors)}" + (f" and {len(tensors) - 1} more" if len(tensors) > 1 else "")
            raise UserError(f"{path} is not a checkpoint of a {name}: it {what} {shown}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and loading reports; what they report is checked here."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
