"""Grammars through text and back, every error with its line, and lengths and tightness against independent counts."""

import itertools
import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from common.errors import UserError
from common.pcfg.grammar import Rule
from common.pcfg.grammar_files import grammar_names, load_grammar, parse_grammar
from common.runs.names import ROOT

PUBLISHED = {"cfg3b": 31, "cfg3b-released": 32, "cfg3f": 54, "cfg3g": 48, "cfg3h": 39, "cfg3i": 32}
"""Grammars of Allen-Zhu and Li, and their numbers of rules."""


@st.composite
def layered(draw, most=5, longest=3):
    """Left side -> [(right side, weight)]: right sides go to later symbols and terminals only."""
    size = draw(st.integers(1, most))
    names = draw(st.permutations([f"A{i}" for i in range(size)]))
    sides = {}
    for i, name in enumerate(names):
        symbols = [*names[i + 1 :], "1", "2", "10"]
        right = st.lists(st.sampled_from(symbols), min_size=1, max_size=longest).map(tuple)
        rights = draw(st.lists(right, min_size=1, max_size=3, unique=True))
        of_side = [draw(st.floats(1e-3, 1e3)) for _ in rights] if draw(st.booleans()) else [None] * 3
        sides[name] = list(zip(rights, of_side, strict=False))
    return sides


def text_of(sides):
    alternative = lambda right, weight: " ".join(right) + ("" if weight is None else f" [{weight!r}]")  # noqa: E731
    return "\n".join(f"{left} -> " + " | ".join(itertools.starmap(alternative, side)) for left, side in sides.items())


def reached_from(start, sides):
    """In any order, by repeated union."""
    reached = {start}
    while True:
        more = reached | {s for left in reached & sides.keys() for right, _ in sides[left] for s in right}
        if more == reached:
            return reached
        reached = more


def probabilities(side):
    """Exact, of the alternatives of a left side."""
    exact = [Fraction(1 if weight is None else weight) for _, weight in side]
    return [weight / sum(exact) for weight in exact]


def language(rules, symbol):
    """All strings of a symbol of a grammar without recursion, with their exact probabilities."""
    sides = {left: list(group) for left, group in itertools.groupby(rules, key=lambda rule: rule.left)}
    if symbol not in sides:
        return {(symbol,): Fraction(1)}
    strings = Counter()
    for rule in sides[symbol]:
        for parts in itertools.product(*(language(rules, s).items() for s in rule.right)):
            string = tuple(token for part, _ in parts for token in part)
            strings[string] += Fraction(rule.probability) * math.prod(p for _, p in parts)
    return strings


@pytest.mark.parametrize("name", [*PUBLISHED, "small"])
def test_packaged_grammars(name):
    grammar = load_grammar(name)
    assert name in grammar_names()
    assert grammar.name == name
    assert grammar.terminals == ("1", "2", "3")
    assert [len(level) for level in grammar.levels] == [1] + [3] * (grammar.depth - 1)
    counts = Counter(rule.left for rule in grammar.rules)
    assert all(rule.probability == 1 / counts[rule.left] for rule in grammar.rules)
    if name == "small":
        assert (grammar.depth, grammar.start) == (4, "13")
        assert grammar.length_ranges[0][0] >= 10
        assert grammar.length_ranges[0][1] <= 35
    else:
        assert (grammar.depth, grammar.start) == (6, "22")
        assert len(grammar.rules) == PUBLISHED[name]
        assert all(2 <= len(rule.right) <= 3 for rule in grammar.rules)
        assert 100 < grammar.expected_length < 700


def test_rules_of_cfg3b():
    rules = {(rule.left, rule.right): rule.probability for rule in load_grammar("cfg3b").rules}
    assert rules["22", ("21", "20")] == rules["22", ("20", "19")] == 0.5
    assert rules["18", ("15", "14", "13")] == 0.5
    assert rules["9", ("3", "2", "1")] == 1
    assert ("8", ("3", "1", "2")) in rules


def test_the_released_cfg3b_has_one_rule_more():
    published, released = load_grammar("cfg3b"), load_grammar("cfg3b-released")
    assert set(published.rules) - set(released.rules) == {Rule("9", ("3", "2", "1"), 1.0)}
    assert set(released.rules) - set(published.rules) == {Rule("9", ("3", "2", "1"), 0.5), Rule("9", ("2", "1"), 0.5)}
    assert released.expected_length < published.expected_length


def test_text_form():
    text = """
    # A comment, then a weighted side over two lines
    S -> A b [3] | c c [0.5]  # and another
    S ->c[0.5]
      A -> x-y | -> # not yet
    """
    with pytest.raises(UserError, match="line 5: -> is not a symbol"):
        parse_grammar(text, "g")
    grammar = parse_grammar(text.replace("| ->", "| (é)"), "g")
    assert grammar.start == "S"
    assert grammar.rules == (
        Rule("S", ("A", "b"), 0.75),
        Rule("S", ("c", "c"), 0.125),
        Rule("S", ("c",), 0.125),
        Rule("A", ("x-y",), 0.5),
        Rule("A", ("(é)",), 0.5),
    )
    assert grammar.nonterminals == ("S", "A")
    assert grammar.terminals == tuple(sorted(["b", "c", "x-y", "(é)"]))


def test_line_ends_and_integers_in_order():
    grammar = parse_grammar("S -> 10 9 -1\r\nS -> 2 S 1 \r\n", "g")
    assert grammar.terminals == ("-1", "1", "2", "9", "10")
    assert [rule.right for rule in grammar.rules] == [("10", "9", "-1"), ("2", "S", "1")]


@given(layered(), st.data())
@settings(deadline=None)
def test_round_trip_through_text(sides, data):
    start = data.draw(st.sampled_from(list(sides)))
    lines = text_of(sides).split("\n")
    shuffled = data.draw(st.permutations(lines))
    spaced = [line.replace(" ", data.draw(st.sampled_from([" ", "  ", "\t"]))) + "  # text" for line in shuffled]
    grammar = parse_grammar("\n\n".join(spaced), "g", start)
    reached = reached_from(start, sides)
    expected = {
        (left, right): probability
        for left in sides.keys() & reached
        for (right, _), probability in zip(sides[left], probabilities(sides[left]), strict=True)
    }
    assert grammar.start == start == grammar.nonterminals[0]
    assert {(rule.left, rule.right) for rule in grammar.rules} == expected.keys()
    assert len(grammar.rules) == len(expected)
    for rule in grammar.rules:
        assert rule.probability == pytest.approx(float(expected[rule.left, rule.right]), rel=1e-12)
    order = [left for line in shuffled if (left := line.split()[0]) in reached and left != start]
    assert grammar.nonterminals == (start, *order)
    assert [left for left, _ in itertools.groupby(rule.left for rule in grammar.rules)] == [start, *order]
    used = {symbol for side in sides.values() for right, _ in side for symbol in right} - sides.keys()
    assert grammar.terminals == tuple(sorted(used, key=int))


@given(layered(), st.data())
@settings(deadline=None)
def test_compiled_arrays_hold_the_same_rules(sides, data):
    grammar = parse_grammar(text_of(sides), "g", data.draw(st.sampled_from(list(sides))))
    compiled = grammar.compiled()
    assert grammar.compiled() is compiled
    assert (compiled.nonterminals, compiled.terminals) == (len(grammar.nonterminals), len(grammar.terminals))
    names = grammar.nonterminals + grammar.terminals
    rebuilt = []
    for n, left in enumerate(grammar.nonterminals):
        total = 0
        for r in range(compiled.first_rule[n], compiled.first_rule[n + 1]):
            row, length = compiled.right[r], compiled.right_length[r]
            assert (row[length:] == -1).all()
            rebuilt.append(Rule(left, tuple(names[s] for s in row[:length]), compiled.probability[r]))
            total += compiled.probability[r]
            assert compiled.cumulative[r] == pytest.approx(total, rel=1e-12)
        assert compiled.cumulative[compiled.first_rule[n + 1] - 1] == 1
    assert tuple(rebuilt) == grammar.rules
    assert compiled.first_rule[-1] == len(grammar.rules)
    assert compiled.right.dtype == compiled.right_length.dtype == compiled.first_rule.dtype == np.int32


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("S -> a\nS a", 2, "'S a' is not a rule"),
        ("S T -> a", 1, "'S T -> a' is not a rule"),
        ("\n-> a", 2, "'-> a' is not a rule"),
        ("S -> a -> b", 1, "-> is not a symbol"),
        ("S -> a b->c", 1, "b->c is not a symbol"),
        ("S[1] -> a", 1, r"S\[1\] is not a symbol"),
        ("S -> [0.5] a", 1, r"\[0.5\] is not a symbol"),
        ("S -> a\nS -> a 0.5 | b", 2, r"0.5 is not a symbol: write a weight in brackets, \[0.5\]"),
        ("S -> .25", 1, ".25 is not a symbol"),
        ("S -> a\nS -> b |", 2, "an alternative of S is empty"),
        ("S -> | b", 1, "an alternative of S is empty"),
        ("S ->", 1, "an alternative of S is empty"),
        ("S -> [1]", 1, "an alternative of S is empty"),
        ("S -> a # b\nS -> # b", 2, "an alternative of S is empty"),
        ("S -> a [0]", 1, r"the weight \[0\] is not a positive finite number"),
        ("S -> a [1] |\nS -> b [-1]", 1, "an alternative of S is empty"),
        ("S -> a [1]\nS -> b [-1]", 2, r"the weight \[-1\]"),
        ("S -> a [inf] | b [1]", 1, r"the weight \[inf\]"),
        ("S -> a [nan]", 1, r"the weight \[nan\]"),
        ("S -> a [half]", 1, r"the weight \[half\]"),
        ("S -> a []", 1, r"the weight \[\]"),
        ("S -> a [1e-300] | b [1e300]", 1, "the weights of S are too far apart"),
        ("S -> a [1]\nS -> b", 2, r"give all alternatives of S a weight, or none \(the first is in f.cfg, line 1\)"),
        ("S -> a\nS -> b [1]", 2, "give all alternatives of S a weight, or none"),
        ("S -> a\n\nS -> b | a", 3, r"S -> a is repeated \(first in f.cfg, line 1\)"),
        ("S -> a [1] | a [2]", 1, "S -> a is repeated"),
        ("S -> a\nT -> S", 2, "T cannot be reached from the start, S"),
        ("S -> a\nT -> U\nU -> T b | b", 2, "T cannot be reached"),
        ("S -> T a\nT -> T b", 2, "T derives no finite sentence"),
        ("S -> S a", 1, "S derives no finite sentence"),
        ("S -> a | T b\nT -> U b\nU -> T b", 2, "T derives no finite sentence"),
        (
            "S -> a | T\nT -> S S S S S | b",
            1,
            "derivations from S may never end .* number of S and T grows 1.118033989 ",
        ),
        ("S -> a | T\nT -> T T [51] | b [49]", 2, "derivations from T may never end .* number of T grows 1.02 "),
        ("S -> a S a | S", 1, "the rules S -> S lead back to S"),
    ],
)
def test_errors_name_the_line(text, line, message):
    with pytest.raises(UserError, match=f"^f.cfg, line {line}: {message}"):
        parse_grammar(text, "f.cfg")


def test_a_text_without_rules():
    with pytest.raises(UserError, match=r"^f.cfg has no rules"):
        parse_grammar("# nothing\n\n", "f.cfg")


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_cycle_of_unit_rules_is_named(length, random):
    names = [f"N{i}" for i in range(length)]
    lines = [f"{a} -> {b} | {a}x {a}y | x" for a, b in zip(names, [*names[1:], names[0]], strict=True)]
    random.shuffle(lines)
    with pytest.raises(UserError, match="lead back") as caught:
        parse_grammar("S -> N0 | y\n" + "\n".join(lines), "f.cfg")
    message = str(caught.value)
    cycle = message.split("the rules ")[1].split(" lead back")[0].split(" -> ")
    assert len(cycle) == length + 1
    assert cycle[0] == cycle[-1]
    assert all(b == f"N{(int(a[1:]) + 1) % length}" for a, b in itertools.pairwise(cycle))
    line = 2 + next(i for i, text in enumerate(lines) if text.startswith(f"{cycle[0]} "))
    assert message.startswith(f"f.cfg, line {line}: ")


def test_long_unit_chains_without_a_cycle():
    text = "\n".join(f"A{i} -> A{i + 1}" for i in range(1100)) + "\nA1100 -> a"
    grammar = parse_grammar(text, "g")
    assert grammar.depth == 1101
    assert grammar.length_ranges[0] == (1, 1)


@given(st.floats(0.01, 0.99))
def test_tight_exactly_if_at_most_one_half_branches(p):
    """S -> S S with probability p ends surely iff p <= 1/2, and then has (1 - p) / (1 - 2 p) tokens on average."""
    assume(p <= 0.5 or p > 0.5 + 1e-6)
    text = f"S -> S S [{p!r}] | a [{1 - p!r}]"
    if p > 0.5:
        with pytest.raises(UserError, match="line 1: derivations from S may never end"):
            parse_grammar(text, "f.cfg")
    else:
        grammar = parse_grammar(text, "f.cfg")
        if p < 0.5 - 1e-6:
            assert grammar.expected_length == pytest.approx((1 - p) / (1 - 2 * p), rel=1e-6)
        assert grammar.length_ranges == ((1, None),)
        assert grammar.depth is None


@pytest.mark.parametrize(
    "text",
    [
        "S -> S S | a",
        "S -> T T | a\nT -> S",
        "S -> a T\nT -> U | a\nU -> U V [0.5] | b [0.5]\nV -> U | c c c",
        "S -> S S S [1] | a [2]",
        "S -> T b\nT -> S S [1] | a [1]",
    ],
)
def test_critical_grammars_are_tight_with_infinite_expected_length(text):
    assert parse_grammar(text.replace("U V [0.5] | b [0.5]", "U V [2] | b [1]"), "g").expected_length == math.inf


def test_expected_length_of_a_right_linear_grammar():
    assert parse_grammar("S -> a S [0.999] | b [0.001]", "g").expected_length == pytest.approx(1000)


@given(st.data())
@settings(deadline=None)
def test_tightness_against_the_least_fixed_point(data):
    """The probability of a finite derivation is the limit of q <- P(q) from 0: compared where it converges fast."""
    names = ["A", "B", "C"]
    right = st.lists(st.sampled_from([*names, "x"]), min_size=2, max_size=3).map(tuple)
    sides = {}
    for name in names:
        rights = [("x",), *data.draw(st.lists(right, min_size=1, max_size=3, unique=True))]
        sides[name] = [(r, data.draw(st.integers(1, 5))) for r in rights]
    assume(reached_from("A", sides) >= set(names))
    weights = {name: [float(p) for p in probabilities(side)] for name, side in sides.items()}
    expectations = np.array(
        [[sum(p * r.count(b) for (r, _), p in zip(sides[a], weights[a], strict=True)) for b in names] for a in names]
    )
    assume(abs(np.abs(np.linalg.eigvals(expectations)).max() - 1) > 0.02)
    q = dict.fromkeys([*names], 0.0) | {"x": 1.0}
    for _ in range(3000):
        q |= {
            name: sum(p * math.prod(q[s] for s in r) for (r, _), p in zip(sides[name], weights[name], strict=True))
            for name in names
        }
    if min(q.values()) < 1 - 1e-6:
        with pytest.raises(UserError, match="may never end"):
            parse_grammar(text_of(sides), "g")
    else:
        parse_grammar(text_of(sides), "g")


@given(layered(most=3, longest=2))
@settings(deadline=None)
def test_lengths_against_enumeration(sides):
    grammar = parse_grammar(text_of(sides), "g", next(iter(sides)))
    strings = language(grammar.rules, grammar.start)
    assert grammar.expected_length == pytest.approx(float(sum(p * len(s) for s, p in strings.items())), rel=1e-9)
    for symbol, ranges in zip(grammar.nonterminals, grammar.length_ranges, strict=True):
        lengths = {len(string) for string in language(grammar.rules, symbol)}
        assert ranges == (min(lengths), max(lengths))


def test_length_ranges_with_recursion():
    grammar = parse_grammar("S -> A A A | B B c\nA -> a A | b B\nB -> c | d d", "g")
    assert dict(zip(grammar.nonterminals, grammar.length_ranges, strict=True)) == {
        "S": (3, None),
        "A": (2, None),
        "B": (1, 2),
    }


@pytest.mark.parametrize(
    ("text", "depth", "levels"),
    [
        ("S -> a | b b", 1, ((0,),)),
        ("S -> A A | B\nA -> a\nB -> b", 2, ((0,), (1, 2))),
        ("S -> A B\nB -> c\nA -> C\nC -> a", None, None),
        ("S -> A b\nA -> a", None, None),
        ("S -> A\nA -> a | B c\nB -> b", None, None),
        ("S -> a S | a", None, None),
    ],
)
def test_depth_and_levels(text, depth, levels):
    grammar = parse_grammar(text, "g")
    assert grammar.depth == depth
    if levels is None:
        with pytest.raises(UserError, match="terminals at different depths"):
            _ = grammar.levels
    else:
        assert grammar.levels == levels


def test_with_start_keeps_what_is_reached_and_the_token_ids():
    grammar = load_grammar("cfg3b")
    part = grammar.with_start("19")
    assert part == load_grammar("cfg3b", start="19")
    assert part.start == part.nonterminals[0] == "19"
    assert part.depth == 5
    assert set(part.nonterminals) == set(map(str, range(7, 19))) | {"19"}
    assert set(part.rules) == {rule for rule in grammar.rules if rule.left in part.nonterminals}
    small = parse_grammar("S -> A b\nA -> c", "g")
    assert small.with_start("A").terminals == small.terminals == ("b", "c")
    compiled = small.with_start("A").compiled()
    assert compiled.right.tolist() == [[2]]  # the nonterminal is 0, and c is token 1
    assert small.with_start("S") == small
    for start in ("b", "X"):
        with pytest.raises(UserError, match=f"^{start} has no rules in g: .* one of S and A$"):
            small.with_start(start)
        with pytest.raises(UserError, match=f"^{start} has no rules in g"):
            parse_grammar("S -> A b\nA -> c", "g", start)


def test_start_need_not_be_first():
    grammar = parse_grammar("A -> a\nT -> b\nS -> A A | T", "g", "S")
    assert grammar.nonterminals == ("S", "A", "T")
    with pytest.raises(UserError, match="line 1: A derives no"):
        parse_grammar("A -> A a\nS -> b", "g", "S")


def json_of(grammar):
    """In the form of Allen-Zhu and Li: indices within the next level, terminals last."""
    levels = [[grammar.nonterminals[i] for i in level] for level in grammar.levels] + [list(grammar.terminals)]
    nodes = []
    for level, symbols in enumerate(levels):
        nodes.append([])
        for symbol in symbols:
            children = [[levels[level + 1].index(s) for s in r.right] for r in grammar.rules if r.left == symbol]
            nodes[-1].append({"depth": level, "id": int(symbol), "name": "?", "children": children or None})
    idx = [[int(symbol) for symbol in symbols] for symbols in levels]
    sizes = [len(symbols) for symbols in levels]
    return {"depth": grammar.depth, "num_sym": 3, "sizes": sizes, "idx": idx, "ptb": None, "all": nodes}


@pytest.mark.parametrize("name", PUBLISHED)
def test_json_of_allen_zhu_and_li(name, tmp_path):
    path = tmp_path / f"{name}.json"
    expected = load_grammar(name)
    path.write_text(json.dumps(json_of(expected)))
    grammar = load_grammar(str(path))
    assert grammar.rules == expected.rules
    assert (grammar.name, grammar.start, grammar.terminals) == (str(path), expected.start, expected.terminals)
    assert load_grammar(str(path), "18").rules == expected.with_start("18").rules


def test_json_counts_alternatives_and_leaves_out_unreached_symbols(tmp_path):
    path = tmp_path / "g.json"
    content = json_of(load_grammar("small"))
    content["all"][0][0]["children"] = [[0, 0], [0, 1], [0, 0]]
    path.write_text(json.dumps(content))
    grammar = load_grammar(str(path))
    assert grammar.rules[:2] == (Rule("13", ("12", "12"), 2 / 3), Rule("13", ("12", "11"), 1 / 3))
    assert "10" not in grammar.nonterminals


@pytest.mark.parametrize("setting", [{"multi_vocab": "disjoint"}, {"content_depth": 3}, {"rand_flip": [0.5]}])
def test_json_with_other_tokens_is_refused(setting, tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(json_of(load_grammar("small")) | setting))
    with pytest.raises(UserError, match=f"g.json has {next(iter(setting))}"):
        load_grammar(str(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("idx"),
        lambda content: content.pop("all"),
        lambda content: content.update(idx=[[1]]),
        lambda content: content["all"][1].pop(),
        lambda content: content["all"][0][0]["children"].append([7]),
        lambda content: content["all"][0][0]["children"].append([]),
        lambda content: content["all"][0][0].update(children=[]),
        lambda content: content["all"][0][0].update(children=None),
        lambda content: content["idx"][0].__setitem__(0, "S"),
    ],
)
def test_damaged_json(change, tmp_path):
    path = tmp_path / "g.json"
    content = json_of(load_grammar("small"))
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"g.json is not a grammar of Allen-Zhu and Li"):
        load_grammar(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "S -> a"])
def test_json_that_is_something_else(text, tmp_path):
    path = tmp_path / "g.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"g.json is not a grammar of Allen-Zhu and Li"):
        load_grammar(str(path))


def test_files(tmp_path):
    path = tmp_path / "mine.cfg"
    path.write_text("\ufeffS -> a S\nS -> b é", "utf-8")
    grammar = load_grammar(str(path))
    assert (grammar.name, grammar.start, grammar.terminals) == (str(path), "S", ("a", "b", "é"))
    path.write_text("S -> a\nS")
    with pytest.raises(UserError, match=r"mine.cfg, line 2: "):
        load_grammar(str(path))
    path.write_bytes(b"S -> \xff")
    with pytest.raises(UserError, match=r"cannot read the grammar .*mine.cfg"):
        load_grammar(str(path))
    for missing in ("cfg3z", str(tmp_path)):
        with pytest.raises(UserError, match=f"{missing} is neither a grammar file nor one of cfg3b, cfg3b-released,"):
            load_grammar(missing)


@pytest.mark.parametrize("setting", ["PCFG_mlm", "PCFG_autoregressive"])
def test_the_grammar_in_the_readme_is_one(setting):
    readme = (ROOT / setting / "README.md").read_text()
    example = readme[readme.index("    # What follows") : readme.index("A number in brackets")]
    grammar = parse_grammar(example, "mine.cfg")
    assert (grammar.start, set(grammar.terminals)) == ("S", set("xyzw"))
    assert [rule.probability for rule in grammar.rules if rule.left == "A"] == pytest.approx([0.7, 0.3])
