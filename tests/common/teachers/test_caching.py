"""`python -m common.teachers cache`, from a hub on this machine."""

import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from common.teachers.__main__ import main
from common.teachers.caching import size
from common.teachers.discovery import find_checkpoints
from tests.commands import fail_in_one_line, start, succeed
from tests.hub import NAME, cache_by_hand, checkpoint

STEPS = (0, 1, 2, 10)
WEIGHTS = len(checkpoint(0)["model.safetensors"])


@pytest.fixture
def teacher(hub):
    hub.models[NAME] = {f"step{step}": checkpoint(step) for step in STEPS} | {"main": checkpoint(10)}
    return hub


def cached(cache):
    return sorted(path.name for path in cache.glob("*/refs/*"))


def test_what_is_downloaded_is_a_teacher_offline(teacher, cache, capsys, monkeypatch):
    stdout = succeed(capsys, main, "cache", NAME)
    assert stdout.splitlines()[-4:] == [f"{number} of 4: step{step}" for number, step in enumerate(STEPS, 1)]
    online = find_checkpoints(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoints(NAME) == online


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--steps", 1, 9), ["step1", "step2"]),
        (("--revisions", "step0", "main"), ["main", "step0"]),
        (("--teacher-pattern", "step(?P<step>1.*)"), ["step1", "step10"]),
        (("--teacher-pattern", "step(?P<step>1.*)", "--steps", 5, 99), ["step10"]),
    ],
)
def test_some_are_downloaded(teacher, cache, capsys, words, wanted):
    succeed(capsys, main, "cache", NAME, *words)
    assert cached(cache) == wanted


def test_a_dry_run_lists_what_would_be_added(teacher, cache, capsys):
    teacher.models[NAME]["step2"] = teacher.models[NAME]["step1"]
    cache_by_hand(cache, "step10", checkpoint(10))
    assert succeed(capsys, main, "cache", NAME, "--dry-run").splitlines() == [
        f"  {size(WEIGHTS)}  step0",
        f"  {size(WEIGHTS)}  step1",
        "   0.0 kB  step2",
        "   0.0 kB  step10",
        f" {size(2 * WEIGHTS)}  to download for 4 revisions; the rest is cached",
    ]
    assert cached(cache) == ["step10"]


def test_a_disk_that_is_too_small_is_found_before_the_download(teacher, cache, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000))
    code, _, stderr = start(capsys, main, "cache", NAME)
    assert code == 2
    assert stderr == "error: the cache's disk has only 200.0 kB free: choose fewer with --steps, or set HF_HUB_CACHE\n"
    assert cached(cache) == []


def test_a_revision_without_weights_is_found_before_the_download(teacher, cache, capsys):
    teacher.models[NAME]["step2"] = {"config.json": b"{}", "pytorch_model.bin": b""}
    assert "org/name@step2 has only pickled weights" in fail_in_one_line(capsys, main, "cache", NAME)
    assert cached(cache) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((".",), ". is a directory: there is nothing to download"),
        ((NAME, "--steps", "3", "9"), "no checkpoints in --steps 3 9: the teacher's are at 0 to 10"),
        ((NAME, "--revisions", "step3"), "org/name has no branch or tag step3"),
        ((NAME, "--revisions", "step1", "--steps", "1", "1"), "--revisions replaces --steps and --teacher-pattern"),
        (("org/another",), "has no model org/another"),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(teacher, capsys, words, message):
    assert message in fail_in_one_line(capsys, main, "cache", *words)


def test_offline_nothing_is_downloaded(cache, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, which forbids downloads" in fail_in_one_line(capsys, main, "cache", NAME)


def test_sizes():
    assert [size(count) for count in (0, 999_999, 166_000_000, 2 * 10**12, 5 * 10**15)] == [
        "0.0 kB",
        "1000.0 kB",
        "166.0 MB",
        "2.0 TB",
        "5000.0 TB",
    ]
