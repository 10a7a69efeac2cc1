"""Faster layers in models of transformers: common/attention.py, and GPT-2's activation as a single operation.

Transformers composes that activation, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), of eight passes over its input. It
is the approximation of GELU by Hendrycks and Gimpel (2016, arXiv:1606.08415), which PyTorch computes in one, with other
rounding; forward and backward pass take 0.35 to 0.5 of the time (benchmarks/gelu.py).
"""

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from common.attention import ATTENTION


def use_fast_layers(model: PreTrainedModel) -> None:
    """Replace attention and activations of a model, in place; its weights and its config.json remain the same."""
    model.set_attn_implementation(ATTENTION)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
