"""Transformers for sentences of a grammar: any checkpoint in the layout of Hugging Face, checked against the task."""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from common.errors import UserError
from common.fast_layers import use_fast_layers
from common.language_models.models import Tokens
from common.pcfg.task import GrammarTask
from common.teachers.configs import read_config
from common.teachers.loading import StoredModel, build_model
from common.teachers.objective import kind_of_class
from common.teachers.tensors import read_weights

Model = TypeVar("Model", bound=PreTrainedModel)


def tokens_of(task: GrammarTask) -> Tokens:
    """What a model must know of a task's tokens."""
    return Tokens(task.vocabulary, task.positions, task.bos, task.eos, task.pad)


def require_room(width: int, task: GrammarTask) -> None:
    """Reject a batch whose sentences are longer than a model of the task has positions.

    Raises:
        UserError: names the longest sentence.
    """
    if width > task.positions:
        raise UserError(
            f"{task.grammar.name} made a sentence of {width - task.added:,} tokens, and a model has "
            f"{task.positions:,} positions: give a grammar with shorter sentences, or with a longest one"
        )


def load_checked(path: Path, task: GrammarTask, model_class: type[Model], name: str) -> Model:
    """The model of a checkpoint, in float32; no random number is drawn.

    Args:
        path: the checkpoint's directory.
        task: what the model must fit.
        model_class: such as `BertForMaskedLM`.
        name: of the architecture, for messages.

    Raises:
        UserError: it is another model, is damaged, has weights that are not finite, has fewer tokens than the task, or
            fewer positions than its sentences need. Of a larger vocabulary, the first tokens are those of the task, and
            the others are cut.
    """
    advice = f"give a {name} that was trained on this grammar"
    config_class = cast(type[PretrainedConfig], model_class.config_class)
    config = read_config(path)
    if config.model_type != config_class.model_type:
        raise UserError(f"{path} is a model of type {config.model_type}: {advice}")
    if config.vocab_size < task.vocabulary:
        raise UserError(
            f"{path} has a vocabulary of {config.vocab_size}, but {task.grammar.name} with its "
            f"{task.terminals} terminals needs one of {task.vocabulary}: {advice}"
        )
    if config.max_position_embeddings < task.positions:
        raise UserError(
            f"{path} has {config.max_position_embeddings} positions, but sentences of {task.grammar.name} from "
            f"{task.grammar.start} need {task.positions}: {advice}"
        )
    kind = kind_of_class(model_class.__name__)
    assert kind is not None
    stored = StoredModel(path, config, read_weights(path))
    model = build_model(stored, kind, dtype=torch.float32, model_class=model_class)
    assert isinstance(model, model_class)
    if config.vocab_size > task.vocabulary:
        _cut_vocabulary(model, task.vocabulary)
    use_fast_layers(model)
    return model


def vocabulary_note(path: Path, task: GrammarTask) -> list[str]:
    """A line that says that `load_checked` cuts the vocabulary of a checkpoint; none if it does not."""
    size = read_config(path).vocab_size
    if size == task.vocabulary:
        return []
    return [f"{path} has a vocabulary of {size:,}, which is cut to the task's {task.vocabulary}, its first tokens"]


def _cut_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Keep the first tokens of the embedding and of the output layer; no random number is drawn."""
    embedding: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    is_tied = output.weight is embedding.weight
    embedding.weight = _first(embedding.weight, size)
    embedding.num_embeddings, embedding.padding_idx = size, None
    output.weight = embedding.weight if is_tied else _first(output.weight, size)
    output.out_features = size
    if output.bias is not None:
        output.bias = _first(output.bias, size)
        model.set_output_embeddings(output)  # BERT has the bias in two places
    model.config.vocab_size = size


def _first(parameter: nn.Parameter, size: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach()[:size].clone(), requires_grad=parameter.requires_grad)
