"""What a model predicts: the next token, or the token at its own position."""

from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from common.errors import UserError

Objective = Literal["causal", "masked"]
"""causal: logits predict the label of the next position. masked: they predict the label of their own position, as in
masked language models and classifiers."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside wrappers for several devices, torch.compile and PEFT."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        elif is_peft(model):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def class_of(model: Any) -> type[Any]:
    """The class that a model was made as; `fully_shard` replaces it by a subclass of its own."""
    if not isinstance(model, FSDPModule):
        return type(model)
    return next(base for base in type(model).__mro__[1:] if not issubclass(base, FSDPModule))


def is_peft(model: nn.Module) -> bool:
    """Whether a model is a `peft.PeftModel`."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def objective_of(model: nn.Module) -> Objective:
    """What a model was made to predict, from the classes that it derives from.

    Args:
        model: a model of transformers or of a subclass; it may be wrapped, as in `unwrap`.

    Raises:
        UserError: the model is an encoder-decoder, sees the tokens that it predicts, or is of an unknown kind.
    """
    model = unwrap(model)
    config = getattr(model, "config", None)
    name = class_of(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name} is an encoder-decoder model: give a causal or a masked language model")
    kinds = (kind_of_class(base.__name__) for base in type(model).__mro__ if issubclass(base, PreTrainedModel))
    kind = next((kind for kind in kinds if kind is not None), None)
    if kind is None and isinstance(model, GenerationMixin):
        kind = "causal"
    if kind is None:
        raise UserError(f'cannot tell what {name} predicts: give objective="causal" or objective="masked"')
    if kind == "causal" and _sees_the_future(config):
        raise UserError(f"{name} with is_decoder=False sees the tokens that it predicts: set is_decoder=True")
    return kind


def kind_of_class(name: str) -> Objective | None:
    """What models of a class predict, by the name of the class; None if that is unknown."""
    is_causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith("ForCausalLM")
    unshifted = (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    )
    is_unshifted = any(name in names.values() for names in unshifted) or name.endswith("ForMaskedLM")
    if is_causal == is_unshifted:
        return None
    return "causal" if is_causal else "masked"


def _sees_the_future(config: Any) -> bool:
    """Whether a causal language model attends to later tokens, as those made from encoders do by default."""
    return (
        getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and getattr(config, "is_decoder", None) is False
    )
