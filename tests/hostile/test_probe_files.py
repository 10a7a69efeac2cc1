"""Files of probes as they must not be: completed, or refused by name and left as they are."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from common.errors import UserError
from parity_mlp import probe
from tests.hostile.contract import attempt, cases
from tests.hostile.damage import json_files
from tests.parity import MLP


@pytest.fixture(scope="module")
def teacher(teacher_of):
    return teacher_of(MLP)


@pytest.fixture(scope="module")
def probed(teacher, tmp_path_factory):
    """A probe's arguments, and the file that it wrote."""
    path = tmp_path_factory.mktemp("probed") / "mine.json"
    arguments = probe.ProbeArguments(run=teacher, samples=64, degrees=(1,), outside=2, out=path)
    probe.probe(arguments)
    return arguments, path.read_bytes()


@given(st.data())
@cases(200)
def test_files(probed, data):
    arguments, whole = probed
    content = data.draw(json_files(json.loads(whole)))
    arguments.out.write_bytes(content)
    attempt(probe.probe, arguments, names=arguments.out.name)
    if arguments.out.read_bytes() != content:
        found, expected = json.loads(arguments.out.read_bytes()), json.loads(whole)
        assert {entry["step"] for entry in expected["checkpoints"]} <= {entry["step"] for entry in found["checkpoints"]}


@pytest.mark.parametrize("checkpoints", [None, {}, [1], [{}], [{"step": "100"}], [{"step": True}]])
def test_what_a_file_must_be(probed, checkpoints):
    arguments, whole = probed
    arguments.out.write_text(json.dumps(json.loads(whole) | {"checkpoints": checkpoints}))
    with pytest.raises(UserError, match=r"mine\.json is truncated or damaged: remove it, and probe again$"):
        probe.probe(arguments)


def test_a_probe_that_does_not_fit_into_memory_is_refused(probed):
    with pytest.raises(UserError, match=r"of memory .*--samples 1000000000000000 "):
        probe.probe(replace(probed[0], samples=10**15))


def test_a_probe_of_a_run_with_a_long_name_is_refused_in_a_short_line(probed):
    arguments, whole = probed
    arguments.out.write_text(json.dumps(json.loads(whole) | {"run": "x" * 10_000}))
    with pytest.raises(UserError, match=r"mine\.json holds a probe of another run \(x{200}\): give another --out$"):
        probe.probe(arguments)
