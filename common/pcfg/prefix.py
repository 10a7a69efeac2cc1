"""The exact distribution of the next token of a sentence, given those before it, by prefix probabilities of a grammar.

The probability that a sentence begins with some tokens is the sum over all derivations that make these tokens, whatever
follows them (Jelinek and Lafferty 1991, Computational Linguistics 17(3)). The tokens are read from left to right, with
the forward and inner probabilities of Stolcke (1995), Computational Linguistics 21(2), an Earley parser. A forward
probability is here the product of two numbers, of which only one belongs to a span. With the nodes of chart.py,

    inside(N, i, j)   probability that node N derives exactly the tokens x_i .. x_{j-1}; Stolcke's inner probability
    begun(N, i)       expected number of nodes N that begin at position i, in derivations that make x_0 .. x_{i-1}

A symbol C begins at j after an X that began together with a product X C, and what begins, begins with its first parts:

    begun(C, j) = sum_B after(B, j) corner(B, C),     after(C, j) = sum_i sum_X begun(X C, i) inside(X, i, j),

where after(start, 0) = 1, and corner(B, N) is the expected number of nodes N at the beginning of a B, which counts
itself: the sum of all powers of the matrix that leads from a sum to its weighted terms and from a product X C to X. For
terminals a, begun(a, t) is the probability of a sentence that begins with x_0 .. x_{t-1} a, and inside(start, 0, t) of
one that ends here; their sum is the prefix probability. No token that follows needs to be summed over, as derivations
end with probability one.

Cost. inside is computed column by column, j = 1, 2, ..., and only where N has begun. A symbol C at x_k .. x_{j-1} costs
one multiplication for each beginning i of each X before k that is followed by C. So a sentence of n tokens takes
O(n^3 products) at most; in a grammar with levels a symbol's spans have bounded lengths and few beginnings, and a
sentence of cfg3f, of 245 tokens on average, takes 4 milliseconds.

Range of numbers. The numbers are divided by the prefix probability: token x_t is read with the likelihood
1 / p(x_t | x_0 .. x_{t-1}). What a prefix makes improbable has small numbers nevertheless. As in inside_outside.py, a
sentence that has numbers other than zero outside of 2^-500 to 2^500 is computed with logarithms instead.

A token that is not known is read with the same likelihood for all terminals, and the sums then are over whatever it may
be.

Which tokens end a span of a nonterminal at some depth of the tree is part of a derivation, and not of the sentence. A
grammar whose terminals say so has two of each, of which either is read where the sentence has that token.
"""

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from common.errors import UserError
from common.pcfg.chart import LARGEST, Chart, add, all_in_range, chart_of, dot, log_sum, token_ids
from common.pcfg.grammar import Grammar, Rule

FIRST, STOP, BASE = range(3)
"""Of a column: its numbers have the beginnings FIRST .. STOP - 1, and that of beginning i is at BASE + i of all inside
numbers. Without any numbers, FIRST and STOP are 0."""

END, OTHER = "end", "other"
"""Places in a tree, see `_with_ends`."""


def next_token_posteriors(grammar: Grammar, tokens: ArrayLike, unseen: int = 0) -> NDArray[np.float64]:
    """p(x_t | x_0 .. x_{t-1}) at every position, and after the last token.

    Args:
        grammar: its start derives sentences that begin with the tokens.
        tokens: (length,) token ids, of a whole sentence or of its beginning.
        unseen: number of tokens at the beginning that are not known, only that the sentence has so many; then row t is
            p(x_t | x_unseen .. x_{t-1}, at least t tokens).

    Returns:
        (length + 1, terminals + 1): in row t the probabilities of the terminals and, last, of the end of the sentence.

    Raises:
        UserError: a token id that the grammar does not have, or no sentence begins with the tokens.
    """
    ids = token_ids(grammar, tokens)
    return _all_rows(grammar, ids, _posteriors(grammar, _seen(grammar, ids, unseen)), unseen)


def span_end_posteriors(grammar: Grammar, tokens: ArrayLike, level: int, unseen: int = 0) -> NDArray[np.float64]:
    """p(x_t, x_t ends a span at this depth | x_0 .. x_{t-1}) at every position, and after the last token.

    Args:
        grammar: its start derives the sentence.
        tokens: (length,) token ids.
        level: depth in the tree of the nonterminals whose spans these are; the root is at depth 0.
        unseen: as for `next_token_posteriors`.

    Returns:
        (length + 1, terminals), whose rows add up to the probability that a token follows that ends such a span.

    Raises:
        UserError: as `next_token_posteriors`.
    """
    ids = token_ids(grammar, tokens)
    likelihood = np.tile(_seen(grammar, ids, unseen), 2)
    rows = _all_rows(grammar, ids, _posteriors(_with_ends(grammar, level), likelihood), unseen)
    return rows[:, len(grammar.terminals) : -1]


def _all_rows(grammar: Grammar, ids: NDArray[np.int64], rows: NDArray[np.float64], unseen: int) -> NDArray[np.float64]:
    """The same, if no token was impossible."""
    read = len(rows) - 1
    if read < len(ids):
        raise UserError(
            f"{grammar.name} makes no sentence that begins with these {len(ids)} tokens: "
            f"after {read} of them there is no {'further token' if read < unseen else grammar.terminals[ids[read]]}"
        )
    return rows


def _seen(grammar: Grammar, ids: NDArray[np.int64], unseen: int = 0) -> NDArray[np.float64]:
    """The likelihood of tokens of which the first are not seen."""
    likelihood = np.eye(len(grammar.terminals))[ids]
    likelihood[:unseen] = 1
    return likelihood


@lru_cache(maxsize=64)
def _with_ends(grammar: Grammar, level: int) -> Grammar:
    """A grammar of the same derivations whose terminals say whether they end a span at a depth of the tree.

    Terminal t becomes t, which ends none, and t + terminals, which does. A nonterminal becomes several, each with its
    place in the tree: its depth, above `level`; END, at `level` and below it, if its last token ends a span; or OTHER.
    """
    rules_of: dict[str, list[Rule]] = {symbol: [] for symbol in grammar.nonterminals}
    for rule in grammar.rules:
        rules_of[rule.left].append(rule)

    def children(rule: Rule, place: str) -> list[tuple[str, str]]:
        *others, last = rule.right
        if place in (END, OTHER):
            return [*((symbol, OTHER) for symbol in others), (last, place)]
        below = END if int(place) + 1 == level else str(int(place) + 1)
        return [(symbol, below if symbol in rules_of else OTHER) for symbol in rule.right]

    rules: list[Rule] = []
    found = [(grammar.start, END if level == 0 else "0")]
    for symbol, place in found:  # it grows meanwhile
        for rule in rules_of[symbol]:
            below = children(rule, place)
            rules.append(Rule(f"{symbol} {place}", tuple(map(" ".join, below)), rule.probability))
            found += [pair for pair in dict.fromkeys(below) if pair[0] in rules_of and pair not in found]
    terminals = tuple(f"{symbol} {place}" for place in (OTHER, END) for symbol in grammar.terminals)
    return Grammar(f"{grammar.name} with ends at depth {level}", rules[0].left, tuple(rules), terminals)


def possible_beginning(grammar: Grammar, tokens: ArrayLike) -> tuple[int, bool]:
    """How much of a sequence some sentence begins with.

    Args:
        grammar: its start derives the sentences.
        tokens: (length,) token ids.

    Returns:
        The largest number of first tokens that a sentence can begin with, and whether these are a whole sentence.

    Raises:
        UserError: a token id that the grammar does not have.
    """
    rows = _posteriors(grammar, _seen(grammar, token_ids(grammar, tokens)))
    return len(rows) - 1, bool(rows[-1, -1] > 0)


def _posteriors(grammar: Grammar, likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of the terminals and of the end, given what was read before, up to the first that is impossible.

    Args:
        grammar: makes the sentence.
        likelihood: (length, terminals) of what was read at a position, given the terminal there.
    """
    chart = chart_of(grammar, "columns")
    corner, terminals = _corner(grammar), _terminal_nodes(grammar)
    result = np.zeros((len(likelihood) + 1, len(terminals) + 1))
    in_range = bool(min(chart.weight.min(), corner.min(initial=LARGEST, where=corner > 0)) >= 1 / LARGEST)
    rows = 0
    if in_range:
        rows, in_range = _parse(chart, corner, terminals, likelihood, False, result)
    if not in_range:
        with np.errstate(divide="ignore"):
            logarithmic = chart._replace(weight=np.log(chart.weight))
            rows, _ = _parse(logarithmic, np.log(corner), terminals, np.log(likelihood), True, result)
        result[:rows] = np.exp(result[:rows] - result[:rows].max(axis=1, keepdims=True))
    return result[:rows] / result[:rows].sum(axis=1, keepdims=True)


@lru_cache(maxsize=64)
def _terminal_nodes(grammar: Grammar) -> NDArray[np.int64]:
    """The node of each terminal, by token id."""
    token = chart_of(grammar, "columns").terminal
    return np.argsort(np.where(token < 0, len(token), token), kind="stable")[: len(grammar.terminals)]


@lru_cache(maxsize=64)
def _corner(grammar: Grammar) -> NDArray[np.float64]:
    """corner(B, N) of all nodes; the powers of the matrix tend to zero, as no symbol can begin with itself for ever."""
    chart = chart_of(grammar, "columns")
    power = np.zeros((len(chart.left), len(chart.left)))
    for node, left in enumerate(chart.left):
        terms = slice(chart.first_term[node], chart.first_term[node + 1])
        power[node, chart.term[terms]] = chart.weight[terms]
        if left >= 0:
            power[node, left] = 1
    corner = np.eye(len(power))
    while power.any():
        corner, power = corner + corner @ power, power @ power
    return corner


@njit(cache=True, nogil=True)
def _parse(chart: Chart, corner, terminals, likelihood, logarithmic, result):  # type: ignore[no-untyped-def]
    """Read a sentence until that is impossible.

    Args:
        chart: of the grammar, by columns.
        corner: (nodes, nodes), see the top of this file, or the logarithms.
        terminals: the node of each token id.
        likelihood: (length, terminals), see `_posteriors`, or the logarithms.
        logarithmic: whether all numbers are logarithms.
        result: (length + 1, terminals + 1), zeros; filled with prefix probabilities that are right up to a factor of
            the row: those with one more token, and last that of the tokens being a sentence; or their logarithms.

    Returns:
        Number of rows that are filled, and whether all numbers are in range; always so for logarithms.
    """
    nodes, length = len(chart.left), len(likelihood)
    zero, one = (-np.inf, 0.0) if logarithmic else (0.0, 1.0)
    columns = np.zeros((nodes, length + 1, 3), np.int64)
    numbers, used = np.empty(1024), 0
    begun = np.full(nodes * (length + 1), zero)
    bounds = np.empty((nodes, 2), np.int64)
    bounds[:, 0], bounds[:, 1] = length + 1, 0
    after = np.empty(nodes)
    rows, scale = 0, one
    for j in range(length + 1):
        after[:] = zero
        if j == 0:
            after[chart.start] = one
        else:
            numbers = _with_room(chart, j, numbers, used)
            for group in range(len(chart.recursive)):
                node = chart.group[group]
                if chart.recursive[group]:
                    end = chart.group[group + 1]
                    used = _recursive_column(chart, node, end, j, logarithmic, columns, numbers, used, begun, bounds)
                elif chart.terminal[node] >= 0:
                    seen = likelihood[j - 1, chart.terminal[node]]
                    if seen != zero and begun[node * (length + 1) + j - 1] != zero:
                        seen = seen if logarithmic else seen / scale
                        used = _place(columns, numbers, node, j, j - 1, j, used, seen)
                elif chart.left[node] >= 0:
                    used = _product_column(chart, node, j, logarithmic, columns, numbers, used, begun, bounds)
                else:
                    used = _sum_column(chart, node, j, logarithmic, columns, numbers, used, begun, bounds)
            for node in range(nodes):
                if chart.left[node] >= 0:
                    first, stop, base = columns[chart.left[node], j]
                    if first < stop:
                        start = node * (length + 1) + first
                        total = dot(begun, start, numbers, base + first, stop - first, logarithmic)
                        child = chart.right[node]
                        after[child] = log_sum(after[child], total) if logarithmic else after[child] + total
        for node in range(nodes):
            if after[node] != zero:
                for child in range(nodes):
                    if corner[node, child] != zero:
                        place = child * (length + 1) + j
                        if logarithmic:
                            begun[place] = log_sum(begun[place], after[node] + corner[node, child])
                        else:
                            begun[place] += after[node] * corner[node, child]
                        bounds[child, 0], bounds[child, 1] = min(bounds[child, 0], j), j + 1
        for token in range(len(terminals)):
            result[j, token] = begun[terminals[token] * (length + 1) + j]
        first, stop, base = columns[chart.start, j]
        result[j, len(terminals)] = numbers[base] if first == 0 and first < stop else zero
        rows = j + 1
        if j < length:
            scale = dot(result[j], 0, likelihood[j], 0, len(terminals), logarithmic)
            if scale == zero:
                break
    return rows, logarithmic or (all_in_range(numbers, used) and all_in_range(begun, len(begun)))


@njit(cache=True, nogil=True)
def _with_room(chart, j, numbers, used):  # type: ignore[no-untyped-def]
    """The numbers in an array that has room for column j of every node."""
    needed = used
    for node in range(len(chart.left)):
        needed += max(min(j, chart.longest[node]) - chart.shortest[node] + 1, 0)
    if needed <= len(numbers):
        return numbers
    larger = np.empty(max(2 * len(numbers), needed))
    larger[:used] = numbers[:used]
    return larger


@njit(cache=True, nogil=True)
def _place(columns, numbers, node, j, first, stop, used, value):  # type: ignore[no-untyped-def]
    """Give column j of a node these beginnings, and all its numbers one value; how many numbers are then in use."""
    if first >= stop:
        return used
    columns[node, j, FIRST], columns[node, j, STOP], columns[node, j, BASE] = first, stop, used - first
    numbers[used : used + stop - first] = value
    return used + stop - first


@njit(cache=True, nogil=True)
def _product_column(chart, node, j, logarithmic, columns, numbers, used, begun, bounds):  # type: ignore[no-untyped-def]
    """Column j of a product X C, where X and C are not in its group; how many numbers are then in use."""
    zero = -np.inf if logarithmic else 0.0
    left, right = chart.left[node], chart.right[node]
    first, stop = j, 0
    middle, middle_stop, base = columns[right, j]
    for k in range(middle, middle_stop):
        if numbers[base + k] != zero and columns[left, k, FIRST] < columns[left, k, STOP]:
            first, stop = min(first, columns[left, k, FIRST]), max(stop, columns[left, k, STOP])
    first, stop = max(first, bounds[node, 0]), min(stop, bounds[node, 1])
    end = _place(columns, numbers, node, j, first, stop, used, zero)
    if end == used:
        return used
    for k in range(middle, middle_stop):
        if numbers[base + k] != zero:
            _add_product(node, left, j, k, numbers[base + k], logarithmic, columns, numbers)
    return _trim(node, j, zero, columns, numbers, used, begun)


@njit(cache=True, nogil=True)
def _add_product(node, left, j, k, factor, logarithmic, columns, numbers):  # type: ignore[no-untyped-def]
    """Add to column j of a product X C what it has from C, whose number is `factor`, beginning at k."""
    first = max(columns[node, j, FIRST], columns[left, k, FIRST])
    count = min(columns[node, j, STOP], columns[left, k, STOP]) - first
    add(numbers, columns[node, j, BASE] + first, factor, numbers, columns[left, k, BASE] + first, count, logarithmic)


@njit(cache=True, nogil=True)
def _sum_column(chart, node, j, logarithmic, columns, numbers, used, begun, bounds):  # type: ignore[no-untyped-def]
    """Column j of a sum whose terms are not in its group; how many numbers are then in use."""
    zero = -np.inf if logarithmic else 0.0
    first, stop = j, 0
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        if columns[child, j, FIRST] < columns[child, j, STOP]:
            first, stop = min(first, columns[child, j, FIRST]), max(stop, columns[child, j, STOP])
    first, stop = max(first, bounds[node, 0]), min(stop, bounds[node, 1])
    end = _place(columns, numbers, node, j, first, stop, used, zero)
    if end == used:
        return used
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        begin = max(first, columns[child, j, FIRST])
        count = min(stop, columns[child, j, STOP]) - begin
        source = columns[child, j, BASE] + begin
        add(numbers, columns[node, j, BASE] + begin, chart.weight[term], numbers, source, count, logarithmic)
    return _trim(node, j, zero, columns, numbers, used, begun)


@njit(cache=True, nogil=True)
def _recursive_column(  # type: ignore[no-untyped-def]
    chart, begin, end, j, logarithmic, columns, numbers, used, begun, bounds
):
    """Column j of nodes begin .. end - 1, from the last beginning to the first; how many numbers are then in use."""
    zero = -np.inf if logarithmic else 0.0
    for node in range(begin, end):
        first, stop = max(bounds[node, 0], j - chart.longest[node]), min(bounds[node, 1], j - chart.shortest[node] + 1)
        used = _place(columns, numbers, node, j, first, stop, used, zero)
    for i in range(j - 1, -1, -1):
        for node in range(begin, end):
            if chart.left[node] < 0 and columns[node, j, FIRST] <= i < columns[node, j, STOP]:
                place = columns[node, j, BASE] + i
                if begun[node * columns.shape[1] + i] != zero:
                    for term in range(chart.first_term[node], chart.first_term[node + 1]):
                        child = chart.term[term]
                        if columns[child, j, FIRST] <= i < columns[child, j, STOP]:
                            source = columns[child, j, BASE] + i
                            add(numbers, place, chart.weight[term], numbers, source, 1, logarithmic)
        for node in range(begin, end):
            right = chart.right[node]
            if right >= 0 and columns[right, j, FIRST] <= i < columns[right, j, STOP]:
                factor = numbers[columns[right, j, BASE] + i]
                if factor != zero:
                    _add_product(node, chart.left[node], j, i, factor, logarithmic, columns, numbers)
    return used


@njit(cache=True, nogil=True)
def _trim(node, j, zero, columns, numbers, used, begun):  # type: ignore[no-untyped-def]
    """Set numbers to zero where a node has not begun, and leave out zeros at both ends of its column j.

    The column was placed last. Returns how many numbers are then in use.
    """
    first, stop, base = columns[node, j]
    for i in range(first, stop):
        if begun[node * columns.shape[1] + i] == zero:
            numbers[base + i] = zero
    while first < stop and numbers[base + stop - 1] == zero:
        stop -= 1
    while first < stop and numbers[base + first] == zero:
        first += 1
    if first >= stop:
        columns[node, j, FIRST] = columns[node, j, STOP] = 0
        return used
    columns[node, j, FIRST], columns[node, j, STOP] = first, stop
    return base + stop
