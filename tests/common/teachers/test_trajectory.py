"""Trajectories that are not what they say, each wrong in one way, as directories, on the hub and in its cache."""

import json
import os
import re

import numpy as np
import pytest
from huggingface_hub import constants

from common.errors import UserError
from common.runs.files import to_json, to_safetensors, write_directory
from common.teachers.discovery import Checkpoint, find_checkpoints, local_path, named_checkpoints
from common.teachers.trajectory import are_small, check_trajectory, checkpoint_digests, require_trajectory
from tests.hub import CONFIG, NAME, cache_by_hand, checkpoint, weights

STEPS = (0, 1, 2, 4, 8)


def make(directory, changes=None):
    """A trajectory without findings, but for `changes`: files by step."""
    for step in STEPS:
        write_directory(directory / f"checkpoint-{step}", checkpoint(step) | (changes or {}).get(step, {}))
    return directory


def lines(teacher, full=False):
    found = check_trajectory(named_checkpoints(teacher), full)
    assert all(str(step) in finding.line for finding in found for step in finding.steps)
    return [finding.line for finding in found]


def test_a_sound_trajectory_has_no_findings(tmp_path):
    checkpoints = find_checkpoints(make(tmp_path))
    assert check_trajectory(checkpoints) == check_trajectory(checkpoints, full=True) == []
    assert require_trajectory(checkpoints, trust=False) == []


SAME = {
    "initial weights twice": ({1: checkpoint(0)}, ["steps 0 and 1 hold the same weights"]),
    "two groups": (
        {1: checkpoint(0), 4: checkpoint(2)},
        ["steps 0 and 1 hold the same weights", "steps 2 and 4 hold the same weights"],
    ),
    "back to the last": ({2: checkpoint(8)}, ["step 2 and the last step, 8, hold the same weights"]),
    "most are the last": (
        {0: checkpoint(8), 1: checkpoint(8), 4: checkpoint(8)},
        ["steps 0, 1 and 4 and the last step, 8, hold the same weights"],
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_repeated_weights_are_found_in_directories(tmp_path, case):
    changes, wanted = SAME[case]
    make(tmp_path, changes)
    assert lines(tmp_path) == lines(tmp_path, full=True) == wanted


@pytest.mark.parametrize("case", SAME)
def test_repeated_weights_are_found_on_the_hub_without_a_download(hub, cache, case):
    changes, wanted = SAME[case]
    hub.models[NAME] = {f"step{step}": checkpoint(step) | changes.get(step, {}) for step in STEPS}
    assert lines(NAME) == wanted
    assert {path.name for path in cache.glob("*/snapshots/*/*")} == {"config.json"}
    assert sum(path.endswith("config.json") for path in hub.requests) <= 2  # HEAD and GET: they are all equal


@pytest.mark.parametrize("case", SAME)
def test_repeated_weights_are_found_in_the_cache_without_reading_them(cache, monkeypatch, case):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("common.teachers.trajectory.digest", None)
    changes, wanted = SAME[case]
    for step in STEPS:
        cache_by_hand(cache, f"step{step}", checkpoint(step) | changes.get(step, {}))
    assert lines(NAME) == wanted


def test_a_difference_between_the_samples_is_seen_by_a_full_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr("common.teachers.trajectory.WHOLE_BYTES", 0)
    tensors = weights(0)
    tensors["layer"][7, 100] += 1
    make(tmp_path, {1: {"model.safetensors": to_safetensors(tensors)}})
    assert lines(tmp_path) == ["steps 0 and 1 hold the same weights"]
    assert lines(tmp_path, full=True) == []


@pytest.mark.parametrize(("value", "place"), [(np.nan, (0, 0)), (np.inf, (0, 0)), (-np.inf, (7, 100))])
def test_weights_that_are_not_finite_are_found_and_never_trusted(tmp_path, monkeypatch, value, place):
    monkeypatch.setattr("common.teachers.trajectory.WHOLE_BYTES", 0)
    tensors = weights(1)
    tensors["layer"][place] = value
    make(tmp_path, {1: {"model.safetensors": to_safetensors(tensors)}})
    line = f"step 1: {tmp_path / 'checkpoint-1'} has weights that are NaN or infinite, such as layer"
    assert lines(tmp_path, full=True) == [line]
    assert lines(tmp_path) == ([line] if place == (0, 0) else [])  # between the samples
    checkpoints = find_checkpoints(tmp_path)
    assert are_small(checkpoints)
    with pytest.raises(UserError, match=r"such as layer; exclude those steps .*teacher-pattern\)$"):
        require_trajectory(checkpoints, trust=True, full=True)


def test_only_local_checkpoints_up_to_a_size_are_read_in_full(tmp_path, hub, monkeypatch):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in STEPS}
    assert not are_small(find_checkpoints(NAME))
    checkpoints = find_checkpoints(make(tmp_path))
    total = sum(path.stat().st_size for path in tmp_path.glob("*/model.safetensors"))
    for most in (total, total - 1):
        monkeypatch.setattr("common.teachers.trajectory.READ_BYTES", most)
        assert are_small(checkpoints) == (most == total)


@pytest.mark.parametrize("dtypes", [("float16", "float32"), ("float32", "float16")])
def test_the_last_weights_in_another_dtype_are_found(tmp_path, dtypes):
    early, late = ({"model.safetensors": to_safetensors(weights(8, dtype))} for dtype in dtypes)
    make(tmp_path, {2: early, 8: late})
    rounded = "step 2 and the last step, 8, hold the same weights, rounded to another dtype"
    assert rounded in lines(tmp_path)
    make(tmp_path, {2: {"model.safetensors": to_safetensors(weights(3, dtypes[0]))}, 8: late})
    assert rounded not in lines(tmp_path)


def shards(first, second):
    """A checkpoint in two files, of these seeds."""
    parts = {
        "model-00001-of-00002.safetensors": {"embedding": weights(first)["embedding"]},
        "model-00002-of-00002.safetensors": {"layer": weights(second)["layer"], "bias": weights(second)["bias"]},
    }
    index = {"weight_map": {name: file for file, tensors in parts.items() for name in tensors}}
    files = {file: to_safetensors(tensors) for file, tensors in parts.items()}
    return {"config.json": to_json(CONFIG), "model.safetensors.index.json": to_json(index), **files}


def test_some_tensors_of_another_step_are_found(tmp_path, hub):
    """As in https://github.com/EleutherAI/pythia/issues/206."""
    files = {f"step{step}": shards(8 if step in (1, 4) else step, step) for step in STEPS}
    hub.models[NAME] = files
    for name, content in files.items():
        write_directory(tmp_path / "teacher" / name, content)
    end = "but steps between them hold different ones"
    assert lines(tmp_path / "teacher") == [
        f"steps 1, 4 and 8 hold the same values in 1 of 3 tensors (embedding), {end}"
    ]
    assert lines(NAME) == [
        f"steps 1, 4 and 8 hold the same values in 1 of 2 files (model-00001-of-00002.safetensors), {end}"
    ]


def test_tensors_that_do_not_move_yet_or_ever_are_no_findings(tmp_path):
    for step in STEPS:
        frozen = {"frozen": np.ones(500), "late": np.full(500, max(step, 2)), "small": np.full(2, step % 2)}
        files = {"config.json": to_json(CONFIG), "model.safetensors": to_safetensors(weights(step) | frozen)}
        write_directory(tmp_path / f"checkpoint-{step}", files)
    assert lines(tmp_path) == []


def test_equal_weights_in_other_files_are_equal(tmp_path):
    write_directory(tmp_path / "step1", shards(1, 1))
    write_directory(tmp_path / "step2", checkpoint(1))
    write_directory(tmp_path / "step3", checkpoint(3))
    assert lines(tmp_path) == ["steps 1 and 2 hold the same weights"]


CHANGES = {
    "vocab_size": (
        checkpoint(2, vocab_size=9),
        "^the last step, 8, has a different config from step 2: vocab_size is 9, then 7$",
    ),
    "architectures": (checkpoint(2, architectures=["Another"]), r"architectures is \['Another'\], then \['GPT2"),
    "dtype": ({"model.safetensors": to_safetensors(weights(2, "float16"))}, r"F16 \[5\], then F32 \[5\], .* and layer"),
    "shape": (
        {"model.safetensors": to_safetensors(weights(2) | {"bias": np.zeros(6, np.float32)})},
        r"^the last step, 8, has different tensors from step 2: bias is F32 \[6\], then F32 \[5\]",
    ),
    "names": (
        {"model.safetensors": to_safetensors(weights(2) | {"more": np.zeros(6, np.float32)})},
        r"different tensors from step 2: more is F32 \[6\], then absent",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changes_is_found(tmp_path, change):
    files, message = CHANGES[change]
    make(tmp_path, {2: files})
    (line,) = lines(tmp_path)
    assert re.search(message, line)


def test_a_config_that_changes_is_found_on_the_hub(hub):
    hub.models[NAME] = {f"step{step}": checkpoint(step, vocab_size=9 if step < 2 else 7) for step in STEPS}
    assert lines(NAME) == ["the last step, 8, has a different config from steps 0 and 1: vocab_size is 9, then 7"]


def test_entries_of_other_versions_of_transformers_are_no_change(tmp_path):
    config = {"transformers_version": "4.2", "torch_dtype": "float16", "use_cache": False, "new_entry": 3}
    make(tmp_path, {2: checkpoint(2, **config), 8: checkpoint(8, transformers_version="5.0", another=1)})
    assert lines(tmp_path) == []


def test_files_that_are_cut_or_missing_are_named_with_their_step(tmp_path):
    make(tmp_path)
    path = tmp_path / "checkpoint-2" / "model.safetensors"
    os.truncate(path, path.stat().st_size - 5)
    (tmp_path / "checkpoint-4" / "config.json").write_text("{")
    (tmp_path / "checkpoint-1" / "model.safetensors").unlink()
    write_directory(tmp_path / "checkpoint-3", shards(3, 3))
    (tmp_path / "checkpoint-3" / "model-00001-of-00002.safetensors").unlink()
    found = lines(tmp_path)
    assert len(found) == 4
    for line, message in zip(
        found, ("1: .* lacks", "2: .* is truncated: ", "3: .* lacks model-00001", "4: .* damaged"), strict=True
    ):
        assert re.match(f"step {message}", line)


def test_revisions_without_weights_are_named(hub):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in STEPS}
    hub.models[NAME]["step2"] = {"config.json": b"{}", "pytorch_model.bin": b""}
    hub.models[NAME]["step4"] = {"model.safetensors": b""}
    assert [line.partition(": download")[0] for line in lines(NAME)] == [
        "step 2: org/name@step2 has only pickled weights (pytorch_model.bin)",
        "step 4: org/name@step4 has no config.json",
    ]


def test_a_hub_that_fails_meanwhile_is_no_finding(hub):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in STEPS}
    hub.errors[f"/api/models/{NAME}/revision"] = (500, "")
    with pytest.raises(UserError, match="answers with error 500"):
        check_trajectory(find_checkpoints(NAME))


def test_the_step_that_the_trainer_saved(tmp_path):
    states = {
        step: {"trainer_state.json": json.dumps({"global_step": 2 if step == 4 else step}).encode()} for step in (2, 4)
    }
    make(tmp_path, states)
    assert lines(tmp_path) == ["trainer_state.json of step 4 says step 2"]


def test_the_order_of_checkpoints(tmp_path):
    found = find_checkpoints(make(tmp_path))
    mixed = [found[0], found[2], found[1], found[2]]
    assert [finding.line for finding in check_trajectory(mixed)] == [
        "step 2 is given 2 times",
        "step 1 is given after step 2",
    ]
    other = Checkpoint(2, found[3].location)
    assert [finding.line for finding in check_trajectory([found[2], other])] == ["step 2 is given 2 times"]


def test_findings_stop_a_run_unless_the_checkpoints_are_trusted(tmp_path):
    checkpoints = find_checkpoints(
        make(tmp_path, {1: checkpoint(0, vocab_size=8), 4: checkpoint(2, n_layer=3), 2: checkpoint(2, vocab_size=10)})
    )
    found = require_trajectory(checkpoints, trust=True)
    assert len(found) == 4
    with pytest.raises(UserError) as caught:
        require_trajectory(checkpoints, trust=False)
    line = str(caught.value)
    assert all((finding.line in line) == (place < 3) for place, finding in enumerate(found))
    assert "; and 1 more; exclude those steps (" in line
    assert "--trust-trajectory (trust_trajectory=True)" in line
    assert require_trajectory(checkpoints[:1], trust=False) == []


# Digests


def test_the_digest_of_a_checkpoint_is_of_its_weights_and_its_config(tmp_path):
    known = checkpoint_digests(find_checkpoints(make(tmp_path)))
    assert list(known) == [str(step) for step in STEPS]
    assert len(set(known.values())) == len(STEPS)
    changes = {
        1: checkpoint(9),
        2: checkpoint(2, vocab_size=9),
        4: {"README.md": b"Once"},
        8: checkpoint(8, use_cache=False),
    }
    found = checkpoint_digests(find_checkpoints(make(tmp_path, changes)))
    assert {step for step in known if found[step] != known[step]} == {"1", "2"}


@pytest.mark.parametrize("larger", [False, True])
def test_the_digest_of_a_small_checkpoint_is_of_all_its_values(tmp_path, monkeypatch, larger):
    size = (make(tmp_path) / "checkpoint-1" / "model.safetensors").stat().st_size
    monkeypatch.setattr("common.teachers.trajectory.WHOLE_BYTES", size - larger)
    known = checkpoint_digests(find_checkpoints(tmp_path))
    tensors = weights(1)
    tensors["layer"][7, 100] += 1
    found = checkpoint_digests(find_checkpoints(make(tmp_path, {1: {"model.safetensors": to_safetensors(tensors)}})))
    assert {step for step in known if found[step] != known[step]} == (set() if larger else {"1"})


def test_the_digest_of_a_revision_is_the_same_without_a_connection(hub, monkeypatch):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in STEPS}
    revisions = find_checkpoints(NAME)
    known = checkpoint_digests(revisions)
    for revision in revisions:
        local_path(revision)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert checkpoint_digests(revisions) == known
    hub.models[NAME]["step2"] = checkpoint(9)
    found = checkpoint_digests(revisions)
    assert {step for step in known if found[step] != known[step]} == {"2"}
