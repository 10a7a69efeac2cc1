"""Which coordinates neurons hold: hand-made networks, a plain computation, and what cannot be measured."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from common.errors import UserError
from common.parity.mlp import initial_tensors
from common.probes.neurons import FACTOR, held, probe_neurons


def test_a_neuron_holds_coordinates_with_equal_weights_and_no_others():
    weights = np.full((3, 100), 0.01)
    weights[0, [2, 5, 7]] = -1.0
    weights[1, [2]] = 3.0
    found = held(weights)
    assert [np.flatnonzero(row).tolist() for row in found] == [[2, 5, 7], [2], []]


def test_no_neuron_of_a_new_network_holds_anything():
    weights = initial_tensors(100, 5000, 2, 1, 0, "float32")["hidden.0.weight"]
    assert not held(weights).any()


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 4))
def test_against_a_plain_computation(seed, neurons, k):
    generator = np.random.Generator(np.random.Philox(seed))
    weights = generator.standard_t(1.5, (neurons, 40))
    output = generator.standard_normal((2, neurons))
    support = generator.choice(40, k, replace=False).tolist()
    inside = others = whole = 0
    part = total = 0.0
    for row, (first, second) in zip(weights, output.T, strict=True):
        limit = FACTOR * np.sqrt(sum(value**2 for value in row) / 40)
        holds = {i for i in range(40) if abs(row[i]) > limit}
        inside += len(holds & {*support})
        others += len(holds - {*support})
        importance = abs(first - second) * np.sqrt(sum(value**2 for value in row))
        total += importance
        if holds >= {*support}:
            whole += 1
            part += importance
    found = probe_neurons(weights, output, support)
    assert found.support == pytest.approx(inside / (neurons * k))
    assert found.others == pytest.approx(others / (neurons * (40 - k)))
    assert found.whole_support == pytest.approx(whole / neurons)
    assert found.share == pytest.approx(part / total)


def test_a_network_without_output_has_no_share():
    assert probe_neurons(np.eye(3, 40), np.zeros((2, 3)), [0]).share == 0


def test_a_support_that_no_neuron_could_hold_is_refused():
    with pytest.raises(UserError, match="a neuron can hold at most 2 of 24 coordinates at once, not 3"):
        probe_neurons(np.ones((3, 24)), np.ones((2, 3)), [0, 1, 2])
