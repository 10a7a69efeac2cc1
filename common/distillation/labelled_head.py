"""What a model predicts at labelled positions, without logits anywhere else.

Positions index the flattened samples: position `sample * length + token` of inputs of shape (samples, length).

The logits are by far the largest activation of a language model. Hooks on the output layer select the labelled
positions of its input, or replace it by the identity, so that logits can be computed from the hidden states chunk by
chunk. `LabelledHead.check` tests on a sample whether a model permits that and leaves its logits unchanged afterwards.
What follows the attention of BERT's last block is also computed at labelled positions only.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertForMaskedLM, PreTrainedModel

from common.distillation.batch_checks import TOLERANCE, require_causal
from common.distillation.losses import IGNORED_LABEL, teacher_probabilities
from common.teachers.objective import class_of, unwrap
from common.teachers.tensors import require_finite_logits

TRANSFORMS: dict[type, str] = {BertForMaskedLM: "cls"}
"""Models whose output layer is the end of a module that treats each position separately, and that module's name."""

LAST_BLOCKS: dict[type, Callable[[Any], Any]] = {BertForMaskedLM: lambda model: model.bert.encoder.layer[-1]}
"""Models whose last block treats each position separately from its `attention.output` on, and that block."""

CHUNK = 2**22
"""Number of logits in a chunk; fewer are computed at once."""
CPU_CHUNK = 2**20
"""The same on a CPU: smaller chunks stay in its cache, and use memory that the process has already."""
CPU_ROWS = 64
"""Smallest number of positions in a chunk on a CPU, where `CHUNK` permits it: the weights of the output layer, and
their gradients, are read for every chunk."""

MOST_LOGITS = 2**25
"""Number of logits up to which a teacher's are kept in a step for other students, and the targets made of them: 400 MB
in all. Above it, only its hidden states are."""


@dataclass(frozen=True)
class LabelledOutput:
    """A model's output at labelled positions: logits, or hidden states and the layer that maps them to logits."""

    values: Tensor
    """(labelled, classes) or (labelled, hidden)."""
    layer: nn.Linear | None = None
    """None if `values` are logits."""
    classes: int | None = None
    """Only the first classes count; None for all."""
    dtype: torch.dtype | None = None
    """The dtype in which the layer computes; None for that of its weights."""
    kept: dict[tuple[int, int], tuple[tuple[float, int | None], Tensor, Tensor]] | None = None
    """Targets of chunks, by their rows, and the arguments that they were made with; None if they are not kept."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def number_of_classes(self) -> int:
        """Number of classes of the logits."""
        all_classes = self.values.shape[1] if self.layer is None else self.layer.out_features
        return all_classes if self.classes is None else self.classes

    @property
    def is_one_chunk(self) -> bool:
        """Whether the logits are computed at once."""
        return len(self) <= rows_of_chunk(self.number_of_classes, self.values.device)

    def chunks(self) -> Iterator[slice]:
        """Consecutive rows, whose logits are computed together."""
        return chunks(len(self), self.number_of_classes, self.values.device)

    @property
    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight (classes, hidden) and bias (classes,) of the layer."""
        assert self.layer is not None
        weight, bias = self.layer.weight, self.layer.bias
        if self.classes is None:
            return weight, bias
        return weight[: self.classes], None if bias is None else bias[: self.classes]

    @cached_property
    def _cast_weights(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.weights
        dtype = self.dtype or weight.dtype
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """Logits of some positions, of shape (rows, classes), in float32."""
        values = self.values[rows]
        if self.layer is None:
            return values[:, : self.number_of_classes].float()
        weight, bias = self._cast_weights
        with torch.autocast(values.device.type, enabled=False):
            return F.linear(values.to(weight.dtype), weight, bias).float()

    @property
    def kept_logits(self) -> int:
        """Number of logits that it holds."""
        return 0 if self.kept is None else self.values.numel()

    def with_logits(self, most: int) -> "LabelledOutput":
        """The same output with its logits computed, unless they are more than `most`."""
        if self.layer is None or not 0 < len(self) * self.number_of_classes <= most:
            return self
        return LabelledOutput(torch.cat([self.logits(rows) for rows in self.chunks()]), kept={})

    def targets(self, rows: slice, temperature: float, top_k: int | None) -> tuple[Tensor, Tensor]:
        """A teacher's probabilities q at some positions, as `teacher_probabilities`, and log q; both (rows, classes).

        Where q is 0, log q is that of the smallest normal number, so that q log q is 0.
        """
        place, made_with = (rows.start, rows.stop), (temperature, top_k)
        if self.kept and place in self.kept and self.kept[place][0] == made_with:
            return self.kept[place][1:]
        probabilities = teacher_probabilities(self.logits(rows), temperature, top_k)
        logarithms = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log_()
        if self.kept is not None:
            self.kept.setdefault(place, (made_with, probabilities, logarithms))
        return probabilities, logarithms

    def require_finite(self, owner: object) -> None:
        """Check the logits at all labelled positions; see `require_finite_logits`.

        Raises:
            UserError: they are not finite.
        """
        for rows in self.chunks():
            require_finite_logits(self.logits(rows), owner)


class LabelledHead:
    """Restricts a model's output layer to labelled positions.

    Args:
        model: its output layer is that of `get_output_embeddings`.
        classes: only the first classes count; None for all.
        dtype: the dtype in which the output layer computes under autocast.
    """

    def __init__(self, model: nn.Module, classes: int | None = None, dtype: torch.dtype | None = None) -> None:
        self._classes, self._dtype = classes, dtype
        self._positions: Tensor | None = None
        self._hidden: Tensor | None = None
        self._probe: Tensor | None = None
        self._skips_layer = False
        self._model = inner = unwrap(model)
        layer: Any = inner.get_output_embeddings() if isinstance(inner, PreTrainedModel) else None
        self._layer, self._hooks = layer, []
        self._block: Any = None
        if layer is not None:
            name = TRANSFORMS.get(class_of(inner))
            entry: Any = layer if name is None else getattr(inner, name)
            self._hooks = [
                entry.register_forward_pre_hook(self._select),
                layer.register_forward_pre_hook(self._take_hidden),
                layer.register_forward_hook(self._give_hidden),
            ]
            if class_of(inner) in LAST_BLOCKS:
                self._block = LAST_BLOCKS[class_of(inner)](inner)
                self._hooks.append(self._block.attention.output.register_forward_pre_hook(self._select_in_block))
        size = getattr(layer, "out_features", None)
        self.number_of_classes: int | None = size if classes is None else classes
        """None if it is unknown."""
        self.permits_chunks = type(layer) is nn.Linear
        """Whether logits can be made outside the model."""

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, chunked: bool | None = None
    ) -> LabelledOutput:
        """The model's output at positions.

        Args:
            model: this head's, or a wrapper of it. It maps inputs to an output with logits, of shape
                (samples, length, classes) or (samples, classes).
            inputs: the model's arguments.
            positions: (labelled,).
            chunked: return hidden states and the layer, if the model permits that; by default if there are more logits
                than fit in a chunk.
        """
        if chunked is None:
            device = positions.device
            chunked = self.permits_chunks and len(positions) > rows_of_chunk(self._layer.out_features, device)
        self._positions, self._skips_layer = positions, chunked and self.permits_chunks
        try:
            values = model(**inputs)["logits"]
        finally:
            self._positions, skips_layer, self._skips_layer = None, self._skips_layer, False
        if skips_layer:
            return LabelledOutput(values, self._layer, self._classes, self._dtype)
        if not self._hooks:
            values = values.flatten(0, -2)[positions]
        return LabelledOutput(values, None, self._classes)

    def check(self, inputs: Mapping[str, Any], causal_owner: str | None = None) -> None:
        """Test on the first sample that the hooks do not change the model's predictions; else do without them.

        Args:
            inputs: the model's arguments; those that are tensors begin with the samples' dimension.
            causal_owner: whose model it is, if it must be causal.

        Raises:
            UserError: it must be causal, but is not.
        """
        if causal_owner is not None:
            require_causal(self._model, inputs, causal_owner)
        if not self._hooks:
            return
        model, was_training = self._model, self._model.training
        sample = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        model.eval()
        with torch.no_grad():
            expected = model(**sample)["logits"].flatten(0, -2).float()[:, : self._classes]
            positions = torch.arange(0, len(expected), 2, device=expected.device).flip(0)
            found = self(model, sample, positions, chunked=False).logits()
            if expected.isnan().any() or _agree(found, expected[positions]):  # NaN is reported where it is used
                self.permits_chunks = self.permits_chunks and self._gives_output_unchanged(sample, positions)
            else:
                self.permits_chunks = False
                self.remove()
        model.train(was_training)
        if not self.permits_chunks:
            warnings.warn(
                f"{class_of(model).__name__} does more than apply a linear layer to its last hidden states: "
                "its logits are kept in memory at all labelled positions",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Remove the hooks; otherwise a reference cycle keeps the model in memory after its use."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _gives_output_unchanged(self, sample: Mapping[str, Any], positions: Tensor) -> bool:
        """Whether the layer's output is the model's, without a scale or a soft cap; tested with large values."""
        self._probe = torch.linspace(-1000, 1000, len(positions), device=positions.device)[:, None]
        try:
            values = self(self._model, sample, positions, chunked=True).values
            return values.shape == self._probe.shape and torch.equal(values.float(), self._probe.float())
        finally:
            self._probe = None

    def _select(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Hidden states (samples, length, hidden) to (labelled, hidden)."""
        return inputs if self._positions is None else (inputs[0].flatten(0, -2)[self._positions],)

    def _select_in_block(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Select the positions in all inputs of the block's `attention.output`; `_select` then has nothing to do.

        Not if the block applies dropout, whose random numbers would change, or is computed again in the backward pass.
        """
        drops = any(each.training and each.p > 0 for each in self._block.modules() if isinstance(each, nn.Dropout))
        if self._positions is None or drops or self._block.gradient_checkpointing:
            return inputs
        positions, self._positions = self._positions, None
        return tuple(states.flatten(0, -2)[positions] for states in inputs)

    def _take_hidden(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Keep the hidden states, and apply the layer to no positions."""
        if not self._skips_layer:
            return inputs
        self._hidden = inputs[0]
        return (inputs[0][:0],)

    def _give_hidden(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Return the hidden states in place of the logits."""
        if not self._skips_layer:
            return output
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        if self._probe is None:
            return hidden
        self._probe = self._probe.to(output.dtype)
        return self._probe


def rows_of_chunk(classes: int, device: torch.device) -> int:
    """Largest number of positions of so many classes in a chunk on a device."""
    most = max(CHUNK // classes, 1)
    return min(max(CPU_CHUNK // classes, CPU_ROWS), most) if device.type == "cpu" else most


def chunks(positions: int, classes: int, device: torch.device) -> Iterator[slice]:
    """Consecutive rows of logits (positions, classes) on a device, `rows_of_chunk` at a time."""
    size = rows_of_chunk(classes, device)
    return (slice(start, min(start + size, positions)) for start in range(0, positions, size))


def argument_names(model: nn.Module) -> frozenset[str] | None:
    """Names of the arguments that a model takes; None if it takes any."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    takes_others = takes_any and not (isinstance(model, PreTrainedModel) and "input_ids" in parameters)
    return None if takes_others else frozenset(parameters)


def labelled_positions(labels: Tensor, shift: bool) -> Tensor:
    """Positions whose logits predict a label, of shape (labelled,).

    Args:
        labels: (samples, length) or (samples,), with `IGNORED_LABEL` where there is no label.
        shift: whether logits predict the label of the next position.
    """
    if labels.ndim == 1:
        return (labels != IGNORED_LABEL).nonzero()[:, 0]
    rows, columns = (labels[:, int(shift) :] != IGNORED_LABEL).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns


def _agree(given: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of logits differ only by rounding, even in bfloat16."""
    return given.shape == expected.shape and bool((given - expected).abs().max() <= TOLERANCE * expected.abs().max())
