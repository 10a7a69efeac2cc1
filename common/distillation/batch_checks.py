"""Checks of a batch before it reaches a model, which would otherwise fail deep inside or be trained wrongly."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError, listed
from common.teachers.objective import class_of

FEWEST = 16
"""Number of labels that are not all the next token by chance."""
TOLERANCE = 0.02
"""Relative difference of logits that may be rounding, in bfloat16 too."""
STEPS_WITHOUT_LABELS = 20
"""Number of consecutive steps without labels that is an error; a few are normal where few tokens are masked."""


def require_usable_batch(batch: Mapping[str, Any], student: nn.Module, classes: int | None, shift: bool) -> None:
    """Run all checks that concern the student.

    Args:
        batch: the student's arguments and `labels`; preferably on the host, as the checks synchronise with a GPU.
        student: unwrapped.
        classes: number of classes that student and teacher share; None if it is unknown.
        shift: whether logits predict the label of the next position.

    Raises:
        UserError: says what is wrong.
    """
    if batch.get("labels") is None:
        raise UserError(f"the data has no labels, only {listed(batch)}: give a data_collator that makes them")
    require_known_labels(batch["labels"], classes)
    require_fitting_tokens(student, batch, "the student")
    tokens, labels = batch.get("input_ids"), batch["labels"]
    is_language_model = isinstance(student, PreTrainedModel) and student.get_output_embeddings() is not None
    if is_language_model and isinstance(tokens, Tensor) and tokens.shape != labels.shape:
        raise UserError(
            f"the labels have shape {tuple(labels.shape)}, the tokens {tuple(tokens.shape)}: give a label, "
            f"or {IGNORED_LABEL}, for each token"
        )
    (require_unshifted_labels if shift else require_masked_labels)(batch)


def require_labels(steps_without: int, steps: int) -> None:
    """Reject training data without labels.

    Args:
        steps_without: consecutive steps without labels so far.
        steps: number of training steps.

    Raises:
        UserError: there were `STEPS_WITHOUT_LABELS` of them, or all steps had none.
    """
    if steps_without >= min(STEPS_WITHOUT_LABELS, steps):
        raise UserError(f"{steps_without} steps in a row had no labels: all were {IGNORED_LABEL}")


def require_known_labels(labels: Tensor, classes: int | None) -> None:
    """Reject labels that are not among the classes.

    Raises:
        UserError: names the first.
    """
    if classes is None:
        return
    wrong = labels[((labels < 0) & (labels != IGNORED_LABEL)) | (labels >= classes)]
    if len(wrong):
        raise UserError(
            f"found label {int(wrong[0])}, but the classes are 0 to {classes - 1:,}; "
            f"use {IGNORED_LABEL} where there is no label"
        )


def require_unshifted_labels(batch: Mapping[str, Any]) -> None:
    """Reject labels of a causal language model that are already shifted, as the trainer shifts them.

    Args:
        batch: `labels` of shape (samples, length), with `IGNORED_LABEL` where there is none, and the model's arguments.

    Raises:
        UserError: every label is its position's next token, and there are at least `FEWEST`.
    """
    labels, tokens = batch["labels"], batch.get("input_ids")
    if not isinstance(tokens, Tensor) or labels.shape != tokens.shape or labels.ndim != 2:
        return
    before_last = labels[:, :-1]
    labelled = before_last != IGNORED_LABEL
    if labelled.sum() < FEWEST:
        return
    is_next = (before_last == tokens[:, 1:])[labelled].all()
    is_same = (before_last == tokens[:, :-1])[labelled].all()
    if is_next and not is_same:
        raise UserError(
            "the labels are already shifted: each is the next token, and the trainer shifts them again, as "
            "transformers does; give labels equal to input_ids"
        )


def require_masked_labels(batch: Mapping[str, Any]) -> None:
    """Reject labels of a masked language model that are all visible in its input.

    Args:
        batch: as for `require_unshifted_labels`.

    Raises:
        UserError: every label is the token at its position, and there are at least `FEWEST`.
    """
    labels, tokens = batch["labels"], batch.get("input_ids")
    if not isinstance(tokens, Tensor) or labels.shape != tokens.shape or labels.ndim != 2:
        return
    labelled = labels != IGNORED_LABEL
    if labelled.sum() >= FEWEST and (labels == tokens)[labelled].all():
        raise UserError("every label is visible in the input: give a data_collator that masks tokens")


def require_causal(model: nn.Module, inputs: Mapping[str, Any], owner: str) -> None:
    """Reject a model for next-token prediction whose predictions depend on later tokens, tested on the first sample.

    Args:
        model: nothing is tested unless it is of transformers and takes `input_ids`.
        inputs: the model's arguments; those that are tensors begin with the samples' dimension.
        owner: whose model it is, for the error.

    Raises:
        UserError: the last token changes an earlier prediction.
    """
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not isinstance(model, PreTrainedModel):
        return
    sample = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    mask = sample.get("attention_mask")
    visible = mask[0].nonzero() if isinstance(mask, Tensor) and mask.shape == (1, tokens.shape[1]) else None
    last = tokens.shape[1] - 1 if visible is None or not len(visible) else int(visible[-1])
    changed = sample["input_ids"].clone()
    changed[0, last] = 0 if int(changed[0, last]) else 1
    was_training = model.training
    model.eval()
    with torch.no_grad():
        before, after = (
            model(**{**sample, "input_ids": ids})["logits"][0, :last].float() for ids in (sample["input_ids"], changed)
        )
    model.train(was_training)
    if last and (before - after).abs().max() > TOLERANCE * before.abs().max():
        raise UserError(f"{owner}, a {class_of(model).__name__}, sees the tokens that it predicts: give a causal model")


def require_fitting_tokens(model: nn.Module, inputs: Mapping[str, Any], owner: str, check_tokens: bool = True) -> None:
    """Reject samples that are longer than a model allows, or contain token ids that it does not know.

    Args:
        model: nothing is checked unless it is a transformers model that takes `input_ids`.
        inputs: the model's arguments.
        owner: whose model it is, for the error.
        check_tokens: also check the token ids, which synchronises with a GPU.

    Raises:
        UserError: says what does not fit.
    """
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not isinstance(model, PreTrainedModel):
        return
    room = getattr(model.config, "max_position_embeddings", None)
    if isinstance(room, int) and tokens.shape[1] > room > 0:
        raise UserError(
            f"samples of {tokens.shape[1]:,} tokens do not fit {owner}, which has {room:,} positions: "
            "give shorter samples"
        )
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if check_tokens and rows is not None and tokens.numel():
        first, last = (int(bound) for bound in torch.aminmax(tokens))
        if first < 0 or last >= rows:
            raise UserError(
                f"found token id {first if first < 0 else last}, but those of {owner} are 0 to {rows - 1:,}: "
                "use its own tokenizer, or resize_token_embeddings"
            )
