"""GPT-2's activation as a single operation, where transformers makes eight passes over its input.

Both compute x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the approximation of GELU by Hendrycks and Gimpel (2016,
arXiv:1606.08415), and differ by rounding. Forward and backward pass of PyTorch's take 0.35 to 0.5 of the time of
transformers' (benchmarks/gelu.py).
"""

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace the activations of a model, in place; weights and config remain the same."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
