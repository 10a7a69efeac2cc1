"""Finding a teacher's checkpoints in a directory and on the hub."""

import json
import re
import shutil

import pytest

from common.errors import UserError
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from common.runs.files import write_directory
from common.teachers.discovery import Checkpoint, find_checkpoints, local_path, named_checkpoints, step_in
from tests.files import CONFIG, TENSORS
from tests.hub import NAME, cache_by_hand, checkpoint

MODEL = {"config.json": b"{}", "model.safetensors": b""}
STATE = "trainer_state.json"


def make(directory, *names, files=MODEL):
    """Directories with these names and files in each."""
    for name in names:
        write_directory(directory / name, files)


def refusal(teacher, pattern=None):
    with pytest.raises(UserError) as caught:
        find_checkpoints(teacher, pattern)
    assert "remove" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_checkpoints_are_found_in_order_of_steps_and_nothing_else_is(tmp_path):
    for step in (1000, 9, 200, 0):
        save_checkpoint(tmp_path, step, TENSORS, CONFIG)
    for name in ("checkpoint-best", "checkpoint-x7", "checkpoint-1-old", ".checkpoint-5.123.unfinished", "resume"):
        (tmp_path / name).mkdir()
    found = find_checkpoints(str(tmp_path))
    assert found == [Checkpoint(step, tmp_path / f"checkpoint-{step}") for step in (0, 9, 200, 1000)]
    assert [local_path(checkpoint) for checkpoint in found] == [checkpoint.location for checkpoint in found]


NAMES = {
    "checkpoint-1000": 1000,
    "step1000": 1000,
    "step_1000": 1000,
    "step-1000": 1000,
    "step1000-tokens4B": 1000,
    "stage1-step1000-tokens4B": 1000,
    "stage2-step0": 0,
    "global_step1000": 1000,
    "iter_0001000": 1000,
    "iter_0000000": 0,
    "ckpt-1000": 1000,
    "ckpt_1000": 1000,
    "ckpt_050": 50,
    "step_00500": 500,
    "checkpoint-000": 0,
    "1000": 1000,
    "0": 0,
}
OTHERS = (
    "main",
    "step",
    "step7x",
    "checkpoint-1-old",
    "step1000-final",
    "mystep5",
    "v1",
    "1.0",
    "-5",
    "step1\n",
    "step٣",
)


@pytest.mark.parametrize("name", NAMES)
def test_known_names(name, tmp_path, hub):
    make(tmp_path / "teacher", name)
    assert find_checkpoints(tmp_path / "teacher") == [Checkpoint(NAMES[name], tmp_path / "teacher" / name)]
    hub.models[NAME] = {"main": {}, name: {}}
    assert find_checkpoints(NAME) == [Checkpoint(NAMES[name], f"{NAME}@{name}")]


@pytest.mark.parametrize("name", OTHERS)
def test_names_that_are_no_checkpoints(name):
    assert step_in(name) is None


def test_a_pattern_replaces_the_known_names(tmp_path, hub):
    pattern = r"epoch\d+-it(?P<step>\d+)"
    make(tmp_path / "teacher", "epoch1-it050", "epoch2-it100", "epoch2-it100-best", "checkpoint-3")
    found = find_checkpoints(tmp_path / "teacher", pattern)
    assert [(entry.step, entry.location.name) for entry in found] == [(50, "epoch1-it050"), (100, "epoch2-it100")]
    hub.models[NAME] = {"main": {}, "epoch1-it050": {}, "step3": {}}
    assert find_checkpoints(NAME, pattern) == [Checkpoint(50, f"{NAME}@epoch1-it050")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("step(", r"--teacher-pattern step\( is not a regular expression: .*"),
        ("step([0-9]+)", r"--teacher-pattern step\(\[0-9\]\+\) lacks the group \(\?P<step>.*"),
        ("(?P<step>.*)", r"the group step of .* is 'checkpoint-1' in checkpoint-1, not digits"),
        ("checkpoint(?P<step>-1)", r"the group step of .* is '-1' in checkpoint-1, not digits"),
        ("checkpoint-1|(?P<step>[0-9]+)", r"the group step of .* is None in checkpoint-1, not digits"),
        (
            "step(?P<step>[0-9]+)",
            r".* has no checkpoint-<step> .*: found checkpoint-1; --teacher-pattern .* must match .*",
        ),
    ],
)
def test_a_pattern_that_does_not_fit(tmp_path, pattern, message):
    make(tmp_path, "checkpoint-1")
    assert re.fullmatch(message, refusal(tmp_path, pattern))


def test_a_pattern_is_refused_even_if_there_is_nothing_to_match(tmp_path):
    assert "lacks the group" in refusal(tmp_path, "step")


@pytest.mark.parametrize(
    "names",
    [("stage1-step1000", "stage2-step1000"), ("5", "checkpoint-5"), ("step1", "step1-tokens4B")],
)
def test_two_names_for_a_step_are_refused(names, tmp_path, hub):
    make(tmp_path / "teacher", *names)
    hub.models[NAME] = {name: {} for name in names}
    for teacher in (tmp_path / "teacher", NAME):
        line = refusal(teacher)
        step = step_in(names[0])
        assert f"two checkpoints for step {step}, {names[0]} and {names[1]}: choose between them with --teacher" in line


def test_the_same_name_of_a_branch_and_a_tag_is_one_checkpoint(monkeypatch):
    monkeypatch.setattr("common.teachers.hub.revisions", lambda name: ["step1", "step2", "step1"])
    assert find_checkpoints(NAME) == [Checkpoint(step, f"{NAME}@step{step}") for step in (1, 2)]


def test_checkpoints_of_several_stages_are_not_mixed(tmp_path):
    make(tmp_path, "stage1-step1000", "stage2-step2000")
    assert "several stages, such as stage1-step1000 and stage2-step2000: choose" in refusal(tmp_path)
    assert len(find_checkpoints(tmp_path, "stage1-step(?P<step>[0-9]+)")) == 1


def test_a_directory_without_checkpoints_says_what_it_has(tmp_path):
    assert re.fullmatch(r".* has no checkpoint-<step> directory .* nothing; .*--teacher-pattern.*", refusal(tmp_path))
    make(tmp_path, *(f"epoch{number}" for number in range(9)), ".hidden")
    (tmp_path / "notes.md").touch()
    line = refusal(tmp_path)
    assert "found epoch0, epoch1, epoch2, epoch3, epoch4, epoch5, epoch6, epoch7 and 2 more; say how" in line


def test_a_hub_model_without_steps_says_what_it_has(hub):
    hub.models[NAME] = {"main": {}, "best": {}}
    assert re.fullmatch(r"org/name has no branch or tag step<N> .* found main and best; .*", refusal(NAME))


@pytest.mark.parametrize("name", ["step1000.pt", "5.bin", "final.pth", "model_100.safetensors", "pytorch_model.bin"])
def test_checkpoints_that_are_files_can_be_imported(tmp_path, name):
    for file in ("config.json", "optimizer.pt", "training_args.bin", name):
        (tmp_path / file).touch()
    command = f"convert them with `python -m common.teachers import {tmp_path} --out TEACHER`"
    assert re.fullmatch(rf".* weight files \({name}\): {re.escape(command)}", refusal(tmp_path))


def test_checkpoints_that_are_pickles_can_be_imported(tmp_path):
    make(tmp_path, "checkpoint-1")
    make(tmp_path, "checkpoint-2", files={"config.json": b"{}", "pytorch_model.bin": b"", "optimizer.pt": b""})
    line = refusal(tmp_path)
    assert "checkpoint-2 has only pickled weights (pytorch_model.bin)" in line
    assert line.endswith(f"convert them with `python -m common.teachers import {tmp_path} --out TEACHER`")
    assert len(named_checkpoints(tmp_path)) == 2


@pytest.mark.parametrize("file", MODEL)
def test_a_checkpoint_that_is_not_complete_is_refused(tmp_path, file):
    make(tmp_path, "checkpoint-1")
    make(tmp_path, "checkpoint-2", files={name: b"{}" for name in MODEL if name != file})
    advice = "finish saving or copying it, move it away, or leave it out with --teacher-pattern"
    assert refusal(tmp_path).endswith(f"checkpoint-2 lacks {file}: {advice}")
    (tmp_path / "checkpoint-3").mkdir()
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert refusal(tmp_path).endswith(f"checkpoint-3 lacks config.json and model.safetensors: {advice}")


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}).encode()
SHARDED = {"config.json": b"{}", "model.safetensors.index.json": INDEX, **dict.fromkeys(SHARDS, b"")}


def test_a_hugging_face_run_with_pickles_and_shards_is_a_teacher(tmp_path):
    make(tmp_path, "checkpoint-500", files=SHARDED | {"optimizer.pt": b"", "training_args.bin": b""})
    assert find_checkpoints(tmp_path) == [Checkpoint(500, tmp_path / "checkpoint-500")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({SHARDS[1]: None}, f"checkpoint-1 lacks {SHARDS[1]}, which its index names"),
        ({"model.safetensors.index.json": None}, "model.safetensors.index.json is missing"),
        ({"model.safetensors.index.json": b"{"}, "model.safetensors.index.json is truncated or damaged"),
        ({"model.safetensors.index.json": b"{}"}, "model.safetensors.index.json is damaged"),
    ],
)
def test_a_missing_shard_is_named(tmp_path, changes, message):
    files = {name: content for name, content in (SHARDED | changes).items() if content is not None}
    make(tmp_path, "checkpoint-1", files=files)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(("state", "step"), [(None, 0), (b'{"global_step": 700}', 700)])
def test_a_model_without_checkpoints_is_a_teacher_with_one(tmp_path, state, step):
    write_directory(tmp_path, MODEL | ({STATE: state} if state else {}))
    (tmp_path / "runs").mkdir()
    assert find_checkpoints(tmp_path) == [Checkpoint(step, tmp_path)]


@pytest.mark.parametrize(
    ("state", "steps"),
    [(None, [5, 10]), (b'{"global_step": 10}', [5, 10]), (b'{"global_step": 12}', [5, 10, 12])],
)
def test_a_final_model_beside_checkpoints_counts_if_it_is_later(tmp_path, state, steps):
    write_directory(tmp_path, MODEL | ({STATE: state} if state else {}))
    make(tmp_path, "checkpoint-5", "checkpoint-10")
    found = find_checkpoints(tmp_path)
    assert [entry.step for entry in found] == steps
    assert (found[-1].location == tmp_path) == (12 in steps)
    assert [entry.step for entry in find_checkpoints(tmp_path, "checkpoint-(?P<step>[0-9]+)")] == [5, 10]


def test_the_states_of_an_optimizer_in_a_model_are_no_checkpoints(tmp_path):
    write_directory(tmp_path, MODEL | {STATE: b'{"global_step": 700}'})
    make(tmp_path, "global_step700", files={"zero_pp_rank_0_optim_states.pt": b""})
    assert find_checkpoints(tmp_path) == [Checkpoint(700, tmp_path)]


@pytest.mark.parametrize("state", [b"{", b"{}"])
def test_a_damaged_state_of_the_trainer_is_named(tmp_path, state):
    write_directory(tmp_path, MODEL | {STATE: state})
    assert "trainer_state.json is" in refusal(tmp_path)


@pytest.mark.parametrize("folder", [".", "checkpoint-5"])
def test_an_adapter_is_no_teacher(tmp_path, folder):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "config.json": b"{}"}
    write_directory(tmp_path / folder, files)
    line = refusal(tmp_path)
    assert f"{tmp_path / folder} is a PEFT adapter" in line
    assert "merge_and_unload" in line


@pytest.mark.parametrize("teacher", ["/no/such/directory", "no-such-directory", "a/b/c", "../up"])
def test_a_teacher_that_does_not_exist(teacher, cache):
    assert re.fullmatch(f"there is no directory {teacher}: give .*", refusal(teacher))


def test_a_hub_teacher_is_listed_at_once_and_downloaded_on_use(hub, cache):
    hub.models[NAME] = {step: checkpoint(0) for step in ("main", "step1000", "step1", "v1", "stepx7")}
    found = find_checkpoints(NAME)
    assert found == [Checkpoint(step, f"{NAME}@step{step}") for step in (1, 1000)]
    assert not cache.exists()
    assert read_checkpoint(local_path(found[1]))[0]["vocab_size"] == 7
    assert [path.name for path in cache.glob("*/refs/*")] == ["step1000"]


def test_cached_revisions_are_a_teacher_offline(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = cache_by_hand(cache, "step5", checkpoint(5))
    cache_by_hand(cache, "step6", {"config.json": b"{}"})
    cache_by_hand(cache, "main", checkpoint(7))
    assert find_checkpoints(NAME) == [Checkpoint(5, f"{NAME}@step5")]
    assert local_path(Checkpoint(5, f"{NAME}@step5")) == snapshot
    assert "org/name has no cached revision step<N> or the like: found main and step5; " in refusal(
        NAME, "x(?P<step>1)"
    )
