"""Designed targets on grammars: the distribution of a token given those of a window, its position, and the length.

Windows are those of `probe.py windows`: of n tokens, n odd, around a masked position, or the n - 1 tokens before a next
token. Hidden tokens are known to be hidden. The distribution is estimated from labels of sampled sentences: with n
labels in a context, of which n_v are v, and q of the next smaller window,

    p(v) = (n_v + s q(v)) / (n + s),    s = `SMOOTHING`,

the posterior mean under a Dirichlet prior with mean q (MacKay and Peto 1995, "A hierarchical Dirichlet language model",
Natural Language Engineering 1). The windows of a target are 1, 3, 5, ... tokens, or 1, 2, 3, ... for next tokens, up to
its size. A context that was never seen has the distribution of the next smaller window.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.distillation.batches import batch_tensors
from common.distillation.labelled_head import labelled_positions
from common.errors import UserError
from common.pcfg.arguments import Known, StudentArguments
from common.pcfg.batches import TrainingBatches
from common.pcfg.grammar_files import grammar_names, load_grammar
from common.pcfg.task import GrammarTask, rules_of

SENTENCES, LABELS = 2**18, 2**21
"""From which a target is estimated: no more of either."""
BATCH_SIZE = 256
SMOOTHING = 4.0
SEED = 0x77696E646F77
"""Of these sentences, and of permutations."""


@dataclass(frozen=True)
class WindowDesign:
    """A designed target."""

    tokens: int
    """Of the window."""
    knows: tuple[Known, ...]
    """What the target depends on beside the window."""
    source: str
    """grammar, permuted, or another grammar as name or name:start."""


@dataclass(frozen=True)
class Contexts:
    """How a context of a label becomes a number."""

    offsets: Sequence[int]
    """Of the window's tokens from the position at which the label is predicted."""
    tokens: int
    """Number of token ids; this id stands for a place outside the sentence."""
    mask: int | None
    """Token that stands for those that attention does not see."""
    pad: int
    positions: int
    """Number of positions, more than a sentence has tokens."""
    knows: tuple[Known, ...]

    def numbers(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Of the contexts at all positions: (sentences, length), from tensors of that shape."""
        shown = input_ids
        if self.mask is not None and attention_mask is not None:
            shown = input_ids.where(attention_mask.bool(), self.mask)
        shown = shown.where(input_ids != self.pad, self.tokens)
        reach = max((abs(offset) for offset in self.offsets), default=0)
        padded = nn.functional.pad(shown, (reach, reach), value=self.tokens)
        length = input_ids.shape[1]
        found = torch.zeros_like(input_ids)
        if "position" in self.knows:
            found = found + torch.arange(length, device=input_ids.device)
        if "length" in self.knows:
            found = found * self.positions + (input_ids != self.pad).sum(dim=1, keepdim=True)
        for offset in self.offsets:
            own = offset == 0 and self.mask is not None  # a position shows itself even if attention does not see it
            tokens = input_ids if own else padded[:, reach + offset : reach + offset + length]
            found = found * (self.tokens + 1) + tokens
        return found


class WindowModel(nn.Module):
    """Predicts by a table for each window, the largest one in which a context is found.

    Args:
        contexts: of each window, ascending.
        tables: for each, the numbers of contexts, (contexts,) and ascending, and log probabilities (contexts, classes).
        otherwise: log probabilities (classes,) where no window has the context.
    """

    def __init__(
        self, contexts: Sequence[Contexts], tables: Sequence[tuple[Tensor, Tensor]], otherwise: Tensor
    ) -> None:
        super().__init__()
        self._contexts = contexts
        self.register_buffer("otherwise", otherwise)
        for i, (numbers, log_probabilities) in enumerate(tables):
            self.register_buffer(f"numbers{i}", numbers)
            self.register_buffer(f"log_probabilities{i}", log_probabilities)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Log probabilities (sentences, length, classes) as `logits`, from tensors (sentences, length)."""
        logits = self.get_buffer("otherwise").expand(*input_ids.shape, -1).clone()
        for i, contexts in enumerate(self._contexts):
            numbers, table = self.get_buffer(f"numbers{i}"), self.get_buffer(f"log_probabilities{i}")
            wanted = contexts.numbers(input_ids, attention_mask)
            rows = torch.searchsorted(numbers, wanted).clamp(max=len(numbers) - 1)
            is_found = numbers[rows] == wanted
            logits[is_found] = table[rows[is_found]]
        return {"logits": logits}


def designs_of(arguments: StudentArguments) -> list[WindowDesign]:
    """The designed targets of a student, in turn.

    Raises:
        UserError: --windows has another form, or names no window.
    """
    if arguments.windows is None or arguments.windows_of is None or arguments.windows_with is None:
        return []
    (text,) = arguments.windows
    sizes = text.split("+")
    if not all(re.fullmatch("[1-9][0-9]{0,5}", size) for size in sizes):
        raise UserError(f"--windows are numbers of tokens, several in turn joined by +, such as 3+5+7; got {text!r}")
    return [WindowDesign(int(size), arguments.windows_with, arguments.windows_of) for size in sizes]


@lru_cache
def window_model(task: GrammarTask, design: WindowDesign, causal: bool) -> WindowModel:
    """The model of a designed target.

    Args:
        task: what is predicted.
        design: the target.
        causal: whether the label is that of the next position.

    Raises:
        UserError: the window's size is even, though it is around a masked position; it is too large for its contexts to
            be numbered in 63 bits; the length is not known; or the source is no grammar with the task's terminals.
    """
    if causal and "length" in design.knows:
        raise UserError("--windows-with length is for masked tokens: the length is not known before the end")
    if not causal and design.tokens % 2 == 0:
        raise UserError(f"--windows around a masked position are odd numbers of tokens, got {design.tokens}")
    if design.tokens > 64:
        raise UserError(f"--windows of {design.tokens} tokens are too large: give smaller ones")
    sizes = range(1, design.tokens + 1, 1 if causal else 2)
    source = _source(task, design)
    positions = max(task.positions, source.positions) + 1
    contexts = [
        Contexts(
            offsets=tuple(range(2 - size, 1) if causal else range(-(size // 2), size // 2 + 1)),
            tokens=task.vocabulary,
            mask=None if causal else task.mask,
            pad=task.pad,
            positions=positions,
            knows=design.knows,
        )
        for size in sizes
    ]
    if positions**2 * (task.vocabulary + 1) ** design.tokens >= 2**63:
        raise UserError(f"--windows of {design.tokens} tokens are too large: give smaller ones")
    numbers, labels = _observations(source, contexts, causal)
    return _fitted(contexts, numbers, labels, task.vocabulary, design.source == "permuted")


def _source(task: GrammarTask, design: WindowDesign) -> GrammarTask:
    """The task that the sentences are of."""
    if design.source in ("grammar", "permuted"):
        return task
    name, _, start = design.source.partition(":")
    if name not in grammar_names():  # a file might change before a run resumes
        known = ", ".join(grammar_names())
        raise UserError(f"--windows-of is grammar, permuted, or one of {known}, with :start; got {design.source}")
    try:
        grammar = load_grammar(name, start or None)
    except UserError as error:
        raise UserError(f"--windows-of {design.source}: {error}") from error
    if rules_of(grammar) == rules_of(task.grammar) and grammar.start == task.grammar.start:
        raise UserError(f"--windows-of {design.source} is the task's own grammar: leave it out, or give another one")
    if grammar.terminals != task.grammar.terminals:
        raise UserError(f"--windows-of {design.source} has other terminals than {task.grammar.name}")
    return replace(task, grammar=grammar)


def _observations(
    task: GrammarTask, contexts: Sequence[Contexts], causal: bool
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """For each window the number of the context of each label, and the labels, all (labels,)."""
    batches = TrainingBatches(task, SEED, BATCH_SIZE)
    numbers: list[list[Tensor]] = [[] for _ in contexts]
    labels: list[Tensor] = []
    count = 0
    for step in range(SENTENCES // BATCH_SIZE):
        batch = batch_tensors(batches.batch(step))
        positions = labelled_positions(batch["labels"], causal)
        count += len(positions)
        if count > LABELS:
            break
        labels.append(batch["labels"].flatten()[positions + causal])
        for found, of_window in zip(numbers, contexts, strict=True):
            numbered = of_window.numbers(batch["input_ids"], batch.get("attention_mask"))
            found.append(numbered.flatten()[positions])
    return [torch.cat(found).numpy() for found in numbers], torch.cat(labels).numpy()


def _fitted(
    contexts: Sequence[Contexts],
    numbers: Sequence[NDArray[np.int64]],
    labels: NDArray[np.int64],
    classes: int,
    is_permuted: bool,
) -> WindowModel:
    """The model for what `_observations` found; permuted, contexts of a window have each other's distributions, however
    frequent they are.
    """
    base = np.bincount(labels, minlength=classes) + 0.5
    base /= base.sum()
    generator = np.random.Generator(np.random.Philox(SEED))
    tables = []
    smaller = np.broadcast_to(base, (len(labels), classes))  # of the context of each label
    for of_window in numbers:
        found, first, place = np.unique(of_window, return_index=True, return_inverse=True)
        counts = np.bincount(place * classes + labels, minlength=len(found) * classes).reshape(-1, classes)
        probabilities = counts + SMOOTHING * smaller[first]
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        smaller = probabilities[place]
        if is_permuted:
            probabilities = generator.permutation(probabilities)
        tables.append((torch.from_numpy(found), torch.from_numpy(np.log(probabilities)).float()))
    return WindowModel(contexts, tables, torch.from_numpy(np.log(base)).float())
