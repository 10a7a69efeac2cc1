"""GPT-2's activation: one operation of PyTorch, and the eight that transformers composes it of.

    python benchmarks/gelu.py [--out benchmarks/results/NAME.json]

A forward and backward pass with one thread, at the sizes of the teachers of PCFG_autoregressive. Times are those of the
processor, and results must agree before they are compared.
"""

import torch
import tyro
from measuring import Arguments, best, processor_milliseconds, row, write
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from common.cli import command

SIZES = {"laptop": (64 * 49, 4 * 64), "published": (16 * 335, 4 * 256)}
"""Positions of a batch, and width of the feed-forward layer."""


def main(arguments: Arguments) -> None:
    """Measure each size, print a line for it, and write the results."""
    torch.set_num_threads(1)
    rows = []
    for size, shape in SIZES.items():
        torch.manual_seed(0)
        x, direction = torch.randn(shape, requires_grad=True), torch.randn(shape)
        composed, fused = NewGELUActivation(), nn.GELU(approximate="tanh")
        torch.testing.assert_close(gradient(fused, x, direction), gradient(composed, x, direction))
        plain, ours = best(
            arguments.repetitions,
            lambda x=x, by=direction, f=composed: processor_milliseconds(lambda: gradient(f, x, by)),
            lambda x=x, by=direction, f=fused: processor_milliseconds(lambda: gradient(f, x, by)),
        )
        rows.append(row(size, "milliseconds", plain, ours, plain / ours))
    write(arguments.out, 1, rows)


def gradient(activation: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    """Of the sum of the outputs times `direction`."""
    return torch.autograd.grad(activation(x), x, direction)[0]


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
