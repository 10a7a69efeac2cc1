"""Finding a teacher's checkpoints in a directory and on the hub."""

from types import SimpleNamespace

import huggingface_hub
import pytest

from common.errors import UserError
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from common.runs.files import write_directory
from common.teachers.discovery import Checkpoint, find_checkpoints, local_path
from tests.files import CONFIG, TENSORS


def test_checkpoints_are_found_in_order_of_steps_and_nothing_else_is(tmp_path):
    for step in (1000, 9, 200, 0):
        save_checkpoint(tmp_path, step, TENSORS, CONFIG)
    for name in ("checkpoint-best", "checkpoint-07", "checkpoint-1-old", ".checkpoint-5.123.unfinished", "resume"):
        (tmp_path / name).mkdir()
    found = find_checkpoints(str(tmp_path))
    assert found == [Checkpoint(step, tmp_path / f"checkpoint-{step}") for step in (0, 9, 200, 1000)]
    assert [local_path(checkpoint) for checkpoint in found] == [checkpoint.location for checkpoint in found]


def test_a_hugging_face_run_with_pickles_and_shards_is_a_teacher(tmp_path):
    directory = tmp_path / "checkpoint-500"
    files = ("config.json", "model-00001-of-00002.safetensors", "optimizer.pt", "training_args.bin")
    write_directory(directory, dict.fromkeys(files, b""))
    assert find_checkpoints(tmp_path) == [Checkpoint(500, directory)]


def test_a_checkpoint_without_safetensors_is_refused(tmp_path):
    save_checkpoint(tmp_path, 1, TENSORS, CONFIG)
    write_directory(tmp_path / "checkpoint-2", {"config.json": b"{}", "pytorch_model.bin": b""})
    with pytest.raises(UserError, match="checkpoint-2 lacks"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("teacher", ["/no/such/directory", "no-such-directory", "a/b/c", "../up"])
def test_a_teacher_that_does_not_exist(teacher, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    with pytest.raises(UserError, match=f"^there is no directory {teacher}: give .*$"):
        find_checkpoints(teacher)


def test_a_directory_without_checkpoints(tmp_path):
    with pytest.raises(UserError, match=r"^.* has no checkpoint-<step> directory: .*$"):
        find_checkpoints(tmp_path)


def hub(branches, tags):
    def list_repo_refs(name):
        assert name == "org/name"
        return SimpleNamespace(
            branches=[SimpleNamespace(name=branch) for branch in branches],
            tags=[SimpleNamespace(name=tag) for tag in tags],
        )

    return lambda: SimpleNamespace(list_repo_refs=list_repo_refs)


def test_a_hub_teacher_is_listed_at_once_and_downloaded_on_use(tmp_path, monkeypatch):
    downloads = []

    def snapshot_download(name, revision, allow_patterns):
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        downloads.append((name, revision))
        save_checkpoint(tmp_path, 1, TENSORS, CONFIG)
        return str(tmp_path / "checkpoint-1")

    monkeypatch.setattr(
        huggingface_hub, "HfApi", hub(["main", "step1000", "step1"], ["step0", "v1", "step1", "step07"])
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = find_checkpoints("org/name")
    assert found == [Checkpoint(step, f"org/name@step{step}") for step in (0, 1, 1000)]
    assert downloads == []
    assert read_checkpoint(local_path(found[2]))[0] == CONFIG
    assert downloads == [("org/name", "step1000")]


def test_a_hub_model_without_steps(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", hub(["main"], []))
    with pytest.raises(UserError, match=r"org/name has no branch or tag step<N>"):
        find_checkpoints("org/name")


def test_a_hub_that_does_not_answer(monkeypatch):
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(UserError, match=r"^there is no directory org/name, and .* \(\w+\): give .*$"):
        find_checkpoints("org/name")


def test_a_download_that_fails_or_brings_no_weights(tmp_path, monkeypatch):
    def refuse(name, revision, allow_patterns):
        raise huggingface_hub.errors.LocalEntryNotFoundError("two\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"^cannot download org/name@step5 .*$"):
        local_path(Checkpoint(5, "org/name@step5"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match="lacks"):
        local_path(Checkpoint(5, "org/name@step5"))
