"""Default names of runs: what differs from the preset, never the same for two runs."""

import itertools
import os
from dataclasses import dataclass, fields, make_dataclass

import pytest
from hypothesis import given, strategies as st

from common.runs.names import default_name


@dataclass(frozen=True)
class Arguments:
    lr: float = 0.1
    seed: int = 0
    batch_size: int = 1
    d: object = 100
    d1: object = None
    methods: object = ("progressive",)
    note: object = ""
    out: str | None = None


def test_a_name_has_what_differs_from_the_preset():
    assert default_name(Arguments(out="x"), Arguments(), "laptop") == "laptop"
    assert default_name(Arguments(lr=0.01, seed=1), Arguments(), "laptop") == "laptop-lr0.01-seed1"
    named = default_name(Arguments(lr=1e-20, methods=("ce", "one-shot"), d1=3), Arguments(), "laptop", ("out", "d1"))
    assert named == "laptop-lr1e-20-methods=ce,one_shot"
    with pytest.raises(TypeError):
        default_name(Arguments(note={}), Arguments(), "laptop")


WORDS = [
    None,
    True,
    False,
    0,
    1,
    -1,
    12,
    2,
    100,
    0.0,
    -0.0,
    1.0,
    1e-20,
    1e16,
    float("inf"),
    float("-inf"),
    float("nan"),
]
STRINGS = ["", "1", "1e", "-1", "none", "None", "inf", "a-b", "a_b", "a/b", "a+b", "a,b", "a,", ",", "a", "A", "%", "é"]
TRICKY = [*WORDS, *STRINGS, "x-d12", "x-note=a", "=", "..", (), (1,), (1, 2), (1, -2), ("",), ("a", "b"), ("a,b",)]


def test_no_two_of_many_tricky_arguments_share_a_name_in_any_case():
    names = {
        default_name(Arguments(d=d, d1=d1, note=note), Arguments(), "laptop").casefold()
        for d, d1, note in itertools.product(TRICKY, repeat=3)
    }
    assert len(names) == len(TRICKY) ** 3
    assert not any(set(name) & set("/\\\0 '\"$*?&|;<>") for name in names)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text("ad1-=,%_/A.", max_size=5) | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=3).map(tuple)
EXPERIMENT = make_dataclass("EXPERIMENT", [(name, object, None) for name in ("d", "d1", "d_1", "a", "ad", "inf", "e")])
EXPERIMENTS = st.builds(EXPERIMENT, *[st.none() | VALUES for _ in fields(EXPERIMENT)])


@given(EXPERIMENTS, EXPERIMENTS)
def test_different_arguments_have_different_names_of_at_most_200_bytes(one, other):
    names = [default_name(arguments, EXPERIMENT(), "laptop") for arguments in (one, other)]
    assert (names[0] == names[1]) == (repr(one) == repr(other))
    assert all(len(os.fsencode(name)) <= 200 for name in names)


def test_long_names_that_differ_at_the_end_only_stay_different():
    names = [default_name(Arguments(note="x" * 300 + end), Arguments(), "laptop") for end in "ab"]
    assert names[0] != names[1]
    assert [len(name) for name in names] == [200, 200]
