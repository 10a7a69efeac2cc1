"""Speed and memory of the settings on text: training and distillation against the plain way.

    python benchmarks/text.py [--out benchmarks/results/NAME.json]

What is compared, and how, is in training_speed.py. Both ways have the size of the laptop presets (2 layers, teacher 8
heads of 16, student 2 heads, 4,096 tokens, per step 64 blocks of 64 tokens for text_mlm and 32 for text_autoregressive,
temperature 1) and the same batches; the plain way has the attention that transformers chooses.

Memory is the largest resident set of the process during a training, less that before its first step: activations,
gradients and the state of the optimiser. It is measured once, each way in a process of its own, after a first pass over
one sample, which loads the libraries and is not counted.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from measuring import peak_memory, row, write
from torch import Tensor
from training_speed import Setup, SpeedArguments, Subject, prepare, setups, speeds
from transformers import BertForMaskedLM, GPTNeoXForCausalLM, PreTrainedModel

import text_autoregressive.distill
import text_autoregressive.train
import text_autoregressive.training
import text_mlm.distill
import text_mlm.train
import text_mlm.training
from common.arguments import worker_threads
from common.cli import command
from common.distillation.batches import Source, batch_tensors
from common.language_models.setting import Setting
from common.text.task import CorpusTask

Way = Literal["plain", "here"]
WAYS: tuple[Way, Way] = ("plain", "here")


@dataclass(frozen=True)
class TextSpeedArguments(SpeedArguments):
    """Arguments of this benchmark."""

    repetitions: int = 5
    """Each time is the best of so many."""


def subject(
    setting: Setting,
    train_presets: Mapping[str, Any],
    distill_presets: Mapping[str, Any],
    stock: type[PreTrainedModel],
    head_multiply_adds: Callable[[CorpusTask, int], float],
    causal: bool,
) -> Subject:
    """A setting on text, at the size of its laptop presets; `head_multiply_adds` and `causal` are as in `Subject`."""
    (student_heads,) = distill_presets["laptop"].student_heads
    return Subject(
        setting,
        train_presets["laptop"],
        student_heads,
        distill_presets["laptop"].temperature,
        stock,
        "sdpa",
        in_memory,
        lambda task, batch: torch.full((len(batch_tensors(batch)["labels"]),), task.positions),
        head_multiply_adds,
        causal,
    )


def in_memory(task: CorpusTask, source: Source, steps: int) -> dict[str, Tensor]:
    """The samples of all steps as one batch."""
    batches = [batch_tensors(source.batch(step)) for step in range(steps)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def masked_head(task: Any, hidden: int) -> float:
    """Multiply-adds of BERT's head per token: a linear map and the logits, at the labelled positions only.

    So is what follows the attention of the last layer, 9 of its 12 h^2, which is therefore subtracted elsewhere.
    """
    rate = task.batch_of.mask_rate
    return rate * (hidden**2 + hidden * task.vocabulary) - (1 - rate) * 9 * hidden**2


def causal_head(task: CorpusTask, hidden: int) -> float:
    """Multiply-adds of the head per token; the last token of a block predicts nothing."""
    return hidden * task.vocabulary * (1 - 1 / task.positions)


SUBJECTS = {
    "text_mlm": subject(
        text_mlm.training.SETTING,
        text_mlm.train.PRESETS,
        text_mlm.distill.PRESETS,
        BertForMaskedLM,
        masked_head,
        causal=False,
    ),
    "text_autoregressive": subject(
        text_autoregressive.training.SETTING,
        text_autoregressive.train.PRESETS,
        text_autoregressive.distill.PRESETS,
        GPTNeoXForCausalLM,
        causal_head,
        causal=True,
    ),
}


def main(arguments: TextSpeedArguments) -> None:
    threads, _, rates = prepare()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name, of_setting in SUBJECTS.items():
            for number, setup in enumerate(setups(of_setting, arguments.steps, Path(directory) / name)):
                print(name, end=", ")
                found = speeds(setup, arguments.repetitions, ("float32",), rates)
                plain, here = (memory(way, name, number, arguments.steps, setup.directory) for way in WAYS)
                found.append(row(f"{setup.name}, memory", "megabytes", plain / 1e6, here / 1e6, plain / here))
                rows += [{"setting": name, "batch_size": of_setting.arguments.batch_size, **each} for each in found]
    write(arguments.out, threads, rows, multiply_adds_per_second=rates["float32"])


def memory(way: Way, name: str, number: int, steps: int, directory: Path) -> float:
    """Bytes that a training takes at most, measured in a new process.

    Args:
        way: plain or this project's.
        name: of the setting.
        number: of the setup among `setups`.
        steps: of the training.
        directory: where the teacher is saved.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory_here, way, name, number, steps, directory).result()


def memory_here(way: Way, name: str, number: int, steps: int, directory: Path) -> float:
    """The same in this process."""
    torch.set_num_threads(worker_threads())
    setup: Setup = setups(SUBJECTS[name], steps, directory)[number]
    trainer = setup.plain("float32") if way == "plain" else setup.ours("float32")
    trainer.compute_loss(trainer.model, {name: value[:1] for name, value in setup.in_memory().items()}).backward()
    trainer.model.zero_grad()
    with peak_memory() as peak:
        trainer.train()
    return peak()


if __name__ == "__main__":
    command(lambda: main(tyro.cli(TextSpeedArguments, description=__doc__)))
