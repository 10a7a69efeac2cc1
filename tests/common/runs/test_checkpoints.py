"""Writing with every system call failing in turn, and reading damaged files."""

import errno
import json
import os
from contextlib import suppress

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from common.runs.checkpoints import read_checkpoint, read_config, save_checkpoint
from common.runs.files import append_to_file, remove, remove_unfinished, write_directory, write_file
from common.runs.resume import add_resume, keep_resume, load_resume, resume_steps, save_resume

TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scale": np.float64(0.5),
    "empty": np.zeros((0, 4)),
}
CONFIG = {"width": 3, "lr": 0.1}


def call_with_full_disk(function, number, persistently):
    """Call with the system call of this number, or every one from it on, finding the disk full.

    Returns whether the function failed, and how many system calls it made.
    """
    calls = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number or (persistently and calls > number):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "fsync", "rename", "replace", "mkdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            function()
        except OSError:
            return True, calls
        return False, calls


def content(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


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


@pytest.mark.parametrize("persistently", [False, True])
def test_a_resume_state_survives_a_full_disk_while_the_next_is_saved(tmp_path, persistently):
    calls = number = 0
    while number <= calls:
        number += 1
        run = tmp_path / str(number)
        save_resume(run, 1, TENSORS, {"seed": 1})

        def save_next(run=run):
            save_resume(run, 2, TENSORS, {"seed": 2})

        failed, calls = call_with_full_disk(save_next, number, persistently)
        resume = load_resume(run)
        assert (resume.step, resume.state) in [(1, {"seed": 1}), (2, {"seed": 2})][0 if failed else 1 :]
        save_next()
        assert [path.name for path in (run / "resume").iterdir()] == ["2"]
    assert number > 8


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


def test_a_checkpoint_comes_back_whatever_its_memory_order(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    config, tensors = read_checkpoint(tmp_path / "checkpoint-7")
    assert config == CONFIG
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].shape == tensor.shape
        assert tensors[name].dtype == tensor.dtype


def test_from_pretrained_reads_a_checkpoint(tmp_path):
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=2, n_positions=4, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False)
    )
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path, 0, tensors, model.config.to_dict() | {"architectures": ["GPT2LMHeadModel"]})
    with safetensors.safe_open(tmp_path / "checkpoint-0" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-0")
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


def test_saving_a_checkpoint_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    save_checkpoint(tmp_path, 7, {"weight": np.ones(2)}, CONFIG)
    assert read_checkpoint(tmp_path / "checkpoint-7")[1]["weight"].tolist() == [1, 1]
    assert sorted(content(tmp_path)) == ["checkpoint-7/config.json", "checkpoint-7/model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_cut_off_or_missing_file_is_one_line_that_names_it(tmp_path, name):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    path = tmp_path / "checkpoint-7" / name
    whole = path.read_bytes().rstrip(b"\n")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"^.*checkpoint-7/{name} is truncated or damaged: remove .*$"):
            read_checkpoint(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=rf"^.*checkpoint-7/{name} is missing: remove .*$"):
        read_checkpoint(path.parent)


@given(st.data())
def test_a_damaged_header_is_a_user_error_or_harmless(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("run")
    save_checkpoint(run, 7, TENSORS, CONFIG)
    path = run / "checkpoint-7" / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(damaged[:8], "little")
    damaged[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with suppress(UserError):
        read_checkpoint(path.parent)


@pytest.mark.parametrize(
    ("written", "message"), [("[]", "is truncated or damaged"), ("{", "is truncated or damaged"), (None, "is missing")]
)
def test_a_config_is_read_without_the_weights(tmp_path, written, message):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    directory = tmp_path / "checkpoint-7"
    (directory / "model.safetensors").unlink()
    assert read_config(directory) == CONFIG
    (directory / "config.json").unlink()
    if written is not None:
        (directory / "config.json").write_text(written)
    with pytest.raises(UserError, match=rf"^.*checkpoint-7/config.json {message}: remove .*$"):
        read_config(directory)


def test_bfloat16_weights_are_refused_with_advice(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    path = tmp_path / "checkpoint-7"
    safetensors.torch.save_file({"a": torch.zeros(2, dtype=torch.bfloat16)}, path / "model.safetensors")
    with pytest.raises(UserError, match=r"bfloat16.*float32"):
        read_checkpoint(path)


def test_a_config_that_is_not_an_object_is_damaged(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, CONFIG)
    (tmp_path / "checkpoint-7" / "config.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "checkpoint-7")


def test_resume_state_comes_back_exactly_and_only_the_newest_is_kept(tmp_path):
    assert load_resume(tmp_path) is None
    state = {"random": 2**127 + 1, "best": float("inf"), "mean": 0.1 + 0.2, "history": [1, 2], "none": None}
    for step in (9, 100):
        save_resume(tmp_path, step, TENSORS, state)
    resume = load_resume(tmp_path)
    assert (resume.step, resume.state) == (100, state)
    np.testing.assert_array_equal(resume.tensors["weight"], TENSORS["weight"])
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["100"]


def test_the_newer_of_two_resume_states_counts(tmp_path):
    """A process killed between saving one and removing the other leaves both."""
    save_resume(tmp_path, 9, TENSORS, {})
    (tmp_path / "resume" / "9").rename(tmp_path / "9")
    save_resume(tmp_path, 100, TENSORS, {})
    (tmp_path / "9").rename(tmp_path / "resume" / "9")
    assert load_resume(tmp_path).step == 100


def test_an_unfinished_or_incomplete_resume_state_is_passed_over(tmp_path):
    save_resume(tmp_path, 9, TENSORS, {})
    for name in ("100", ".200.77.unfinished"):
        (tmp_path / "resume" / name).mkdir()
        (tmp_path / "resume" / name / "state.json").write_text("{}")
    assert load_resume(tmp_path).step == 9


def test_a_state_that_is_added_leaves_those_before_it_until_it_alone_is_kept(tmp_path):
    assert resume_steps(tmp_path) == []
    for step in (100, 9, 0):
        add_resume(tmp_path, step, {"weight": np.full(2, step)}, {"number": step})
    assert resume_steps(tmp_path) == [0, 9, 100]
    for step in (0, 9, 100):
        resume = load_resume(tmp_path, step)
        assert (resume.step, resume.state) == (step, {"number": step})
        assert resume.tensors["weight"].tolist() == [step, step]
    assert load_resume(tmp_path).step == 100
    assert load_resume(tmp_path, 8) is None
    keep_resume(tmp_path, 9)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["9"]
    assert load_resume(tmp_path, 100) is None
    keep_resume(tmp_path, 5)
    assert load_resume(tmp_path) is None


def test_a_state_that_is_added_again_is_replaced(tmp_path):
    for number in (1, 2):
        add_resume(tmp_path, 9, {"weight": np.full(2, number)}, {"number": number})
    resume = load_resume(tmp_path, 9)
    assert resume.state == {"number": 2}
    assert resume.tensors["weight"].tolist() == [2, 2]


@pytest.mark.parametrize("missing", ["state.json", "tensors.safetensors"])
def test_a_step_whose_state_is_not_whole_does_not_count(tmp_path, missing):
    for step in (9, 100):
        add_resume(tmp_path, step, TENSORS, {})
    (tmp_path / "resume" / "100" / missing).unlink()
    for name in ("07", "best", ".200.77.unfinished"):
        (tmp_path / "resume" / name).mkdir()
    assert resume_steps(tmp_path) == [9]
    assert load_resume(tmp_path, 100) is None
    assert load_resume(tmp_path).step == 9


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_damaged_resume_state_names_its_file(tmp_path, name):
    save_resume(tmp_path, 9, TENSORS, {"seed": 1})
    path = tmp_path / "resume" / "9" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{name} is truncated or damaged: .*--force"):
        load_resume(tmp_path)


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
