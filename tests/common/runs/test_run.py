"""Runs killed, or with the disk full, at every system call; opened twice or wrongly; named, shown and tracked."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.runs import run as module, versions
from common.runs.checkpoints import read_checkpoint, save_checkpoint
from common.runs.names import ROOT
from common.runs.resume import add_resume, load_resume, save_resume
from common.runs.run import Run

open_run = partial(module.open_run, setting="parity_mlp")

CALLS = ("write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def train(directory):
    """A run of six steps whose every file depends on all steps before; a checkpoint at each odd step."""
    with open_run(directory, {"lr": 0.1}) as run:
        if run.complete:
            return
        resume = load_resume(directory)
        run.rewind(resume)
        weight = resume.tensors["weight"] if resume else np.ones(2)
        for step in range(resume.step + 1 if resume else 0, 6):
            weight = weight / 3 + step
            run.log({"step": step, "weight": weight})
            if step % 2:
                save_checkpoint(directory, step, {"weight": weight}, {"width": 2})
                save_resume(directory, step, {"weight": weight}, {})
        run.finish({"weight": weight})


def assert_whole(directory):
    """Whatever is in a run's directory can be read, and there is a state to go on from once there was one."""
    for checkpoint in directory.glob("checkpoint-*"):
        read_checkpoint(checkpoint)
    if (directory / "metrics.jsonl").exists():
        assert [record["step"] for record in Run(directory).records()] == list(range(len(Run(directory).records())))
    if (directory / "checkpoint-3").exists() and not Run(directory).complete:
        assert load_resume(directory) is not None


def content(directory):
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    files = {str(path.relative_to(directory)): path.read_bytes() for path in paths}
    return files | {"config.json": Run(directory).config["arguments"]}


def before_call(number, act, names, replace=setattr):
    """Call `act(real, args)` in place of the system call of this number; returns a list that grows with each call."""
    calls = []

    def counted(real):
        def call(*args, **kwargs):
            calls.append(real)
            if len(calls) == number:
                act(real, args)
            return real(*args, **kwargs)

        return call

    for name in names:
        replace(os, name, counted(getattr(os, name)))
    return calls


def exit_status(function):
    """Status of a child process that runs the function: 0, 256 for an exception, or the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def kill(real, args):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_the_middle(real, args):
    if real.__name__ == "write":
        real(args[0], args[1][: len(args[1]) // 2])
    kill(real, args)


def train_until(directory, number, act, names=CALLS):
    before_call(number, act, names)
    train(directory)


def start_over_until(directory, number, act):
    before_call(number, act, CALLS)
    with open_run(directory, {"lr": 0.1}, force=True):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("act", "names", "least"), [(kill, CALLS, 60), (kill_in_the_middle, ["write"], 20)])
def test_a_run_killed_at_any_system_call_ends_with_the_same_files(tmp_path, act, names, least):
    train(tmp_path / "undisturbed")
    for number in itertools.count(1):
        directory = tmp_path / str(number)
        status = exit_status(partial(train_until, directory, number, act, names))
        assert status in (0, signal.SIGKILL)
        if status == 0:
            break
        assert_whole(directory)
        train(directory)
        assert content(directory) == content(tmp_path / "undisturbed")
    assert number > least


def test_a_run_killed_again_and_again_ends_with_the_same_files(tmp_path):
    train(tmp_path / "undisturbed")
    numbers = random.Random(0)
    kills = 0
    while status := exit_status(partial(train_until, tmp_path / "run", numbers.randint(1, 80), kill_in_the_middle)):
        assert status == signal.SIGKILL
        kills += 1
    assert kills > 3
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed")


def test_a_run_killed_while_it_is_started_over_ends_with_the_same_files(tmp_path):
    train(tmp_path / "undisturbed")
    for number in itertools.count(1):
        directory = tmp_path / str(number)
        train(directory)
        status = exit_status(partial(start_over_until, directory, number, kill_in_the_middle))
        assert status in (0, signal.SIGKILL)
        for checkpoint in directory.glob("checkpoint-*"):
            read_checkpoint(checkpoint)
        train(directory)
        assert content(directory) == content(tmp_path / "undisturbed")
        if status == 0:
            break
    assert number > 20


def test_a_full_disk_at_any_system_call_leaves_a_run_that_reads_and_goes_on(tmp_path):
    def fail(real, args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train(tmp_path / "undisturbed")
    calls = number = 0
    while number <= calls:
        number += 1
        directory = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            made = before_call(number, fail, ("write", "fsync", "rename", "replace", "mkdir"), patch.setattr)
            try:
                train(directory)
            except OSError:
                calls = number
            else:
                calls = len(made)
        assert_whole(directory)
        train(directory)
        assert content(directory) == content(tmp_path / "undisturbed")
    assert number > 60


LOGGING = """
import resource, sys
from pathlib import Path
from common.cli import command
from common.runs.resume import load_resume, save_resume
from common.runs.run import Run, open_run

def main():
    if sys.argv[2:]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    with open_run(Path(sys.argv[1]), {}, setting="parity_mlp") as run:
        resume = load_resume(run.directory)
        run.rewind(resume)
        for step in range(resume.step + 1 if resume else 0, 20):
            run.log({"step": step, "text": "x" * 1000})
            save_resume(run.directory, step, {}, {})
        run.finish({})
    assert "wandb" not in sys.modules

command(main)
"""


def python(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_size_limit_is_one_line_and_the_same_command_goes_on(tmp_path):
    limited = python(LOGGING, tmp_path / "run", 8000)
    assert limited.returncode == 2
    assert limited.stderr.startswith(f"error: {tmp_path}/run/metrics.jsonl: File too large; ")
    assert limited.stderr.count("\n") == 1
    assert [record["step"] for record in Run(tmp_path / "run").records()] == list(range(7))
    assert python(LOGGING, tmp_path / "run").returncode == 0
    assert [record["step"] for record in Run(tmp_path / "run").records()] == list(range(20))
    assert Run(tmp_path / "run").complete


def test_what_was_written_after_a_resume_state_is_dropped_with_a_torn_line_and_whatever_else_is_there(tmp_path):
    metrics = tmp_path / "run" / "metrics.jsonl"
    with open_run(tmp_path / "run", {}) as run:
        for step in (0, 10):
            run.log({"step": step, "loss": step / 7})
            save_checkpoint(run.directory, step, {}, {})
        save_resume(run.directory, 10, {}, {})
        kept = metrics.read_bytes()
        before = content(run.directory)
        resume = load_resume(run.directory)
        for more in (b"", b'{"step": 20}\n', b'{"step": 20}\n{"st', b"[1]\n", kept):
            metrics.write_bytes(kept + more)
            save_checkpoint(run.directory, 20, {}, {})
            add_resume(run.directory, 20, {}, {})
            run.rewind(resume)
            assert content(run.directory) == before
        run.rewind(None)
        assert set(content(run.directory)) == {"config.json", "metrics.jsonl"}
        assert metrics.read_bytes() == b""


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_run_whose_records_cannot_be_read_keeps_its_checkpoints(tmp_path, capsys, make):
    save_checkpoint(tmp_path, 7, {"weight": np.zeros(3)}, {})
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl is (a directory|no regular file): replace or remove it"):
        Run(tmp_path).rewind(None)
    assert (tmp_path / "checkpoint-7" / "config.json").exists()
    assert capsys.readouterr().err == ""


def test_a_record_is_valid_json_whatever_its_numbers(tmp_path):
    with open_run(tmp_path / "run", {}) as run:
        run.log(
            {"loss": float("nan"), "step": np.int64(3), "norms": np.array([1, np.inf]), "of": {"a": np.float32(0.5)}}
        )
        run.finish({"loss": -float("inf")})
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert line == '{"step": 3, "loss": null, "norms": [1.0, null], "of": {"a": 0.5}}\n'
    assert json.loads((tmp_path / "run" / "done.json").read_text())["loss"] is None


def test_a_record_without_a_step_is_refused_before_it_is_written(tmp_path):
    with open_run(tmp_path / "run", {}) as run:
        with pytest.raises(KeyError, match="step"):
            run.log({"loss": 1.0})
        for wrong in ({"step": 0.5}, {"step": -1}, {"step": 0, "loss": "1"}):
            with pytest.raises(ValueError, match="a record needs a step"):
                run.log(wrong)
        assert run.records() == []


def test_a_damaged_record_is_one_line(tmp_path):
    with open_run(tmp_path / "run", {}) as run:
        (tmp_path / "run" / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"st\n{"step": 2}\n')
        with pytest.raises(UserError, match=r"^.*metrics.jsonl is damaged in line 2: .*--force$"):
            run.records()


def test_the_config_has_arguments_versions_and_commit(tmp_path):
    with open_run(tmp_path / "run", {"lr": 0.1, "widths": (1, 2), "grammar": Path("a/b"), "seed": None}) as run:
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert run.config == config
    assert config["arguments"] == {"lr": 0.1, "widths": [1, 2], "grammar": "a/b", "seed": None}
    assert config["versions"]["numpy"] == np.__version__
    assert set(config["versions"]) == {"python", *versions.PACKAGES}


def test_a_run_says_its_setting_and_its_command(tmp_path):
    argv = ["python", "-m", "PCFG_mlm.train", "smoke", "--lr", "0.1"]
    for given, ours in ((argv, argv), (["another"], argv)):  # the command that started it
        with module.open_run(tmp_path / "run", {}, setting="PCFG_mlm", argv=given) as run:
            assert run.setting == run.config["setting"] == "PCFG_mlm"
            assert run.config["argv"] == ours


def test_a_run_of_another_setting_is_refused_unless_forced(tmp_path):
    with module.open_run(tmp_path / "run", {}, setting="PCFG_mlm"):
        pass
    opening = module.open_run(tmp_path / "run", {}, setting="parity_mlp")
    with pytest.raises(UserError, match=r"a run of PCFG_mlm, not of parity_mlp: .*--out, or --force"), opening:
        pass
    with module.open_run(tmp_path / "run", {}, setting="parity_mlp", force=True) as run:
        assert run.setting == "parity_mlp"


@pytest.mark.parametrize("missing", ["setting", "argv"])
def test_a_config_of_an_earlier_version_is_refused_and_left_alone(tmp_path, missing):
    with open_run(tmp_path / "run", {}):
        pass
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config[missing]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf'^{path} was written by an earlier version: add "setting".*"argv"'):
        _ = Run(tmp_path / "run").config
    for force in (False, True):
        with pytest.raises(UserError, match="earlier version"), open_run(tmp_path / "run", {}, force=force):
            pass
    assert json.loads(path.read_text()) == config


def test_the_commit_says_whether_files_were_changed_and_is_none_outside_a_checkout(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    code = tmp_path / "code"
    code.mkdir()
    (code / "runs.py").write_text("")
    monkeypatch.setattr(versions, "ROOT", code)
    monkeypatch.setattr(module, "commit", versions.commit.__wrapped__)  # which is else asked once
    numbers = itertools.count()

    def commit():
        with open_run(tmp_path / f"run{next(numbers)}", {}) as run:
            return run.config["commit"]

    def git(*arguments):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command_line = ["git", "-C", str(code), *settings, *arguments]
        return subprocess.run(command_line, check=True, capture_output=True, text=True).stdout.strip()

    assert commit() is None
    git("init")
    assert commit() is None
    git("add", ".")
    git("commit", "-m", "a")
    git("tag", "-m", "a", "v1")
    assert commit() == git("rev-parse", "HEAD")
    (code / "runs.py").write_text("changed")
    assert commit() == git("rev-parse", "HEAD") + "-dirty"
    installed = code / "environment"
    installed.mkdir()
    monkeypatch.setattr(versions, "ROOT", installed)
    assert commit() is None


def test_a_run_resumed_with_other_versions_says_so_and_records_both(tmp_path, capsys, monkeypatch):
    with open_run(tmp_path / "run", {}):
        pass
    known = dict(versions.versions())
    commit = Run(tmp_path / "run").config["commit"]
    with open_run(tmp_path / "run", {}) as run:
        assert run.config["versions"] == known
    assert capsys.readouterr().err == ""
    for number in ("1.0", "2.0", "2.0"):
        monkeypatch.setattr(versions, "versions", lambda number=number: {**known, "torch": number})
        monkeypatch.setattr(versions, "commit", lambda number=number: f"commit {number}")
        with open_run(tmp_path / "run", {}) as run:
            config = run.config
        lines = capsys.readouterr().err.splitlines()
    assert lines == []  # the third session has the second one's versions
    assert config["versions"] == {**known, "torch": f"{known['torch']}, then 1.0, then 2.0"}
    assert config["commit"] == f"{commit}, then commit 1.0, then commit 2.0"
    monkeypatch.undo()
    with open_run(tmp_path / "run", {}):
        pass
    assert f"resumes with torch {known['torch']} instead of 2.0: its results may differ" in capsys.readouterr().err


def test_a_finished_run_is_complete_and_keeps_no_resume_state(tmp_path):
    train(tmp_path / "run")
    (tmp_path / "run" / "resume").mkdir()
    with open_run(tmp_path / "run", {"lr": 0.1}) as run:
        assert run.complete
    assert not (tmp_path / "run" / "resume").exists()


def test_the_summary_of_a_run_is_what_it_was_finished_with(tmp_path):
    with open_run(tmp_path / "run", {}) as run:
        with pytest.raises(UserError, match="is not a complete run"):
            _ = run.summary
        run.finish({"loss": np.float64(0.5)})
    assert Run(tmp_path / "run").summary == {"loss": 0.5}


def test_the_time_of_a_run_is_that_of_its_sessions_without_what_is_between_them(tmp_path):
    def at(second, *names):
        for name in names:
            os.utime(tmp_path / "run" / name, (0, second))

    with open_run(tmp_path / "run", {}) as run:
        run.log({"step": 0})
        at(1000, "config.json")
        at(1060, "metrics.jsonl")
        assert run.seconds == 60
    with open_run(tmp_path / "run", {}) as run:
        at(5000, "config.json")
        at(5030, "metrics.jsonl")
        assert run.seconds == 60 + 30
        save_resume(run.directory, 0, {}, {})
        at(5035, "resume")
    with open_run(tmp_path / "run", {}) as run:  # is killed before it writes anything
        at(8000, "config.json")
        assert run.seconds == 60 + 35
    with open_run(tmp_path / "run", {}) as run:
        run.finish({})
        at(9000, "config.json")
        at(9005, "done.json")
        assert run.seconds == 60 + 35 + 5
    before = (tmp_path / "run" / "config.json").read_bytes()
    with open_run(tmp_path / "run", {}) as run:
        assert run.seconds == 60 + 35 + 5
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    assert json.loads(before)["seconds"] == 60 + 35


def test_other_arguments_are_refused_by_name(tmp_path):
    with open_run(tmp_path / "run", {"lr": 0.1, "seed": 0, "out": "a"}):
        pass
    before = content(tmp_path / "run")
    with open_run(tmp_path / "run", {"lr": 0.1, "seed": 0, "out": "b"}):
        pass
    message = r"^.*\(lr is 0.1 there and 0.2 here, seed is 0 there and absent here\): .*--out, or --force .*$"
    with pytest.raises(UserError, match=message), open_run(tmp_path / "run", {"lr": 0.2, "out": "a"}):
        pass
    many = {"lr": 0.1, "seed": 0, **dict.fromkeys("defgh", 1)}
    with pytest.raises(UserError, match=r"d is absent there and 1 here.* and 2 more"), open_run(tmp_path / "run", many):
        pass
    assert content(tmp_path / "run") == before
    with open_run(tmp_path / "other", {"seed": None}):
        pass
    with pytest.raises(UserError, match="seed is None there and absent"), open_run(tmp_path / "other", {}):
        pass


def test_what_an_argument_names_is_said_to_have_changed(tmp_path):
    """Hashes and long values tell a reader nothing."""
    rules, digest = [["S", ["a"] * 100]], "0" * 64
    begun = {"teacher": "runs/t", "teacher_id": "ab", "grammar": "g.cfg", "rules": rules, "note": "x" * 61}
    begun |= {"corpus": ["docs"], "documents": [digest], "tokenizer": "bpe", "tokenizer_sha256": digest}
    with open_run(tmp_path / "run", begun):
        pass

    def refusal(**changes):
        with pytest.raises(UserError) as caught, open_run(tmp_path / "run", {**begun, **changes}):
            pass
        return str(caught.value).partition("other arguments (")[2].partition("): give another --out")[0]

    assert refusal(teacher_id="cd") == "the teacher was trained again since"
    assert refusal(teacher_id=None) == "teacher_id is ab there and None here"
    assert refusal(teacher_id="cd", teacher="t") == "teacher is runs/t there and t here"
    assert refusal(rules=[["S", ["b"]]]) == "the grammar's rules have changed"
    assert refusal(rules=[["S", ["b"]]], grammar="h.cfg") == "grammar is g.cfg there and h.cfg here"
    texts = "the text of the corpus has changed, the tokenizer has changed"
    assert refusal(documents=["1" * 64], tokenizer_sha256="1" * 64) == texts
    assert refusal(note="y" * 60) == f"note is {'x' * 57}... there and {'y' * 60} here"


def test_a_number_that_is_not_finite_is_refused_before_anything_is_made(tmp_path):
    arguments = {"seed": 0, "lr": float("nan")}
    with pytest.raises(UserError, match=r"^lr is nan: "), open_run(tmp_path / "run", arguments):
        pass
    assert list(tmp_path.iterdir()) == []


def test_force_removes_what_the_run_made_and_nothing_else(tmp_path):
    train(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "probes").mkdir()
    identity = Run(tmp_path / "run").config["id"]
    with open_run(tmp_path / "run", {"lr": 0.2}, force=True) as run:
        assert not run.complete
        assert run.records() == []
        assert run.config["id"] != identity
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lock", "config.json", "metrics.jsonl", "notes.txt"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "metrics.jsonl", "config.json"])
def test_a_directory_that_is_not_a_run_is_left_alone(tmp_path, name, force):
    (tmp_path / name).write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match=r"is not a run.*--out$"), open_run(tmp_path, {}, force=force):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, '{"model_type": "gpt2"}')]


def test_a_file_is_not_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(UserError, match="is not a run"):
            _ = Run(directory).config
        with pytest.raises(UserError, match="is not a run"):
            Run(directory).records()
    with pytest.raises(UserError, match=r"is not a run.*--out$"), open_run(tmp_path / "file", {}):
        pass


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with open_run(tmp_path / "run", {}):
            os.write(writer, b"open")
            signal.pause()
    assert os.read(reader, 4) == b"open"
    os.close(reader)
    os.close(writer)
    try:
        for force in (False, True):
            opening = open_run(tmp_path / "run", {}, force=force)
            with pytest.raises(UserError, match=r"^another process is using "), opening:
                pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with open_run(tmp_path / "run", {}) as run:
        run.log({"step": 0})


def test_a_refusal_of_wandb_is_one_line_and_a_complete_run_does_not_ask_it(tmp_path, monkeypatch):
    import wandb

    def refuse(*, id, resume, **_):
        assert (id, resume) == (Run(tmp_path).config["id"], "allow")
        raise wandb.Error("no key. Log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with (
        pytest.raises(UserError, match=r"^wandb: no key\. Log in; --wandb offline"),
        open_run(tmp_path, {}, wandb="online"),
    ):
        pass
    with open_run(tmp_path, {}) as run:
        run.finish({})
    with open_run(tmp_path, {}, wandb="online") as run:
        assert run.complete
