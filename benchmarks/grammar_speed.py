"""How fast a model of a setting on grammars is trained and distilled, at the published sizes.

What is compared, and how, is in training_speed.py. Both ways have 4 layers, a teacher of 32 heads of 8, a student of 8
heads, dropout 0.1, and the arg-max of the teacher. The plain way has eager attention, and its batches are padded to the
longest of 1,024 sentences.

Last, what bfloat16 does to the result: the accuracy on held-out sentences after a short training of the laptop preset
in both precisions, for three seeds.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measuring import write
from training_speed import SEED, Precision, SpeedArguments, Subject, prepare, quiet, setups, speeds
from transformers import PreTrainedModel, PrinterCallback

from common.distillation.batches import ReadyBatches
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.language_models.arguments import TrainArguments
from common.language_models.setting import Setting, task_of
from common.language_models.training import trainer_arguments
from common.pcfg.sampler import Sentences, sample
from common.pcfg.task import Batch

SENTENCES = 1024
"""The plain way pads to the longest of so many."""
STUDENT_HEADS = 8
SEEDS = (0, 1, 2)
"""Of the trainings whose accuracy is compared."""


@dataclass(frozen=True)
class GrammarSpeedArguments(SpeedArguments):
    """Arguments of the benchmark of a setting on grammars."""

    batch_size: int = 16
    """Sentences per step."""
    accuracy_steps: int = 400
    """Steps of the trainings whose accuracy is compared; 0 trains none."""


def grammar_subject(
    setting: Setting,
    presets: Mapping[str, Any],
    stock: type[PreTrainedModel],
    padded: Callable[[Any, int, Sentences], Batch],
    head_multiply_adds: Callable[[Any, int], float],
    causal: bool,
) -> Subject:
    """A setting on grammars, at the published sizes.

    Args:
        setting: to measure.
        presets: of its train.py.
        stock: class of its models.
        padded: from the task, the seed and the first sentences of the training stream: all of them as one batch.
        head_multiply_adds: as in `Subject`.
        causal: as in `Subject`.
    """
    return Subject(
        setting,
        presets["paper"],
        STUDENT_HEADS,
        0.0,
        stock,
        "eager",
        lambda task, source, steps: padded(task, SEED, sample(task.grammar, SEED, "train", 0, SENTENCES)),
        lambda task, batch: (batch.input_ids != task.pad).sum(-1),
        head_multiply_adds,
        causal,
    )


def measure(arguments: GrammarSpeedArguments, subject: Subject, laptop: TrainArguments) -> None:
    """Measure a setting on grammars, print and, if asked to, write.

    Args:
        arguments: of the benchmark.
        subject: the setting.
        laptop: its preset whose accuracy is compared.
    """
    threads, instructions, rates = prepare()
    subject = replace(subject, arguments=replace(subject.arguments, batch_size=arguments.batch_size))
    precisions: tuple[Precision, ...] = ("float32", "bf16") if instructions else ("float32",)
    with tempfile.TemporaryDirectory() as directory:
        rows = []
        for setup in setups(subject, arguments.steps, Path(directory)):
            rows += speeds(setup, arguments.repetitions, precisions, rates)
        if instructions and arguments.accuracy_steps:
            rows.append(_accuracies(subject.setting, laptop, arguments.accuracy_steps, Path(directory)))
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


def _accuracies(setting: Setting, laptop: Any, steps: int, directory: Path) -> dict[str, Any]:
    """Held-out accuracy of the laptop preset after `steps` in both precisions."""
    preset = replace(laptop, device="cpu")
    task = task_of(preset, setting)
    held_out = ReadyBatches(setting.evaluation_batches(task, preset.eval_samples))
    found: dict[Precision, list[float]] = {"float32": [], "bf16": []}
    for precision, accuracies in found.items():
        for seed in SEEDS:
            arguments = replace(preset, precision=precision)
            trainer = ProgressiveDistillationTrainer(
                setting.new_model(task, preset, preset.heads, seed),
                quiet(trainer_arguments(arguments, directory, steps, seed)),
                train_dataset=setting.training_batches(arguments, task, steps, seed),
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
