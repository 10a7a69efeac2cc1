"""Revisions and downloads from a hub on this machine, what is said if they fail, and what is evicted."""

import errno
import re

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from common.errors import UserError
from common.teachers import hub as subject
from common.teachers.discovery import Checkpoint, evict, find_checkpoints, local_path
from common.teachers.loading import Teachers, read_model
from tests.hub import NAME, cache_by_hand, checkpoint, use

AT = Checkpoint(1, f"{NAME}@step1")


@pytest.fixture
def offline(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_only_weights_configs_and_tokenizers_are_downloaded(hub):
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "merges.txt", "spiece.model", "tokenizer.model"}
    others = {"pytorch_model.bin", "optimizer.pt", "README.md", "fp16.safetensors", "tf_model.h5", "onnx/config.json"}
    hub.models[NAME]["step1"] = dict.fromkeys(wanted | others, b"{}")
    assert names(local_path(AT)) == wanted
    assert not [path for path in hub.requests if path.endswith(tuple(others))]


def test_a_revision_without_safetensors_says_what_it_has(hub):
    hub.models[NAME]["step1"] = {"config.json": b"{}", "pytorch_model.bin": b""}
    line = refusal(local_path, AT)
    assert "org/name@step1 has only pickled weights (pytorch_model.bin)" in line
    assert "common.teachers import" in line
    hub.models[NAME]["step3"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    assert "org/name@step3 is a PEFT adapter" in refusal(local_path, Checkpoint(3, f"{NAME}@step3"))
    hub.models[NAME]["step2"] = {"config.json": b"{}"}
    assert "org/name@step2 has no model.safetensors" in refusal(local_path, Checkpoint(2, f"{NAME}@step2"))


CAUSES = {
    "gated": ((401, "GatedRepo"), "org/name is gated: accept its terms at https://huggingface.co/org/name"),
    "forbidden": ((403, ""), "has no model org/name, or does not let you read it: check the spelling, or log in"),
    "absent": ((404, "RepoNotFound"), "has no model org/name, or does not let you read it"),
    "unauthorised": ((401, ""), "has no model org/name, or does not let you read it"),
    "broken": ((500, ""), "the Hugging Face hub answers with error 500"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_of_a_failure_is_said(hub, cause):
    answer, message = CAUSES[cause]
    hub.errors["/api/models"] = answer
    for function, argument in ((find_checkpoints, NAME), (local_path, AT)):
        assert message in refusal(function, argument)
    assert message in refusal(subject.describe, NAME, "step1")


def test_a_revision_that_does_not_exist(hub):
    hub.models[NAME]["step1"] = checkpoint(1)
    assert "org/name has no branch or tag step2" in refusal(local_path, Checkpoint(2, f"{NAME}@step2"))


def test_an_id_that_cannot_be(hub):
    assert "a--b/c is not a valid model id" in refusal(find_checkpoints, "a--b/c")


def test_no_connection(cache):
    assert re.fullmatch(
        r"there is no directory org/name, and the Hugging Face hub cannot be reached \(\w+\): check the connection",
        refusal(find_checkpoints, NAME),
    )
    assert re.fullmatch(r"cannot download org/name@step1: .* reached \(\w+\): .*", refusal(local_path, AT))


def test_no_connection_but_cached_revisions(cache):
    for step in (1, 2, 3):
        cache_by_hand(cache, f"step{step}", checkpoint(step) if step < 3 else {"config.json": b"{}"})
    assert refusal(find_checkpoints, NAME).endswith("; HF_HUB_OFFLINE=1 would use the 2 cached revisions")
    assert refusal(local_path, Checkpoint(9, f"{NAME}@step9")).endswith("would use the 2 cached revisions")


def test_a_connection_that_is_lost_does_not_stop_what_is_cached(hub, cache, monkeypatch):
    hub.models[NAME]["step1"] = checkpoint(1)
    path = local_path(AT)
    use(monkeypatch, cache)
    assert local_path(AT) == path


def test_a_time_out_is_a_lost_connection(hub, monkeypatch):
    errors = __import__(huggingface_hub.errors.HTTPError.__module__.split(".")[0])

    def late(*_, **__):
        raise errors.ReadTimeout("The read operation timed out")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", late)
    assert "cannot be reached (ReadTimeout): check the connection" in refusal(find_checkpoints, NAME)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cache .*/cache is full: free some space, or set HF_HUB_CACHE",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "is full"),
        (RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"), "is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "is not writable: set HF_HUB_CACHE"),
        (RuntimeError("two\nlines"), r"the download failed \(two lines\): try again"),
    ],
)
def test_what_is_wrong_with_the_disk(hub, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert re.search(message, refusal(local_path, AT))


def test_a_bug_is_not_blamed_on_the_hub(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        local_path(AT)


def test_what_is_not_cached_is_refused_offline(offline):
    assert "HF_HUB_OFFLINE is set and nothing of org/name is cached completely" in refusal(find_checkpoints, NAME)
    for step in (1, 2):
        cache_by_hand(offline, f"step{step}", checkpoint(step))
    line = refusal(local_path, Checkpoint(3, f"{NAME}@step3"))
    assert "org/name@step3 cannot be loaded: HF_HUB_OFFLINE is set and only step1 and step2 of org/name" in line
    assert "`python -m common.teachers cache org/name`" in line


def test_a_commit_that_is_cached_is_found_offline(offline):
    snapshot = cache_by_hand(offline, "step1", checkpoint(1))
    assert local_path(Checkpoint(1, f"{NAME}@{snapshot.name}")) == snapshot


def test_a_cached_revision_lacks_a_blob(offline):
    snapshot = cache_by_hand(offline, "step1", checkpoint(1))
    (snapshot / "model.safetensors").resolve().unlink()
    assert "nothing of org/name is cached" in refusal(find_checkpoints, NAME)


def test_a_passed_checkpoint_is_evicted_and_comes_back(hub, cache):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in (1, 2)}
    paths = [local_path(Checkpoint(step, f"{NAME}@step{step}")) for step in (1, 2)]
    size = len(checkpoint(1)["model.safetensors"])
    assert evict(AT) == size  # the configs are the same blob
    assert not paths[0].exists()
    assert (paths[1] / "config.json").read_bytes()
    assert len(list(cache.glob("*/blobs/*"))) == 2
    assert evict(AT) == 0
    assert local_path(AT) == paths[0]
    assert evict(Checkpoint(2, f"{NAME}@step2")) == size
    assert evict(AT) == size + len(checkpoint(1)["config.json"])
    assert not list(cache.glob("*/blobs/*"))
    assert (cache / "models--org--name").is_dir()  # another process may be downloading into it


@pytest.mark.parametrize("kept", [1, 2, None])
def test_a_limit_on_downloaded_checkpoints(hub, cache, kept):
    steps = (1, 2, 3)
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in steps}
    teachers = Teachers(find_checkpoints(NAME), read_model, lambda stored: torch.nn.Module(), True, kept)
    for step, then in ((1, 2), (2, 3), (3, None), (1, None)):
        teachers.load(step, then)
    teachers.release()
    weights = cache.glob("*/snapshots/*/model.safetensors")
    assert len(list(weights)) == min(kept or len(steps), len(steps))
    assert len([path for path in hub.requests if path.endswith("model.safetensors")]) >= len(steps)


def test_no_limit_below_one_checkpoint():
    assert refusal(Teachers, [], read_model, torch.nn.Module, True, 0) == "downloads_kept must be at least 1, got 0"


def test_what_was_cached_before_is_never_evicted(hub, cache):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in (1, 2)}
    before = [cache_by_hand(cache, "step1", checkpoint(1)), cache_by_hand(cache, "step2", {"config.json": b"{}"})]
    for step, path in enumerate(before, 1):
        location = Checkpoint(step, f"{NAME}@step{step}")
        assert local_path(location) == path
        assert evict(location) == 0
        assert (path / "model.safetensors").is_file()


def test_what_another_process_downloads_is_never_evicted(hub, cache, monkeypatch):
    hub.models[NAME]["step1"] = checkpoint(1)
    download = huggingface_hub.snapshot_download

    def meanwhile(*arguments, **options):
        cache_by_hand(cache, "step2", checkpoint(2))
        return download(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", meanwhile)
    local_path(AT)
    assert evict(Checkpoint(2, f"{NAME}@step2")) == 0
    assert evict(AT) > 0


def test_a_local_checkpoint_is_never_evicted(tmp_path):
    assert evict(Checkpoint(1, tmp_path)) == 0
    assert tmp_path.exists()
