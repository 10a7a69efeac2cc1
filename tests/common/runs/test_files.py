"""Atomic writes with every system call failing in turn, what killed writers leave behind, and files that are none."""

import errno
import json
import os
from contextlib import nullcontext

import pytest

from common.errors import UserError
from common.runs.checkpoints import save_checkpoint
from common.runs.files import (
    BLOCK,
    BLOCKS,
    MOST_JSON,
    MOST_RECORDS,
    MOST_TEXT,
    SAMPLED_ABOVE,
    append_to_file,
    find_json,
    is_locked,
    json_lines,
    locked,
    read_file,
    read_json,
    read_safetensors,
    remove,
    remove_unfinished,
    require_readable,
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


FIFO, DIRECTORY, LOOP = os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)


@pytest.mark.parametrize(("make", "what"), [(FIFO, "no regular file"), (DIRECTORY, "a directory"), (LOOP, None)])
@pytest.mark.parametrize(
    "access",
    [
        lambda path: read_json(path, "advice"),
        lambda path: list(json_lines(path, "advice")),
        lambda path: read_file(path, "advice"),
        lambda path: read_safetensors(path, "advice"),
        lambda path: append_to_file(path, b"record"),
        sampled_digest,
    ],
)
def test_what_is_no_file_is_named_and_nothing_waits_for_it(tmp_path, make, what, access):
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(UserError if what else OSError) as caught:
        access(path)
    if what:
        assert str(caught.value) == f"{path} is {what}: replace or remove it"
    else:
        assert (caught.value.errno, str(caught.value.filename)) == (errno.ELOOP, str(path))
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("make", [FIFO, DIRECTORY])
def test_a_file_is_not_written_over_what_is_none(tmp_path, make):
    make(tmp_path / "report.html")
    with pytest.raises(UserError, match=r"report\.html is (a directory|no regular file): replace or remove it"):
        write_file(tmp_path / "report.html", b"new")
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize("make", [FIFO, DIRECTORY])
def test_a_lock_that_is_no_file_is_named_and_nobody_holds_it(tmp_path, make):
    make(tmp_path / ".lock")
    make(tmp_path / ".probes.lock")
    for lock in (locked(tmp_path, "held"), shared_lock(tmp_path / "probes")):
        with pytest.raises(UserError, match=r"lock is (a directory|no regular file): replace or remove it"), lock:
            pass
    assert not is_locked(tmp_path)


def test_a_folder_that_a_library_reads_has_only_files_of_reasonable_size(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "gone.json").symlink_to("elsewhere")
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, MOST_TEXT + (name != "tokenizer.json"))
    assert require_readable(tmp_path) == tmp_path
    assert require_readable("org/name") == "org/name"
    os.truncate(tmp_path / "tokenizer.json", MOST_TEXT + 1)
    with pytest.raises(UserError, match=r"tokenizer\.json has 1,073,741,825 bytes, and at most 1,073,741,824 are read"):
        require_readable(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json is no regular file"):
        require_readable(tmp_path)


def test_a_file_that_becomes_a_fifo_before_it_is_opened_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    os.mkfifo(path)
    monkeypatch.setattr("common.runs.files.require_regular", lambda path: path)
    with pytest.raises(UserError, match=r"config.json changes while it is read: start again"):
        read_json(path, "advice")


@pytest.mark.parametrize(
    ("access", "most"),
    [
        (lambda path: read_json(path, "advice"), MOST_JSON),
        (lambda path: list(json_lines(path, "advice")), MOST_RECORDS),
        (lambda path: read_file(path, "advice"), MOST_RECORDS),
        (lambda path: read_file(path, "advice", 100), 100),
    ],
)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, access, most):
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, most + 1)  # takes no space on the disk
    with pytest.raises(UserError, match=rf"file has {most + 1:,} bytes, and at most {most:,} are read: advice"):
        access(path)


def test_a_json_file_that_is_looked_for_may_be_too_large(tmp_path):
    path = tmp_path / "done.json"
    path.touch()
    os.truncate(path, MOST_JSON + 1)
    with pytest.raises(UserError, match=r"done\.json has 67,108,865 bytes, and .*: restore or remove it"):
        find_json(path)


def test_records_that_do_not_fit_into_memory_are_refused_with_numbers(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.touch()
    os.truncate(path, 10**9)
    monkeypatch.setattr("common.resources.free_memory", lambda: (2 * 10**9, "on this machine"))
    with pytest.raises(UserError, match=r"4\.0 GB of memory \(the content of .*metrics\.jsonl 4\.0 GB\), but 2\.0 GB"):
        list(json_lines(path, "advice"))


def test_records_are_lines_without_the_last_one_if_it_was_cut_off(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n\n[1]\n{"step": 1}\r\n{"st')
    assert list(json_lines(path, "advice")) == [{"step": 0}, None, None, {"step": 1}]
    monkeypatch.setattr("common.runs.files.MOST_JSON", 11)
    with pytest.raises(UserError, match=r"metrics\.jsonl has a line of more than 11 bytes: advice"):
        list(json_lines(path, "advice"))
