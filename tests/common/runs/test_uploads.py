"""What the real wandb writes offline, while a run is made, killed and gone on with, and when past runs are synced."""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from common.runs.__main__ import main
from common.runs.files import locked
from common.runs.resume import Resume
from common.runs.run import Run, open_run
from tests.commands import ROOT, change_config, cut, fail_in_one_line, files, start, succeed

BLOCK = 32_768
HEADER = 7
"""Bytes of a block in a log of LevelDB, and of a record's header: checksum, length and type."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Types of a record: the whole of a message, or its parts."""


def messages(path):
    """The messages of a .wandb file: after a header of 7 bytes, a log of LevelDB, see its doc/log_format.md."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    place, message = HEADER, b""
    while place < len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        part = content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        assert (kind in (FULL, FIRST)) == (message == b"")
        message += part
        if kind in (FULL, LAST):
            yield Record.FromString(message)
            message = b""


def written(directory):
    """Group, config, records in their order, summary, and exit code, from the only offline run in a run's directory."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    assert path.name == f"run-{Run(directory).config['id']}.wandb"
    group, config, records, summary, code = None, {}, [], {}, None
    for message in messages(path):
        kind = message.WhichOneof("record_type")
        if kind == "run":
            assert message.run.run_id == Run(directory).config["id"]
            group = message.run.run_group
            config |= {item.key: json.loads(item.value_json) for item in message.run.config.update}
        elif kind == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in message.history.item}
            assert items["_step"] == items["step"] == message.history.step.num
            records.append({name: value for name, value in items.items() if not name.startswith("_")})
        elif kind == "summary":
            summary |= {item.key: json.loads(item.value_json) for item in message.summary.update}
        elif kind == "exit":
            code = message.exit.exit_code
    config.pop("_wandb", None)
    return group, config, records, summary, code


@pytest.fixture
def home(tmp_path, monkeypatch):
    """No settings or key of wandb from outside, and what it keeps beside runs goes here."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


TRACKED = """
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from common.runs.resume import add_resume, load_resume
from common.runs.run import open_run

first, last, *directories = sys.argv[1:]
tracking = {"wandb": "offline", "group": "preset"}
with ExitStack() as stack:
    opened = [
        stack.enter_context(open_run(Path(path), {"lr": 0.5**i, "widths": (1, 2)}, setting="parity_mlp", **tracking))
        for i, path in enumerate(directories)
    ]
    for run in opened:
        run.rewind(load_resume(run.directory, int(first) - 1))
    for step in range(int(first), int(last)):
        for i, run in enumerate(opened):
            run.log({"step": step, "loss": step / 8 + i, "teacher": None, "text": "x" * 5_000})
            add_resume(run.directory, step, {}, {})
    if int(last) < 20:
        os.kill(os.getpid(), signal.SIGKILL)
    for run in opened:
        run.finish({"loss": 0.0625})
"""


def test_after_kills_wandb_has_every_record_once_in_one_offline_run(tmp_path, home):
    directories = [tmp_path / "one", tmp_path / "other"]
    for first, last, code in ((0, 9, -9), (5, 14, -9), (0, 4, -9), (2, 20, 0)):
        tracked = python("-c", TRACKED, first, last, *directories)
        assert tracked.returncode == code, tracked.stderr
    for i, directory in enumerate(directories):
        group, config, records, summary, code = written(directory)
        assert (group, config, code) == ("preset", {"lr": 0.5**i, "widths": [1, 2]}, 0)
        expected = [{"step": n, "loss": n / 8 + i, "teacher": None, "text": "x" * 5_000} for n in range(20)]
        assert records == expected
        assert summary["loss"] == 0.0625


STUDENT = {"preset": "smoke", "methods": ("ce",), "lr": 0.1}
TEACHER = {"preset": "smoke", "lr": 0.2}
RECORDS = [{"step": step, "loss": 1 / (1 + step), "accuracy": None} for step in (0, 5, 7)]


def make_run(directory, arguments, complete=True):
    with open_run(directory, arguments, setting="PCFG_mlm") as run:
        for record in RECORDS:
            run.log(record)
        if complete:
            run.finish({"loss": 0.125, "accuracy": 1.0})


def test_sync_gives_past_runs_to_wandb_and_twice_is_as_once(tmp_path, home):
    past = tmp_path / "runs"
    make_run(past / "a" / "student", STUDENT)
    make_run(past / "teacher", TEACHER, complete=False)
    before = files(past)
    for _ in range(2):
        synced = python("-m", "common.runs", "sync", past, past / "teacher", "--wandb", "offline")
        assert (synced.returncode, synced.stderr) == (0, "")
        assert synced.stdout.splitlines() == [f"{past}/a/student: 3 records", f"{past}/teacher: 3 records"]
        student, teacher = written(past / "a" / "student"), written(past / "teacher")
        assert student[:3] == ("smoke", {**STUDENT, "methods": ["ce"]}, RECORDS)
        assert teacher[:3] == ("", TEACHER, RECORDS)
        assert (student[3]["loss"], student[3]["accuracy"], student[4]) == (0.125, 1.0, 0)
        assert (teacher[3].get("loss"), teacher[4]) == (None, 1)
    assert before.items() <= files(past).items()


@pytest.mark.parametrize(
    ("words", "sweep", "group"), [([], None, "smoke"), ([], "sweep", "sweep"), (["--group", "given"], "sweep", "given")]
)
def test_the_group_of_a_synced_run(tmp_path, home, monkeypatch, capsys, words, sweep, group):
    make_run(tmp_path / "run", STUDENT)
    if sweep is not None:
        monkeypatch.setenv("WANDB_RUN_GROUP", sweep)
    asked = []
    monkeypatch.setattr("wandb.init", lambda **settings: asked.append(settings) or Tracker(0))
    succeed(capsys, main, "sync", tmp_path / "run", *words)
    assert [(settings["group"], settings["mode"]) for settings in asked] == [(group, "online")]


class Tracker:
    """Stands for an online run of wandb, which has the steps before `starting_step`."""

    def __init__(self, starting_step):
        self.starting_step, self.logged, self.summary = starting_step, [], {}

    def log(self, record, step):
        self.logged.append((step, record))

    def finish(self, exit_code):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize(("sweep", "group"), [("", "preset"), ("sweep", "sweep")])
def test_the_environment_says_the_group_before_the_command_does(tmp_path, monkeypatch, sweep, group):
    asked = []
    monkeypatch.setattr("wandb.init", lambda **settings: asked.append(settings["group"]) or Tracker(0))
    monkeypatch.setenv("WANDB_RUN_GROUP", sweep)
    with open_run(tmp_path / "run", STUDENT, setting="PCFG_mlm", wandb="offline", group="preset"):
        pass
    assert asked == [group]


def test_online_wandb_gets_only_what_it_lacks(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", STUDENT, complete=False)
    tracker = Tracker(starting_step=6)
    monkeypatch.setattr("wandb.init", lambda **settings: tracker)
    succeed(capsys, main, "sync", tmp_path / "run")
    assert tracker.logged == [(7, RECORDS[2])]

    tracker = Tracker(starting_step=6)  # the command goes on from a state after step 0
    with open_run(tmp_path / "run", STUDENT, setting="PCFG_mlm", wandb="online") as run:
        first, *_ = (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        run.rewind(Resume(0, {}, {}, len(first)))
        for record in [*RECORDS[1:], {"step": 9}]:
            run.log(record)
    assert tracker.logged == [(7, RECORDS[2]), (9, {"step": 9})]
    assert run.records() == [*RECORDS, {"step": 9}]


def test_sync_without_a_key_is_one_line_and_writes_nothing(tmp_path, home):
    make_run(tmp_path / "runs" / "run", STUDENT)
    before = files(tmp_path / "runs")
    synced = python("-m", "common.runs", "sync", tmp_path / "runs")
    assert synced.returncode == 2
    assert re.fullmatch("error: wandb: No API key configured.*--wandb offline needs no connection\n", synced.stderr)
    after = files(tmp_path / "runs")
    assert {name: after[name] for name in before} == before
    assert not list(tmp_path.glob("runs/run/wandb/*/*.wandb"))


def test_wrong_input_of_sync_is_one_line_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.runs.uploads.open_tracker", None)
    make_run(tmp_path / "runs" / "good", STUDENT)
    (tmp_path / "empty").mkdir()
    for wrong, message in (("absent", "there is no directory"), ("empty", "there is no run in")):
        line = fail_in_one_line(capsys, main, "sync", tmp_path / "runs", tmp_path / wrong)
        assert f"{message} {tmp_path / wrong}" in line
    make_run(tmp_path / "runs" / "late", STUDENT)
    with locked(tmp_path / "runs" / "late", ""):
        line = fail_in_one_line(capsys, main, "sync", tmp_path / "runs")
    assert f"another process is using {tmp_path}/runs/late" in line
    cut(tmp_path / "runs" / "late" / "config.json")
    assert "late/config.json is damaged" in fail_in_one_line(capsys, main, "sync", tmp_path / "runs" / "late")
    make_run(tmp_path / "other", STUDENT)
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 0}\n{"st\n')
    assert "metrics.jsonl is damaged in line 2" in fail_in_one_line(capsys, main, "sync", tmp_path / "other")


def test_sync_leaves_out_damaged_runs_with_a_warning(tmp_path, home, capsys):
    make_run(tmp_path / "good", STUDENT)
    for name, changes in (("a", {"arguments": []}), ("b", {"id": 7}), ("c", {})):
        make_run(tmp_path / name, STUDENT)
        change_config(tmp_path / name, **changes)
    with (tmp_path / "c" / "metrics.jsonl").open("a") as metrics:
        metrics.write("[1]\n")
    make_run(tmp_path / "d", STUDENT)
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    del config["id"]
    (tmp_path / "d" / "config.json").write_text(json.dumps(config))
    code, stdout, stderr = start(capsys, main, "sync", tmp_path, "--wandb", "offline")
    assert (code, stdout) == (0, f"{tmp_path / 'good'}: 3 records\n")
    *lines, last = stderr.splitlines()
    assert (
        last == f"warning: {tmp_path / 'd' / 'config.json'} has no id, by which wandb knows the run: add 16 hex digits"
    )
    for line, name in zip(lines, ("a/config.json", "b/config.json", "c/metrics.jsonl"), strict=True):
        assert line.startswith(f"warning: {tmp_path / name} is damaged")


def test_sync_does_not_change_what_a_terminal_shows(tmp_path, home, capsys):
    for name in ("a\x1b[2J\nb", "c\x1b[2J"):
        make_run(tmp_path / name, STUDENT)
    cut(tmp_path / "c\x1b[2J" / "config.json")
    code, stdout, stderr = start(capsys, main, "sync", tmp_path, "--wandb", "offline")
    assert (code, stdout) == (0, f"{tmp_path}/a\\x1b[2J b: 3 records\n")
    damaged = f"{tmp_path}/c\\x1b[2J/config.json is damaged"
    assert stderr == f"warning: {damaged}: to start over, rerun its command with --force\n"
