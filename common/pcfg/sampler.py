"""Sentences of a grammar as a counter-based stream, with the trees that made them.

Sentence i of a stream depends on (grammar, seed, stream, i) alone. Its random words are those of Philox4x64-10 (Salmon
et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC 11) with the key (seed, stream) and the counters
(1, i, 0, 0), (2, i, 0, 0), ...; `numpy.random.Philox` with this key and the counter (0, i, 0, 0) yields the same words.

A derivation always replaces the leftmost nonterminal. Among n equally likely rules, rule floor(n u / 2^64) is taken,
where u is a word, and n u modulo 2^64 is the u of the next such choice. So k choices among n_1, ..., n_k rules read
the digits of floor(n_1 ... n_k u / 2^64). A word provides K choices, the largest number with m^K <= 2^32, where m is
the most rules of a symbol that are equally likely (at least 2). The numbers of words that lead to each outcome then
differ by one at most, and so the probabilities are exact to a factor of 1 +- 2^-32. A choice among rules with unequal
weights uses a word of its own and compares it with the cumulative probabilities, in float64.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise, product
from typing import Literal, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from common.errors import UserError
from common.pcfg.grammar import MAX_TOKENS, Grammar
from common.philox import multiply_high, philox4x64
from common.resources import require_memory

MAX_OUTCOMES, MAX_OUTCOME = 4096, 64
"""Strings in the table of outcomes and tokens per string, to fit into a processor's cache."""

NO_OUTCOMES = 64
"""More choices than one word ever provides."""

NO_ROOM, STACK_FULL = -1, -2
"""Returned instead of the position after a sentence that was not finished."""

Stream = Literal["train", "evaluation", "probe"]
STREAM_KEYS: dict[Stream, int] = {"train": 0, "evaluation": 1, "probe": 2}


@dataclass(frozen=True)
class Sentences:
    """Sentences one after another; `total` is the number of their tokens."""

    tokens: NDArray[np.uint8]
    """(total,): token ids of terminals."""
    offsets: NDArray[np.int64]
    """(sentences + 1,): sentence i is tokens[offsets[i] : offsets[i + 1]]."""
    ancestors: NDArray[np.int16] | None = None
    """(total, levels): nonterminal id of the token's ancestor at each level of the tree, from the root, level 0; -1 at
    the level of the token itself and further down."""
    span_ends: NDArray[np.bool_] | None = None
    """(total, levels): True where the token is the last of its ancestor's span; False where there is no ancestor."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sentence."""
        return np.diff(self.offsets)

    def sentence(self, i: int) -> NDArray[np.uint8]:
        """Tokens of sentence i."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]


def sample(
    grammar: Grammar,
    seed: int,
    stream: Stream,
    first: int,
    count: int,
    trees: bool = False,
    levels: int | None = None,
) -> Sentences:
    """Sentences first, ..., first + count - 1 of a stream.

    Args:
        grammar: with at most 256 terminals.
        seed: 0 to 2^64 - 1.
        stream: streams of one seed are independent.
        first: index of the first sentence.
        count: number of sentences.
        trees: whether to return `ancestors` and `span_ends`.
        levels: number of tree levels in these; by default the grammar's depth.

    Raises:
        UserError: an argument out of range, no levels for the trees of a grammar without a depth, or a sentence of more
            than `MAX_TOKENS` tokens.
    """
    if not 0 <= seed < 2**64:
        raise UserError(f"the seed must be between 0 and 2^64 - 1, got {seed}")
    if first < 0 or count < 0 or first + count >= 2**63:
        raise UserError(f"sentences are numbered 0 to 2^63 - 2; got {count} sentences from {first}")
    shown = _levels(grammar, levels) if trees else 0
    tables = _tables(grammar)
    key = np.array([seed, STREAM_KEYS[stream]], np.uint64)
    width = tables.outcome.shape[1]
    expected = grammar.expected_length if math.isfinite(grammar.expected_length) else 100
    room = int(count * expected * 1.01) + 1000 + width
    require_memory({f"{count:,} sentences of {grammar.name}": room + 8 * count})
    tokens = np.empty(room, np.uint8)
    offsets = np.zeros(count + 1, np.int64)
    done = _expand(tables, key, first, 0, tokens, offsets, None, None)
    while done < count:
        if len(tokens) - width - offsets[done] >= MAX_TOKENS:
            raise UserError(
                f"sentence {first + done} of {grammar.name} (seed {seed}, {stream}) has more than {MAX_TOKENS:,} "
                "tokens: give less weight to recursive alternatives"
            )
        tokens.resize(2 * len(tokens), refcheck=False)
        done = _expand(tables, key, first, done, tokens, offsets, None, None)
    tokens.resize(offsets[count] + width, refcheck=False)
    if not trees:
        return Sentences(tokens[: offsets[count]], offsets)
    ancestors = np.empty((offsets[count], shown), np.int16)
    span_ends = np.empty((offsets[count], shown), np.bool_)
    _expand(tables, key, first, 0, tokens, offsets, ancestors, span_ends)
    return Sentences(tokens[: offsets[count]], offsets, ancestors, span_ends)


def _levels(grammar: Grammar, levels: int | None) -> int:
    levels = grammar.depth if levels is None else levels
    if levels is None:
        raise UserError(f"the trees of {grammar.name} have no common depth: give the number of levels")
    if levels < 1:
        raise UserError(f"trees have at least one level, got {levels}")
    return levels


_SIDE = np.dtype([("first_rule", np.int64), ("equal", np.uint64)])
"""Of a nonterminal: its first rule, and the number of its rules if they are equally likely, otherwise 0."""

_RULE = np.dtype([("length", np.int64), ("choices", np.int64), ("first_outcome", np.int64), ("outcomes", np.uint64)])
"""A rule: symbols in its right side, choices between it and one of its outcomes, or `NO_OUTCOMES`, and its outcomes."""


class _Tables(NamedTuple):
    """What `_derive` reads of a grammar. Rows are padded to multiples of 16 bytes."""

    nonterminals: int
    choices_per_word: int
    sides: NDArray[np.void]
    """(nonterminals + 1,) of `_SIDE`; the last one only ends the rules of the one before."""
    rules: NDArray[np.void]
    """(rules,) of `_RULE`"""
    threshold: NDArray[np.uint64]
    """(rules,): cumulative probability, in units of 2^-64."""
    right: NDArray[np.int32]
    """(rules, width): right side backwards, as it is put on the stack."""
    outcome: NDArray[np.uint8]
    """(outcomes, width): token ids."""
    outcome_length: NDArray[np.int64]
    """(outcomes,)"""


@lru_cache(maxsize=8)
def _tables(grammar: Grammar) -> _Tables:
    compiled = grammar.compiled()
    if compiled.terminals > 256 or compiled.nonterminals > 2**15:
        raise UserError(
            f"{grammar.name} has {compiled.terminals} terminals and {compiled.nonterminals} nonterminals: "
            "the sampler supports 256 and 32,768"
        )
    terminal = compiled.nonterminals  # the first symbol that is one
    rights = [row[:length].tolist() for row, length in zip(compiled.right, compiled.right_length, strict=True)]
    rules_of = [range(first, end) for first, end in pairwise(compiled.first_rule.tolist())]
    equal = [len(of) if np.ptp(compiled.probability[of]) == 0 else 0 for of in rules_of]
    simple = [equal[n] > 0 and all(min(rights[r]) >= terminal for r in of) for n, of in enumerate(rules_of)]
    longest = [max(len(rights[r]) for r in of) for of in rules_of]
    choices_per_word = int(32 / math.log2(max(2, *equal)))

    rules = np.zeros(len(rights), _RULE)
    rules["length"], rules["choices"] = compiled.right_length, NO_OUTCOMES
    outcomes: list[list[int]] = []
    for r, right in enumerate(rights):
        below = [symbol for symbol in right if symbol < terminal]
        length = len(right) - len(below) + sum(longest[symbol] for symbol in below)
        if length <= MAX_OUTCOME and all(simple[symbol] for symbol in below):
            number = math.prod(len(rules_of[symbol]) for symbol in below)
            if len(outcomes) + number <= MAX_OUTCOMES:
                parts = [[[s]] if s >= terminal else [rights[r] for r in rules_of[s]] for s in right]
                rules[r] = len(right), len(below), len(outcomes), number
                outcomes += [[symbol - terminal for symbol in chain(*strings)] for strings in product(*parts)]

    sides = np.zeros(terminal + 1, _SIDE)
    sides["first_rule"] = compiled.first_rule
    sides["equal"][:-1] = equal
    return _Tables(
        nonterminals=terminal,
        choices_per_word=choices_per_word,
        sides=sides,
        rules=rules,
        threshold=np.array([min(int(c * 2**64), 2**64 - 1) for c in compiled.cumulative.tolist()], np.uint64),
        right=_padded([right[::-1] for right in rights], np.int32),
        outcome=_padded(outcomes, np.uint8),
        outcome_length=np.array([len(outcome) for outcome in outcomes], np.int64),
    )


def _padded(rows: list[list[int]], dtype: type[np.generic]) -> NDArray:
    """The rows as an array, padded with zeros to a multiple of 16 bytes."""
    step = 16 // np.dtype(dtype).itemsize
    array = np.zeros((len(rows), -(-max(map(len, rows), default=1) // step) * step), dtype)
    for padded, row in zip(array, rows, strict=True):
        padded[: len(row)] = row
    return array


@njit(cache=True, nogil=True)
def _expand(tables, key, first, done, tokens, offsets, ancestors, span_ends):  # type: ignore[no-untyped-def]
    """Write sentences first + done, ... until all are written or one does not fit; returns the number written."""
    stack = np.empty(64 + tables.right.shape[1], np.int32)
    stack_levels = np.empty(len(stack), np.int64)
    while done < len(offsets) - 1:
        sentence = np.uint64(first + done)
        end = _derive(tables, key, sentence, tokens, offsets[done], stack, stack_levels, ancestors, span_ends)
        if end == NO_ROOM:
            break
        if end == STACK_FULL:
            stack = np.empty(2 * len(stack), np.int32)
            stack_levels = np.empty(len(stack), np.int64)
        else:
            done += 1
            offsets[done] = end
    return done


@njit(cache=True, nogil=True)
def _derive(tables, key, sentence, tokens, at, stack, stack_levels, ancestors, span_ends):  # type: ignore[no-untyped-def]
    """Write a sentence, and its tree unless `ancestors` is None, from position `at`; returns the position after it.

    The stack holds the symbols still to be replaced or written, the next one on top. As each yields at least
    one token, a sentence has at least as many tokens as are written and on the stack: `NO_ROOM` if they exceed
    `MAX_TOKENS` or the array. Rows are copied at their full width, of which only their length then counts.

    Without trees, all choices below a rule with outcomes are made at once if the word still provides as many: they come
    next, and together they are one choice among the outcomes.

    Each symbol on the stack is at some level of the tree, the root at 0; its ancestors are at the levels above. When
    a token has been written, those above the next symbol's level are also that symbol's ancestors, the others end.
    """
    nonterminals, choices_per_word, sides, rules, threshold, rights, outcome_tokens, outcome_lengths = tables
    limit = min(len(tokens) - outcome_tokens.shape[1], at + MAX_TOKENS)
    words = (np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0))
    block, used, choices, u = np.uint64(0), 4, 0, np.uint64(0)
    if ancestors is not None:
        path = np.empty(ancestors.shape[1], np.int16)
    stack[0], stack_levels[0], top = 0, 0, 1
    while top > 0:
        if at + top > limit:
            return NO_ROOM
        if top + rights.shape[1] > len(stack):
            return STACK_FULL
        top -= 1
        symbol, level = stack[top], stack_levels[top]
        if symbol >= nonterminals:
            tokens[at] = symbol - nonterminals
            if ancestors is not None:
                _record(path, level, stack_levels[top - 1] if top > 0 else 0, at, ancestors, span_ends)
            at += 1
            continue

        side = sides[symbol]
        chosen, equal = side.first_rule, side.equal
        if equal == 0 or choices == 0:
            if used == 4:
                block += np.uint64(1)
                words = philox4x64(block, sentence, np.uint64(0), np.uint64(0), key[0], key[1])
                used = 0
            word = words[used]
            used += 1
            if equal > 0:
                u, choices = word, choices_per_word
            else:
                while chosen < sides[symbol + 1].first_rule - 1 and word >= threshold[chosen]:
                    chosen += 1
        if equal > 0:
            chosen += np.int64(multiply_high(u, equal))
            u *= equal
            choices -= 1

        rule = rules[chosen]
        if ancestors is None and choices >= rule.choices:
            outcome = rule.first_outcome + np.int64(multiply_high(u, rule.outcomes))
            u *= rule.outcomes
            choices -= rule.choices
            _copy_row(tokens, at, outcome_tokens, outcome)
            at += outcome_lengths[outcome]
            continue
        if ancestors is not None:
            if level < len(path):
                path[level] = symbol
            stack_levels[top : top + rule.length] = level + 1
        _copy_row(stack, top, rights, chosen)
        top += rule.length
    return at


@njit(cache=True, nogil=True)
def _record(path, level, next_level, at, ancestors, span_ends):  # type: ignore[no-untyped-def]
    """The ancestors of the token at `at`, itself at `level` of the tree, the next symbol at `next_level`."""
    for i in range(len(path)):
        ancestors[at, i] = path[i] if i < level else -1
        span_ends[at, i] = next_level <= i < level


@njit(cache=True, nogil=True)
def _copy_row(target, start, rows, row):  # type: ignore[no-untyped-def]
    """target[start : start + width] = rows[row], where rows take a multiple of 16 bytes."""
    for i in range(0, rows.shape[1], 16 // rows.itemsize):
        _copy_16_bytes(target, start + i, rows, row * rows.shape[1] + i)


@intrinsic
def _copy_16_bytes(typing_context, target, start, source, source_start):  # type: ignore[no-untyped-def]
    """Copy 16 bytes between C-contiguous arrays, from and to any flat index."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        row = ir.VectorType(ir.IntType(8), 16).as_pointer()
        to, start, from_, source_start = arguments
        to_data = context.make_array(signature.args[0])(context, builder, to).data
        from_data = context.make_array(signature.args[2])(context, builder, from_).data
        value = builder.load(builder.bitcast(builder.gep(from_data, [source_start]), row), align=1)
        builder.store(value, builder.bitcast(builder.gep(to_data, [start]), row), align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), generate
