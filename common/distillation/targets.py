"""A teacher's targets as they are stored, and back: its logits, or a few classes of each position.

logits: in float32, for few classes. Students learn exactly what they would learn from the teacher itself.
arg-max: the class of the largest logit, all that matters at temperature 0.
top-k: the logits of the k most probable classes, for the loss with `top_k`.
sampled: classes drawn from the teacher's probabilities, with counts. The i-th of K samples inverts the cumulative
probabilities at (i + u) / K with u uniform on [0, 1), independently: the expected share of each class is its
probability, and no weighted sum of the shares varies more than for independent draws.

Class ids have 2 bytes for up to 65,536 classes, else 4. Of a sample's counts only those above 1 are stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.distillation.arguments import TARGET_SAMPLES, Targets
from common.distillation.labelled_head import LabelledOutput
from common.distillation.losses import ARG_MAX_TEMPERATURE, LossArguments, largest, teacher_probabilities
from common.distillation.sparse_targets import SparseTargets
from common.errors import UserError

MOST_SAMPLES = 255
"""That a count of one byte can have."""

Fields = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TargetKind:
    """What is stored of a teacher's predictions."""

    name: Literal["logits", "arg-max", "top-k", "sampled"]
    temperature: float | None = None
    """That samples are drawn at, and that the loss of top-k has."""
    number: int | None = None
    """Of the classes kept, or of the samples."""

    @property
    def is_exact(self) -> bool:
        """Whether students learn what they learn from the teacher itself, to the last bit."""
        return self.name in ("logits", "arg-max")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the arrays that are stored, in alphabetical order."""
        return {
            "logits": ("logits",),
            "arg-max": ("classes",),
            "top-k": ("classes", "logits"),
            "sampled": ("classes", "counts", "entropy", "numbers", "repeated"),
        }[self.name]

    def least_bytes(self, classes: int) -> int:
        """Bytes of a position, at least."""
        id_bytes = class_dtype(classes).itemsize
        match self.name:
            case "logits":
                return 4 * classes
            case "arg-max":
                return id_bytes
            case "top-k":
                return (self.number or 0) * (id_bytes + 4)
            case "sampled":
                return 2 + id_bytes


@dataclass(frozen=True)
class Stored:
    """The targets of a micro-batch as they are stored."""

    kind: TargetKind
    classes: int
    """Number of classes of the teacher."""
    positions: int
    """Labelled positions."""
    fields: Fields

    @property
    def nbytes(self) -> int:
        """Of all fields."""
        return sum(array.nbytes for array in self.fields.values())


def kind_of(targets: Targets, samples: int, arguments: LossArguments, spell: Callable[[str], str] = str) -> TargetKind:
    """What is stored for students with this loss.

    Args:
        targets: as chosen.
        samples: of each position, if they are sampled, or else `TARGET_SAMPLES`.
        arguments: of the loss.
        spell: maps an argument's name to its name in messages.

    Raises:
        UserError: the loss cannot be computed from such targets.
    """
    if samples != TARGET_SAMPLES and targets != "sampled":
        raise UserError(f"{spell('samples')} is only for {spell('targets')} sampled, got {targets}")
    if targets == "exact":
        is_arg_max = max(arguments.temperature) <= ARG_MAX_TEMPERATURE and arguments.divergence == "forward-kl"
        return TargetKind("arg-max") if is_arg_max else TargetKind("logits")
    advice = f"give {spell('targets')} exact"
    temperature, last = arguments.temperature
    if arguments.divergence != "forward-kl":
        raise UserError(
            f"{spell('divergence')} {arguments.divergence} needs the probabilities of all classes, which {targets} "
            f"targets lack: {advice}"
        )
    if temperature != last:
        raise UserError(f"{targets} targets are of one {spell('temperature')}, got {temperature} to {last}: {advice}")
    if temperature <= ARG_MAX_TEMPERATURE:
        raise UserError(
            f"at {spell('temperature')} {temperature} a target is one class: {advice}, which stores no more"
        )
    if targets == "top-k":
        if arguments.top_k is None:
            raise UserError(f"{spell('targets')} top-k needs {spell('top_k')}, the number of classes that are kept")
        return TargetKind("top-k", temperature, arguments.top_k)
    if arguments.top_k is not None:
        raise UserError(f"sampled targets are of all classes: leave out {spell('top_k')}, or {advice}")
    if not 1 <= samples <= MOST_SAMPLES:
        raise UserError(f"{spell('samples')} must be from 1 to {MOST_SAMPLES}, got {samples}")
    return TargetKind("sampled", temperature, samples)


def class_dtype(classes: int) -> np.dtype[np.generic]:
    """The type of stored class ids."""
    return np.dtype(np.uint16 if classes <= 1 << 16 else np.uint32)


@torch.no_grad()
def encode(output: LabelledOutput, kind: TargetKind, key: tuple[int, int, int]) -> Stored:
    """A teacher's output on a micro-batch, as it is stored.

    Args:
        output: with at least one position.
        kind: what is stored.
        key: seed, training step and number of the micro-batch, each at least 0; samples are a function of it.
    """
    count, classes = len(output), output.number_of_classes
    parts: list[dict[str, np.ndarray]] = []
    entropy = 0.0
    uniforms = _uniforms(key, count, kind.number or 0) if kind.name == "sampled" else None
    for rows in output.chunks():
        logits = output.logits(rows)
        if kind.name == "logits":
            parts.append({"logits": logits.cpu().numpy()})
        elif kind.name == "arg-max":
            parts.append({"classes": _ids(logits.argmax(-1), classes)})
        elif kind.name == "top-k":
            assert kind.number is not None
            kept = largest(logits, kind.number).nonzero()[:, 1].view(-1, kind.number)
            parts.append({"classes": _ids(kept, classes), "logits": logits.gather(-1, kept).cpu().numpy()})
        else:
            assert kind.temperature is not None
            assert uniforms is not None
            probabilities = teacher_probabilities(logits, kind.temperature).double()
            entropy += float(torch.special.entr(probabilities).sum())
            drawn = draw(probabilities, uniforms[rows].to(logits.device))
            parts.append(_counted(drawn.cpu().numpy(), classes))
    fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if kind.name == "sampled":
        fields["entropy"] = np.array([entropy / count])
    return Stored(kind, classes, count, fields)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Classes sampled from probabilities, in ascending order, of shape (rows, samples).

    Args:
        probabilities: (rows, classes) in float64; they sum to about 1.
        uniforms: (rows, samples), in [0, 1).
    """
    samples = uniforms.shape[1]
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    places = torch.arange(samples, device=uniforms.device)
    points = (places + uniforms.double()).div_(samples).mul_(total)
    points = torch.minimum(points, total.nextafter(torch.zeros_like(total)))  # or rounding would give no class
    return torch.searchsorted(cumulative, points, right=True)


def decode(stored: Stored, device: torch.device) -> LabelledOutput | SparseTargets:
    """What a student learns from."""
    fields = {name: torch.from_numpy(array).to(device) for name, array in stored.fields.items() if name != "entropy"}
    kind, classes = stored.kind, stored.classes
    if kind.name == "logits":
        return LabelledOutput(fields["logits"])
    if kind.name == "arg-max":
        best = fields["classes"].long()[:, None]
        return SparseTargets(best, torch.ones_like(best, dtype=torch.float32), 0.0, classes)
    if kind.name == "top-k":
        assert kind.temperature is not None
        probabilities = teacher_probabilities(fields["logits"], kind.temperature)
        entropy = torch.special.entr(probabilities).sum(-1).mean()
        return SparseTargets(fields["classes"].long(), probabilities, entropy, classes)
    assert kind.number is not None
    width = torch.arange(int(stored.fields["numbers"].max()), device=device)
    found, repeated = (width < fields[name].long()[:, None] for name in ("numbers", "repeated"))
    ids = torch.zeros(found.shape, dtype=torch.int64, device=device).masked_scatter_(found, fields["classes"].long())
    counts = found.float().masked_scatter_(repeated, fields["counts"].float())
    return SparseTargets(ids, counts.div_(kind.number), float(stored.fields["entropy"][0]), classes)


def is_valid(stored: Stored) -> bool:
    """Whether stored targets can be what `encode` made: types, shapes and ranges."""
    kind, fields, positions = stored.kind, stored.fields, stored.positions
    if positions < 1 or stored.classes < 1:
        return False
    if kind.name == "logits":
        return _is(fields["logits"], np.float32, (positions, stored.classes)) and _has_largest(fields["logits"])
    ids = fields["classes"]
    if ids.dtype != class_dtype(stored.classes) or not ids.size or ids.max() >= stored.classes:
        return False
    if kind.name == "arg-max":
        return ids.shape == (positions,)
    assert kind.number is not None
    if kind.name == "top-k":
        shape = (positions, kind.number)
        return ids.shape == shape and _is(fields["logits"], np.float32, shape) and _has_largest(fields["logits"])
    numbers, repeated, counts, entropy = (fields[name] for name in ("numbers", "repeated", "counts", "entropy"))
    if not (_is(numbers, np.uint8, (positions,)) and _is(repeated, np.uint8, (positions,))):
        return False
    entries, larger = int(numbers.sum(dtype=np.int64)), int(repeated.sum(dtype=np.int64))
    if ids.shape != (entries,) or not _is(counts, np.uint8, (larger,)) or not _is(entropy, np.float64, (1,)):
        return False
    if (numbers < 1).any() or (repeated > numbers).any() or (counts < 2).any():
        return False
    owners = np.repeat(np.arange(positions), repeated)
    totals = np.bincount(owners, counts, positions) + numbers.astype(np.int64) - repeated
    return bool((totals == kind.number).all()) and 0 <= float(entropy[0]) <= 1.001 * np.log(stored.classes) + 1e-6


def _is(array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> bool:
    return array.dtype == dtype and array.shape == shape


def _has_largest(logits: np.ndarray) -> bool:
    """Whether each position has a largest logit; -inf for some of the classes means that they are impossible."""
    return bool(np.isfinite(logits.max(-1)).all())


def _uniforms(key: tuple[int, int, int], positions: int, samples: int) -> Tensor:
    """Random numbers of a micro-batch, (positions, samples) in [0, 1)."""
    seed, step, part = key
    philox = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=np.array([0, 0, part, step], np.uint64))
    return torch.from_numpy(np.random.Generator(philox).random((positions, samples), np.float32))


def _ids(classes: Tensor, number: int) -> np.ndarray:
    return classes.cpu().numpy().astype(class_dtype(number))


def _counted(drawn: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Samples (rows, samples) in ascending order as classes and counts; of each row, those with a count above 1 first.

    Each in ascending order of the classes.
    """
    begins = np.ones(drawn.shape, bool)
    begins[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    numbers = begins.sum(1)
    counts = np.diff(np.flatnonzero(begins), append=drawn.size)
    is_single = counts == 1
    order = np.argsort(2 * np.repeat(np.arange(len(drawn)), numbers) + is_single, kind="stable")
    return {
        "classes": drawn[begins][order].astype(class_dtype(classes)),
        "counts": counts[~is_single].astype(np.uint8),
        "numbers": numbers.astype(np.uint8),
        "repeated": np.add.reduceat(~is_single, np.cumsum(numbers) - numbers, dtype=np.int64).astype(np.uint8),
    }
