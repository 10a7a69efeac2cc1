"""The two passes of inside-outside over a chart, compiled by numba; `inside_outside.py` has the formulas.

Nodes are those of `chart.Chart`. Row i of a node is its numbers for the spans that begin at position i, by their ends;
the numbers of all rows are in one array, and a table tells where each row begins.
"""

import numpy as np
from numba import njit

from common.pcfg.chart import add, all_in_range, dot, log_sum

FIRST, STOP, BASE, OUTER_FIRST, OUTER_STOP, OUTER_BASE = range(6)
"""Of a row: the inside numbers have the ends FIRST .. STOP - 1, and that of end j is at BASE + j of the array of all
inside numbers; likewise outside. Without any numbers, the first end is after all ends and the stop is 0."""


@njit(cache=True, nogil=True)
def passes(  # type: ignore[no-untyped-def]
    chart, contexts, likelihood, logarithmic, outside, result, ancestors, position
):
    """Both passes over a chart.

    Args:
        likelihood: (length, terminals).
        logarithmic: whether `likelihood`, `chart.weight` and all results are logarithms.
        outside: whether to make the second pass as well.
        result: (length, terminals), filled with zeros or their logarithms, for the outside numbers of the terminals.
        ancestors: (length, nonterminals), filled likewise, for the probability that a nonterminal is above a token, and
            of the evidence; (0, nonterminals) if that is not wanted, as with recursion.
        position: the only one whose row of `result` is wanted; -1 for all.

    Returns:
        inside(start, 0, length), and whether all numbers of the chart are in range; always so for logarithms.
    """
    length = len(likelihood)
    zero, one = (-np.inf, 0.0) if logarithmic else (0.0, 1.0)
    rows = np.empty((len(chart.left), length + 1, 6), np.int64)
    numbers = np.empty(_prepare(chart, contexts, rows))
    used = 0
    for i in range(length - 1, -1, -1):
        for group in range(len(chart.recursive)):
            node = chart.group[group]
            if chart.recursive[group]:
                used = _inside_recursive(chart, node, chart.group[group + 1], i, logarithmic, rows, numbers, used)
            elif chart.terminal[node] >= 0:
                used = _inside_terminal(node, i, likelihood[i, chart.terminal[node]], zero, rows, numbers, used)
            elif chart.left[node] >= 0:
                used = _inside_product(chart, node, i, logarithmic, rows, numbers, used)
            else:
                used = _inside_sum(chart, node, i, logarithmic, rows, numbers, used)
    value = _number(rows, numbers, chart.start, 0, length, zero)
    in_range = logarithmic or all_in_range(numbers, used)
    if not (outside and in_range):
        return value, in_range
    if position >= 0:
        _keep_spans_of(rows, position)
    outer = np.full(_place_outer_rows(rows), zero)
    if rows[chart.start, 0, OUTER_FIRST] <= length < rows[chart.start, 0, OUTER_STOP]:
        outer[rows[chart.start, 0, OUTER_BASE] + length] = one
    for i in range(length):
        for group in range(len(chart.recursive) - 1, -1, -1):
            node = chart.group[group]
            if chart.recursive[group]:
                _outside_recursive(chart, node, chart.group[group + 1], i, logarithmic, rows, numbers, outer)
                continue
            _trim(rows, outer, node, i, OUTER_FIRST, zero)
            if rows[node, i, OUTER_FIRST] >= rows[node, i, OUTER_STOP]:
                continue
            if chart.terminal[node] >= 0:
                result[i, chart.terminal[node]] = outer[rows[node, i, OUTER_BASE] + i + 1]
            elif chart.left[node] >= 0:
                left = rows[chart.left[node], i]
                for k in range(min(left[FIRST], left[OUTER_FIRST]), max(left[STOP], left[OUTER_STOP])):
                    _outside_product(chart, node, i, k, logarithmic, rows, numbers, outer)
            else:
                _outside_sum(chart, node, i, logarithmic, rows, outer)
                if len(ancestors) > 0:
                    above = ancestors[:, chart.nonterminal[node]]
                    _add_spans(node, i, logarithmic, rows, numbers, outer, above)
    return value, logarithmic or all_in_range(outer, len(outer))


@njit(cache=True, nogil=True)
def _prepare(chart, contexts, rows):  # type: ignore[no-untyped-def]
    """Set every row to nothing inside and to all ends that its contexts allow outside; returns their number."""
    length = rows.shape[1] - 1
    ends = 0
    for node in range(len(rows)):
        for i in range(length + 1):
            rows[node, i, FIRST], rows[node, i, STOP] = length + 1, 0
            first = max(i + chart.shortest[node], length - contexts.most[node, i])
            stop = min(i + chart.longest[node], length - contexts.fewest[node, i]) + 1
            if first < stop:
                rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP] = first, stop
                ends += stop - first
            else:
                rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP] = length + 1, 0
    return ends


@njit(cache=True, nogil=True)
def _inside_terminal(node, i, likelihood, zero, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of a terminal; returns how many of the numbers are in use afterwards."""
    if likelihood == zero or rows[node, i, OUTER_FIRST] >= rows[node, i, OUTER_STOP]:
        return used
    numbers[used] = likelihood
    rows[node, i, FIRST], rows[node, i, STOP], rows[node, i, BASE] = i + 1, i + 2, used - (i + 1)
    return used + 1


@njit(cache=True, nogil=True)
def _inside_product(chart, node, i, logarithmic, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of a product; returns how many of the numbers are in use afterwards."""
    zero = -np.inf if logarithmic else 0.0
    left, right = chart.left[node], chart.right[node]
    first = outer_first = rows.shape[1]
    stop = outer_stop = 0
    for k in range(rows[left, i, OUTER_FIRST], rows[left, i, OUTER_STOP]):
        if _number(rows, numbers, left, i, k, zero) == zero:
            outer_first = min(outer_first, rows[right, k, FIRST])
            outer_stop = max(outer_stop, rows[right, k, STOP])
        else:
            first = min(first, rows[right, k, FIRST])
            stop = max(stop, rows[right, k, STOP])
            outer_first = min(outer_first, rows[right, k, OUTER_FIRST])
            outer_stop = max(outer_stop, rows[right, k, OUTER_STOP])
    if not _place_row(rows, numbers, node, i, first, stop, outer_first, outer_stop, used, zero):
        return used
    for k in range(rows[left, i, FIRST], rows[left, i, STOP]):
        _inside_product_at(chart, node, i, k, logarithmic, rows, numbers)
    used += rows[node, i, STOP] - rows[node, i, FIRST]
    _trim(rows, numbers, node, i, FIRST, zero)
    return used


@njit(cache=True, nogil=True)
def _inside_product_at(chart, node, i, k, logarithmic, rows, numbers):  # type: ignore[no-untyped-def]
    """Add to row i of a product X C what it has from X ending at k."""
    zero = -np.inf if logarithmic else 0.0
    right = chart.right[node]
    factor = _number(rows, numbers, chart.left[node], i, k, zero)
    if factor != zero:
        first = max(rows[node, i, FIRST], rows[right, k, FIRST])
        count = min(rows[node, i, STOP], rows[right, k, STOP]) - first
        add(numbers, rows[node, i, BASE] + first, factor, numbers, rows[right, k, BASE] + first, count, logarithmic)


@njit(cache=True, nogil=True)
def _inside_sum(chart, node, i, logarithmic, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of a sum; returns how many of the numbers are in use afterwards."""
    zero = -np.inf if logarithmic else 0.0
    first = outer_first = rows.shape[1]
    stop = outer_stop = 0
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        first, stop = min(first, rows[child, i, FIRST]), max(stop, rows[child, i, STOP])
        outer_first = min(outer_first, rows[child, i, OUTER_FIRST])
        outer_stop = max(outer_stop, rows[child, i, OUTER_STOP])
    if not _place_row(rows, numbers, node, i, first, stop, outer_first, outer_stop, used, zero):
        return used
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        first = max(rows[node, i, FIRST], rows[child, i, FIRST])
        count = min(rows[node, i, STOP], rows[child, i, STOP]) - first
        source = rows[child, i, BASE] + first
        add(numbers, rows[node, i, BASE] + first, chart.weight[term], numbers, source, count, logarithmic)
    used += rows[node, i, STOP] - rows[node, i, FIRST]
    _trim(rows, numbers, node, i, FIRST, zero)
    return used


@njit(cache=True, nogil=True)
def _inside_recursive(chart, begin, end, i, logarithmic, rows, numbers, used):  # type: ignore[no-untyped-def]
    """Row i of nodes begin .. end - 1, end by end; returns how many of the numbers are in use afterwards.

    Outside numbers are computed at all ends that the contexts allow.
    """
    zero = -np.inf if logarithmic else 0.0
    for node in range(begin, end):
        first, stop = rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP]
        if _place_row(rows, numbers, node, i, first, stop, first, stop, used, zero):
            used += stop - first
    for k in range(i + 1, rows.shape[1]):
        for node in range(begin, end):
            if chart.left[node] < 0 and rows[node, i, FIRST] <= k < rows[node, i, STOP]:
                total = rows[node, i, BASE] + k
                for term in range(chart.first_term[node], chart.first_term[node + 1]):
                    child = chart.term[term]
                    if rows[child, i, FIRST] <= k < rows[child, i, STOP]:
                        source = rows[child, i, BASE] + k
                        add(numbers, total, chart.weight[term], numbers, source, 1, logarithmic)
        for node in range(begin, end):
            if chart.left[node] >= 0:
                _inside_product_at(chart, node, i, k, logarithmic, rows, numbers)
    for node in range(begin, end):
        _trim(rows, numbers, node, i, FIRST, zero)
    return used


@njit(cache=True, nogil=True)
def _outside_product(chart, node, i, k, logarithmic, rows, numbers, outer):  # type: ignore[no-untyped-def]
    """What row i of a product X C outside says about X ending at k, and about C that begins there."""
    zero = -np.inf if logarithmic else 0.0
    left, right = chart.left[node], chart.right[node]
    base = rows[node, i, OUTER_BASE]
    first = max(rows[node, i, OUTER_FIRST], rows[right, k, FIRST])
    count = min(rows[node, i, OUTER_STOP], rows[right, k, STOP]) - first
    if count > 0 and rows[left, i, OUTER_FIRST] <= k < rows[left, i, OUTER_STOP]:
        total = dot(outer, base + first, numbers, rows[right, k, BASE] + first, count, logarithmic)
        target = rows[left, i, OUTER_BASE] + k
        outer[target] = log_sum(outer[target], total) if logarithmic else outer[target] + total
    factor = _number(rows, numbers, left, i, k, zero)
    if factor != zero:
        first = max(rows[node, i, OUTER_FIRST], rows[right, k, OUTER_FIRST])
        count = min(rows[node, i, OUTER_STOP], rows[right, k, OUTER_STOP]) - first
        add(outer, rows[right, k, OUTER_BASE] + first, factor, outer, base + first, count, logarithmic)


@njit(cache=True, nogil=True)
def _outside_sum(chart, node, i, logarithmic, rows, outer):  # type: ignore[no-untyped-def]
    """What row i of a sum outside says about its terms."""
    for term in range(chart.first_term[node], chart.first_term[node + 1]):
        child = chart.term[term]
        first = max(rows[node, i, OUTER_FIRST], rows[child, i, OUTER_FIRST])
        count = min(rows[node, i, OUTER_STOP], rows[child, i, OUTER_STOP]) - first
        source = rows[node, i, OUTER_BASE] + first
        add(outer, rows[child, i, OUTER_BASE] + first, chart.weight[term], outer, source, count, logarithmic)


@njit(cache=True, nogil=True)
def _outside_recursive(chart, begin, end, i, logarithmic, rows, numbers, outer):  # type: ignore[no-untyped-def]
    """What row i of nodes begin .. end - 1 outside says about what they consist of, from the last end to the first."""
    for k in range(rows.shape[1] - 1, i, -1):
        for node in range(begin, end):
            left = chart.left[node]
            if left >= 0:
                _outside_product(chart, node, i, k, logarithmic, rows, numbers, outer)
        for node in range(end - 1, begin - 1, -1):
            if chart.left[node] < 0 and rows[node, i, OUTER_FIRST] <= k < rows[node, i, OUTER_STOP]:
                source = rows[node, i, OUTER_BASE] + k
                for term in range(chart.first_term[node], chart.first_term[node + 1]):
                    child = chart.term[term]
                    if rows[child, i, OUTER_FIRST] <= k < rows[child, i, OUTER_STOP]:
                        target = rows[child, i, OUTER_BASE] + k
                        add(outer, target, chart.weight[term], outer, source, 1, logarithmic)


@njit(cache=True, nogil=True)
def _add_spans(node, i, logarithmic, rows, numbers, outer, above):  # type: ignore[no-untyped-def]
    """Add inside times outside of each number in row i of a node to `above`, (length,), at each position it spans."""
    first = max(rows[node, i, FIRST], rows[node, i, OUTER_FIRST])
    stop = min(rows[node, i, STOP], rows[node, i, OUTER_STOP])
    total = -np.inf if logarithmic else 0.0
    for j in range(stop - 1, i, -1):  # position j - 1 is spanned by the numbers with end j or a later one
        if j >= first:
            inside, outside = numbers[rows[node, i, BASE] + j], outer[rows[node, i, OUTER_BASE] + j]
            total = log_sum(total, inside + outside) if logarithmic else total + inside * outside
        above[j - 1] = log_sum(above[j - 1], total) if logarithmic else above[j - 1] + total


@njit(cache=True, nogil=True)
def _number(rows, numbers, node, i, j, zero):  # type: ignore[no-untyped-def]
    """inside(node, i, j)."""
    if rows[node, i, FIRST] <= j < rows[node, i, STOP]:
        return numbers[rows[node, i, BASE] + j]
    return zero


@njit(cache=True, nogil=True)
def _place_row(rows, numbers, node, i, first, stop, outer_first, outer_stop, used, zero):  # type: ignore[no-untyped-def]
    """Set the ends of row i to those given, as far as contexts allow, and its numbers to zero; False without any."""
    low, high = rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP]
    outer_first, outer_stop = max(outer_first, low), min(outer_stop, high)
    if outer_first >= outer_stop:
        outer_first, outer_stop = rows.shape[1], 0
    rows[node, i, OUTER_FIRST], rows[node, i, OUTER_STOP] = outer_first, outer_stop
    first, stop = max(first, low), min(stop, high)
    if first >= stop:
        return False
    rows[node, i, FIRST], rows[node, i, STOP], rows[node, i, BASE] = first, stop, used - first
    numbers[used : used + stop - first] = zero
    return True


@njit(cache=True, nogil=True)
def _keep_spans_of(rows, position):  # type: ignore[no-untyped-def]
    """Leave out outside numbers of spans without the position; those with it depend on others with it only."""
    for node in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            first = max(rows[node, i, OUTER_FIRST], position + 1)
            if i > position or first >= rows[node, i, OUTER_STOP]:
                first, rows[node, i, OUTER_STOP] = rows.shape[1], 0
            rows[node, i, OUTER_FIRST] = first


@njit(cache=True, nogil=True)
def _place_outer_rows(rows):  # type: ignore[no-untyped-def]
    """Give each row its place among the outside numbers, and return how many these are."""
    used = 0
    for node in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[node, i, OUTER_BASE] = used - rows[node, i, OUTER_FIRST]
            used += max(rows[node, i, OUTER_STOP] - rows[node, i, OUTER_FIRST], 0)
    return used


@njit(cache=True, nogil=True)
def _trim(rows, numbers, node, i, ends, zero):  # type: ignore[no-untyped-def]
    """Leave out zeros at both ends of row i; `ends` is FIRST or OUTER_FIRST."""
    first, stop, base = rows[node, i, ends], rows[node, i, ends + 1], rows[node, i, ends + 2]
    while first < stop and numbers[base + first] == zero:
        first += 1
    while first < stop and numbers[base + stop - 1] == zero:
        stop -= 1
    if first >= stop:
        first, stop = rows.shape[1], 0
    rows[node, i, ends], rows[node, i, ends + 1] = first, stop
