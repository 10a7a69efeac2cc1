"""The sampler against a plain one on NumPy's Philox, its distribution against enumeration, its trees against rules."""

import itertools
import math
from collections import Counter

import nltk
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from common.errors import UserError
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.sampler import MAX_TOKENS, STREAM_KEYS, sample

STREAMS = ("train", "evaluation", "probe")
SEEDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))

GRAMMARS = {
    name: parse_grammar(text, name)
    for name, text in {
        "weighted": "S -> A B [0.7] | B A [0.2] | A [0.1]\nA -> x B | x | B y\nB -> y [3] | z z [1]",
        "recursive": "S -> A S b [0.4] | a [0.6]\nA -> S c [1] | d [2] | e e [1]",
        "left-recursive": "S -> S a [0.995] | b [0.005]",
        "right-recursive": "S -> a S [0.995] | T [0.005]\nT -> b | c d",
        "branching": "S -> S S | a | b c",
        "wide": f"S -> {'A B C ' * 8} | A\nA -> a | b b\nB -> c C c | {'c ' * 90}\nC -> a",
        "one": "S -> A\nA -> a",
        "many": f"S -> D D D D D\nD -> {' | '.join(map(str, range(11)))}",
        "more than a word": f"S -> D D D D\nD -> {' | '.join(map(str, range(250)))}",
        "mixed levels": "S -> A B | b A a\nA -> B B c | a\nB -> a | b | c c",
        "three": "S -> A A | B A | A\nA -> B B B | B\nB -> a | b | a a",
    }.items()
} | {name: load_grammar(name) for name in ("small", "cfg3b", "cfg3f")}


def numpy_philox(key, counter):
    return np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))


def reference_sentence(grammar, seed, stream, i):
    """(token, ancestors from the root on) pairs, by the choices that the module's docstring describes."""
    philox = numpy_philox([seed, STREAM_KEYS[stream]], [0, i, 0, 0])
    word = lambda: int(philox.random_raw())  # noqa: E731
    sides = {left: list(group) for left, group in itertools.groupby(grammar.rules, key=lambda rule: rule.left)}
    equal = {left: len({rule.probability for rule in side}) == 1 for left, side in sides.items()}
    most = max([2, *(len(side) for left, side in sides.items() if equal[left])])
    per_word = next(k for k in range(32, 0, -1) if most**k <= 2**32)
    u, left_over = 0, 0
    tokens = []
    stack = [(grammar.start, ())]
    while stack:
        symbol, ancestors = stack.pop()
        if symbol not in sides:
            tokens.append((grammar.terminals.index(symbol), ancestors))
            continue
        side = sides[symbol]
        if equal[symbol]:
            if left_over == 0:
                u, left_over = word(), per_word
            left_over -= 1
            choice, u = divmod(u * len(side), 2**64)
        else:
            v = word() / 2**64
            total = list(itertools.accumulate(rule.probability for rule in side))
            choice = next((k for k, t in enumerate(total[:-1]) if v < t), len(side) - 1)
        path = (*ancestors, grammar.nonterminals.index(symbol))
        stack += [(child, path) for child in reversed(side[choice].right)]
    return tokens


def derivations(grammar):
    """(token, ancestors, number of ancestors that end) triples of every sentence with every tree: its probability."""
    sides = {left: list(group) for left, group in itertools.groupby(grammar.rules, key=lambda rule: rule.left)}

    def expand(symbol):
        if symbol not in sides:
            return {((grammar.terminals.index(symbol), (), 0),): 1.0}
        found = Counter()
        ancestor = grammar.nonterminals.index(symbol)
        for rule in sides[symbol]:
            for parts in itertools.product(*(expand(child).items() for child in rule.right)):
                tokens = [(t, (ancestor, *path), ending) for part, _ in parts for t, path, ending in part]
                tokens[-1] = (*tokens[-1][:2], tokens[-1][2] + 1)
                found[tuple(tokens)] += rule.probability * math.prod(p for _, p in parts)
        return found

    return expand(grammar.start)


def spans(sentences, i, levels):
    """The same triples from a sampled sentence."""
    rows = range(sentences.offsets[i], sentences.offsets[i + 1])
    found = []
    for row in rows:
        ancestors, ends = sentences.ancestors[row], sentences.span_ends[row]
        number = int((ancestors >= 0).sum())
        assert (ancestors[number:] == -1).all()
        assert not ends[number:].any()
        ending = int(ends.sum())
        assert ends[number - ending : number].all()  # the innermost ones end
        found.append((int(sentences.tokens[row]), tuple(ancestors[:number].tolist()), ending))
    return tuple(found)


def check_tree(grammar, tokens, ancestors, span_ends):
    """Walk from the root: each span splits where spans of the next level end, and its parts are a rule's right side."""
    names, depth = grammar.nonterminals, grammar.depth
    rights = {(rule.left, rule.right) for rule in grammar.rules}

    def walk(level, a, b):
        if level == depth:
            assert b == a + 1
            return grammar.terminals[tokens[a]]
        symbols = set(ancestors[a:b, level].tolist())
        assert len(symbols) == 1
        ends = np.flatnonzero(span_ends[a:b, level])
        assert ends.tolist() == [b - a - 1]
        cuts = range(a + 1, b + 1) if level == depth - 1 else np.flatnonzero(span_ends[a:b, level + 1]) + a + 1
        children = tuple(walk(level + 1, c, d) for c, d in itertools.pairwise([a, *cuts]))
        symbol = names[symbols.pop()]
        assert (symbol, children) in rights
        return symbol

    assert walk(0, 0, len(tokens)) == grammar.start


@pytest.mark.parametrize("name", GRAMMARS)
@given(SEEDS, st.sampled_from(STREAMS), st.one_of(st.integers(0, 100), st.integers(0, 2**63 - 10)))
@settings(deadline=None, max_examples=15)
def test_against_a_plain_sampler(name, seed, stream, first):
    grammar = GRAMMARS[name]
    levels = 7
    plain = sample(grammar, seed, stream, first, 5)
    with_trees = sample(grammar, seed, stream, first, 5, trees=True, levels=levels)
    assert plain.tokens.dtype == with_trees.tokens.dtype == np.uint8
    assert (plain.ancestors, plain.span_ends) == (None, None)
    np.testing.assert_array_equal(plain.tokens, with_trees.tokens)
    np.testing.assert_array_equal(plain.offsets, with_trees.offsets)
    assert (with_trees.ancestors.dtype, with_trees.span_ends.dtype) == (np.int16, np.bool_)
    assert len(plain) == len(plain.lengths) == 5
    for i in range(5):
        expected = reference_sentence(grammar, seed, stream, first + i)
        assert plain.sentence(i).tolist() == [token for token, _ in expected]
        assert plain.lengths[i] == len(expected)
        ancestors = [[*path, *[-1] * levels][:levels] for _, path in expected]
        assert with_trees.ancestors[with_trees.offsets[i] : with_trees.offsets[i + 1]].tolist() == ancestors


@pytest.mark.parametrize("name", ["cfg3b", "cfg3f", "weighted", "recursive", "branching", "wide"])
@given(SEEDS, st.integers(0, 10**6), st.integers(0, 12), st.data())
@settings(deadline=None, max_examples=15)
def test_a_range_may_be_cut_anywhere(name, seed, first, count, data):
    grammar = GRAMMARS[name]
    draw = lambda a, b: sample(grammar, seed, "probe", a, b, trees=True, levels=3)  # noqa: E731
    whole = draw(first, count)
    cuts = data.draw(st.lists(st.integers(0, count), max_size=4).map(sorted))
    parts = [draw(first + a, b - a) for a, b in itertools.pairwise([0, *cuts, count])]
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    np.testing.assert_array_equal(np.concatenate([part.lengths for part in parts]), whole.lengths)
    np.testing.assert_array_equal(np.concatenate([part.ancestors for part in parts]), whole.ancestors)
    np.testing.assert_array_equal(np.concatenate([part.span_ends for part in parts]), whole.span_ends)


def test_streams_and_seeds_are_different_sentences():
    keys = [(seed, stream) for seed in (0, 1, 2**63) for stream in STREAMS]
    samples = [sample(GRAMMARS["cfg3b"], *key, 0, 300) for key in keys]
    sentences = [bytes(s.sentence(i)) for s in samples for i in range(len(s))]
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("name", ["weighted", "mixed levels", "three"])
def test_sentences_and_trees_have_their_probabilities(name):
    """Chi-square over all derivations; its mean is their number less one, and 6 sigma are left."""
    grammar = GRAMMARS[name]
    exact = derivations(grammar)
    assert sum(exact.values()) == pytest.approx(1)
    count = 200_000
    sentences = sample(grammar, 5, "train", 0, count, trees=True, levels=4)
    ends = sentences.offsets[1:]
    columns = [sentences.tokens[:, None], sentences.ancestors, sentences.span_ends]
    rows = np.concatenate([column.astype(np.int16) for column in columns], axis=1)
    kinds: dict[bytes, list[int]] = {}
    for i, (a, b) in enumerate(zip(sentences.offsets, ends, strict=False)):
        kinds.setdefault(rows[a:b].tobytes(), []).append(i)
    observed = {spans(sentences, members[0], 4): len(members) for members in kinds.values()}
    assert observed.keys() <= exact.keys()
    likely = {tree: p for tree, p in exact.items() if p * count >= 5}
    rest = max(1 - sum(likely.values()), 0)
    square = sum((observed.get(tree, 0) - count * p) ** 2 / (count * p) for tree, p in likely.items())
    freedom = len(likely) - 1
    assert len(likely) > 20
    assert abs(square - freedom) < 6 * math.sqrt(2 * freedom)
    unlikely = count - sum(observed.get(tree, 0) for tree in likely)
    assert abs(unlikely - count * rest) <= 6 * math.sqrt(count * rest) + 1e-6 * count


def test_choices_within_a_word_are_independent():
    """Pairs of digits of a grammar with eleven alternatives, of which nine are read from a word."""
    sentences = sample(GRAMMARS["many"], 1, "train", 0, 100_000)
    digits = sentences.tokens.reshape(-1, 5)
    for i, j in itertools.combinations(range(5), 2):
        counts = np.bincount(digits[:, i].astype(np.int64) * 11 + digits[:, j], minlength=121)
        square = ((counts - 100_000 / 121) ** 2).sum() * 121 / 100_000
        assert abs(square - 120) < 6 * math.sqrt(240)


@pytest.mark.parametrize("name", ["cfg3b", "cfg3f", "weighted", "recursive", "left-recursive", "right-recursive"])
def test_mean_length(name):
    lengths = sample(GRAMMARS[name], 2, "evaluation", 0, 40_000).lengths
    assert abs(lengths.mean() - GRAMMARS[name].expected_length) < 5.5 * lengths.std() / math.sqrt(len(lengths))
    shortest, longest = GRAMMARS[name].length_ranges[0]
    assert lengths.min() >= shortest
    assert lengths.max() <= (longest or math.inf)


@pytest.mark.parametrize("name", ["cfg3b", "cfg3b-released", "cfg3f", "cfg3g", "cfg3h", "cfg3i", "small"])
def test_trees_are_derivations(name):
    grammar = load_grammar(name)
    sentences = sample(grammar, 3, "probe", 10, 40, trees=True)
    assert sentences.ancestors.shape == sentences.span_ends.shape == (len(sentences.tokens), grammar.depth)
    for i in range(len(sentences)):
        part = slice(sentences.offsets[i], sentences.offsets[i + 1])
        check_tree(grammar, sentences.tokens[part], sentences.ancestors[part], sentences.span_ends[part])


@pytest.mark.parametrize("name", ["cfg3b", "cfg3b-released"])
def test_nltk_parses_every_sentence(name):
    grammar = load_grammar(name, start="16")
    symbols = {symbol: nltk.Nonterminal(symbol) for symbol in grammar.nonterminals}
    rules = [nltk.Production(symbols[r.left], [symbols.get(s, s) for s in r.right]) for r in grammar.rules]
    parser = nltk.ChartParser(nltk.CFG(symbols["16"], rules))
    sentences = sample(grammar, 4, "train", 0, 60, trees=True)
    for i in range(len(sentences)):
        part = slice(sentences.offsets[i], sentences.offsets[i + 1])
        tokens = [grammar.terminals[t] for t in sentences.tokens[part]]
        trees = list(itertools.islice(parser.parse(tokens), 1000))
        assert trees
        check_tree(grammar, sentences.tokens[part], sentences.ancestors[part], sentences.span_ends[part])
        if len(trees) < 1000:
            assert preterminal_spans(sentences, i, grammar) in [
                [(t.label(), len(t)) for t in tree.subtrees(lambda t: t.height() == 2)] for tree in trees
            ]
    with pytest.raises(StopIteration):
        next(parser.parse([*tokens, "1"]))


def preterminal_spans(sentences, i, grammar):
    """(symbol, tokens) of the last level, from left to right."""
    rows = slice(sentences.offsets[i], sentences.offsets[i + 1])
    ends = np.flatnonzero(sentences.span_ends[rows, -1])
    symbols = sentences.ancestors[rows, -1][ends]
    return [(grammar.nonterminals[s], int(n)) for s, n in zip(symbols, np.diff([-1, *ends]), strict=True)]


def test_fewer_levels_are_the_first_ones():
    whole = sample(GRAMMARS["cfg3f"], 0, "train", 0, 20, trees=True)
    part = sample(GRAMMARS["cfg3f"], 0, "train", 0, 20, trees=True, levels=2)
    np.testing.assert_array_equal(part.ancestors, whole.ancestors[:, :2])
    np.testing.assert_array_equal(part.span_ends, whole.span_ends[:, :2])


def test_no_sentences():
    empty = sample(GRAMMARS["small"], 0, "train", 7, 0, trees=True)
    assert len(empty) == len(empty.tokens) == len(empty.lengths) == 0
    assert empty.ancestors.shape == (0, 4)


def test_a_sentence_of_a_critical_grammar_may_be_too_long():
    """One sentence in 5,000 has more than 10 million tokens; this one has 12,170,857. It fails in every range."""
    grammar, seed, known = parse_grammar("S -> S S | a", "critical"), 2, 36015
    for first, count in ((known, 1), (known - 3, 10)):
        with pytest.raises(
            UserError, match=rf"^sentence {known} of critical \(seed 2, train\) .* {MAX_TOKENS:,} tokens"
        ):
            sample(grammar, seed, "train", first, count)
    lengths = sample(grammar, seed, "train", known - 1000, 1000).lengths
    assert lengths.max() > 10_000  # among a thousand, with a probability of 99.6%
    assert (lengths == 1).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "the seed must be between 0 and"),
        ({"seed": 2**64}, "the seed must be between 0 and"),
        ({"first": -1}, "sentences are numbered"),
        ({"count": -1}, "sentences are numbered"),
        ({"first": 2**63 - 2, "count": 2}, "sentences are numbered"),
        ({"trees": True, "grammar": GRAMMARS["recursive"]}, "the trees of recursive have no common depth"),
        ({"trees": True, "levels": 0}, "trees have at least one level"),
        (
            {"grammar": parse_grammar("S -> " + " ".join(map(str, range(257))), "alphabet")},
            "alphabet has 257 terminals",
        ),
    ],
)
def test_errors(arguments, message):
    usual = {"grammar": GRAMMARS["small"], "seed": 0, "stream": "train", "first": 0, "count": 1}
    with pytest.raises(UserError, match=message):
        sample(**(usual | arguments))


def test_last_sentence():
    last = 2**63 - 2
    sentence = sample(GRAMMARS["small"], 0, "train", last, 1)
    assert sentence.tokens.tolist() == [t for t, _ in reference_sentence(GRAMMARS["small"], 0, "train", last)]
