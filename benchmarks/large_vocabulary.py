"""Memory and time of distillation with a large vocabulary, beside a plain loop.

    python benchmarks/large_vocabulary.py

A small GPT-NeoX learns from another one on samples of 2,048 positions in all, with 50,304 classes. The plain loop holds
the logits of student and teacher, their log-probabilities, and their gradients. Each way runs in a process of its own.
Memory is what a step needs beyond the models, gradients and optimiser, in copies of the logits (positions x classes in
float32); time is that of the processor, over all threads.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import measuring
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, TrainerCallback, TrainingArguments

from common.distillation.schedules import one_shot
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.teachers.discovery import find_checkpoints

CLASSES, SAMPLES, LENGTH = 50_304, 8, 256
COPY = SAMPLES * LENGTH * CLASSES * 4
"""Bytes of the logits."""


@dataclass(frozen=True)
class Arguments(measuring.Arguments):
    steps: int = 5
    """Steps that are measured, after one that is not."""
    threads: int = 2
    """Of torch."""
    width: int = 512
    """Hidden size of student and teacher."""
    way: Literal["both", "plain", "here"] = "both"
    """One way runs in this process and prints its numbers as JSON."""


@dataclass(frozen=True)
class Source:
    """Random samples; in step 0 each has few labels."""

    def batch(self, step: int) -> dict[str, Tensor]:
        tokens = torch.randint(CLASSES, (SAMPLES, LENGTH + 1), generator=torch.Generator().manual_seed(step))
        labels = tokens.clone()
        labels[:, (2 if step == 0 else LENGTH + 1) :] = -100
        return {"input_ids": tokens, "labels": labels}


def model(seed: int, width: int) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 8, "max_position_embeddings": LENGTH + 1}
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=CLASSES, hidden_size=width, intermediate_size=2 * width, **shape)
    )


@contextmanager
def measured(result: dict[str, float], steps: int) -> Iterator[None]:
    """Write the memory beyond the present one, in copies of the logits, and the processor's seconds a step."""
    with measuring.peak_memory() as peak:
        start = time.process_time()
        yield
        result |= {"cpu_seconds": (time.process_time() - start) / steps}
    result |= {"copies": peak() / COPY}


def plain(arguments: Arguments) -> dict[str, float]:
    """A loop as a user would write it."""
    student, teacher = model(0, arguments.width), model(1, arguments.width).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    source, result = Source(), {}

    def step(tokens: Tensor) -> None:
        with torch.no_grad():
            targets = teacher(tokens).logits[:, :-1].flatten(0, 1).softmax(-1)
        logits = student(tokens).logits[:, :-1].flatten(0, 1)
        loss = F.kl_div(logits.log_softmax(-1), targets, reduction="batchmean")
        del logits, targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(source.batch(0)["input_ids"][:, :3])
    with measured(result, arguments.steps):
        for i in range(1, arguments.steps + 1):
            step(source.batch(i)["input_ids"])
    return result


def here(arguments: Arguments) -> dict[str, float]:
    """The trainer."""
    result: dict[str, float] = {}

    class Measuring(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                self.running = measured(result, arguments.steps)
                self.running.__enter__()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.running.__exit__(None, None, None)

    with tempfile.TemporaryDirectory() as directory:
        model(1, arguments.width).save_pretrained(Path(directory) / "checkpoint-1")
        args = TrainingArguments(
            directory, per_device_train_batch_size=SAMPLES, max_steps=arguments.steps + 1, max_grad_norm=0.0,
            learning_rate=1e-3, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = ProgressiveDistillationTrainer(
            model(0, arguments.width),
            args,
            train_dataset=Source(),
            teacher=find_checkpoints(directory),
            schedule=one_shot([1]),
            callbacks=[Measuring()],
        )
        trainer.train()
    return result


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    ways: dict[str, Callable[[Arguments], dict[str, float]]] = {"plain": plain, "here": here}
    if arguments.way != "both":
        print(json.dumps(ways[arguments.way](arguments)))
        return

    def run(way: str) -> dict[str, float]:
        options = ["--steps", arguments.steps, "--threads", arguments.threads, "--width", arguments.width]
        command = [sys.executable, __file__, "--way", way, *map(str, options)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    turns = [{way: run(way) for way in ways} for _ in range(arguments.repetitions)]
    rows = []
    for what in ("copies", "cpu_seconds"):
        least = {way: min(turn[way][what] for turn in turns) for way in ways}
        rows.append(measuring.row(what, what, least["plain"], least["here"], least["plain"] / least["here"]))
    measuring.write(arguments.out, arguments.threads, rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
