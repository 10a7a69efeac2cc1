"""Grammar files of both formats: whatever is in them, they are refused in one line, or sentences can be drawn."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from common.errors import UserError
from common.pcfg.grammar_files import load_grammar, parse_grammar
from common.pcfg.sampler import sample
from tests.hostile.contract import attempt, cases, within_limits
from tests.hostile.damage import damaged, json_files

TEXT = "S -> A B [0.7] | c [0.3]\nA -> a | B a\nB -> b # end\n"
PUBLISHED = {
    "idx": [[3], [1, 2], [4, 5]],
    "all": [
        [{"children": [[0, 1], [1, 0]]}],
        [{"children": [[0, 1]]}, {"children": [[1], [0, 0, 1]]}],
    ],
    "content_depth": False,
}
PIECES = [*"SABabc", "->", "|", "[", "]", "#", "\n", " ", "0.5", "1e400", "nan", "-1", "1e-320", "\0", "\x85", "\ufeff"]

texts = st.one_of(
    st.lists(st.sampled_from([*PIECES, "é", "x" * 101]), max_size=40).map(" ".join),
    st.lists(st.sampled_from([" S -> A", " | b", "\nA -> a", "\n", " [0.5]", " S", " A"]), max_size=20).map("".join),
    st.text(max_size=50),
)

SIZES = st.sampled_from((1, 2, 10, 60, 300, 1000, 5000))
SHAPES = {
    "deep": lambda n: "".join(f"A{i} -> A{i + 1} x\n" for i in range(n)) + f"A{n} -> x",
    "deep, from below": lambda n: (
        f"A{n} -> A{n - 1}\n" + "".join(f"A{i} -> A{i - 1} x\n" for i in range(1, n)) + "A0 -> x"
    ),
    "doubling": lambda n: "".join(f"A{i} -> A{i + 1} A{i + 1}\n" for i in range(n)) + f"A{n} -> x",
    "perhaps doubling": lambda n: "".join(f"A{i} -> A{i + 1} A{i + 1} | x\n" for i in range(n)) + f"A{n} -> x",
    "ring": lambda n: "".join(f"A{i} -> A{(i + 1) % n} x | x\n" for i in range(n)),
    "unit ring": lambda n: "".join(f"A{i} -> A{(i + 1) % n}\n" for i in range(n)),
    "long": lambda n: "S -> " + "a b " * 20 * n,
    "many alternatives": lambda n: "S -> " + " | ".join(f"a {'b ' * (i % 20)}c{i}" for i in range(n)),
    "many outcomes": lambda n: f"S -> {'A ' * n}\nA -> " + " | ".join(f"a{i}" for i in range(min(n, 250))),
    "far apart": lambda n: f"S -> a [1e{n}] | b [1e-{n}]",
    "nearly critical": lambda n: f"S -> S S [{0.5 - 10.0 ** -min(n, 16)!r}] | a [{0.5 + 10.0 ** -min(n, 16)!r}]",
    "growing": lambda n: f"S -> {'S ' * n} | a",
}


def use(grammar):
    """Draw sentences of a grammar that was accepted."""
    probabilities = {}
    for rule in grammar.rules:
        probabilities.setdefault(rule.left, []).append(rule.probability)
    assert all(min(side) > 0 and math.isclose(math.fsum(side), 1) for side in probabilities.values())
    assert grammar.expected_length > 0
    shortest, longest = grammar.length_ranges[0]
    sentences = attempt(sample, grammar, 0, "train", 0, 3, names=grammar.name)
    if sentences is not None:
        assert np.all(sentences.lengths >= shortest)
        assert longest is None or np.all(sentences.lengths <= longest)


@given(texts | damaged(TEXT.encode()).map(lambda content: content.decode(errors="replace")))
@cases(300)
def test_text(text):
    if (grammar := attempt(parse_grammar, text, "mine", names="mine")) is not None:
        use(grammar)


@given(st.sampled_from(list(SHAPES)), SIZES)
@cases(60)
def test_large_and_odd_shapes(shape, size):
    if (grammar := attempt(parse_grammar, SHAPES[shape](size), "mine", names="mine")) is not None:
        use(grammar)


def use_file(path, content):
    """A grammar from a file with this content, if it is one."""
    path.write_bytes(content)
    if (grammar := attempt(load_grammar, str(path), names=path.name)) is not None:
        use(grammar)


@given(json_files(PUBLISHED))
@cases(300)
def test_json(tmp_path_factory, content):
    use_file(tmp_path_factory.getbasetemp() / "mine.json", content)


@given(st.binary(max_size=200) | damaged(TEXT.encode()))
@cases(100)
def test_bytes(tmp_path_factory, content):
    use_file(tmp_path_factory.getbasetemp() / "mine.cfg", content)


# What was found


@pytest.mark.parametrize("shape", ["deep", "deep, from below", "ring"])
def test_a_grammar_of_thousands_of_symbols_takes_a_moment(shape):
    with within_limits():
        grammar = attempt(parse_grammar, SHAPES[shape](10_000), "mine", names="mine")
    if shape != "ring":
        assert grammar.expected_length == 10_001 - (shape != "deep")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHAPES["doubling"](60), "^mine, line 1: sentences from A0 may have more than 10,000,000 tokens"),
        (SHAPES["perhaps doubling"](60), "^mine, line 1: sentences from A0 may have more than 10,000,000 tokens"),
        (SHAPES["doubling"](5000), "^mine, line 1: sentences from A0 may have more than 10,000,000 tokens"),
        ("S -> S S [0.499999995] | a [0.500000005]", "^mine, line 1: sentences from S may have more than 10,000,000"),
        (SHAPES["ring"](501), "^mine has 501 nonterminals that lead to each other: 500 may$"),
        ("S -> " + " | ".join(f"a{i}" for i in range(3000)) + " | " + "b " * 10_000, "^mine is too large"),
        ("S -> a\0b", r"^mine, line 1: 'a\\x00b' is not a symbol"),
        (f"S -> {'x' * 101}", "^mine, line 1: the symbol x{100}... has more than 100 characters$"),
        (SHAPES["unit ring"](1000), "^mine, line 1: the rules A0 -> A1 .{,60} -> A999 -> A0 lead back"),
    ],
)
def test_what_a_grammar_must_not_be(text, message):
    with pytest.raises(UserError, match=message):
        parse_grammar(text, "mine")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "mine.cfg"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match=r"mine.cfg is no grammar: it has more than 16,777,216 bytes"):
        load_grammar(str(path))


@pytest.mark.parametrize(
    ("child", "message"),
    [(-1, "child -1 of 2"), (True, "True is not a whole number"), (2, "child 2 of 2"), (1e400, "infinity")],
)
def test_children_in_json_are_indices(tmp_path, child, message):
    content = json.loads(json.dumps(PUBLISHED))
    content["all"][0][0]["children"][0][0] = child
    (tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"mine.json is not a grammar of Allen-Zhu and Li .*{message}"):
        load_grammar(str(tmp_path / "mine.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "RecursionError"),
        (json.dumps(PUBLISHED | {"idx": [[3], [1, 1], [4, 5]]}), "symbol 1 is there twice"),
    ],
)
def test_json_that_means_nothing(tmp_path, text, message):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=f"mine.json is not a grammar of Allen-Zhu and Li .*{message}"):
        load_grammar(str(tmp_path / "mine.json"))
