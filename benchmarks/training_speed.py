"""How fast a model of a setting on grammars is trained and distilled, against the plain way, in one process.

The plain way is `transformers.Trainer` with the stock model and eager attention, on batches that are in memory already,
padded to the longest of 1,024 sentences, by way of a `DataLoader`; for distillation its `compute_loss` is overridden:
teacher and student compute all positions, and the loss is taken at the labelled ones. The other way is what `train.py`
and `distill.py` run, with batches made on the way. Both have the published sizes (4 layers, teacher 32 heads of 8,
student 8 heads, dropout 0.1, arg-max of the teacher), the same optimiser and precision, the same initial weights and
batches of equally many sentences; neither evaluates or saves, and the start of a training is not counted.
Before anything is timed, both losses are compared on one batch without dropout.

Tokens per second are those that are not padding. Each figure is the best of several repetitions, the ways taking turns.
"bf16 against float32" is this project's way in bfloat16 against the plain way in float32; the other rows have the same
precision on both sides.

Printed beside it: the share of the time in which the processor could do the arithmetic. Per token a layer of width h
has 12 h^2 multiply-adds in its linear maps and 2 h T in the attention of sentences of T tokens, half as many if it is
causal; a setting says how many the head has. Backwards it is twice as many, and a teacher has the first part only. They
are compared with the rate of a large matrix product in the same precision. Padding is not counted, and neither is
anything but matrix products.

Last, what bfloat16 does to the result: the accuracy on held-out sentences after a short training of the laptop preset
in both precisions, for three seeds.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from measuring import Arguments, best, bf16_instructions, multiply_add_rate, processor, row, write
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
from common.distillation.batches import ReadyBatches
from common.distillation.losses import IGNORED_LABEL
from common.distillation.schedules import one_shot
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.language_models.arguments import TrainArguments
from common.language_models.setting import Setting, task_of
from common.language_models.training import trainer_arguments
from common.pcfg.batches import TrainingBatches
from common.pcfg.sampler import Sentences, sample
from common.pcfg.setting import held_out_batches, training_batches
from common.pcfg.task import Batch, GrammarTask

SENTENCES = 1024
"""The plain way pads to the longest of so many."""
TEACHER_HEADS, STUDENT_HEADS = 32, 8
TEACHER_STEP = 1
"""Of the teacher's only checkpoint; its weights are random, which does not change how long it takes."""
SEED = 0
SEEDS = (0, 1, 2)
"""Of the trainings whose accuracy is compared."""
TOLERANCE = 1e-4
"""Largest difference of the losses of both ways in float32, relative to either."""

Precision = Literal["float32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingSpeedArguments(Arguments):
    """Arguments of the benchmark of a setting."""

    repetitions: int = 2
    """Each time is the best of so many."""
    batch_size: int = 16
    """Sentences per step."""
    steps: int = 4
    """Steps that are timed together."""
    accuracy_steps: int = 400
    """Steps of the trainings whose accuracy is compared; 0 trains none."""


@dataclass(frozen=True)
class Subject:
    """A setting whose speed is measured."""

    setting: Setting
    presets: Mapping[str, TrainArguments]
    """Of its train.py."""
    stock: type[PreTrainedModel]
    """Class of its models."""
    padded: Callable[[Any, int, Sentences], Batch]
    """From the task, the seed and the first sentences of the training stream: all of them as one batch."""
    head_multiply_adds: Callable[[Any, int], float]
    """Of the head per token that is not padding, from the task and the hidden size."""
    causal: bool
    """Whether a token sees those before it only, and the model is asked at the position before a label."""


def measure(arguments: TrainingSpeedArguments, subject: Subject) -> None:
    """Measure, print and, if asked to, write."""
    threads, instructions = worker_threads(), bf16_instructions()
    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    rates = {precision: multiply_add_rate(dtype) for precision, dtype in DTYPES.items()}
    print(
        f"{processor()}, {threads} threads, in a large matrix product {2e-9 * rates['float32']:.0f} GFLOP/s in float32 "
        f"and {2e-9 * rates['bf16']:.0f} in bfloat16 ({', '.join(instructions) or 'without instructions for it'})"
    )
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for heads, distilled in ((TEACHER_HEADS, False), (STUDENT_HEADS, False), (STUDENT_HEADS, True)):
            setup = Setup(subject, arguments.batch_size, arguments.steps, heads, distilled, Path(directory))
            setup.save_teacher()
            setup.require_equal_losses()
            rows += _speeds(setup, arguments.repetitions, bool(instructions), rates)
        if instructions and arguments.accuracy_steps:
            rows.append(_accuracies(subject, arguments.accuracy_steps, Path(directory)))
    if not instructions:
        print("bfloat16 was left out: the processor has no instructions for matrix products in it")
    write(
        arguments.out,
        threads,
        rows,
        batch_size=arguments.batch_size,
        multiply_adds_per_second=rates,
        bf16_instructions=instructions,
    )


@dataclass(frozen=True)
class Setup:
    """One thing to time: a model, and whether it learns from a teacher or from labels."""

    subject: Subject
    batch_size: int
    steps: int
    heads: int
    distilled: bool
    directory: Path
    """Where the teacher is saved."""

    @property
    def name(self) -> str:
        who = "student" if self.heads == STUDENT_HEADS else "teacher"
        return f"{'distill' if self.distilled else 'train'} {who}"

    @property
    def arguments(self) -> TrainArguments:
        return replace(self.subject.presets["paper"], heads=self.heads, batch_size=self.batch_size, device="cpu")

    @property
    def task(self) -> Any:
        return task_of(self.arguments, self.subject.setting)

    @property
    def teacher(self) -> Path | None:
        return self.directory / f"checkpoint-{TEACHER_STEP}" if self.distilled else None

    def save_teacher(self) -> None:
        if self.teacher is not None:
            self.new_model(TEACHER_HEADS).save_pretrained(self.teacher)

    def new_model(self, heads: int) -> PreTrainedModel:
        preset = self.arguments
        return self.subject.setting.new_model(self.task, preset, heads, SEED)

    def source(self) -> TrainingBatches:
        """Batches of this project."""
        return training_batches(self.arguments, self.task, self.steps, SEED)

    def padded(self) -> Batch:
        """The first sentences of the same stream, all padded to the longest of them."""
        return self.subject.padded(self.task, SEED, sample(self.task.grammar, SEED, "train", 0, SENTENCES))

    def settings(self, precision: Precision) -> TrainingArguments:
        arguments = replace(self.arguments, precision=precision)
        return _quiet(trainer_arguments(arguments, self.directory, self.steps, SEED))

    def ours(self, precision: Precision) -> ProgressiveDistillationTrainer:
        """What `train.py` and `distill.py` run."""
        trainer = ProgressiveDistillationTrainer(
            self.new_model(self.heads),
            self.settings(precision),
            train_dataset=self.source(),
            teacher=self.directory if self.distilled else None,
            schedule=one_shot([TEACHER_STEP]) if self.distilled else (),
            temperature=0.0,
            load_teacher=lambda path: self.subject.setting.load_model(path, self.task),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def plain(self, precision: Precision) -> "PlainTrainer":
        """The plain way, on as many of the padded sentences as it takes steps for."""
        model = self.new_model(self.heads)
        model.set_attn_implementation("eager")
        trainer = PlainTrainer(
            model,
            self.settings(precision),
            train_dataset=_rows_of(self.padded(), self.batch_size * self.steps),
        )
        trainer.remove_callback(PrinterCallback)
        if self.teacher is not None:
            teacher = self.subject.stock.from_pretrained(self.teacher, attn_implementation="eager")
            trainer.teacher = teacher.eval().requires_grad_(False)
            trainer.shift = int(self.subject.causal)
        return trainer

    def require_equal_losses(self) -> None:
        """Check that both ways minimise the same.

        Raises:
            RuntimeError: their losses on a batch, or the gradients' norms, differ by more than rounding.
        """
        values: list[Tensor] = []
        for trainer in (self.plain("float32"), self.ours("float32")):
            batch = {name: value[: self.batch_size] for name, value in vars(self.padded()).items()}
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
        teacher = self._forward_multiply_adds(TEACHER_HEADS, lengths) if self.distilled else 0
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

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Cross entropy against the teacher's arg-max at labelled positions."""
        if self.teacher is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        labels = inputs.pop("labels")[:, self.shift :]
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits[:, : labels.shape[1]]
        logits = model(**inputs).logits[:, : labels.shape[1]]
        chosen = labels != IGNORED_LABEL
        return F.cross_entropy(logits[chosen].float(), teacher_logits[chosen].argmax(-1))


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


def _rows_of(batch: Batch, count: int) -> list[dict[str, Tensor]]:
    """The first sentences of a batch, again from its first one after its last, as a Trainer's dataset."""
    places = [i % len(batch.labels) for i in range(count)]
    return [{name: value[i] for name, value in vars(batch).items()} for i in places]


def _quiet(settings: TrainingArguments) -> TrainingArguments:
    """Without evaluations and files."""
    return replace(settings, eval_strategy="no", save_strategy="no")


def _speeds(setup: Setup, repetitions: int, with_bf16: bool, rates: dict[Precision, float]) -> list[dict[str, Any]]:
    """Rows of one setup, in each precision."""
    precisions: tuple[Precision, ...] = ("float32", "bf16") if with_bf16 else ("float32",)
    lengths = [(batch.input_ids != setup.task.pad).sum(-1) for batch in map(setup.source().batch, range(setup.steps))]
    padded = setup.padded().input_ids[torch.arange(setup.batch_size * setup.steps) % SENTENCES] != setup.task.pad
    plain_tokens, tokens = int(padded.sum()), int(torch.cat(lengths).sum())
    times = best(
        repetitions,
        *(_timed(setup.plain(precision), plain_tokens) for precision in precisions),
        *(_timed(setup.ours(precision), tokens) for precision in precisions),
    )
    plain, ours = ([1 / time for time in half] for half in (times[: len(precisions)], times[len(precisions) :]))
    work = setup.multiply_adds(torch.cat(lengths))
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


def _accuracies(subject: Subject, steps: int, directory: Path) -> dict[str, Any]:
    """Held-out accuracy of the laptop preset after `steps` in both precisions."""
    setting, preset = subject.setting, replace(subject.presets["laptop"], device="cpu")
    task: GrammarTask = task_of(preset, setting)
    held_out = ReadyBatches(held_out_batches(task, preset.eval_samples))
    found: dict[Precision, list[float]] = {"float32": [], "bf16": []}
    for precision, accuracies in found.items():
        for seed in SEEDS:
            arguments = replace(preset, precision=precision)
            trainer = ProgressiveDistillationTrainer(
                setting.new_model(task, preset, preset.heads, seed),
                _quiet(trainer_arguments(arguments, directory, steps, seed)),
                train_dataset=training_batches(arguments, task, steps, seed),
                eval_dataset=held_out,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            accuracies.append(trainer.evaluate()["eval_accuracy"])
    shown = {name: ", ".join(f"{accuracy:.3f}" for accuracy in values) for name, values in found.items()}
    print(
        f"held-out accuracy on {preset.grammar} from {preset.start} after {steps} steps, seeds {SEEDS}: "
        f"float32 {shown['float32']}; bf16 {shown['bf16']}",
        flush=True,
    )
    return {"what": f"accuracy, laptop preset, {steps} steps", "seeds": SEEDS, **found}
