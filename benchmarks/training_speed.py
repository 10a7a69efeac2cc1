"""How fast a language model of a setting is trained and distilled, against the plain way, in one process.

The plain way is `transformers.Trainer` with the stock model, on samples that are in memory already, by way of a
`DataLoader`; for distillation its `compute_loss` is overridden: teacher and student compute all positions, and the loss
is taken at the labelled ones. The other way is what `train.py` and `distill.py` run, with batches made on the way. Both
have the same sizes, optimiser and precision, the same initial weights and batches of equally many samples; neither
evaluates or saves, and the start of a training is not counted. Before anything is timed, both losses are compared on
one batch without dropout.

Tokens per second are those that are not padding. Each figure is the best of several repetitions, the ways taking turns.
"bf16 against float32" is this project's way in bfloat16 against the plain way in float32; the other rows have the same
precision on both sides.

Beside each figure is printed the share of its time that the processor would need for the arithmetic alone. Per token a
layer of width h has 12 h^2 multiply-adds in its linear maps and 2 h T in the attention of sentences of T tokens, half
as many if it is causal; a setting says how many the head has. Backwards it is twice as many, and a teacher has the
first part only. They are compared with the rate of a large matrix product in the same precision. Padding is not
counted, and neither is anything but matrix products.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from measuring import Arguments, best, bf16_instructions, multiply_add_rate, processor, row
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from common.arguments import worker_threads
from common.distillation.batches import Source, batch_tensors
from common.distillation.losses import IGNORED_LABEL
from common.distillation.schedules import one_shot
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.language_models.arguments import TrainArguments
from common.language_models.setting import Setting, task_of
from common.language_models.training import trainer_arguments

TEACHER_STEP = 1
"""Of the teacher's only checkpoint; its weights are random, which does not change how long it takes."""
SEED = 0
TOLERANCE = 1e-4
"""Largest difference of the losses of both ways in float32, relative to either."""

Precision = Literal["float32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class SpeedArguments(Arguments):
    """Arguments of the benchmark of a setting."""

    repetitions: int = 2
    """Each time is the best of so many."""
    steps: int = 4
    """Steps that are timed together."""


@dataclass(frozen=True)
class Subject:
    """A setting whose speed is measured."""

    setting: Setting
    arguments: TrainArguments
    """The teacher's."""
    student_heads: int
    temperature: float
    """Of the teacher's logits."""
    stock: type[PreTrainedModel]
    """Class of its models."""
    attention: str
    """The plain way's, by the name that transformers gives it."""
    in_memory: Callable[[Any, Source, int], Any]
    """From the task, the training data and a number of steps: a batch whose samples the plain way takes in turn."""
    lengths: Callable[[Any, Any], Tensor]
    """From the task and a batch: the tokens of each sample that are not padding."""
    head_multiply_adds: Callable[[Any, int], float]
    """Of the head per token that is not padding, from the task and the hidden size."""
    causal: bool
    """Whether a token sees those before it only, and the model is asked at the position before a label."""


def prepare() -> tuple[int, list[str], dict[Precision, float]]:
    """Set and print what the measurements depend on.

    Returns:
        The number of threads, the processor's instructions for bfloat16, and its multiply-adds per second in a large
        matrix product.
    """
    threads, instructions = worker_threads(), bf16_instructions()
    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    rates = {precision: multiply_add_rate(dtype) for precision, dtype in DTYPES.items()}
    print(
        f"{processor()}, {threads} threads, in a large matrix product {2e-9 * rates['float32']:.0f} GFLOP/s in float32 "
        f"and {2e-9 * rates['bf16']:.0f} in bfloat16 ({', '.join(instructions) or 'without instructions for it'})"
    )
    return threads, instructions, rates


def setups(subject: Subject, steps: int, directory: Path) -> "list[Setup]":
    """What is timed: teacher and student that learn from labels, and a student that learns from a teacher."""
    teacher, student = subject.arguments.heads, subject.student_heads
    kinds = ((teacher, False), (student, False), (student, True))
    return [Setup(subject, steps, heads, distilled, directory) for heads, distilled in kinds]


@dataclass(frozen=True)
class Setup:
    """One thing to time: a model, and whether it learns from a teacher or from labels."""

    subject: Subject
    steps: int
    heads: int
    distilled: bool
    directory: Path
    """Where the teacher is saved."""

    @property
    def name(self) -> str:
        who = "student" if self.heads == self.subject.student_heads else "teacher"
        return f"{'distill' if self.distilled else 'train'} {who}"

    @property
    def arguments(self) -> TrainArguments:
        return replace(self.subject.arguments, heads=self.heads, device="cpu")

    @cached_property
    def task(self) -> Any:
        return task_of(self.arguments, self.subject.setting)

    @property
    def samples(self) -> int:
        """In all steps."""
        return self.steps * self.arguments.batch_size

    @property
    def teacher(self) -> Path | None:
        return self.directory / f"checkpoint-{TEACHER_STEP}" if self.distilled else None

    def save_teacher(self) -> None:
        """Save a teacher with random weights, if there is one."""
        if self.teacher is not None:
            self.new_model(self.subject.arguments.heads).save_pretrained(self.teacher)
            tokenizer = self.subject.setting.trainer_options(self.task).get("processing_class")
            if tokenizer is not None:
                tokenizer.save_pretrained(self.teacher)

    def new_model(self, heads: int) -> PreTrainedModel:
        return self.subject.setting.new_model(self.task, self.arguments, heads, SEED)

    def source(self) -> Source:
        """Batches of this project."""
        return self.subject.setting.training_batches(self.arguments, self.task, self.steps, SEED)

    def in_memory(self) -> Any:
        """The samples of the plain way as one batch."""
        return self.subject.in_memory(self.task, self.source(), self.steps)

    def lengths(self) -> Tensor:
        """Tokens of each sample of this project's way."""
        batches = map(self.source().batch, range(self.steps))
        return torch.cat([self.subject.lengths(self.task, batch) for batch in batches])

    def plain_lengths(self) -> Tensor:
        """Tokens of each sample of the plain way."""
        lengths = self.subject.lengths(self.task, self.in_memory())
        return lengths[torch.arange(self.samples) % len(lengths)]

    def settings(self, precision: Precision) -> TrainingArguments:
        arguments = replace(self.arguments, precision=precision)
        return quiet(trainer_arguments(arguments, self.directory, self.steps, SEED))

    def ours(self, precision: Precision) -> ProgressiveDistillationTrainer:
        """What `train.py` and `distill.py` run."""
        trainer = ProgressiveDistillationTrainer(
            self.new_model(self.heads),
            self.settings(precision),
            train_dataset=self.source(),
            teacher=self.directory if self.distilled else None,
            schedule=one_shot([TEACHER_STEP]) if self.distilled else (),
            temperature=self.subject.temperature,
            check_teacher=False,
            **self.subject.setting.trainer_options(self.task),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def plain(self, precision: Precision) -> "PlainTrainer":
        """The plain way, on as many of the samples in memory as it takes steps for."""
        model = self.new_model(self.heads)
        model.set_attn_implementation(self.subject.attention)
        settings = replace(self.settings(precision), train_sampling_strategy="sequential")
        trainer = PlainTrainer(model, settings, train_dataset=_rows_of(self.in_memory(), self.samples))
        trainer.remove_callback(PrinterCallback)
        if self.teacher is not None:
            teacher = self.subject.stock.from_pretrained(self.teacher, attn_implementation=self.subject.attention)
            trainer.teacher = teacher.eval().requires_grad_(False)
            trainer.shift, trainer.temperature = int(self.subject.causal), self.subject.temperature
        return trainer

    def require_equal_losses(self) -> None:
        """Check that both ways minimise the same.

        Raises:
            RuntimeError: their losses on a batch, or the gradients' norms, differ by more than rounding.
        """
        values: list[Tensor] = []
        for trainer in (self.plain("float32"), self.ours("float32")):
            size = self.arguments.batch_size
            batch = {name: value[:size] for name, value in batch_tensors(self.in_memory()).items()}
            for module in trainer.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            trainer.model.train()
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            norms = [parameter.grad.norm() for parameter in trainer.model.parameters() if parameter.grad is not None]
            values.append(torch.stack([loss.detach(), torch.stack(norms).norm()]))
        if not torch.allclose(values[0], values[1], rtol=TOLERANCE, atol=0):
            raise RuntimeError(f"{self.name}: loss and norm of the gradient are {values[0]} and here {values[1]}")

    def multiply_adds(self, lengths: Tensor) -> float:
        """Per token of sentences of these lengths, forwards and backwards, and of the teacher forwards."""
        teacher = self._forward_multiply_adds(self.subject.arguments.heads, lengths) if self.distilled else 0
        return 3 * self._forward_multiply_adds(self.heads, lengths) + teacher

    def _forward_multiply_adds(self, heads: int, lengths: Tensor) -> float:
        """Per token, on average over the sentences."""
        hidden = heads * self.arguments.head_dim
        attended = float((lengths.double() ** 2).sum() / lengths.sum()) / (2 if self.subject.causal else 1)
        layers = self.arguments.layers * (12 * hidden**2 + 2 * hidden * attended)
        return layers + self.subject.head_multiply_adds(self.task, hidden)


class PlainTrainer(Trainer):
    """A Trainer that distils the straightforward way if it has a teacher."""

    teacher: nn.Module | None = None
    shift = 0
    """How many positions before a label the model is asked for it."""
    temperature = 0.0
    """Of the teacher's logits; 0 is their arg-max."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Divergence from the teacher at labelled positions, or cross entropy against its arg-max."""
        if self.teacher is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        labels = inputs.pop("labels")[:, self.shift :]
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits[:, : labels.shape[1]]
        logits = model(**inputs).logits[:, : labels.shape[1]]
        chosen = labels != IGNORED_LABEL
        if self.temperature == 0:
            return F.cross_entropy(logits[chosen].float(), teacher_logits[chosen].argmax(-1))
        targets = (teacher_logits[chosen].float() / self.temperature).softmax(-1)
        return F.kl_div(logits[chosen].float().log_softmax(-1), targets, reduction="batchmean")


class StepTimer(TrainerCallback):
    """Measures the time from the beginning of the first step to the end of the latest."""

    begin = seconds = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self.begin = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.begin


def _rows_of(batch: Any, count: int) -> list[dict[str, Tensor]]:
    """The first samples of a batch, again from its first one after its last, as a Trainer's dataset."""
    tensors = batch_tensors(batch)
    return [{name: value[i % len(value)] for name, value in tensors.items()} for i in range(count)]


def quiet(settings: TrainingArguments) -> TrainingArguments:
    """Without evaluations and files."""
    return replace(settings, eval_strategy="no", save_strategy="no")


def speeds(
    setup: Setup, repetitions: int, precisions: Sequence[Precision], rates: Mapping[Precision, float]
) -> list[dict[str, Any]]:
    """Rows of one setup.

    Args:
        setup: what is timed.
        repetitions: each time is the best of so many.
        precisions: float32, and bfloat16 if it is measured.
        rates: multiply-adds per second in a large matrix product.

    Raises:
        RuntimeError: both ways do not minimise the same.
    """
    setup.save_teacher()
    setup.require_equal_losses()
    lengths, plain_tokens = setup.lengths(), int(setup.plain_lengths().sum())
    times = best(
        repetitions,
        *(_timed(setup.plain(precision), plain_tokens) for precision in precisions),
        *(_timed(setup.ours(precision), int(lengths.sum())) for precision in precisions),
    )
    plain, ours = ([1 / time for time in half] for half in (times[: len(precisions)], times[len(precisions) :]))
    work = setup.multiply_adds(lengths)
    rows = []
    for i, j in ((0, 0), (0, 1), (1, 1))[: 1 if len(precisions) == 1 else 3]:
        name = f"{setup.name}, {precisions[j]}" + (f" against {precisions[i]}" if i != j else "")
        share = {"peak_share": ours[j] * work / rates[precisions[j]], "multiply_adds_per_token": work}
        rows.append(row(name, "tokens_per_second", plain[i], ours[j], ours[j] / plain[i], **share))
    return rows


def _timed(trainer: Trainer, tokens: int) -> Callable[[], float]:
    """Seconds per token of a training from the beginning of its first step to the end of its last."""
    timer = StepTimer()
    trainer.add_callback(timer)

    def run() -> float:
        trainer.train()
        return timer.seconds / tokens

    return run
