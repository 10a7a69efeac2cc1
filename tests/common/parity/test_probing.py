"""The probe of both settings: correlations as means over samples, resumed, stopped, and wrongly called."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch

from common.parity import gpt2, mlp, probing
from common.probes import checkpoints
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from common.runs.files import shared_lock
from common.runs.run import open_run
from parity_mlp.data import signs
from tests.commands import Killed, and_signal, cut, fail_in_one_line, files
from tests.files import make_read_only
from tests.gpt2 import last_logits
from tests.parity import CASES

PROBE = shlex.split("probe --samples 400 --outside 4 --degrees 1 2 3 4 --run")


@pytest.fixture
def probed(teacher, tmp_path, monkeypatch):
    """A copy of the teacher, and the list of calls that probe it."""
    calls = []
    real = probing.probe_monomials
    monkeypatch.setattr(probing, "probe_monomials", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    return shutil.copytree(teacher, tmp_path / "run"), calls


def entries(run):
    (path,) = (run / "probes").glob("*.json")
    return json.loads(path.read_text())["checkpoints"]


def probabilities(case, checkpoint, bits):
    """Of each class, by the full model in float64."""
    if case.name == "parity_gpt2":
        return last_logits(gpt2.load_model(checkpoint), bits, case.d).softmax(1).numpy()
    with torch.no_grad():
        return mlp.load_model(checkpoint).double()(torch.from_numpy(signs(bits, case.d, np.float64))).softmax(1).numpy()


VARIANT = "--class-token --no-causal --feed-forward skip --average-heads --tie-embeddings"


@pytest.mark.parametrize("by", CASES)
@pytest.mark.parametrize(("output", "words"), [(0, ""), (1, ""), (1, VARIANT)])
def test_probed_correlations_are_means_over_the_samples(case, tmp_path, capsys, probed, output, words, by):
    """Whichever setting's command it is."""
    run, _ = probed
    if words and case.name == "parity_mlp":
        words = "--layers 2"
    if words:
        run = tmp_path / "variant"
        case.succeed(capsys, *case.train, *words.split(), "--out", run)
    stdout = CASES[by].succeed(capsys, *PROBE, run, "--output", output, "--seed", 4)
    (path,) = (run / "probes").iterdir()
    assert stdout == f"{path}\n"
    assert [entry["step"] for entry in entries(run)] == [units * case.unit for units in (10, 20, 30)]
    bits = case.task.sample(4, "probe", 0, 400)
    x = signs(bits, case.d)
    probability = probabilities(case, run / f"checkpoint-{20 * case.unit}", bits)[:, output]
    centred = probability - probability.mean()
    entry = entries(run)[1]
    assert entry["support"] == list(range(case.k))
    assert [degree["degree"] for degree in entry["degrees"]] == [1, 2, 3, 4]
    for degree in entry["degrees"]:
        assert len(degree["outside"]) == 4
        for side in ("inside", "outside"):
            expected = [abs(np.mean(x[:, subset].prod(axis=1) * centred)) for subset in degree[f"{side}_subsets"]]
            np.testing.assert_allclose(degree[side], expected, atol=1e-6)


def test_only_checkpoints_that_are_new_are_probed(case, probed, capsys):
    run, calls = probed
    case.succeed(capsys, *PROBE, run)
    first = files(run)
    assert len(calls) == 3
    case.succeed(capsys, *PROBE, run)
    assert len(calls) == 3
    assert files(run) == first

    before = entries(run)
    config, tensors = read_checkpoint(run / f"checkpoint-{10 * case.unit}")
    save_checkpoint(run, 15 * case.unit, {name: -value for name, value in tensors.items()}, config)
    case.succeed(capsys, *PROBE, run)
    assert len(calls) == 4
    after = entries(run)
    assert [entry["step"] for entry in after] == [units * case.unit for units in (10, 15, 20, 30)]
    assert [after[0], *after[2:]] == before

    (existing,) = (run / "probes").iterdir()
    case.succeed(capsys, *PROBE, run, "--seed", 1)
    assert len(calls) == 8
    (other,) = set((run / "probes").iterdir()) - {existing}
    assert "seed1" in other.name
    assert json.loads(existing.read_text())["checkpoints"] == after
    assert json.loads(other.read_text())["checkpoints"] != after


def test_a_killed_probe_resumes(case, probed, capsys, monkeypatch):
    run, calls = probed
    write = checkpoints.write_file

    def write_until_killed(path, content):
        if len(calls) == 3:
            raise Killed
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_file", write_until_killed)
        with pytest.raises(Killed):
            case.start(capsys, *PROBE, run)
    assert len(entries(run)) == 2
    case.succeed(capsys, *PROBE, run)
    assert len(calls) == 4
    assert [entry["step"] for entry in entries(run)] == [units * case.unit for units in (10, 20, 30)]


def test_what_a_killed_probe_left_behind_is_removed_unless_another_writes(case, probed, capsys):
    run, _ = probed
    leftover = run / "probes" / ".monomials.json.123.unfinished"
    with shared_lock(run / "probes"):
        leftover.write_text("{")
        case.succeed(capsys, *PROBE, run)
        case.succeed(capsys, *case.train, "--out", run)
        assert leftover.exists()
    case.succeed(capsys, *PROBE, run, "--seed", 1)
    assert not leftover.exists()
    leftover.write_text("{")
    case.succeed(capsys, *case.train, "--out", run)
    assert not leftover.exists()


def test_a_complete_probe_on_a_read_only_disk_is_found(case, probed, capsys, monkeypatch):
    run, _ = probed
    case.succeed(capsys, *PROBE, run)
    before = files(run)
    with monkeypatch.context() as patch:
        make_read_only(patch)
        assert case.succeed(capsys, *PROBE, run).startswith(str(run / "probes"))
        assert case.succeed(capsys, *case.train, "--out", run) == f"{run} is complete\n"
        assert "Read-only" in case.fail_in_one_line(capsys, *case.train, "--force", "--out", run)
    assert files(run) == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"checkpoints": 3}', '{"checkpoints": [1]}', '{"checkpoints": [{}]}']
)
def test_a_damaged_file_of_a_probe_is_refused(case, probed, capsys, text):
    run, _ = probed
    case.succeed(capsys, *PROBE, run)
    (path,) = (run / "probes").iterdir()
    path.write_text(text)
    line = case.fail_in_one_line(capsys, *PROBE, run)
    assert re.fullmatch(f"error: {path} is (truncated or )?damaged: remove it, and probe again", line)
    cut(run / "config.json")
    line = case.fail_in_one_line(capsys, *PROBE, run)
    assert line == f"error: {run / 'config.json'} is damaged: to start over, rerun its command with --force"


def test_results_of_another_run_are_refused(case, probed, capsys, tmp_path):
    run, calls = probed
    case.succeed(capsys, *PROBE, run)
    other = tmp_path / "other"
    case.succeed(capsys, *case.train, "--seed", 1, "--out", other)
    shutil.copytree(run / "probes", other / "probes")
    (path,) = (other / "probes").glob("*.json")
    before = files(other)
    line = case.fail_in_one_line(capsys, *PROBE, other)
    assert line == f"error: {path} holds a probe of another run: remove it, and probe again, or give another --out"
    assert files(other) == before
    path.unlink()
    case.succeed(capsys, *PROBE, other)
    assert len(calls) == 6
    assert entries(other) != entries(run)


def test_results_of_weights_that_were_replaced_are_refused(case, probed, capsys):
    run, calls = probed
    case.succeed(capsys, *PROBE, run)
    shutil.rmtree(run / f"checkpoint-{20 * case.unit}")
    shutil.copytree(run / f"checkpoint-{10 * case.unit}", run / f"checkpoint-{20 * case.unit}")
    before = files(run)
    line = case.fail_in_one_line(capsys, *PROBE, run)
    assert f"checkpoint {20 * case.unit:,} has changed since it was probed: remove {run}/probes/" in line
    assert files(run) == before
    assert len(calls) == 3


def test_what_an_earlier_version_measured_is_measured_again(case, probed, capsys):
    """Its files do not say of which run and which weights."""
    run, calls = probed
    case.succeed(capsys, *PROBE, run)
    (path,) = (run / "probes").iterdir()
    whole = json.loads(path.read_text())
    earlier = {key: value for key, value in whole.items() if key != "id"}
    earlier["checkpoints"] = [{key: entry[key] for key in entry if key != "digest"} for entry in whole["checkpoints"]]
    path.write_text(json.dumps(earlier))
    case.succeed(capsys, *PROBE, run)
    assert len(calls) == 6
    assert json.loads(path.read_text()) == whole


def test_a_probe_stopped_by_a_signal_leaves_at_once_and_resumes(case, probed, capsys, monkeypatch):
    run, _ = probed
    case.succeed(capsys, *PROBE, run)
    whole = entries(run)
    shutil.rmtree(run / "probes")
    with monkeypatch.context() as patch:
        patch.setattr(probing, "teacher_logits", and_signal(probing.teacher_logits, 3))
        assert case.stopped(capsys, *PROBE, run) is None
    assert entries(run) == whole[:2]
    case.succeed(capsys, *PROBE, run)
    assert entries(run) == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--output 2", "--output is a class, 0 to 1"),
        ("--output -1", "--output is a class, 0 to 1"),
        ("--node 1", "--node an inner node, 0 to 0"),
        ("--node -1", "--node an inner node, 0 to 0"),
        ("--degrees 0", "degree"),
        ("--degrees 11", "degree"),
        ("--samples 0", "--samples must be at least 1"),
        ("--samples -5", "--samples"),
        ("--seed -1", "--seed"),
        ("--device abacus", "--device abacus cannot be used"),
    ],
)
def test_a_probe_that_cannot_be_is_one_line_and_writes_nothing(case, probed, capsys, words, message):
    run, _ = probed
    before = files(run)
    assert message in fail_in_one_line(capsys, case.main(PROBE), *PROBE[1:], run, *words.split())
    assert files(run) == before


def test_a_probe_of_something_else_than_a_run_is_one_line(case, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    arguments = {"d": 10, "k": 3, "labels": 2, "support": "first", "support_seed": 0}
    for name, setting in (("run", case.name), ("sentences", "PCFG_mlm")):
        with open_run(tmp_path / name, arguments, setting=setting):
            pass
    before = files(tmp_path)
    for name, message in (
        ("thesis", "is not a run"),
        ("missing", "is not a run"),
        ("run", "has no checkpoint-<step>"),
        ("sentences", "is a run of PCFG_mlm: give a run of parity_mlp or parity_gpt2"),
    ):
        assert message in fail_in_one_line(capsys, case.main(PROBE), *PROBE[1:], tmp_path / name)
    assert files(tmp_path) == before


def test_a_probe_without_a_run_is_a_usage_error(case, capsys):
    code, stderr = case.start(capsys, "probe")
    assert code == 2
    assert "--run" in "\n".join(stderr)
