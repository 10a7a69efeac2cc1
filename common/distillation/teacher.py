"""The teacher during training: what its current checkpoint predicts on the student's batches."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from common.attention import ATTENTION
from common.distillation.batch_checks import require_fitting_tokens, require_known_labels
from common.distillation.chance import teacher_report
from common.distillation.chunks import evaluation_values
from common.distillation.labelled_head import (
    MOST_LOGITS,
    LabelledHead,
    LabelledOutput,
    argument_names,
    labelled_positions,
)
from common.distillation.schedules import Segment, spans
from common.distillation.sharding import is_sharded, shard, sharing_processes
from common.distillation.sparse_targets import SparseTargets
from common.distillation.target_cache import Place, TargetCache
from common.distillation.target_shards import batch_hash
from common.distillation.targets import decode
from common.distillation.vocabulary import classes_of, shared_classes, student_tokenizer, teacher_tokenizer
from common.errors import UserError
from common.fast_layers import use_fast_layers
from common.runs.processes import Processes
from common.teachers.configs import read_config
from common.teachers.discovery import Checkpoint, local_path
from common.teachers.loading import StoredModel, Teachers, build_model, read_model
from common.teachers.objective import Objective, class_of
from common.teachers.trajectory import checkpoint_digests, require_trajectory

TeacherOutput = LabelledOutput | SparseTargets
"""What a student learns from: a model's output, or what a cache keeps of it."""

REPORT_BATCHES, REPORT_LABELS = 8, 4096
"""Least number of evaluation batches, and of labels in them, that a teacher is tested on before training."""


def attention_of(model: nn.Module) -> str | None:
    """The name of a model's attention in transformers; None if it has none."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


class Teacher:
    """A teacher's checkpoints, one at a time, as functions from batches to logits at labelled positions.

    Args:
        checkpoints: all that a schedule may name.
        student: unwrapped; if it is sharded, so are the checkpoints.
        objective: what the student, and so the teacher, predicts.
        load: makes a model from a checkpoint's directory, in a background thread; by default from its config.json.
        dtype: of the weights, if `load` is not given; None for the checkpoint's own.
        prefetch: read the next checkpoint while the current one is in use.
        downloads_kept: as in `Teachers`.
        autocast: returns the context that the student computes in.
        autocast_dtype: of matrix products in that context; None without autocast.
        cache: prepared for the student; where it has the targets of a batch, no model is loaded.
        designs: models of designed targets, by the negative steps that stand for them; they are not in the cache.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        student: nn.Module,
        objective: Objective,
        *,
        load: Callable[[Path], nn.Module] | None = None,
        dtype: torch.dtype | None = None,
        prefetch: bool = True,
        downloads_kept: int | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        autocast_dtype: torch.dtype | None = None,
        cache: TargetCache | None = None,
        designs: Mapping[int, nn.Module] = MappingProxyType({}),
    ) -> None:
        self._designs = designs
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in checkpoints}
        self._student, self._objective, self._dtype, self._autocast = student, objective, dtype, autocast
        self._autocast_dtype = autocast_dtype
        self._loads_itself = load is None
        read, build = (read_model, self._build) if load is None else (load, lambda model: model)
        self._processes = sharing_processes(student)
        place: dict[str, Any] = {"place": shard} if is_sharded(student) else {}
        self._models = Teachers(checkpoints, read, build, prefetch, downloads_kept, **place)
        self._head: LabelledHead | None = None
        self._current_step: int | None = None
        """Whose head it is."""
        self._names: frozenset[str] | None = None
        self.classes: int | None = None
        """Number of classes that student and teacher share; None if their logits must have the same number."""
        fixed_for_student = class_of(student), attention_of(student), objective, autocast_dtype
        self._identity = self._checkpoints, designs, cache, load, dtype, fixed_for_student
        self._cache = cache if checkpoints else None
        self._checkpoint_digests: dict[int, str] = {}
        self._shared: dict[tuple[int, int, int], LabelledOutput] | None = None
        """Outputs on the micro-batches of the latest training step, by the step, the micro-batch and the teacher step,
        if other students learn from the same teacher."""

    @property
    def steps(self) -> set[int]:
        """Teacher steps of the checkpoints."""
        return self._models.steps

    @property
    def sources(self) -> set[int]:
        """All that a schedule may name: the `steps`, and the negative ones of designed targets."""
        return self.steps | self._designs.keys()

    def is_same_as(self, other: "Teacher") -> bool:
        """Whether the other teacher has the same outputs."""
        return self._identity == other._identity and self.classes == other.classes

    def share(self, other: "Teacher") -> None:
        """Share outputs with a teacher that is the same, and whose student has the same batches."""
        other._shared = {} if other._shared is None else other._shared
        self._shared = other._shared
        self._models.share_weight_digests(other._models)

    @property
    def weights_read(self) -> dict[str, str]:
        """Digests of all values of the weights read so far, by teacher step as text."""
        return {str(step): digest for step, digest in sorted(self._models.weight_digests.items())}

    def expect_weights(self, digests: Mapping[str, str]) -> None:
        """Refuse checkpoints whose weights are not those that an earlier process read.

        Raises:
            UserError: one that was read has other weights; the others raise it when they are read.
        """
        self._models.expect_weights({int(step): digest for step, digest in digests.items()})

    def check_trajectory(self, steps: Collection[int | None], trust: bool) -> None:
        """Check that some checkpoints are what their steps say; only warn about problems if they are trusted.

        Raises:
            UserError: there are problems with the checkpoints, and they are not trusted.
        """
        checkpoints = [checkpoint for step, checkpoint in self._checkpoints.items() if step in steps]
        for finding in require_trajectory(checkpoints, trust):
            warnings.warn(finding.line, stacklevel=3)

    def digests(self, steps: Collection[int | None]) -> dict[str, str]:
        """A digest of each checkpoint of these steps, by its step as text."""
        return checkpoint_digests([self._checkpoints[step] for step in sorted(self._checkpoints.keys() & steps)])

    def share_classes(self, step: int | None, processing_class: Any, given: int | None) -> None:
        """Find the classes that student and teacher share.

        Args:
            step: of the checkpoint to look at; that of a designed target has the student's classes.
            processing_class: the student's tokenizer, if it is one.
            given: number of classes, if the caller knows it.

        Raises:
            UserError: the vocabularies differ, or `given` is out of range.
        """
        self.classes = given
        sizes = [classes_of(model.config) for model in (self._student,) if isinstance(model, PreTrainedModel)]
        if given is not None and not 1 <= given <= min(sizes, default=given):
            raise UserError(f"classes must be between 1 and the student's {sizes[0]:,}, got {given}")
        checkpoint = None if step is None else self._checkpoints.get(step)
        if checkpoint and self._loads_itself and given is None and isinstance(self._student, PreTrainedModel):
            path = local_path(checkpoint)
            theirs = classes_of(read_config(path))
            tokenizer = student_tokenizer(self._student, processing_class)
            self.classes = shared_classes(sizes[0], theirs, tokenizer, teacher_tokenizer(path))

    def targets(
        self,
        inputs: Mapping[str, Any],
        positions: Tensor,
        step: int,
        then: int | None,
        device: torch.device,
        batch: tuple[int, int],
        hashed: bytes = b"",
    ) -> TeacherOutput | None:
        """What a student learns from at positions (labelled,): the `output`, or what the cache has or keeps of it.

        Args:
            inputs: as for `output`, and likewise positions, step, then and device.
            positions: in the flattened samples.
            step: teacher step.
            then: teacher step that is needed next.
            device: of the inputs.
            batch: the training step and the index of its micro-batch.
            hashed: the batch's `batch_hash`, if there is a cache and the hash is known.

        Returns:
            None if there is no position, except of a sharded teacher without a cache.

        Raises:
            UserError: as for `output`, or the cache is damaged or of something else.
        """
        has_positions = len(positions) > 0
        if self._cache is None or step in self._designs:
            is_used = has_positions or is_sharded(self._student)  # a sharded teacher computes in all processes
            return self.output(inputs, positions, step, then, device, batch) if is_used else None
        if step not in self._checkpoint_digests:
            self._checkpoint_digests |= {int(number): digest for number, digest in self.digests([step]).items()}
        hashed = hashed or batch_hash(inputs, positions)
        place = Place(step, self._checkpoint_digests[step], *batch, hashed, len(positions), self.classes)
        if not has_positions:
            self._cache.add_nothing(place)
        found = self._cache.find(place) if has_positions else None
        lacks = found is None and has_positions
        if self._processes.largest(lacks):  # or in none
            output = self.output(inputs, positions, step, then, device)
            found = self._cache.add(place, output, self._models.weight_digests[step]) if lacks else found
        return None if found is None else decode(found, device)

    def must_load(self, segments: Sequence[Segment], is_fixed: bool, args: TrainingArguments) -> bool:
        """Whether a checkpoint must be loaded for training, or may have to be; a cache is checked first.

        All processes that train the student must call this, and get the same answer.

        Args:
            segments: of the schedule.
            is_fixed: whether they will not change.
            args: of the student's trainer.

        Raises:
            UserError: the cache has targets of another teacher, or lacks some and cannot be written.
        """
        if self._cache is None:
            return True
        used = {segment.checkpoint for segment in segments} if is_fixed else self.steps
        self._cache.require_teacher(self.digests(used), self.classes)
        is_known = is_fixed and args.max_steps > 0
        missing = self._cache.missing(spans(segments, 0, args.max_steps)) if is_known else 1
        lacks = Processes(args.process_index, args.world_size).largest(missing) > 0
        if lacks:
            self._cache.require_writable()
        return lacks

    def hash_of(self, batch: Mapping[str, Any]) -> dict[str, bytes]:
        """If there is a cache, the `batch_hash` by which it knows a batch: of the model's arguments and `positions`.

        Args:
            batch: preferably on the host.
        """
        return {} if self._cache is None else {"batch_hash": batch_hash(batch, batch["positions"])}

    @property
    def facts(self) -> dict[str, Any]:
        """What a student's results depend on beside the checkpoints: the kind of targets, if it changes them."""
        kind = None if self._cache is None else self._cache.kind
        return {"targets": None if kind is None or kind.is_exact else [kind.name, kind.number]}

    def write_targets(self) -> None:
        """Write what the cache has not written yet; only between two training steps."""
        if self._cache is not None:
            self._cache.flush()

    def output(
        self,
        inputs: Mapping[str, Any],
        positions: Tensor,
        step: int,
        then: int | None,
        device: torch.device,
        batch: tuple[int, int] | None = None,
    ) -> LabelledOutput:
        """What the checkpoint of teacher step `step`, or a designed target, predicts at positions (labelled,).

        If teachers share their outputs, that on a micro-batch is computed once, and kept until the next training step.

        Args:
            inputs: the student's arguments; the teacher gets those that it takes.
            positions: in the flattened samples.
            step: teacher step.
            then: teacher step that is needed next.
            device: of the inputs.
            batch: the training step and the index of its micro-batch; None if they are not of the training data.

        Raises:
            UserError: the checkpoint cannot be loaded, or is given tokens that it does not have; or, where it is first
                used, it predicts something that is not finite.
        """
        key = None if self._shared is None or batch is None else (*batch, step)
        if self._shared and key in self._shared:
            return self._shared[key]
        output = self._computed(inputs, positions, step, then, device)
        if self._shared is not None and key is not None:
            for other in [other for other in self._shared if other[0] != key[0]]:
                del self._shared[other]
            kept = sum(other.kept_logits for other in self._shared.values())
            output = self._shared[key] = output.with_logits(MOST_LOGITS - kept)
        return output

    def _computed(
        self, inputs: Mapping[str, Any], positions: Tensor, step: int, then: int | None, device: torch.device
    ) -> LabelledOutput:
        """The `output`, which no other student has asked for."""
        changes = step != self._current_step
        if changes:
            self._remove_head()
        if step in self._designs:
            model, owner = self._designs[step].to(device), "the designed target"
        else:
            model = self._models.load(step, then if then in self._checkpoints else None, device)
            owner = f"the teacher in {self._checkpoints[step].location}"
        with torch.no_grad(), self._autocast():
            require_fitting_tokens(model, inputs, owner, check_tokens=changes or device.type == "cpu")
            if changes:
                self._names = argument_names(model)
                if (config := getattr(model, "config", None)) is not None:
                    config.use_cache = False  # with which transformers does not keep packed samples apart
                self._head, self._current_step = LabelledHead(model, self.classes, self._autocast_dtype), step
                self._head.check(self._arguments(inputs), owner if self._objective == "causal" else None)
            assert self._head is not None
            output = self._head(model, self._arguments(inputs), positions, chunked=True)
            if changes:
                output.require_finite(owner)
        return output

    def report(self, batches: Iterable[Mapping[str, Any]], step: int | None, shift: bool) -> str:
        """The `teacher_report` on the checkpoint of teacher step `step`; None for the last one.

        Args:
            batches: of evaluation data, on the device: the model's arguments and `labels`; the first
                ones are used, see `REPORT_BATCHES`.
            step: teacher step.
            shift: whether logits predict the label of the next position.
        """
        step = max(self.sources) if step is None else step
        sums = torch.zeros(2, dtype=torch.float64)
        all_labels: list[Tensor] = []
        for i, batch in enumerate(batches):
            lacks = i < REPORT_BATCHES or sum(map(len, all_labels)) < REPORT_LABELS
            if not self._processes.largest(lacks):
                break
            inputs = dict(batch)
            labels = inputs.pop("labels")
            require_known_labels(labels, self.classes)
            positions = labelled_positions(labels, shift)
            labels = labels.flatten()[positions + shift]
            values = evaluation_values(self.output(inputs, positions, step, None, labels.device), labels)
            sums += values.double().sum(0).cpu()
            all_labels.append(labels.cpu())
        count = sum(map(len, all_labels))
        return teacher_report(step, float(sums[1]) / max(count, 1), all_labels)

    def release(self) -> None:
        """Free the models."""
        self._remove_head()
        self._models.release()

    def _remove_head(self) -> None:
        if self._head is not None:
            self._head.remove()
        self._head = self._current_step = None

    def _build(self, stored: StoredModel) -> nn.Module:
        """The stored model, with the student's attention and activation if it has the student's architecture, and of
        the student's class if it names that."""
        attention, own_class = None, None
        if isinstance(self._student, PreTrainedModel) and self._student.config.model_type == stored.config.model_type:
            attention = self._student.config._attn_implementation
            student_class = class_of(self._student)
            is_own = student_class.__name__ in (stored.config.architectures or [])[:1]
            own_class = student_class if is_own else None
        model = build_model(stored, self._objective, dtype=self._dtype, attention=attention, model_class=own_class)
        if attention == ATTENTION:
            use_fast_layers(model)
        return model

    def _arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in inputs.items() if self._names is None or name in self._names}
