"""Which nonterminals a frozen model's hidden states encode: a position-based linear probe of the parse tree.

The probe reads the last hidden states z_j of a whole sentence and predicts for each token i the symbol of its ancestor
at each level of the tree:

    logits_i = sum over heads h of sum over j of softmax_j(<e_hi, e_hj>) W_h z_j

Its attention depends on positions alone: e_h are learned embeddings of positions, W_h linear maps from the hidden
states to levels x symbols (Allen-Zhu and Li 2023, arXiv:2305.13673, with the sizes of Panigrahi et al. 2025,
arXiv:2410.05464). The sum over j and the map W_h commute, and the softmax is the same for all sentences of one length;
so a batch is split into parts of equal length, and no part has padding.

The baseline of each level is the majority: always predicting the symbol that is most frequent in the training
sentences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertForMaskedLM, GPT2LMHeadModel, get_cosine_schedule_with_warmup

from common.errors import UserError

WARMUP = 0.06

NO_SYMBOL = -1
"""Label where a token has no ancestor at a level."""

Encoder = Callable[[Tensor], Tensor]
"""From token ids (sentences, length), all visible, to hidden states (sentences, length, hidden)."""


class Part(NamedTuple):
    """Sentences of one length."""

    input_ids: Tensor
    """(sentences, length), int64."""
    labels: Tensor
    """(sentences, length, levels), int64."""


@dataclass(frozen=True)
class LabelledSentences:
    """Sentences with the ancestors of their tokens."""

    sequences: Sequence[NDArray[np.integer]]
    """Token ids of shape (length,), BOS included if the model has one."""
    labels: Sequence[NDArray[np.integer]]
    """(length, levels): index of the symbol at that level, `NO_SYMBOL` where there is none."""


@dataclass(frozen=True)
class LevelAccuracy:
    tokens: int
    """Held-out tokens with an ancestor at that level."""
    accuracy: float
    majority: float
    """Accuracy of the symbol that is most frequent in training."""


class PositionProbe(nn.Module):
    """The probe itself.

    Args:
        hidden: size of the hidden states.
        classes: levels times symbols.
        longest: length of the longest sentence, BOS included.
        heads: number of pairs (e_h, W_h).
        dimension: of the position embeddings.
    """

    def __init__(self, hidden: int, classes: int, longest: int, heads: int = 16, dimension: int = 256) -> None:
        super().__init__()
        self.heads = heads
        # vectors of length 1: the softmax starts close to uniform, and its gradient reaches all positions; with entries
        # of variance 1 (torch's for embeddings) e_hi would see nothing but itself, <e_hi, e_hi> being about 256
        self.positions = nn.Parameter(torch.randn(heads, longest, dimension) * dimension**-0.5)
        self.maps = nn.Linear(hidden, heads * classes, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """From hidden states (sentences, length, hidden) to logits (sentences, length, classes)."""
        sentences, length, _ = states.shape
        positions = self.positions[:, :length]
        weights = (positions @ positions.transpose(1, 2)).softmax(dim=-1)
        mapped = self.maps(states).view(sentences, length, self.heads, -1)
        # sums over h and j are one matrix product: (i) x (h, j) times (h, j) x (sentence, class)
        stacked = mapped.permute(2, 1, 0, 3).reshape(self.heads * length, -1)
        logits = weights.transpose(0, 1).reshape(length, -1) @ stacked
        return logits.view(length, sentences, -1).transpose(0, 1)


def probe_nonterminals(
    encoder: Encoder,
    training: LabelledSentences,
    heldout: LabelledSentences,
    *,
    heads: int = 16,
    dimension: int = 256,
    lr: float = 1e-2,
    epochs: int = 4,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cpu",
    cache_bytes: int = 2**30,
) -> list[LevelAccuracy]:
    """Train a probe on a frozen model and test it; one entry for each level of the labels.

    Adam without weight decay; the learning rate rises over the fraction `WARMUP` of the steps and decays to zero as a
    cosine. The loss is the mean cross entropy over all tokens and levels. A batch has sentences of similar length, the
    same ones in each epoch; the order of batches is redrawn.

    Args:
        encoder: the frozen model.
        training: sentences to train the probe on.
        heldout: sentences to test it on.
        heads: number of pairs of position embeddings and linear maps.
        dimension: of the position embeddings.
        lr: peak learning rate.
        epochs: passes over the training sentences.
        batch_size: sentences per step.
        seed: of the probe's initial values and of the order of batches.
        device: torch device of the probe.
        cache_bytes: hidden states are kept from the first epoch on if they take no more than this, and otherwise
            computed in every epoch.

    Raises:
        UserError: no sentences, or training and held-out labels with different numbers of levels.
    """
    if not training.sequences or not heldout.sequences:
        raise UserError("the probe needs sentences to learn from and sentences to be tested on")
    levels = training.labels[0].shape[1]
    if heldout.labels[0].shape[1] != levels:
        raise UserError(f"training labels have {levels} levels, held-out labels {heldout.labels[0].shape[1]}")
    symbols = 1 + max(int(labels.max()) for data in (training, heldout) for labels in data.labels)
    longest = max(len(sequence) for data in (training, heldout) for sequence in data.sequences)
    batches = _batches(training, batch_size)
    states = _HiddenStates(encoder, batches, cache_bytes)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = PositionProbe(states.size, levels * symbols, longest, heads, dimension).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), lr)
    steps = epochs * len(batches)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
    generator = np.random.Generator(np.random.Philox(seed))
    for _ in range(epochs):
        for i in generator.permutation(len(batches)):
            parts = zip(states[i], batches[i], strict=True)
            logits = torch.cat([probe(hidden.to(device)).reshape(-1, symbols) for hidden, _ in parts])
            labels = torch.cat([part.labels.flatten() for part in batches[i]]).to(device)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels, ignore_index=NO_SYMBOL).backward()
            optimizer.step()
            schedule.step()
    return _test(probe, encoder, training, heldout, batch_size, device)


def bert_encoder(model: BertForMaskedLM) -> Encoder:
    """The last hidden states of a BERT, in evaluation mode and on its own device."""

    @torch.no_grad()
    def encode(input_ids: Tensor) -> Tensor:
        return model.bert(input_ids=input_ids.to(model.device)).last_hidden_state.float()

    model.eval()
    return encode


def gpt2_encoder(model: GPT2LMHeadModel) -> Encoder:
    """The last hidden states of a GPT-2, in evaluation mode and on its own device."""

    @torch.no_grad()
    def encode(input_ids: Tensor) -> Tensor:
        return model.transformer(input_ids=input_ids.to(model.device)).last_hidden_state.float()

    model.eval()
    return encode


class _HiddenStates:
    """The hidden states of each batch's parts, kept if all of them take no more than `limit` bytes."""

    def __init__(self, encoder: Encoder, batches: list[list[Part]], limit: int) -> None:
        self._encoder, self._batches = encoder, batches
        tokens = sum(part.input_ids.numel() for batch in batches for part in batch)
        first = encoder(batches[0][0].input_ids)
        self.size = first.shape[-1]
        self._keep = tokens * self.size * first.element_size() <= limit
        self._kept: dict[int, list[Tensor]] = {}

    def __getitem__(self, i: int) -> list[Tensor]:
        if i in self._kept:
            return self._kept[i]
        states = [self._encoder(part.input_ids) for part in self._batches[i]]
        if self._keep:
            self._kept[i] = states
        return states


def _batches(data: LabelledSentences, batch_size: int) -> list[list[Part]]:
    """Sentences by length, cut into batches, and these into parts of one length."""
    lengths = np.array([len(sequence) for sequence in data.sequences])
    order = np.argsort(lengths, kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batches.append([_part(data, rows[lengths[rows] == length]) for length in np.unique(lengths[rows])])
    return batches


def _part(data: LabelledSentences, rows: NDArray[np.int64]) -> Part:
    sequences = np.stack([data.sequences[row] for row in rows]).astype(np.int64)
    labels = np.stack([data.labels[row] for row in rows]).astype(np.int64)
    return Part(torch.from_numpy(sequences), torch.from_numpy(labels))


@torch.no_grad()
def _test(
    probe: PositionProbe,
    encoder: Encoder,
    training: LabelledSentences,
    heldout: LabelledSentences,
    batch_size: int,
    device: str,
) -> list[LevelAccuracy]:
    levels = training.labels[0].shape[1]
    seen, given = (np.concatenate(data.labels) for data in (training, heldout))
    correct = torch.zeros(levels, dtype=torch.int64)
    for batch in _batches(heldout, batch_size):
        for part in batch:
            logits = probe(encoder(part.input_ids).to(device)).cpu()
            symbols = logits.unflatten(-1, (levels, -1)).argmax(dim=-1)
            correct += (symbols == part.labels).sum(dim=(0, 1))
    results = []
    for level in range(levels):
        tokens = int((given[:, level] != NO_SYMBOL).sum())
        counts = np.bincount(seen[seen[:, level] != NO_SYMBOL, level], minlength=1)
        results.append(
            LevelAccuracy(
                tokens=tokens,
                accuracy=int(correct[level]) / max(tokens, 1),
                majority=int((given[:, level] == counts.argmax()).sum()) / max(tokens, 1),
            )
        )
    return results
