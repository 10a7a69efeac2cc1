"""`probe.py` of the settings on text."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForMaskedLM, GPT2LMHeadModel

from common.arguments import device_of, require_at_least, require_seed
from common.distillation.labelled_head import LabelledHead
from common.errors import UserError
from common.language_models.probing import probe_models, probed_task
from common.language_models.setting import Setting
from common.probes.kneser_ney import MOST, KneserNey, divergence_statistics, divergences
from common.probes.ngrams import (
    CausalNgramVariants,
    NgramQueries,
    NgramVariants,
    Predictor,
    bert_predictor,
    gpt2_predictor,
    probe_ngrams,
)
from common.teachers.objective import objective_of
from common.text.arguments import KneserNeyArguments, NgramArguments
from common.text.batches import MaskedText, held_out_rows, rows_at_equal_distances
from common.text.task import CorpusTask
from common.text.words import begins_word, begins_word_in


def ngrams(arguments: NgramArguments, argv: Sequence[str], setting: Setting) -> None:
    """`probe.py ngrams`: M_robust and M_close of every checkpoint that is not in the probe's file yet.

    Each sample has one position, drawn from those around which the longest n-gram is whole.

    Args:
        arguments: of the command.
        argv: the command, for the probe's file.
        setting: of the run.

    Raises:
        UserError: an argument is out of range, or the directory is not a run of the setting.
    """
    require_at_least(1, arguments, "samples", "columns")
    require_at_least(2, arguments, "sizes")
    require_seed(arguments, "seed")
    device_of(arguments.device)
    task: CorpusTask = probed_task(arguments, setting)
    hide_masked = hides_masked(task)
    if max(arguments.sizes) >= task.positions:
        raise UserError(f"samples of {task.positions} tokens are too short for --sizes {max(arguments.sizes)}")
    samples = probed_samples(task, arguments.samples)
    sequences = list(samples)
    options: dict[str, Any] = {
        "spacing": 1,
        "limit": task.positions,
        "positions": 1,
        "sizes": arguments.sizes,
        "seed": arguments.seed,
    }
    if arguments.unit == "word":
        begins = begins_word(task.tokenizer, task.vocabulary)
        options["begins_word"] = list(begins_word_in(samples, begins, task.blocks.is_special))
    shown: NgramVariants | CausalNgramVariants
    if hide_masked is None:
        shown = CausalNgramVariants(sequences, task.blocks.ordinary, keeps_first=False, **options)
    else:
        assert task.blocks.mask is not None
        special = np.array(task.blocks.special)
        shown = NgramVariants(sequences, task.blocks.mask, hide_masked, never=special, shorten=False, **options)

    def measure(model: Any) -> dict[str, Any]:
        return asdict(probe_ngrams(shown, predictor_of(model), arguments.columns, arguments.values))

    once = {"positions": shown.pairs.tolist} if arguments.values else {}
    probe_models(arguments, argv, "ngrams", setting, task, measure, once, arguments.device)


def kneser_ney(arguments: KneserNeyArguments, argv: Sequence[str], setting: Setting) -> None:
    """`probe.py kneser-ney`: how far every checkpoint's predictions are from those of n-gram models.

    The n-gram models are fitted to the training blocks. Special tokens are never masked in training: for masked models
    neither a position nor a probability is theirs. The n-gram models see the tokens before a position or, of a masked
    one, the tokens on both sides. Each sample has one position, far enough from its ends for the longest n-gram.

    Args:
        arguments: of the command.
        argv: the command, for the probe's file.
        setting: of the run.

    Raises:
        UserError: an argument is out of range, or the directory is not a run of the setting.
    """
    require_at_least(1, arguments, "samples", "order", "tokens", "rows")
    require_seed(arguments, "seed")
    if arguments.order > MOST:
        raise UserError(f"--order must be at most {MOST}, got {arguments.order}")
    device_of(arguments.device)
    task: CorpusTask = probed_task(arguments, setting)
    hide_masked, beside = hides_masked(task), arguments.order - 1
    first = max(beside, 1) if hide_masked is None else beside  # a causal model does not predict the first token
    if task.positions < first + beside + 1:
        raise UserError(
            f"samples of {task.positions} tokens are too short for --order {arguments.order}: give a smaller one"
        )
    samples = probed_samples(task, arguments.samples)
    generator = np.random.Generator(np.random.Philox(key=[arguments.seed, 0]))
    special = [] if hide_masked is None else list(task.blocks.special)
    allowed = ~np.isin(samples[:, first : task.positions - beside], special)
    samples = samples[allowed.any(1)]
    places = np.array([first + generator.choice(np.flatnonzero(row)) for row in allowed[allowed.any(1)]])
    rows = np.arange(len(samples))
    truth = samples[rows, places]
    model = fitted(task, arguments.order, arguments.tokens)
    window = places[:, None] + np.arange(-beside, beside + 1)
    around = samples[rows[:, None], window]
    queries = _queries(samples, places, task.blocks.mask, hide_masked)

    def predictions(part: slice, n: int) -> NDArray[np.float64]:
        left, right = around[part, :beside], around[part, beside + 1 :]
        if hide_masked is None:
            return model.distributions(left, n)
        return without(special, model.window_distributions(left, right, n))

    parts = [slice(start, start + arguments.rows) for start in range(0, len(samples), arguments.rows)]
    sizes = range(1, arguments.order + 1)

    def quality() -> list[dict[str, float]]:
        found = []
        for n in sizes:
            chosen = [predictions(part, n) for part in parts]
            own = np.concatenate([p[np.arange(len(p)), truth[part]] for p, part in zip(chosen, parts, strict=True)])
            correct = np.concatenate([p.argmax(1) == truth[part] for p, part in zip(chosen, parts, strict=True)])
            found.append({"n": n, "loss": float(-np.log(own).mean()), "accuracy": float(correct.mean())})
        return found

    def measure(checkpoint: Any) -> dict[str, Any]:
        predict = predictor_of(checkpoint)
        values: dict[int, list[NDArray[np.float64]]] = {n: [] for n in sizes}
        loss = correct = 0.0
        for part in parts:
            probabilities = predict(_part(queries, part)).double().cpu().numpy()[:, : task.vocabulary]
            probabilities = without(special, probabilities)
            own = probabilities[np.arange(len(probabilities)), truth[part]]
            loss -= float(np.log(np.maximum(own, np.finfo(np.float64).tiny)).sum())
            correct += float((probabilities.argmax(1) == truth[part]).sum())
            with np.errstate(divide="ignore"):
                log_probabilities = np.log(probabilities)
            for n in sizes:
                values[n].append(divergences(log_probabilities, predictions(part, n)))
        return {
            "loss": loss / len(samples),
            "accuracy": correct / len(samples),
            "ngrams": [
                {"n": n, **asdict(divergence_statistics(np.concatenate(found, axis=1)))} for n, found in values.items()
            ],
        }

    once: dict[str, Callable[[], object]] = {"ngrams": quality}
    probe_models(arguments, argv, "kneser_ney", setting, task, measure, once, arguments.device)


def hides_masked(task: CorpusTask) -> bool | None:
    """Whether masked positions are hidden from attention; None for causal models."""
    return task.batch_of.hide_masked if isinstance(task.batch_of, MaskedText) else None


def probed_samples(task: CorpusTask, samples: int) -> NDArray[np.int64]:
    """Held-out blocks (samples, length) at equal distances, of each corpus as many as its weight's share.

    Raises:
        UserError: there are too few.
    """
    rows = held_out_rows(task.blocks, samples, task.weights, "--samples")
    return task.blocks.samples("held_out", rows)


def fitted(task: CorpusTask, order: int, tokens: int) -> KneserNey:
    """An n-gram model of training blocks at equal distances, with at most `tokens` tokens.

    They are mixed by the weights as far as each corpus suffices.
    """
    count = min(len(task.blocks.train), max(1, tokens // task.blocks.length))
    rows = rows_at_equal_distances(task.blocks, "train", count, task.weights)
    return KneserNey.fit(task.blocks.samples("train", rows), order, task.vocabulary)


def without(tokens: Sequence[int], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (rows, tokens) given that none of some tokens is right."""
    others = probabilities.copy()
    others[:, list(tokens)] = 0
    return others / others.sum(1, keepdims=True)


def predictor_of(model: Any) -> Predictor:
    """A model's probabilities at queried columns, for queries with all columns of a sample."""
    if isinstance(model, BertForMaskedLM):
        return bert_predictor(model)
    if isinstance(model, GPT2LMHeadModel):
        return gpt2_predictor(model)
    is_causal = objective_of(model) == "causal"

    @torch.inference_mode()
    def predict(queries: NgramQueries) -> torch.Tensor:
        inputs = {"input_ids": queries.input_ids.to(model.device)}
        if not is_causal:
            inputs["attention_mask"] = queries.attention_mask.to(model.device)
        positions = torch.arange(len(queries.input_ids)) * queries.input_ids.shape[1] + queries.columns
        head = LabelledHead(model)
        try:
            output = head(model, inputs, positions.to(model.device), chunked=False)
        finally:
            head.remove()
        return output.logits().softmax(dim=-1)

    model.eval()
    return predict


def _queries(
    samples: NDArray[np.int64], places: NDArray[np.int64], mask: int | None, hide_masked: bool | None
) -> NgramQueries:
    """Samples with only one place masked, or for causal models as they are, to be predicted at the place before."""
    rows = np.arange(len(samples))
    input_ids, attended = samples.copy(), np.ones_like(samples)
    if hide_masked is not None:
        assert mask is not None
        input_ids[rows, places] = mask
        attended[rows, places] = 0 if hide_masked else 1
    columns = places - 1 if hide_masked is None else places
    position_ids = np.broadcast_to(np.arange(samples.shape[1]), samples.shape)
    return NgramQueries(*(torch.from_numpy(np.array(array)) for array in (input_ids, attended, position_ids, columns)))


def _part(queries: NgramQueries, part: slice) -> NgramQueries:
    return NgramQueries(*(tensor[part] for tensor in vars(queries).values()))
