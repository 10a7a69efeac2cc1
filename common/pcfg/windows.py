"""How near each checkpoint of a run is to the best predictors that see only a window of the sentence.

The posterior of a token given its position and the n tokens nearest to it is the best n-gram model there can be, and it
is exact. A model that has learned to use windows of n tokens, and no more, predicts just that; the Kullback-Leibler
divergence of the model from the posterior, KL(posterior || model), is then 0. It is measured for windows from a single
token to the whole input, at labelled positions of the run's evaluation sentences, so that it shows which n-gram model a
model is nearest to at any time of its training.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from common.arguments import require_at_least, require_seed, worker_threads
from common.distillation.batches import batch_tensors
from common.distillation.evaluation import logits_at
from common.distillation.losses import IGNORED_LABEL
from common.errors import UserError
from common.language_models.probing import probe_models, probed_task
from common.language_models.setting import Setting
from common.pcfg.arguments import WindowArguments
from common.pcfg.batches import evaluation_batches
from common.pcfg.bayes_optimal import score
from common.pcfg.probing import evaluation_samples
from common.pcfg.setting import EVALUATION_BATCH_SIZE
from common.pcfg.task import GrammarTask
from common.resources import require_memory
from common.runs.progress import progress

_CHOICE_STREAM = 0x77696E64
"""Differs from other streams' numbers, so that the choice of positions does not reuse their random bits."""

Posteriors = Callable[[Any, Any, int, int, Sequence[int]], NDArray[np.float64]]
"""From a task, a batch, the row and the column of a label, and the sizes of windows, to the posteriors of the label for
each window and, last, for the whole input: (windows + 1, vocabulary)."""


def windows(arguments: WindowArguments, argv: Sequence[str], setting: Setting, posteriors: Posteriors) -> None:
    """`probe.py windows`: the divergence of every checkpoint that is not in the probe's file yet from each window's
    posterior, and how good these posteriors are themselves.

    Args:
        arguments: of the command.
        argv: the command, for the probe's file.
        setting: of the run.
        posteriors: of the setting.

    Raises:
        UserError: an argument is out of range, the directory is not a run of the setting, or no position has a label.
    """
    task = probed_task(arguments, setting)
    require_at_least(0, arguments, "positions")
    require_at_least(1, arguments, "sizes")
    require_seed(arguments, "seed")
    if list(arguments.sizes) != sorted(set(arguments.sizes)):
        raise UserError(f"--sizes must ascend, got {' '.join(map(str, arguments.sizes))}")
    samples = evaluation_samples(arguments, task)
    batches = evaluation_batches(task, samples, EVALUATION_BATCH_SIZE)
    chosen = choose_positions(task, batches, arguments.positions, arguments.seed)
    sizes: list[int | None] = [*arguments.sizes, None]
    number = sum(len(labels[labels != IGNORED_LABEL]) for _, labels in chosen)
    require_memory({f"--positions {number} with {len(sizes)} windows": 16 * number * len(sizes) * task.vocabulary})

    @cache
    def exact() -> Tensor:
        return _posteriors(task, chosen, arguments.sizes, posteriors, arguments.run.name)

    def quality() -> object:
        truth = torch.cat([labels[labels != IGNORED_LABEL] for _, labels in chosen]).numpy()
        return [
            {"tokens": tokens, "entropy": float(-torch.xlogy(found, found).sum(-1).mean()), **asdict(of_window)}
            for tokens, found in zip(sizes, exact().unbind(1), strict=True)
            for of_window in [score(found.numpy(), truth)]
        ]

    def measure(model: PreTrainedModel) -> dict[str, Any]:
        found = divergences(exact(), logits_at(model, chosen)).mean(dim=0).tolist()
        return {"windows": [{"tokens": tokens, "kl": kl} for tokens, kl in zip(sizes, found, strict=True)]}

    once: dict[str, Callable[[], object]] = {
        "eval_samples": lambda: samples,
        "positions": lambda: number,
        "windows": quality,
    }
    probe_models(arguments, argv, "windows", setting, task, measure, once, arguments.device)


def choose_positions(task: GrammarTask, batches: Sequence[Any], positions: int, seed: int) -> list[tuple[Any, Tensor]]:
    """Some labelled positions, each as likely as any other; BOS, which is always at the beginning, is not among them.

    Args:
        task: of the batches.
        batches: with labels.
        positions: how many; 0 for all.
        seed: of the choice.

    Returns:
        For each batch that has any, its rows with chosen positions, and labels (rows, longest) at these alone.

    Raises:
        UserError: there is no label.
    """
    masks = [(batch.labels != IGNORED_LABEL) & (batch.labels != task.bos) for batch in batches]
    ends = [0, *accumulate(int(mask.sum()) for mask in masks)]
    if ends[-1] == 0:
        raise UserError("no position of the evaluation sentences has a label: give more of them with --eval-samples")
    is_chosen = torch.ones(ends[-1], dtype=torch.bool)
    if 0 < positions < ends[-1]:
        generator = np.random.Generator(np.random.Philox(key=[seed, _CHOICE_STREAM]))
        is_chosen[:] = False
        is_chosen[torch.from_numpy(generator.choice(ends[-1], positions, replace=False))] = True
    chosen = []
    for batch, mask, (start, stop) in zip(batches, masks, pairwise(ends), strict=True):
        kept = torch.zeros_like(mask).masked_scatter(mask, is_chosen[start:stop])
        rows = kept.any(dim=1)
        if rows.any():
            some = replace(batch, **{name: tensor[rows] for name, tensor in batch_tensors(batch).items()})
            chosen.append((some, some.labels.where(kept[rows], torch.tensor(IGNORED_LABEL))))
    return chosen


def _posteriors(
    task: Any, chosen: Sequence[tuple[Any, Tensor]], sizes: Sequence[int], posteriors: Posteriors, name: str
) -> Tensor:
    """Posteriors at the chosen positions, (positions, windows + 1, vocabulary), in parallel, see `worker_threads`."""
    places = [
        (batch, row, column) for batch, labels in chosen for row, column in (labels != IGNORED_LABEL).nonzero().tolist()
    ]

    def answer(place: tuple[Any, int, int]) -> NDArray[np.float64]:
        batch, row, column = place
        return posteriors(task, batch, row, column, sizes)

    found = []
    with (
        ThreadPoolExecutor(worker_threads()) as pool,
        progress(len(places), 0, f"exact posteriors for {name}", 1) as show,
    ):
        for of_place in pool.map(answer, places):
            found.append(of_place)
            show(len(found))
    return torch.from_numpy(np.stack(found))


def divergences(exact: Tensor, logits: Tensor) -> Tensor:
    """KL(posterior || model) in nats.

    Args:
        exact: posteriors, (positions, windows, classes) in float64.
        logits: of the model, (positions, classes).

    Returns:
        (positions, windows)
    """
    log_probabilities = logits.double().log_softmax(dim=-1)[:, None].expand_as(exact)
    return F.kl_div(log_probabilities, exact, reduction="none").sum(dim=-1)
