"""Atomic writes with every system call failing in turn, and what killed writers leave behind."""

import errno
import json
import os
from contextlib import nullcontext

import pytest

from common.runs.checkpoints import save_checkpoint
from common.runs.files import (
    BLOCK,
    BLOCKS,
    SAMPLED_ABOVE,
    append_to_file,
    remove,
    remove_unfinished,
    sampled_digest,
    shared_lock,
    write_directory,
    write_file,
)
from common.runs.resume import add_resume, save_resume
from tests.files import CONFIG, TENSORS, call_with_full_disk, content


def run_with_files(directory):
    write_file(directory / "file", b"old")
    save_checkpoint(directory, 10, TENSORS, CONFIG)
    return directory


@pytest.mark.parametrize("persistently", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        lambda run: write_file(run / "probes" / "new.json", b"new"),
        lambda run: write_file(run / "file", b"new"),
        lambda run: write_directory(run / "new", {"a": b"1", "b": b"2"}),
        lambda run: save_checkpoint(run, 20, TENSORS, CONFIG),
        lambda run: save_resume(run, 1, TENSORS, {"seed": 1}),
        lambda run: add_resume(run, 1, TENSORS, {"seed": 1}),
    ],
)
def test_a_full_disk_leaves_everything_whole_and_the_same_call_then_succeeds(tmp_path, write, persistently):
    before = content(run_with_files(tmp_path / "before"))
    write(run_with_files(tmp_path / "after"))
    after = content(tmp_path / "after")
    calls = number = 0
    while number <= calls:
        number += 1
        run = run_with_files(tmp_path / str(number))
        failed, calls = call_with_full_disk(lambda run=run: write(run), number, persistently)
        assert content(run) in ((before, after) if failed else (after,))
        write(run)
        assert content(run) == after
    assert number > 5


def test_errors_name_the_file_and_restore_its_length(tmp_path, monkeypatch):
    path = tmp_path / "file"
    real = os.write
    calls = iter([lambda descriptor, rest: real(descriptor, rest[:3]), None])

    def short_then_full(descriptor, rest):
        if call := next(calls):
            return call(descriptor, rest)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path.write_bytes(b"first\n")
    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(OSError, match=r"No space left on device.*file"):
        append_to_file(path, b"second\n")
    assert path.read_bytes() == b"first\n"


def test_a_write_cut_short_by_the_system_is_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, rest: real(descriptor, rest[:2]))
    write_file(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_leftovers_of_killed_writers_go_and_nothing_else_does(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    before = content(tmp_path)
    (tmp_path / ".checkpoint-8.123.unfinished").mkdir()
    (tmp_path / ".checkpoint-8.123.unfinished" / "config.json").write_text("{")
    (tmp_path / "checkpoint-7" / ".config.json.123.unfinished").write_text("{")
    remove_unfinished(tmp_path)
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]


def test_a_leftover_of_the_same_process_number_does_not_get_into_a_file(tmp_path):
    (tmp_path / f".file.{os.getpid()}.unfinished").write_bytes(b"leftover")
    write_file(tmp_path / "file", b"new")
    assert content(tmp_path) == {"file": b"new"}


def test_removing_what_is_not_there_or_is_a_link_touches_nothing_else(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    before = content(tmp_path)
    remove(tmp_path / "absent")
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint-7")
    remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
    assert content(tmp_path) == before


def test_new_files_are_as_readable_as_the_umask_says(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").write_text(json.dumps({}))
    directory = tmp_path / "checkpoint-7"
    assert directory.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (directory / "config.json").stat().st_mode == (tmp_path / "plain" / "file").stat().st_mode


def test_a_digest_of_a_large_file_changes_with_its_size_its_ends_and_stretches_of_it(tmp_path):
    size = SAMPLED_ABOVE + 1000
    path = tmp_path / "file"

    def digest(content):
        path.write_bytes(content)
        return sampled_digest(path)

    whole = bytes(size)
    stretch = size // BLOCKS + BLOCK
    others = [bytes(size + 1), b"1" + whole[1:], whole[1:] + b"1"]
    for place in range(0, size - stretch, stretch):
        others.append(whole[:place] + b"1" * stretch + whole[place + stretch :])
    assert len({digest(content) for content in (whole, *others)}) == 1 + len(others)
    assert digest(whole) == digest(whole)


@pytest.mark.parametrize("shared", [False, True])
def test_leftovers_go_when_nobody_else_writes_in_a_shared_directory(tmp_path, shared):
    probes = tmp_path / "probes"
    with shared_lock(probes):
        pass
    leftover = probes / ".new.json.123.unfinished"
    leftover.write_text("{")
    with shared_lock(probes) if shared else nullcontext():
        if shared:
            leftover.write_text("{")
        remove_unfinished(tmp_path)
        assert leftover.exists()
        with shared_lock(probes):
            assert leftover.exists() == shared
