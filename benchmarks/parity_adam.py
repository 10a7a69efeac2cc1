"""Speed of GPT-2 on parity: samples per second of training and distillation against the plain way, in one process.

    python benchmarks/parity_adam.py [--out benchmarks/results/NAME.json]

The plain way is the stock `GPT2LMHeadModel`, not compiled, with transformers' own choice of attention: a `DataLoader`
over samples and labels that are in memory already, batches of 32, logits at all positions, of which the last one counts
in the loss, `torch.optim.AdamW` as it comes; for distillation the teacher's logits, at all positions too, come first.
The other way is what `train.py` and `distill.py` run: ranges of 4,096 samples from the counter-based stream, the
teacher's logits and its softmax for the whole range, and the engine's steps. Both have the published sizes
((100, 6)-parity, 2 blocks, teacher 32 heads of 8, student 4 heads), the same initial weights and samples; the engine's
first steps are compared with the plain ones before anything is timed. Neither evaluates or saves.

Samples per second are the best of several repetitions, the ways taking turns. With several students in a pass they are
the samples times the students. "bf16 against float32" is this project's way in bfloat16 against the plain way in
float32; the other rows have the same precision on both sides.

Printed beside it: the share of the time in which the processor could do the arithmetic at the rate of a large matrix
product. Counted are the multiply-adds of matrix products that this way needs (`multiply_adds`), for training three
times those of the logits; what the plain way computes, 24 h^2 per position and more, is `plain_work` times as many.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import tyro
from measuring import Arguments, best, bf16_instructions, multiply_add_rate, processor, row, seconds, write
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2LMHeadModel

from common.arguments import worker_threads
from common.cli import command
from common.distillation.losses import teacher_probabilities
from common.parity.gpt2 import configuration, shape_of
from common.parity.networks import Network
from common.parity.objective import FORWARD_KL, Objective
from common.parity.task import task_of
from common.parity.training import RANGE_STEPS
from common.runs.processes import Processes
from parity_gpt2.data import token_ids
from parity_gpt2.train import PRESETS, TrainArguments
from parity_gpt2.training import SETTING

TEACHER_HEADS, STUDENT_HEADS, STUDENTS = 32, 4, 9
LR = 1e-4
TOLERANCE = 1e-3
"""Largest difference between the weights of both ways after a few steps, relative to how far they have moved: Adam
divides by gradients that are all but zero, so that rounding shows."""

Precision = Literal["float32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class SpeedArguments(Arguments):
    """Arguments of this benchmark."""

    repetitions: int = 3
    """Each time is the best of so many."""


@dataclass(frozen=True)
class Setup:
    """One thing to time."""

    name: str
    heads: int
    distilled: bool = False
    students: int = 1
    """Trained in one pass here, and one after another in the plain way."""

    def arguments(self, precision: Precision = "float32") -> TrainArguments:
        return replace(PRESETS["paper"], heads=self.heads, precision=precision)

    def network(self, seed: int = 0) -> Network:
        return SETTING.new_network(self.arguments(), self.heads, seed)

    def teacher(self) -> Network:
        return SETTING.new_network(self.arguments(), TEACHER_HEADS, 1)

    def ours(self, precision: Precision) -> Callable[[], float]:
        """Seconds per sample and student of a range of steps."""
        step = self._range_of_steps(precision)
        return lambda: seconds(step) / (RANGE_STEPS * self.students)

    def _range_of_steps(self, precision: Precision, samples: int = RANGE_STEPS) -> Callable[[], object]:
        arguments = self.arguments(precision)
        task, networks = task_of(vars(arguments)), [self.network(seed) for seed in range(self.students)]
        engine = SETTING.training_engine(networks, arguments, 0, "cpu", Processes())
        teacher = SETTING.frozen_logits(self.teacher(), task.d, "cpu", precision)

        def run() -> object:
            bits = task.sample(0, "train", 0, samples)
            labels = task.labels(bits)
            targets = np.zeros((samples, task.classes))
            if self.distilled:
                targets = teacher_probabilities(torch.from_numpy(teacher(bits)), 1.0).numpy()
            alpha = np.full(samples, 0.0 if self.distilled else 1.0)
            rates = np.full(samples // arguments.batch_size, LR)
            objective = Objective(labels, targets, alpha, rates, 0.0, FORWARD_KL, 0.5)
            engine.train(bits, dict.fromkeys(range(self.students), objective))
            return engine.tensors(0)

        return run

    def plain(self, precision: Precision, steps: int) -> Callable[[], float]:
        """Seconds per sample of some steps."""
        run = self._plain_steps(precision, steps)
        return lambda: seconds(run) / (steps * self.arguments().batch_size)

    def _plain_steps(self, precision: Precision, steps: int) -> Callable[[], object]:
        arguments = self.arguments()
        task, model = task_of(vars(arguments)), _stock(self.network())
        teacher = _stock(self.teacher()).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.999), weight_decay=0.0)
        bits = task.sample(0, "train", 0, steps * arguments.batch_size)
        tokens = token_ids(bits, task.d)
        loader = DataLoader(TensorDataset(tokens, torch.from_numpy(task.labels(bits))), arguments.batch_size)

        def run() -> object:
            for inputs, labels in loader:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = model(input_ids=inputs).logits[:, -1].float()
                    targets: Any = labels
                    if self.distilled:
                        with torch.no_grad():
                            targets = teacher(input_ids=inputs).logits[:, -1].float().softmax(-1)
                    loss = F.cross_entropy(logits, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return {name: value.detach().numpy() for name, value in model.named_parameters()}

        return run

    def require_equal_steps(self) -> None:
        """Check that both ways take the same steps.

        Raises:
            RuntimeError: the weights after four steps differ by more than rounding.
        """
        steps, start = 4, self.network().tensors
        ours: Any = self._range_of_steps("float32", steps * self.arguments().batch_size)()
        plain: Any = self._plain_steps("float32", steps)()
        moved = sum(float(np.square(plain[name] - start[name]).sum()) for name in start) ** 0.5
        apart = sum(float(np.square(plain[name] - ours[name]).sum()) for name in start) ** 0.5
        if not apart <= TOLERANCE * moved:
            raise RuntimeError(f"{self.name}: the weights have moved by {moved} and are apart by {apart}")

    def work(self) -> float:
        """Multiply-adds of this way per sample and student."""
        teacher = multiply_adds(TEACHER_HEADS) / self.students if self.distilled else 0.0
        return 3 * multiply_adds(self.heads) + teacher

    def plain_work(self) -> float:
        """The same of the plain way."""
        return 3 * plain_multiply_adds(self.heads) + self.distilled * plain_multiply_adds(TEACHER_HEADS)


SETUPS = (
    Setup("train teacher", TEACHER_HEADS),
    Setup("train student", STUDENT_HEADS),
    Setup("distill student", STUDENT_HEADS, distilled=True),
    Setup(f"distill {STUDENTS} students", STUDENT_HEADS, distilled=True, students=STUDENTS),
)


def main(arguments: SpeedArguments) -> None:
    """Measure, print and, if asked to, write."""
    threads, instructions = worker_threads(), bf16_instructions()
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    rates = {precision: multiply_add_rate(dtype) for precision, dtype in DTYPES.items()}
    print(
        f"{processor()}, {threads} threads, in a large matrix product {2e-9 * rates['float32']:.0f} GFLOP/s in float32 "
        f"and {2e-9 * rates['bf16']:.0f} in bfloat16 ({', '.join(instructions) or 'without instructions for it'})"
    )
    rows = []
    for setup in SETUPS:
        setup.require_equal_steps()
        rows += _speeds(setup, arguments.repetitions, bool(instructions), rates)
    if not instructions:
        print("bfloat16 was left out: the processor has no instructions for matrix products in it")
    write(arguments.out, threads, rows, multiply_adds_per_second=rates, bf16_instructions=instructions)


def multiply_adds(heads: int) -> float:
    """Of the logits of one sample, as `last_position` computes them; the causal mask halves the first attention."""
    preset = PRESETS["paper"]
    length, hidden = preset.d, heads * 8
    first = length * (9 * hidden**2 + length * hidden)
    table = 2 * length * 3 * hidden**2 / preset.batch_size
    last = 2 * length * heads * hidden + (4 + 8) * hidden**2
    return first + table + last


def plain_multiply_adds(heads: int) -> float:
    """Of the logits of one sample at all positions."""
    length, hidden = PRESETS["paper"].d, heads * 8
    return 2 * length * (12 * hidden**2 + length * hidden)


def _stock(network: Network) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(configuration(shape_of(network.config)))
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in network.tensors.items()})
    return model


def _speeds(setup: Setup, repetitions: int, with_bf16: bool, rates: dict[Precision, float]) -> list[dict[str, Any]]:
    """Rows of one setup, in each precision."""
    precisions: tuple[Precision, ...] = ("float32", "bf16") if with_bf16 else ("float32",)
    steps = 4 if setup.heads == TEACHER_HEADS or setup.distilled else 32
    ways = [setup.plain(precision, steps) for precision in precisions] + [setup.ours(p) for p in precisions]
    times = best(repetitions, *ways)
    plain, ours = ([1 / time for time in half] for half in (times[: len(precisions)], times[len(precisions) :]))
    rows = []
    for i, j in ((0, 0), (0, 1), (1, 1))[: 1 if len(precisions) == 1 else 3]:
        name = f"{setup.name}, {precisions[j]}" + (f" against {precisions[i]}" if i != j else "")
        more = {
            "peak_share": ours[j] * setup.work() / rates[precisions[j]],
            "multiply_adds_per_sample": setup.work(),
            "plain_work": setup.plain_work() / setup.work(),
        }
        rows.append(row(name, "samples_per_second", plain[i], ours[j], ours[j] / plain[i], **more))
    return rows


if __name__ == "__main__":
    command(lambda: main(tyro.cli(SpeedArguments, description=__doc__)))
