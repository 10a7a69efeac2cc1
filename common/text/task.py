"""A prediction task on text: blocks of some corpora, and what a batch of them is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from common.distillation.vocabulary import TOKENIZER_FILES, classes_of, shared_classes, teacher_tokenizer, tokenizer_of
from common.errors import UserError
from common.language_models.models import Tokens
from common.language_models.setting import Setting
from common.probes.checkpoints import is_run
from common.runs.checkpoints import file_digest
from common.runs.files import digest_of
from common.teachers.discovery import Checkpoint
from common.teachers.loading import build_model, read_model
from common.teachers.objective import Objective
from common.text.arguments import Arguments, TextArguments
from common.text.batches import (
    MaskedText,
    TextBatches,
    TextTask,
    evaluation_batches,
    held_out_rows,
    require_weights,
    weights_of,
)
from common.text.blocks import Blocks, TextData
from common.text.preparation import prepared
from common.text.report import text_data

EVALUATION_BATCH_SIZE = 64
"""Samples per evaluation batch."""


@dataclass(frozen=True)
class CorpusTask:
    """Blocks of text, and what is predicted of them."""

    blocks: Blocks
    batch_of: TextTask
    weights: tuple[float, ...] | None
    """Of the corpora; None for their sizes."""
    data: TextData
    """What the blocks were made from."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.blocks.vocabulary

    @property
    def positions(self) -> int:
        """Tokens per sample."""
        return self.blocks.length

    @property
    def expected_length(self) -> float:
        """Tokens per sample."""
        return self.positions

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Of the blocks."""
        return self.blocks.tokenizer()

    @property
    def tokens(self) -> Tokens:
        """What a model must know of the tokens."""
        tokenizer = self.tokenizer
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return Tokens(self.vocabulary, self.positions, *ids)


def open_task(arguments: Mapping[str, Any], batch_of: TextTask) -> CorpusTask:
    """The task of a run's arguments, by name; its blocks are prepared if they are not there yet.

    Raises:
        UserError: an argument is out of range, a corpus or the tokenizer cannot be read, or they do not fit.
    """
    data, weights = text_data(arguments), tuple(arguments["weights"])
    if weights:
        require_weights(weights, len(data.corpora))
    blocks = prepared(data)
    batch_of.require_fit(blocks)
    return CorpusTask(blocks, batch_of, weights or None, data)


def text_setting(
    name: str,
    batch_of: Callable[[Mapping[str, Any]], TextTask],
    new_model: Callable[[CorpusTask, Any, int, int], PreTrainedModel],
    objective: Objective,
    prediction_arguments: tuple[str, ...] = (),
) -> Setting:
    """A setting on text.

    Args:
        name: of the setting.
        batch_of: from a run's arguments, by name, to what is predicted.
        new_model: from the task, a command's arguments, the number of attention heads and the seed.
        objective: what models predict.
        prediction_arguments: names of those that say what is predicted.
    """

    def load_model(path: Path, task: CorpusTask) -> PreTrainedModel:
        return load_checked(path, task, objective)

    return Setting(
        name=name,
        task=lambda arguments: open_task(arguments, batch_of(arguments)),
        training_batches=training_batches,
        evaluation_batches=held_out_batches,
        new_model=new_model,
        load_model=load_model,
        trainer_options=lambda task: {"processing_class": task.tokenizer},
        check_checkpoints=check_tokenizers,
        notes=notes,
        identity=identity,
        resolved=resolved,
        own_data=lambda arguments: {},
        as_given=lambda arguments: arguments,
        data_arguments=tuple(field.name for field in fields(TextArguments)),
        prediction_arguments=prediction_arguments,
        describe=describe,
    )


def training_batches(arguments: Arguments, task: CorpusTask, steps: int, seed: int) -> TextBatches:
    """The training batches of one run.

    Raises:
        UserError: there are too few blocks for a batch, or too few held-out ones for its evaluations; or the weights do
            not suit the corpora.
    """
    weights = weights_of(task.blocks, task.weights)
    blocks = sum(corpus.train for corpus, weight in zip(task.blocks.corpora, weights, strict=True) if weight)
    if blocks < arguments.batch_size:
        raise UserError(
            f"{', '.join(task.data.corpora)} has {blocks:,} training blocks, fewer than --batch-size "
            f"{arguments.batch_size}: give a larger corpus, or a smaller --length or --batch-size"
        )
    held_out_rows(task.blocks, arguments.eval_samples, task.weights)  # before anything of the run is made
    return TextBatches(task.blocks, task.batch_of, seed, arguments.batch_size, task.weights)


def held_out_batches(task: CorpusTask, samples: int) -> list[Any]:
    """Held-out blocks at equal distances, in batches.

    Raises:
        UserError: there are too few.
    """
    return evaluation_batches(task.blocks, task.batch_of, samples, EVALUATION_BATCH_SIZE, task.weights)


def resolved(task: CorpusTask) -> dict[str, Any]:
    """Absolute names of files, and the commits of datasets on the hub, if there are any."""
    commits = {
        name: commit for corpus in task.blocks.corpora for name, commit in corpus.notes.get("commits", {}).items()
    }
    return {
        "corpus": task.data.corpora,
        "tokenizer": task.data.tokenizer,
        **({"commits": commits} if commits else {}),
    }


def notes(path: Path, task: CorpusTask) -> list[str]:
    """A line if masked positions are hidden from a model that may not have been trained so, being of no run."""
    is_hidden = isinstance(task.batch_of, MaskedText) and task.batch_of.hide_masked
    if not is_hidden or is_run(path.parent):
        return []
    advice = "give --no-hide-masked to distill.py and --hide-masked False to probe.py"
    return [f"{path.name}: masked positions are hidden from attention; if it was trained like BERT, {advice}"]


def identity(task: CorpusTask) -> dict[str, Any]:
    """Hashes of the documents and of the tokenizer, and what decides which tokens are seen and predicted."""
    masks = {"hide_masked": task.batch_of.hide_masked} if isinstance(task.batch_of, MaskedText) else {}
    return {
        "documents": [corpus.sha256 for corpus in task.blocks.corpora],
        "tokenizer_sha256": task.blocks.tokenizer_sha256,
        "held_out": task.data.held_out,
        **masks,
    }


def describe(arguments: Mapping[str, Any]) -> str:
    """The data of a run's arguments, by name, in words."""
    documents = ", ".join(digest[:8] for digest in arguments["documents"])
    tokenizer = f"tokenizer {arguments['tokenizer']} {arguments['tokenizer_sha256'][:8]}"
    hidden = f", hide_masked {arguments['hide_masked']}" if "hide_masked" in arguments else ""
    return (
        f"the text {', '.join(arguments['corpus'])} (documents {documents}, {tokenizer}, "
        f"{arguments['held_out']:g} held out{hidden})"
    )


def load_checked(path: Path, task: CorpusTask, objective: Objective) -> PreTrainedModel:
    """The model of a checkpoint, built by its own config.json, in float32.

    Raises:
        UserError: it is damaged, predicts something else, has another tokenizer than the blocks, or fewer positions
            than they have tokens.
    """
    stored, tokenizer = read_model(path), teacher_tokenizer(path)
    if tokenizer is None:
        raise UserError(f"{path} has no tokenizer: save the teacher's there with tokenizer.save_pretrained")
    classes = classes_of(stored.config)
    shared_classes(task.vocabulary, classes, task.tokenizer, tokenizer)
    if classes < task.vocabulary:
        raise UserError(
            f"{path} has embeddings for {classes:,} tokens, but its tokenizer has {task.vocabulary:,}: resize them "
            "with model.resize_token_embeddings before training"
        )
    room = getattr(stored.config, "max_position_embeddings", None)
    if isinstance(room, int) and 0 < room < task.positions:
        raise UserError(
            f"{path} has {room:,} positions, but samples have {task.positions:,} tokens: give --length {room}"
        )
    return build_model(stored, objective, dtype=torch.float32)


def check_tokenizers(checkpoints: Sequence[Checkpoint], task: CorpusTask) -> None:
    """Reject local checkpoints with another tokenizer than the blocks; those without one are taken to have theirs.

    A tokenizer is only loaded if its files are neither those of the blocks nor those of an earlier checkpoint.

    Raises:
        UserError: names the first such checkpoint.
    """
    fitting = {None, _tokenizer_digest(task.blocks.directory / "tokenizer")}
    for path in [checkpoint.location for checkpoint in checkpoints if isinstance(checkpoint.location, Path)]:
        if (digest := _tokenizer_digest(path)) not in fitting:
            try:
                shared_classes(task.vocabulary, task.vocabulary, task.tokenizer, tokenizer_of(path))
            except UserError as error:
                raise UserError(f"{path} cannot be used: {error}") from error
            fitting.add(digest)


def _tokenizer_digest(directory: Path) -> str | None:
    """A digest of a checkpoint's tokenizer; None if it has none."""
    files = [path for name in TOKENIZER_FILES if (path := directory / name).is_file()]
    parts = [[path.name, file_digest(path)] for path in files]
    return digest_of(parts) if parts else None
