"""Continuations that a model generates, and whether the grammar accepts them.

A model is given BOS and the first few tokens of a sentence, and samples one token after another from its own
distribution until EOS or a largest number of tokens. The grammar accepts the result if it is a whole sentence, or,
without EOS, if some sentence begins with it; prefix probabilities decide this exactly. Anything but a terminal or EOS
is a mistake.

All prefixes of a batch have the same length, and each step computes one position: the keys and values of those before
are cached. Samples depend on the seed and on the index of a continuation, and not on the batch.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, GPT2LMHeadModel

from common.arguments import require_at_least, require_seed, worker_threads
from common.errors import UserError
from common.language_models.probing import probe_models, probed_task
from common.language_models.setting import Setting
from common.pcfg.grammar import Grammar
from common.pcfg.prefix import possible_beginning
from common.pcfg.sampler import sample
from common.resources import require_memory
from PCFG_autoregressive.arguments import GenerationArguments
from PCFG_autoregressive.batches import NextTokenTask

GIVEN = 50
"""Default length of prefixes, in tokens; fewer for a grammar of short sentences."""

BLOCK = 1024
"""Sentences that are sampled together, to find some that are long enough."""

SEARCHED = 2**17
"""Sentences among which there must be one."""


@dataclass(frozen=True)
class Acceptance:
    """Fractions and means over all continuations."""

    accepted: float
    """Fraction without a mistake: a whole sentence, or a prefix of one."""
    ended: float
    """Fraction that the model ended with EOS."""
    sentences: float
    """Fraction that are whole sentences, ended with EOS."""
    correct_tokens: float
    """Mean number of generated tokens before the first mistake, without EOS."""


def probe_generation(arguments: GenerationArguments, argv: Sequence[str], setting: Setting) -> None:
    """`probe.py generation`: which continuations the grammar accepts, for every checkpoint not in the probe's file yet.

    Raises:
        UserError: an argument is out of range, or the run was not trained to predict all tokens.
    """
    require_at_least(1, arguments, "continuations", "tokens", "batch_size")
    require_seed(arguments, "seed")
    task = probed_task(arguments, setting)
    if task.label_level != "all":
        raise UserError(
            f"{arguments.run} was trained on the tokens that close a span at depth {task.label_level} only and cannot "
            "generate sentences: give a run with --label-level all"
        )
    given = arguments.given
    if given is None:
        given = int(min(GIVEN, max(1, task.grammar.expected_length // 2)))
    elif given < 0:
        raise UserError(f"--given must be at least 0, got {given}")
    require_memory({f"--continuations {arguments.continuations}": 8 * (given + 1) * arguments.continuations})
    prefixes = beginnings(task.grammar, arguments.seed, given, arguments.continuations)

    def measure(model: GPT2LMHeadModel) -> dict[str, Any]:
        written = continuations(model, task, prefixes, arguments.tokens, arguments.seed, arguments.batch_size)
        return asdict(acceptance(task, prefixes, written))

    probe_models(arguments, argv, "generation", setting, task, measure, {"given": lambda: given}, arguments.device)


def beginnings(grammar: Grammar, seed: int, length: int, count: int) -> NDArray[np.int64]:
    """The first tokens of the first sentences of the stream "probe" that are longer, (count, length).

    Raises:
        UserError: the grammar makes none, or hardly any.
    """
    longest = grammar.length_ranges[0][1]
    if longest is not None and length >= longest:
        raise UserError(f"--given must be below {longest}, the longest sentence of {grammar.name}; got {length}")
    rows: list[NDArray[np.integer]] = []
    first = 0
    while len(rows) < count:
        drawn = sample(grammar, seed, "probe", first, BLOCK)
        rows += [drawn.sentence(i)[:length] for i in np.flatnonzero(drawn.lengths > length).tolist()]
        first += BLOCK
        if not rows and first >= SEARCHED:
            raise UserError(
                f"--given {length} is too long: none of {first:,} sentences of {grammar.name} has more tokens"
            )
    return np.stack(rows[:count]).astype(np.int64)


@torch.inference_mode()
def continuations(
    model: GPT2LMHeadModel, task: NextTokenTask, given: NDArray[np.int64], tokens: int, seed: int, batch_size: int
) -> list[NDArray[np.int64]]:
    """What the model writes after each row of `given`, up to the first token that is no terminal, and with that.

    Args:
        model: in any mode, on any device; it is put into evaluation mode.
        task: gives the token ids, and with them BOS.
        given: (continuations, length), the terminals that the model is given.
        tokens: the most that it writes; fewer where it has no more positions.
        seed: of the sampling.
        batch_size: continuations that are written together.
    """
    model.eval()
    steps = min(tokens, model.config.n_positions - 1 - given.shape[1])
    drawn = np.random.Generator(np.random.Philox(seed)).random((len(given), steps), np.float32)
    written = []
    for start in range(0, len(given), batch_size):
        rows = torch.from_numpy(given[start : start + batch_size])
        uniform = torch.from_numpy(drawn[start : start + batch_size]).to(model.device)
        written.append(_write(model, torch.nn.functional.pad(rows, (1, 0), value=task.bos), uniform, task).numpy())
    found = []
    for row in np.concatenate(written):
        stops = np.flatnonzero(row >= task.terminals)
        found.append(row[: stops[0] + 1] if len(stops) else row)
    return found


def _write(model: GPT2LMHeadModel, rows: torch.Tensor, uniform: torch.Tensor, task: NextTokenTask) -> torch.Tensor:
    """What follows each row, (rows, steps); uniform numbers of this shape choose the tokens."""
    cache = DynamicCache(config=model.config)
    shown = rows.to(model.device)
    stopped = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
    written = torch.full(uniform.shape, task.eos, device=model.device)
    for step in range(uniform.shape[1]):
        hidden = model.transformer(input_ids=shown, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        cumulative = model.lm_head(hidden).double().softmax(dim=-1).cumsum(dim=-1)
        shown = (cumulative <= uniform[:, step, None] * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
        written[:, step] = shown[:, 0]
        stopped |= shown[:, 0] >= task.terminals
        if stopped.all():
            break
    return written.cpu()


def acceptance(task: NextTokenTask, given: NDArray[np.int64], written: list[NDArray[np.int64]]) -> Acceptance:
    """Whether the grammar accepts what was written after each row of `given`.

    Args:
        task: gives the grammar and the token ids.
        given: (continuations, length), beginnings of sentences.
        written: as `continuations` gives them.
    """
    ended = np.array([task.eos in row[-1:] for row in written])
    stopped = np.array([len(row) > 0 and row[-1] >= task.terminals for row in written])
    terminals = [row[:-1] if stop else row for row, stop in zip(written, stopped, strict=True)]
    whole = [np.concatenate(pair) for pair in zip(given, terminals, strict=True)]
    with ThreadPoolExecutor(worker_threads()) as pool:
        parsed = list(pool.map(lambda tokens: possible_beginning(task.grammar, tokens), whole))
    correct = np.array([length for length, _ in parsed])
    possible = correct == [len(tokens) for tokens in whole]
    sentences = ended & possible & np.array([is_sentence for _, is_sentence in parsed])
    return Acceptance(
        accepted=float((sentences | (possible & ~stopped)).mean()),
        ended=float(ended.mean()),
        sentences=float(sentences.mean()),
        correct_tokens=float((correct - given.shape[1]).mean()),
    )
