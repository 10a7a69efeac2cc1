"""Inside-outside against sums over all sentences or trees, NLTK's parse forests, products of matrices, closed forms."""

import itertools
import math
from fractions import Fraction
from functools import cache

import nltk
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from common.errors import UserError
from common.pcfg.grammar import Grammar, Rule
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.inside_outside import (
    ancestor_posteriors,
    cavities,
    cavity,
    cavity_at,
    log_probability,
    masked_posteriors,
    posterior,
)
from common.pcfg.sampler import sample
from tests.grammars import RECURSIONS, grammars, strings


def log(number):
    """Of a fraction that may be far outside the range of float64."""
    return math.log(number.numerator) - math.log(number.denominator) if number else -math.inf


def weighted(row):
    """A row of exact numbers as probabilities."""
    return [float(number / sum(row)) for number in row]


def check_against_all_sentences(grammar, likelihood):
    """All results for this evidence, or the error where there is none."""
    evidence = [[Fraction(number) for number in row] for row in likelihood.tolist()]
    total, others = Fraction(0), [[Fraction(0)] * len(grammar.terminals) for _ in evidence]
    for string, p in strings(grammar, len(evidence)).items():
        seen = [row[token] for row, token in zip(evidence, string, strict=True)]
        total += p * math.prod(seen)
        for position, token in enumerate(string):
            others[position][token] += p * math.prod(seen[:position] + seen[position + 1 :])
    for position, row in enumerate(others):
        if any(row):
            found = cavity_at(grammar, likelihood, position)
            np.testing.assert_allclose(found, weighted(row), rtol=1e-10, atol=1e-300)
        else:
            with pytest.raises(UserError, match="makes no sentence of"):
                cavity_at(grammar, likelihood, position)
    if not all(map(any, others)):
        with pytest.raises(UserError, match="makes no sentence of"):
            cavity(grammar, likelihood)
        return
    log_evidence, result = cavity(grammar, likelihood)
    np.testing.assert_allclose(result, [weighted(row) for row in others], rtol=1e-10, atol=1e-300)
    if not total:
        assert log_evidence == -math.inf
        with pytest.raises(UserError, match="agrees with the evidence: there is no posterior"):
            posterior(grammar, likelihood)
        return
    assert log_evidence == pytest.approx(log(total), rel=1e-12, abs=1e-10)
    joint = [[a * b for a, b in zip(x, y, strict=True)] for x, y in zip(others, evidence, strict=True)]
    np.testing.assert_allclose(
        posterior(grammar, likelihood), [weighted(row) for row in joint], rtol=1e-10, atol=1e-300
    )


def evidence(generator, kinds, terminals):
    """A likelihood with a row of each of these kinds."""
    rows = {
        "seen": lambda: np.eye(terminals)[generator.integers(terminals)],
        "masked": lambda: np.ones(terminals),
        "one of several": lambda: np.float64(generator.random(terminals) < 0.6),
        "soft": lambda: generator.random(terminals),
        "extreme": lambda: 10 ** generator.uniform(-300, 0, terminals),
        "soft or zero": lambda: generator.random(terminals) * (generator.random(terminals) < 0.7),
    }
    return np.array([rows[kind]() for kind in kinds])


KINDS = st.sampled_from(["seen", "masked", "one of several", "soft", "extreme", "soft or zero"])


@settings(max_examples=300, deadline=None)
@given(grammars(), st.lists(KINDS, min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_any_grammar_and_evidence_against_all_sentences(grammar, kinds, seed):
    check_against_all_sentences(grammar, evidence(np.random.default_rng(seed), kinds, len(grammar.terminals)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RECURSIONS)), st.lists(KINDS, min_size=1, max_size=7), st.integers(0, 2**32 - 1))
def test_recursion_against_all_sentences(name, kinds, seed):
    grammar = parse_grammar(RECURSIONS[name], name)
    check_against_all_sentences(grammar, evidence(np.random.default_rng(seed), kinds, 2))


@pytest.mark.parametrize("name", sorted(RECURSIONS))
def test_sentences_add_up_to_the_probability_of_their_length(name):
    grammar = parse_grammar(RECURSIONS[name], name)
    for length in range(1, 8):
        expected = sum(strings(grammar, length).values())
        sentences = itertools.product(range(2), repeat=length)
        total = math.fsum(math.exp(log_probability(grammar, sentence)) for sentence in sentences)
        assert total == pytest.approx(float(expected), rel=1e-12)
        if expected:
            assert cavity(grammar, np.ones((length, 2)))[0] == pytest.approx(log(expected), abs=1e-12)


def nltk_probability(grammar, tokens):
    """Exact probability of a sentence: the sum over all trees in the packed forest that NLTK's chart is."""
    symbols = {symbol: nltk.Nonterminal(symbol) for symbol in grammar.nonterminals}
    productions = {
        nltk.Production(symbols[rule.left], [symbols.get(symbol, symbol) for symbol in rule.right]): rule.probability
        for rule in grammar.rules
    }
    start = symbols[grammar.start]
    parser = nltk.parse.BottomUpLeftCornerChartParser(nltk.CFG(start, list(productions)))
    chart = parser.chart_parse([grammar.terminals[token] for token in tokens])
    rules = {edge: production for production in productions for edge in [(production.lhs(), production.rhs())]}

    @cache
    def inside(edge):
        if isinstance(edge, nltk.parse.chart.LeafEdge):
            return Fraction(1)
        rule = Fraction(productions[rules[edge.lhs(), edge.rhs()]])
        return rule * sum(math.prod(map(inside, children)) for children in chart.child_pointer_lists(edge))

    spanning = chart.select(start=0, end=len(tokens), lhs=start, is_complete=True)
    return sum(map(inside, spanning), Fraction(0))


@pytest.mark.parametrize(
    ("name", "count"), [("cfg3b", 4), ("cfg3b-released", 2), ("cfg3f", 4), ("cfg3h", 1), ("small", 3)]
)
def test_nltk_on_sentences_of_full_length(name, count):
    grammar = load_grammar(name)
    sentences = sample(grammar, 5, "evaluation", 0, count)
    for i in range(count):
        tokens = sentences.sentence(i)
        expected = nltk_probability(grammar, tokens)
        assert log_probability(grammar, tokens) == pytest.approx(log(expected), abs=1e-10)


@pytest.mark.parametrize(("name", "masked"), [("cfg3b", 3), ("cfg3f", 3)])
def test_nltk_on_every_completion_of_a_sentence_of_full_length(name, masked):
    """The tokens are masked close together, so that they depend on each other."""
    grammar = load_grammar(name)
    tokens = sample(grammar, 6, "evaluation", 0, 1).sentence(0).astype(np.int64)
    positions = len(tokens) // 2 + np.arange(masked)
    joint = np.empty((3,) * masked, object)
    for values in itertools.product(range(3), repeat=masked):
        completed = tokens.copy()
        completed[positions] = values
        joint[values] = nltk_probability(grammar, completed)
    assert sum(p > 0 for p in joint.flat) > 1
    visible = np.ones(len(tokens), bool)
    visible[positions] = False
    result = masked_posteriors(grammar, tokens, visible)
    for axis, position in enumerate(positions):
        marginal = joint.sum(axis=tuple(other for other in range(masked) if other != axis))
        np.testing.assert_allclose(result[position], weighted(list(marginal)), rtol=1e-10)


def trees(grammar, symbols, length):
    """Every way in which symbols of one level make this many tokens: for each token the path of symbols down to it."""
    if len(symbols) > 1:
        first, *others = symbols
        for split in range(1, length):
            for head, p in trees(grammar, [first], split):
                for tail, q in trees(grammar, others, length - split):
                    yield head + tail, p * q
    elif symbols[0] in grammar.terminals:
        if length == 1:
            yield [[symbols[0]]], Fraction(1)
    else:
        for rule in grammar.rules:
            if rule.left == symbols[0]:
                for paths, p in trees(grammar, rule.right, length):
                    yield [[rule.left, *path] for path in paths], p * Fraction(rule.probability)


def ancestors_over(grammar, trees_and_weights, length):
    """(length, nonterminals): exact share of the weight of all trees in which a symbol is above a token."""
    total, above = Fraction(0), [[Fraction(0)] * len(grammar.nonterminals) for _ in range(length)]
    for paths, weight in trees_and_weights:
        total += weight
        for row, path in zip(above, paths, strict=True):
            for symbol in path[:-1]:
                row[grammar.nonterminals.index(symbol)] += weight
    return total and [[float(number / total) for number in row] for row in above]


@st.composite
def grammars_with_levels(draw):
    """Up to four levels of at most two symbols each, right sides of up to three symbols, ambiguity, unit rules."""
    depth = draw(st.integers(1, 4))
    levels = [["S"], *(["A", "B"] for _ in range(1, depth)), ["a", "b", "c"][: draw(st.integers(1, 3))]]
    names = [[f"{symbol}{i}" if 0 < i < depth else symbol for symbol in level] for i, level in enumerate(levels)]
    lines = []
    for here, below in itertools.pairwise(names):
        right = st.lists(st.sampled_from(below), min_size=1, max_size=3)
        for symbol in here:
            rights = draw(st.lists(right, min_size=1, max_size=3, unique_by=tuple))
            weights = [draw(st.floats(0.01, 1)) for _ in rights]
            alternatives = [f"{' '.join(right)} [{weight!r}]" for right, weight in zip(rights, weights, strict=True)]
            lines.append(f"{symbol} -> " + " | ".join(alternatives))
    return parse_grammar("\n".join(lines), "drawn", start="S")


@settings(max_examples=200, deadline=None)
@given(grammars_with_levels(), st.data(), st.integers(0, 2**32 - 1))
def test_ancestors_against_all_trees(grammar, data, seed):
    shortest, longest = grammar.length_ranges[0]
    assume(shortest <= 6)
    kinds = data.draw(st.lists(KINDS, min_size=shortest, max_size=min(longest, 6)))
    likelihood = evidence(np.random.default_rng(seed), kinds, len(grammar.terminals))
    exact = [[Fraction(number) for number in row] for row in likelihood.tolist()]

    def weighed():
        for paths, p in trees(grammar, [grammar.start], len(exact)):
            tokens = [grammar.terminals.index(path[-1]) for path in paths]
            yield paths, p * math.prod(row[token] for row, token in zip(exact, tokens, strict=True))

    expected = ancestors_over(grammar, weighed(), len(exact))
    if not expected:
        with pytest.raises(UserError, match="makes no sentence"):
            ancestor_posteriors(grammar, likelihood)
        return
    np.testing.assert_allclose(ancestor_posteriors(grammar, likelihood), expected, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize(
    ("name", "start", "masked", "count", "ambiguous"),
    [
        ("cfg3b", "13", 0, 3, False),
        ("cfg3b", "13", 4, 3, True),
        ("cfg3f", "20", 0, 1, True),
        ("cfg3f", "16", 3, 4, True),
    ],
)
def test_ancestors_against_the_trees_that_nltk_finds(name, start, masked, count, ambiguous):
    """Those of all completions of a sentence with masked tokens."""
    grammar = load_grammar(name, start)
    symbols = {symbol: nltk.Nonterminal(symbol) for symbol in grammar.nonterminals}
    rules = {
        nltk.Production(symbols[rule.left], [symbols.get(symbol, symbol) for symbol in rule.right]): rule.probability
        for rule in grammar.rules
    }
    parser = nltk.parse.BottomUpLeftCornerChartParser(nltk.CFG(symbols[start], list(rules)))
    sentences = sample(grammar, 12, "evaluation", 0, count)
    uncertain = 0

    def weighed(tokens, positions):
        for values in itertools.product(range(3), repeat=masked):
            words = [grammar.terminals[token] for token in tokens]
            for position, value in zip(positions, values, strict=True):
                words[position] = grammar.terminals[value]
            for tree in parser.parse(words):
                leaves = [tree.leaf_treeposition(leaf) for leaf in range(len(words))]
                paths = [[*(tree[leaf[:depth]].label() for depth in range(len(leaf))), tree[leaf]] for leaf in leaves]
                yield paths, math.prod(Fraction(rules[production]) for production in tree.productions())

    for i in range(count):
        tokens = sentences.sentence(i)
        positions = len(tokens) // 2 + np.arange(masked)
        likelihood = np.eye(3)[tokens]
        likelihood[positions] = 1
        expected = np.array(ancestors_over(grammar, weighed(tokens, positions), len(tokens)))
        np.testing.assert_allclose(ancestor_posteriors(grammar, likelihood), expected, rtol=1e-10, atol=1e-12)
        uncertain += ((expected > 0.01) & (expected < 0.99)).sum()
    assert (uncertain > 0) == ambiguous


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("name", ["cfg3b", "cfg3f", "small"])
def test_ancestors_in_sentences_of_full_length(name, share):
    """Each level's symbols share one, the true one is possible, and logarithms and numbers agree."""
    grammar = load_grammar(name)
    sentences = sample(grammar, 13, "evaluation", 0, 2, trees=True)
    for i in range(2):
        tokens = sentences.sentence(i)
        hidden = np.random.default_rng(i).random(len(tokens)) < share
        likelihood = np.where(hidden[:, None], 1.0, np.eye(3)[tokens])
        result = ancestor_posteriors(grammar, likelihood)
        truth = sentences.ancestors[sentences.offsets[i] : sentences.offsets[i + 1]]
        for level, symbols in enumerate(grammar.levels):
            np.testing.assert_allclose(result[:, symbols].sum(axis=1), 1, rtol=1e-10)
            assert (result[np.arange(len(tokens)), truth[:, level]] > 0).all()
        logarithmic = ancestor_posteriors(grammar, np.maximum(likelihood, 1e-200))
        np.testing.assert_allclose(logarithmic, result, rtol=1e-9, atol=1e-150)


def test_ancestors_where_there_are_none():
    uneven = parse_grammar("S -> A b | b b\nA -> a", "uneven")
    with pytest.raises(UserError, match=r"^the sentences of uneven have terminals at different depths"):
        ancestor_posteriors(uneven, np.ones((2, 2)))
    pairs = parse_grammar("S -> a b | b a", "pairs")
    with pytest.raises(UserError, match=r"^pairs makes no sentence that agrees with the evidence: there is no post"):
        ancestor_posteriors(pairs, np.eye(2)[[0, 0]])
    for length in (0, 3):
        with pytest.raises(UserError, match=f"^pairs makes no sentence of {length} tokens"):
            ancestor_posteriors(pairs, np.ones((length, 2)))


def matrix_inside(grammar, likelihood):
    """P(evidence, length) of a grammar without recursion: node N is the matrix of all inside(N, i, j)."""
    length = len(likelihood)
    matrices = {symbol: np.diag(likelihood[:, token], k=1) for token, symbol in enumerate(grammar.terminals)}

    @cache
    def matrix(symbol):
        if symbol in matrices:
            return matrices[symbol]
        rules = [rule for rule in grammar.rules if rule.left == symbol]
        return sum(rule.probability * product(rule.right) for rule in rules)

    @cache
    def product(symbols):
        return matrix(symbols[0]) if len(symbols) == 1 else product(symbols[:-1]) @ matrix(symbols[-1])

    return matrix(grammar.start)[0, length]


@pytest.mark.parametrize("name", ["cfg3b", "cfg3f", "cfg3g", "cfg3i"])
@pytest.mark.parametrize("kind", ["30% masked", "60% masked", "all masked", "noisy", "noisy and masked"])
def test_products_of_matrices_on_sentences_of_full_length(name, kind):
    """The evidence is linear in each row of the likelihood, so that rows that are one-hot give the cavity."""
    grammar = load_grammar(name)
    generator = np.random.default_rng(7)
    sentences = sample(grammar, 7, "evaluation", 0, 20)
    tokens = sentences.sentence(int(sentences.lengths.argmin()))
    likelihood = np.eye(3)[tokens]
    if "noisy" in kind:
        likelihood = 0.8 * likelihood + 0.2 * generator.random((len(tokens), 3))
    share = {"30% masked": 0.3, "60% masked": 0.6, "all masked": 1.0, "noisy": 0.0, "noisy and masked": 0.5}[kind]
    likelihood[generator.random(len(tokens)) < share] = 1
    log_evidence, result = cavity(grammar, likelihood)
    assert log_evidence == pytest.approx(math.log(matrix_inside(grammar, likelihood)), abs=1e-10)
    for position in generator.integers(len(tokens), size=2):
        np.testing.assert_allclose(cavity_at(grammar, likelihood, position), result[position], rtol=1e-12)
        changed = np.repeat(likelihood[None], 3, axis=0)
        changed[:, position] = np.eye(3)
        expected = np.array([matrix_inside(grammar, rows) for rows in changed])
        np.testing.assert_allclose(result[position], expected / expected.sum(), rtol=1e-10)


@pytest.mark.parametrize("name", ["cfg3b", "cfg3f"])
def test_each_token_given_the_others_times_the_others_is_the_sentence(name):
    grammar = load_grammar(name)
    tokens = sample(grammar, 8, "evaluation", 0, 1).sentence(0)
    expected = log_probability(grammar, tokens)
    likelihood = np.eye(3)[tokens]
    log_evidence, result = cavity(grammar, likelihood)
    assert log_evidence == pytest.approx(expected, abs=1e-10)
    for position in range(0, len(tokens), 7):
        others = likelihood.copy()
        others[position] = 1
        log_others, same = cavity(grammar, others)
        np.testing.assert_allclose(same[position], result[position], rtol=1e-10)
        assert math.log(result[position, tokens[position]]) + log_others == pytest.approx(expected, abs=1e-10)


def test_logarithms_agree_with_numbers():
    """Likelihoods of 1e-200 are outside the range of the numbers, and change nothing that could be noticed."""
    grammar = load_grammar("cfg3b")
    tokens = sample(grammar, 9, "evaluation", 0, 1).sentence(0)
    visible = np.random.default_rng(0).random(len(tokens)) < 0.7
    likelihood = np.where(visible[:, None], np.eye(3)[tokens], 1.0)
    log_evidence, result = cavity(grammar, np.maximum(likelihood, 1e-200))
    expected_evidence, expected = cavity(grammar, likelihood)
    assert log_evidence == pytest.approx(expected_evidence, abs=1e-9)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-150)


@pytest.mark.parametrize("length", [1, 2, 50, 400])
def test_catalan_numbers(length):
    grammar = parse_grammar("S -> S S [0.4] | a [0.6]", "trees")
    trees = math.comb(2 * length - 2, length - 1) // length
    expected = math.log(trees) + (length - 1) * math.log(0.4) + length * math.log(0.6)
    assert log_probability(grammar, [0] * length) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rules", ["S -> T S [0.9] | T [0.1]", "S -> S T [0.9] | T [0.1]"])
def test_a_sentence_of_rare_tokens(rules):
    """Its probability is 1e-8437; all masked, that of its length is 1e-32."""
    grammar = parse_grammar(f"{rules}\nT -> a [1e-12] | b [0.999999999999]", "rare")
    length = 700
    of_length = math.log(0.1) + (length - 1) * math.log(0.9)
    of_tokens = [length * math.log(grammar.rules[-2 + token].probability) for token in range(2)]
    for token in range(2):
        assert log_probability(grammar, [token] * length) == pytest.approx(of_length + of_tokens[token], abs=1e-8)
    log_evidence, result = cavity(grammar, np.ones((length, 2)))
    assert log_evidence == pytest.approx(of_length, abs=1e-10)
    np.testing.assert_allclose(result[:, 0], 1e-12, rtol=1e-9)


def test_evidence_that_contradicts_itself():
    """All tokens are a or all are b; one half of the evidence is for a, the other for b, and both sides are 1e-3500."""
    grammar = parse_grammar("S -> A | B\nA -> a A | a\nB -> b B | b", "twins")
    length, doubt = 700, 1e-10
    likelihood = np.full((length, 2), doubt)
    likelihood[: length // 2, 0] = likelihood[length // 2 :, 1] = 1
    log_evidence, result = cavity(grammar, likelihood)
    assert log_evidence == pytest.approx(length * math.log(0.5) + length / 2 * math.log(doubt), abs=1e-8)
    np.testing.assert_allclose(result[: length // 2, 0], doubt / (1 + doubt), rtol=1e-8)
    np.testing.assert_allclose(result[length // 2 :, 1], doubt / (1 + doubt), rtol=1e-8)
    np.testing.assert_allclose(posterior(grammar, likelihood), 0.5, rtol=1e-8)


def test_a_rule_of_tiny_probability():
    rules = (
        Rule("S", ("a", "a"), 1.0),
        Rule("S", ("A", "b"), 1e-300),
        Rule("A", ("a",), 1e-300),
        Rule("A", ("b",), 1.0),
    )
    grammar = Grammar("tiny", "S", rules, ("a", "b"))
    assert log_probability(grammar, [0, 1]) == pytest.approx(600 * math.log(0.1), rel=1e-12)
    np.testing.assert_allclose(masked_posteriors(grammar, [0, 1], [False, True])[0], [1e-300, 1], rtol=1e-10)


def test_the_scale_of_a_row_does_not_matter():
    grammar = load_grammar("small")
    tokens = sample(grammar, 1, "evaluation", 0, 1).sentence(0)
    likelihood = np.eye(3)[tokens] + 0.01
    scales = np.geomspace(1e-290, 1e290, len(tokens))
    log_evidence, result = cavity(grammar, likelihood)
    scaled_evidence, scaled_result = cavity(grammar, likelihood * scales[:, None])
    assert scaled_evidence == pytest.approx(log_evidence + np.log(scales).sum(), abs=1e-9)
    np.testing.assert_allclose(scaled_result, result, rtol=1e-10)


def test_a_start_further_down_keeps_the_terminals():
    grammar = parse_grammar("S -> A B\nA -> a | b\nB -> c B [0.3] | c [0.7]", "whole").with_start("B")
    log_evidence, result = cavity(grammar, np.ones((3, 3)))
    assert log_evidence == pytest.approx(math.log(0.3**2 * 0.7))
    np.testing.assert_array_equal(result, [[0, 0, 1]] * 3)
    assert log_probability(grammar, [2, 0, 2]) == -math.inf


def test_many_sentences_are_each_for_itself():
    grammar = load_grammar("small")
    sentences = sample(grammar, 2, "evaluation", 0, 40)
    likelihoods = [np.eye(3)[sentences.sentence(i)] + 0.1 for i in range(40)]
    for (log_evidence, result), likelihood in zip(cavities(grammar, likelihoods), likelihoods, strict=True):
        expected_evidence, expected = cavity(grammar, likelihood)
        assert log_evidence == expected_evidence
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("tokens", [[], [0], [0] * 17, [0] * 34, [0] * 5000])
def test_a_length_that_the_grammar_does_not_have(tokens):
    grammar = load_grammar("small")
    assert log_probability(grammar, tokens) == -math.inf
    with pytest.raises(UserError, match=f"^small makes no sentence of {len(tokens)} tokens"):
        cavity(grammar, np.ones((len(tokens), 3)))


def test_impossible_evidence():
    grammar = parse_grammar("S -> a b | b a | a c", "pairs")
    seen = np.eye(3)
    assert log_probability(grammar, [1, 1]) == -math.inf
    log_evidence, result = cavity(grammar, seen[[1, 1]])
    assert log_evidence == -math.inf
    np.testing.assert_array_equal(result, [[1, 0, 0], [1, 0, 0]])
    with pytest.raises(
        UserError, match=r"^pairs makes no sentence that agrees with the evidence: there is no posterior"
    ):
        posterior(grammar, seen[[1, 1]])
    with pytest.raises(UserError, match="2 tokens that agrees with the evidence outside of position 1"):
        cavity(grammar, seen[[2, 1]])
    with pytest.raises(UserError, match="outside of position 0"):
        masked_posteriors(grammar, [0, 0], [True, True]) if False else cavity(grammar, np.array([[1, 1, 1], [0, 0, 0]]))


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (np.ones((18, 2)), r"^the likelihood has the shape \(18, 2\): give \(length, 3\)"),
        (np.ones(3), r"^the likelihood has the shape \(3\): give \(length, 3\)"),
        (-np.ones((18, 3)), "negative or not finite"),
        (np.full((18, 3), np.nan), "negative or not finite"),
        (np.full((18, 3), np.inf), "negative or not finite"),
    ],
)
def test_likelihoods_that_are_none(likelihood, message):
    for function in (cavity, posterior):
        with pytest.raises(UserError, match=message):
            function(load_grammar("small"), likelihood)


@pytest.mark.parametrize("token", [-1, 3])
def test_tokens_that_are_none(token):
    with pytest.raises(UserError, match=r"^token ids of small are 0 to 2, got"):
        log_probability(load_grammar("small"), [0, token])
