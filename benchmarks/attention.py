"""Attention of the experiments on grammars, 8 dimensions per head: compiled code, and PyTorch's.

    python benchmarks/attention.py [--out benchmarks/results/NAME.json]

A forward and backward pass with one thread, at the sizes of a laptop student and of the published student: a batch of
which 30% of the keys are hidden, as BERT has it, or a causal one. The plain way is scaled_dot_product_attention. Times
are those of the processor. Without dropout, results must agree before they are compared.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import tyro
from measuring import Arguments, best, processor_milliseconds, row, write
from torch import Tensor, nn

from common.attention import attention
from common.cli import command

SIZES = {"laptop": (64, 3, 65), "published": (16, 8, 335)}
"""Samples, heads and positions."""
DIMENSIONS = 8
HIDDEN = 0.3


def main(arguments: Arguments) -> None:
    """Measure each size and kind of attention, print a line for it, and write the results."""
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        for causal in (False, True):
            for dropout in (0.0, 0.1):
                plain, ours = milliseconds(size, causal, dropout, arguments.repetitions)
                what = f"{size}, {'causal' if causal else 'masked'}, dropout {dropout}"
                rows.append(row(what, "milliseconds", plain, ours, plain / ours))
    write(arguments.out, 1, rows)


def milliseconds(size: str, causal: bool, dropout: float, repetitions: int) -> list[float]:
    """Milliseconds of the processor for PyTorch's attention and for ours."""
    samples, heads, positions = SIZES[size]
    torch.manual_seed(0)
    inputs = [torch.randn(samples, heads, positions, DIMENSIONS, requires_grad=True) for _ in range(3)]
    direction = torch.randn_like(inputs[0])
    seen = None if causal else torch.rand(samples, 1, 1, positions).ge(HIDDEN).repeat(1, 1, positions, 1)
    layer = nn.Module()
    layer.is_causal = causal  # type: ignore[assignment]

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(*inputs, attn_mask=seen, dropout_p=dropout, is_causal=causal)

    def ours() -> Tensor:
        return attention(layer, *inputs, seen, dropout=dropout)[0].transpose(1, 2)

    def gradients(attend: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(), inputs, direction)

    if not dropout:
        for expected, found in zip(gradients(plain), gradients(ours), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    timed = [lambda attend=attend: processor_milliseconds(lambda: gradients(attend)) for attend in (plain, ours)]
    return best(repetitions, *timed)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
