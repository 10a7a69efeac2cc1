"""Numbers that are refused by name, one by one or in tuples, and the number of threads."""

import math
import os
from types import SimpleNamespace
from typing import Literal

import pytest
from hypothesis import given, settings, strategies as st

from common.arguments import is_of_type, require_at_least, require_seed, worker_threads
from common.errors import UserError


@settings(deadline=None)
@given(st.integers(-5, 5), st.integers(-5, 5) | st.lists(st.integers(-5, 5), min_size=1).map(tuple))
def test_every_number_must_be_large_enough(least, value):
    arguments = SimpleNamespace(batch_size=value)
    numbers = value if isinstance(value, tuple) else (value,)
    small = [number for number in numbers if number < least]
    if small:
        with pytest.raises(UserError, match=f"^--batch-size must be at least {least}, got {small[0]}$"):
            require_at_least(least, arguments, "batch_size")
    else:
        require_at_least(least, arguments, "batch_size")


def test_every_name_is_looked_at_and_no_other():
    arguments = SimpleNamespace(steps=1, eval_every=0, lr=-1)
    require_at_least(1, arguments, "steps")
    with pytest.raises(UserError, match="--eval-every must be at least 1, got 0"):
        require_at_least(1, arguments, "steps", "eval_every")


def test_a_number_that_is_none_is_not_large_enough():
    with pytest.raises(UserError, match="--lr must be at least 0, got nan"):
        require_at_least(0, SimpleNamespace(lr=math.nan), "lr")


@pytest.mark.parametrize("seed", [0, 2**63 - 1, (0,), (3, 2**63 - 1)])
def test_seeds_fit_into_63_bits(seed):
    require_seed(SimpleNamespace(stream_seed=seed), "stream_seed")


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "--stream-seed must be at least 0, got -1"),
        ((0, -2), "--stream-seed must be at least 0, got -2"),
        (2**63, r"--stream-seed must be below 2\^63"),
        ((0, 2**63), r"--stream-seed must be below 2\^63"),
    ],
)
def test_other_seeds_are_refused(seed, message):
    with pytest.raises(UserError, match=message):
        require_seed(SimpleNamespace(seed=0, stream_seed=seed), "seed", "stream_seed")


def test_threads_are_what_omp_num_threads_says_or_the_processors_allowed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    assert worker_threads() == 12
    for wrong in ("", "0", "-1", "two", "1.5"):
        monkeypatch.setenv("OMP_NUM_THREADS", wrong)
        with pytest.raises(UserError, match="OMP_NUM_THREADS"):
            worker_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5, 7}, raising=False)
    assert worker_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert worker_threads() == 1


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (3, int, True),
        (True, int, False),
        (3, float, True),
        ("3", float, False),
        (1, bool, False),
        (None, str | None, True),
        (3, str | None, False),
        (["a", "b"], tuple[str, ...], True),
        (["a", 1], tuple[str, ...], False),
        ("a", tuple[str, ...], False),
        (1, Literal[1, 2, "all"], True),
        ("all", Literal[1, 2, "all"], True),
        (True, Literal[1, 2, "all"], False),
        ("1", Literal[1, 2, "all"], False),
    ],
)
def test_json_values_that_an_argument_can_have(value, hint, fits):
    assert is_of_type(value, hint) == fits


def test_no_number_at_all_is_refused():
    with pytest.raises(UserError, match=r"^--sizes is empty: give at least one number$"):
        require_at_least(2, SimpleNamespace(sizes=()), "sizes")
