"""Settings on grammars: what `train.py`, `distill.py` and `probe.py` need of their task and their model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from common.language_models.setting import Setting
from common.pcfg.arguments import Arguments
from common.pcfg.batches import TrainingBatches, evaluation_batches
from common.pcfg.dataset import dataset_digest, open_dataset
from common.pcfg.grammar_files import grammar_names, load_grammar
from common.pcfg.models import require_room, vocabulary_note
from common.pcfg.task import Batch, GrammarTask, rules_of
from common.pcfg.window_targets import designs_of, window_model

EVALUATION_BATCH_SIZE = 128
"""Sentences per evaluation batch."""


def grammar_setting(
    name: str,
    task: Callable[[Mapping[str, Any]], Any],
    new_model: Callable[[Any, int, int, int, float, int], PreTrainedModel],
    load_model: Callable[[Path, Any], PreTrainedModel],
    prediction_arguments: tuple[str, ...],
    causal: bool,
) -> Setting:
    """A setting on sentences of a grammar.

    Args:
        name: of the setting.
        task: from a run's arguments, by name, to a `GrammarTask`.
        new_model: from the task, layers, heads, dimensions per head, dropout rate and seed.
        load_model: from a checkpoint's directory and the task; raises `UserError` if it does not fit the task.
        prediction_arguments: names of those that say what is predicted.
        causal: whether a position predicts the label of the next.
    """

    def make_model(task: Any, arguments: Arguments, heads: int, seed: int) -> PreTrainedModel:
        return new_model(task, arguments.layers, heads, arguments.head_dim, arguments.dropout, seed)

    return Setting(
        name=name,
        task=task,
        training_batches=training_batches,
        evaluation_batches=held_out_batches,
        new_model=make_model,
        load_model=load_model,
        trainer_options=lambda task: {"load_teacher": lambda path: load_model(path, task)},
        check_checkpoints=lambda checkpoints, task: None,
        notes=vocabulary_note,
        identity=lambda task: {"start": task.grammar.start, "rules": rules_of(task.grammar)},
        resolved=lambda task: {},
        own_data=own_data,
        as_given=as_given,
        data_arguments=("grammar", "start"),
        prediction_arguments=prediction_arguments,
        describe=lambda arguments: f"the grammar {arguments['grammar']} from {arguments['start']}",
        designs=designs_of,
        designed_model=lambda task, design: window_model(task, design, causal),
    )


def as_given(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's arguments, with None as the start symbol if it is the grammar's own.

    Raises:
        UserError: the grammar's file is damaged.
    """
    grammar = arguments.get("grammar")
    if not isinstance(grammar, str) or not (grammar in grammar_names() or Path(grammar).is_file()):
        return arguments
    own = load_grammar(grammar).start == arguments.get("start")
    return {**arguments, "start": None} if own else arguments


def own_data(arguments: Arguments) -> dict[str, Any]:
    """A digest of `--dataset`, None without one, as of runs that are older than this entry.

    Raises:
        UserError: it is not an exported dataset.
    """
    return {"dataset_digest": None if arguments.dataset is None else dataset_digest(arguments.dataset)}


def training_batches(arguments: Any, task: GrammarTask, steps: int, seed: int) -> TrainingBatches:
    """The training batches of one run, sampled or from `--dataset`, which must have enough for `steps`.

    Raises:
        UserError: the dataset is of another grammar, lacks what the task needs, or is too small.
    """
    dataset = None
    if arguments.dataset is not None:
        needed = steps * arguments.batch_size
        dataset = open_dataset(arguments.dataset, task.grammar, needed, task.tree_levels > 0)
    return TrainingBatches(task, seed, arguments.batch_size, dataset)


def held_out_batches(task: GrammarTask, samples: int) -> list[Batch]:
    """The first held-out sentences in batches.

    Raises:
        UserError: a sentence is longer than models of the task have positions.
    """
    batches = evaluation_batches(task, samples, EVALUATION_BATCH_SIZE)
    for batch in batches:
        require_room(batch.input_ids.shape[1], task)
    return batches
