"""Next-token posteriors against ratios of sums over all sentences, a recursion over strings, and closed forms."""

import itertools
import math
import random
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from common.errors import UserError
from common.pcfg.grammar import Grammar, Rule
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.inside_outside import log_probability
from common.pcfg.prefix import next_token_posteriors, possible_beginning, span_end_posteriors
from common.pcfg.sampler import sample
from tests.grammars import RECURSIONS, grammars, strings


def prefix_probabilities(grammar):
    """A function from tokens to the probability that a sentence begins with them.

    That of A is a sum over rules; symbols X1 X2 ... begin with tokens if X1 does, or if X1 makes the first few of them
    and X2 ... begin with the others. As X1 may be A again, the probabilities of all symbols are a linear system.
    """
    names = {symbol: i for i, symbol in enumerate(grammar.nonterminals)}
    exact = {symbol: grammar.with_start(symbol) for symbol in names}
    first = np.zeros((len(names), len(names)))
    for rule in grammar.rules:
        if rule.right[0] in names:
            first[names[rule.left], names[rule.right[0]]] += rule.probability

    def made(symbol, tokens):
        if symbol in names:
            return float(strings(exact[symbol], len(tokens)).get(tokens, 0))
        return float(tokens == (grammar.terminals.index(symbol),))

    def of_first(symbol, tokens):
        return of_all(tokens)[names[symbol]] if symbol in names else float(made(symbol, tokens))

    @cache
    def of_all(tokens):
        if not tokens:
            return np.ones(len(names))
        others = np.zeros(len(names))
        for rule in grammar.rules:
            head, tail = rule.right[0], rule.right[1:]
            total = others_begin(head, tail, tokens)
            if head not in names:
                total += made(head, tokens)
            others[names[rule.left]] += rule.probability * total
        return np.linalg.solve(np.eye(len(names)) - first, others)

    def others_begin(head, tail, tokens):
        if not tail:
            return 0.0
        return sum(made(head, tokens[:k]) * begin(tail, tokens[k:]) for k in range(1, len(tokens)))

    def begin(symbols, tokens):
        return of_first(symbols[0], tokens) + others_begin(symbols[0], symbols[1:], tokens)

    return lambda tokens: float(begin((grammar.start,), tuple(tokens)))


def possible_sentence(grammar, generator, longest):
    """A sentence that the grammar makes, cut after `longest` tokens."""
    tokens, symbols = [], [grammar.start]
    while symbols and len(tokens) < longest:
        symbol = symbols.pop(0)
        if symbol in grammar.terminals:
            tokens.append(grammar.terminals.index(symbol))
        else:
            rules = [rule for rule in grammar.rules if rule.left == symbol]
            symbols[:0] = generator.choices(rules, [rule.probability for rule in rules])[0].right
    return tuple(tokens)


def check_against_strings(grammar, tokens, unseen):
    rows = next_token_posteriors(grammar, tokens, unseen)
    assert rows.shape == (len(tokens) + 1, len(grammar.terminals) + 1)
    prefix = prefix_probabilities(grammar)
    for t, row in enumerate(rows):
        possible = itertools.product(range(len(grammar.terminals)), repeat=min(unseen, t))
        before = [(*beginning, *tokens[unseen:t]) for beginning in possible]
        ends = sum(float(strings(grammar, t).get(some, 0)) for some in before) if t else 0.0
        following = [sum(prefix((*some, token)) for some in before) for token in range(len(grammar.terminals))]
        expected = np.array([*following, ends]) / sum(map(prefix, before))
        np.testing.assert_allclose(row, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(grammars(), st.integers(0, 2**32 - 1), st.integers(0, 5), st.sampled_from([0, 0, 1, 2, 3]))
def test_any_grammar_against_a_recursion_over_strings(grammar, seed, longest, unseen):
    check_against_strings(grammar, possible_sentence(grammar, random.Random(seed), longest), unseen)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RECURSIONS)), st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 4))
def test_recursion_against_a_recursion_over_strings(name, seed, longest, unseen):
    grammar = parse_grammar(RECURSIONS[name], name)
    check_against_strings(grammar, possible_sentence(grammar, random.Random(seed), longest), unseen)


@settings(max_examples=150, deadline=None)
@given(grammars())
def test_grammars_without_recursion_against_all_their_sentences(grammar):
    longest = grammar.length_ranges[0][1]
    assume(longest is not None and longest <= 8)
    sentences = {}
    for length in range(1, longest + 1):
        sentences |= strings(grammar, length)
    prefixes = {}
    for sentence, probability in sentences.items():
        for t in range(len(sentence) + 1):
            prefixes[sentence[:t]] = prefixes.get(sentence[:t], Fraction(0)) + probability
    for sentence, probability in itertools.islice(sentences.items(), 30):
        rows = next_token_posteriors(grammar, sentence)
        for t in range(len(sentence) + 1):
            before = sentence[:t]
            following = [prefixes.get((*before, token), Fraction(0)) for token in range(len(grammar.terminals))]
            expected = [float(p / prefixes[before]) for p in (*following, sentences.get(before, Fraction(0)))]
            np.testing.assert_allclose(rows[t], expected, rtol=1e-10, atol=1e-300)
        true = rows[np.arange(len(sentence) + 1), [*sentence, -1]]
        assert math.prod(true) == pytest.approx(float(probability), rel=1e-10)


@pytest.mark.parametrize("name", ["small", "cfg3b", "cfg3b-released", "cfg3f", "cfg3g", "cfg3h", "cfg3i"])
def test_the_product_over_a_sentence_is_its_probability(name):
    grammar = load_grammar(name)
    sentences = sample(grammar, 3, "evaluation", 0, 6)
    for tokens in map(sentences.sentence, range(len(sentences))):
        rows = next_token_posteriors(grammar, tokens)
        np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-12)
        true = rows[np.arange(len(tokens) + 1), [*tokens, -1]]
        assert np.log(true).sum() == pytest.approx(log_probability(grammar, tokens), abs=1e-9)
        assert possible_beginning(grammar, tokens) == (len(tokens), True)


def test_posteriors_of_a_beginning_are_those_of_the_whole_sentence():
    grammar = load_grammar("cfg3f")
    tokens = sample(grammar, 4, "evaluation", 0, 1).sentence(0)
    rows = next_token_posteriors(grammar, tokens)
    for length in (0, 1, 17, 100):
        np.testing.assert_array_equal(next_token_posteriors(grammar, tokens[:length]), rows[: length + 1])


def test_the_mean_over_a_sample_is_what_follows():
    """Among sentences that begin alike, a token follows as often as its probability says."""
    grammar = load_grammar("cfg3f")
    count = 20_000
    sentences = sample(grammar, 5, "evaluation", 0, count)
    beginnings = np.stack([sentences.sentence(i)[:5] for i in range(count)])
    common, numbers = np.unique(beginnings[:, :4], axis=0, return_counts=True)
    compared = 0
    for beginning, number in zip(common, numbers, strict=True):
        if number > 500:
            following = beginnings[(beginnings[:, :4] == beginning).all(axis=1), 4]
            expected = next_token_posteriors(grammar, beginning)[-1]
            assert expected[-1] == 0
            shares = np.bincount(following, minlength=3) / number
            np.testing.assert_allclose(shares, expected[:3], atol=5 * 0.5 / math.sqrt(number))
            compared += 1
    assert compared >= 10


def test_sentences_of_a_recursion_on_both_sides_end_as_catalan_numbers_say():
    """All trees of n leaves: Catalan(n - 1) 0.4^(n-1) 0.6^n; a leaf is a with 1/3. 700 tokens have 1e-400."""
    grammar = parse_grammar("S -> S S [0.4] | a [0.2] | b [0.4]", "trees")
    length = 700
    of_length = [
        math.exp(math.log(math.comb(2 * n - 2, n - 1) // n) + (n - 1) * math.log(0.4) + n * math.log(0.6))
        for n in range(1, length + 1)
    ]
    tokens = np.random.default_rng(0).integers(0, 2, length)
    rows = next_token_posteriors(grammar, tokens)
    longer = math.fsum(
        math.exp(math.log(math.comb(2 * n - 2, n - 1) // n) + (n - 1) * math.log(0.4) + n * math.log(0.6))
        for n in range(length + 1, 4000)
    )
    for t in range(length, 0, -1):
        ends = of_length[t - 1] / (of_length[t - 1] + longer)
        longer += of_length[t - 1]
        np.testing.assert_allclose(rows[t], [(1 - ends) / 3, 2 * (1 - ends) / 3, ends], rtol=1e-9)
    np.testing.assert_allclose(rows[0], [1 / 3, 2 / 3, 0], rtol=1e-12)


@pytest.mark.parametrize("rules", ["S -> T S [0.9] | T [0.1]", "S -> S T [0.9] | T [0.1]"])
def test_a_sentence_of_rare_tokens(rules):
    """Its probability is 1e-8432."""
    grammar = parse_grammar(f"{rules}\nT -> a [1e-12] | b [0.999999999999]", "rare")
    rows = next_token_posteriors(grammar, [0] * 700)
    np.testing.assert_allclose(rows[0], [1e-12, 1, 0], rtol=1e-9)
    np.testing.assert_allclose(rows[1:], np.broadcast_to([0.9e-12, 0.9, 0.1], (700, 3)), rtol=1e-9)


def test_what_was_all_but_impossible_may_come_true():
    """That the sentence ends in c has odds of 1e-7000 before c comes."""
    grammar = parse_grammar(
        "S -> A | R c\nA -> a A [0.5] | a [0.5]\nR -> T R [0.5] | T [0.5]\nT -> a [1e-10] | b [1]", "twins"
    )
    length = 700
    rows = next_token_posteriors(grammar, [0] * length + [2])
    np.testing.assert_allclose(rows[length], [0.5, 0, 0, 0.5], atol=1e-9)
    assert rows[length, 2] == 0
    np.testing.assert_array_equal(rows[length + 1], [0, 0, 0, 1])


def test_a_rule_of_tiny_probability():
    rules = (
        Rule("S", ("a", "a"), 1.0),
        Rule("S", ("A", "b"), 1e-300),
        Rule("A", ("a",), 1e-300),
        Rule("A", ("b",), 1.0),
    )
    grammar = Grammar("tiny", "S", rules, ("a", "b"))
    np.testing.assert_array_equal(next_token_posteriors(grammar, [1, 1])[1:], [[0, 1, 0], [0, 0, 1]])
    rows = next_token_posteriors(grammar, [0])
    np.testing.assert_allclose(rows, [[1, 1e-300, 0], [1, 0, 0]], rtol=1e-10)


def test_a_start_further_down_keeps_the_terminals():
    grammar = parse_grammar("S -> A B\nA -> a | b\nB -> c B [0.3] | c [0.7]", "whole").with_start("B")
    np.testing.assert_allclose(next_token_posteriors(grammar, [2]), [[0, 0, 1, 0], [0, 0, 0.3, 0.7]])


# Which tokens end spans


@cache
def number_of_derivations(grammar, symbols):
    if len(symbols) > 1:
        return math.prod(number_of_derivations(grammar, (symbol,)) for symbol in symbols)
    if symbols[0] in grammar.terminals:
        return 1
    return sum(number_of_derivations(grammar, rule.right) for rule in grammar.rules if rule.left == symbols[0])


def derivations(grammar, symbol, depth=0):
    """Every derivation as its tokens, for each token the depths at which a span ends, and its probability."""
    if symbol in grammar.terminals:
        yield (grammar.terminals.index(symbol),), (frozenset(),), 1.0
        return
    for rule in grammar.rules:
        if rule.left == symbol:
            for parts in itertools.product(*(list(derivations(grammar, child, depth + 1)) for child in rule.right)):
                tokens = tuple(token for part in parts for token in part[0])
                ends = [depths for part in parts for depths in part[1]]
                ends[-1] |= {depth}
                yield tokens, tuple(ends), rule.probability * math.prod(part[2] for part in parts)


@settings(max_examples=100, deadline=None)
@given(grammars(), st.integers(0, 4), st.integers(0, 3))
def test_span_ends_against_all_derivations(grammar, level, unseen):
    assume(grammar.length_ranges[0][1] is not None)
    assume(number_of_derivations(grammar, (grammar.start,)) <= 300)
    prefixes, ending = {}, {}
    forest = list(derivations(grammar, grammar.start))
    for tokens, ends, probability in forest:
        for t in range(len(tokens) + 1):
            before = (t, *tokens[unseen:t])
            prefixes[before] = prefixes.get(before, 0.0) + probability
            if t < len(tokens) and level in ends[t]:
                ending[before, tokens[t]] = ending.get((before, tokens[t]), 0.0) + probability
    for tokens, _, _ in forest[:20]:
        rows = span_end_posteriors(grammar, tokens, level, unseen)
        assert rows.shape == (len(tokens) + 1, len(grammar.terminals))
        for t, row in enumerate(rows):
            before = (t, *tokens[unseen:t])
            expected = [ending.get((before, a), 0) / prefixes[before] for a in range(len(grammar.terminals))]
            np.testing.assert_allclose(row, expected, rtol=1e-10, atol=1e-14)


def test_span_ends_of_recursion():
    """Of S -> a S | b all spans end with the last token, of S -> S a | b the innermost with the first."""
    right = parse_grammar("S -> a S [0.7] | b [0.3]", "right")
    np.testing.assert_allclose(span_end_posteriors(right, [0, 0, 1], 2), [[0, 0], [0, 0], [0, 0.3], [0, 0]], atol=1e-14)
    left = parse_grammar("S -> S a [0.7] | b [0.3]", "left")
    rows = next_token_posteriors(left, [1, 0])
    np.testing.assert_allclose(rows[:, :2], [[0, 1], [0.7, 0], [0.7, 0]], atol=1e-14)
    np.testing.assert_allclose(span_end_posteriors(left, [1, 0], 0), [[0, 0.3], [0.21, 0], [0.21, 0]], atol=1e-14)


def test_span_ends_in_sentences_of_full_length_are_those_of_the_sample():
    """As many spans end as expected, within five standard errors, and only where one may end."""
    grammar = load_grammar("cfg3f")
    sentences = sample(grammar, 6, "evaluation", 0, 40, trees=True)
    for level in (0, 1, 2, 3):
        expected, found, variance = 0.0, 0, 0.0
        for i in range(len(sentences)):
            tokens = sentences.sentence(i)
            rows = span_end_posteriors(grammar, tokens, level)
            assert (rows <= next_token_posteriors(grammar, tokens)[:, :3] + 1e-12).all()
            ends = sentences.span_ends[sentences.offsets[i] : sentences.offsets[i + 1], level]
            assert (rows[:-1][ends, tokens[ends]] > 0).all()
            chance = rows[:-1].sum(axis=1)
            expected, found, variance = (
                expected + chance.sum(),
                found + ends.sum(),
                variance + (chance * (1 - chance)).sum(),
            )
        assert abs(found - expected) < 5 * math.sqrt(variance)


# What no sentence begins with


@settings(max_examples=150, deadline=None)
@given(grammars(), st.lists(st.integers(0, 2), max_size=6))
def test_the_possible_beginning_is_the_longest_with_a_probability(grammar, tokens):
    tokens = tuple(token % len(grammar.terminals) for token in tokens)
    prefix = prefix_probabilities(grammar)
    longest = max(t for t in range(len(tokens) + 1) if t == 0 or prefix(tokens[:t]) > 1e-14)
    whole = longest > 0 and strings(grammar, longest).get(tokens[:longest], 0) > 0
    assert possible_beginning(grammar, tokens) == (longest, whole)


def test_tokens_that_no_sentence_begins_with():
    grammar = parse_grammar("S -> a b | b a c", "pairs")
    assert possible_beginning(grammar, [1, 0, 0, 1]) == (2, False)
    assert possible_beginning(grammar, [0, 1, 1]) == (2, True)
    with pytest.raises(
        UserError, match=r"^pairs makes no sentence that begins with these 4 tokens: after 2 of them there is no a$"
    ):
        next_token_posteriors(grammar, [1, 0, 0, 1])
    with pytest.raises(UserError, match=r"these 4 tokens: after 3 of them there is no further token$"):
        next_token_posteriors(grammar, [1, 0, 0, 1], unseen=4)
    for token in (-1, 3):
        with pytest.raises(UserError, match=r"^token ids of pairs are 0 to 2, got"):
            next_token_posteriors(grammar, [0, token])
