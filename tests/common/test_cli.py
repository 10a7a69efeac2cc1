"""How a command starts and ends."""

import errno
import os
import re
import resource
import subprocess
import sys

import pytest
import torch

from common.cli import allow_files, command, command_line
from common.errors import DivergedError, UserError
from PCFG_mlm.train import train
from tests.commands import ROOT, fail_in_one_line, python


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("wrong\nlr"), 2, "error: wrong lr"),
        (DivergedError("loss is nan"), 3, "error: loss is nan"),
        (OSError(errno.ENOSPC, "No space left on device", "x/done.json"), 2, "error: x/done.json: No space left on .*"),
        (OSError(errno.EACCES, "Permission denied"), 2, "error: Permission denied; .*"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "error: x: Not a directory; .*"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 2, "error: x: Is a directory; .*"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 2, "error: x: Too many levels of .*"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 2, r"error: Too many open files \([0-9,]+ at most\): .*"),
        (OSError(errno.ENFILE, "Too many open files in system"), 2, "error: Too many open files in system .*"),
        (MemoryError("5 GB"), 2, r"error: out of memory \(5 GB\): .*"),
        (
            RuntimeError("[fail at 1] DefaultCPUAllocator: can't allocate. Code 12"),
            2,
            r"error: out of memory \(can't .*",
        ),
        (torch.OutOfMemoryError("CUDA"), 2, r"error: out of memory \(CUDA\): .*"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 2, "error: No usable .*"),
        (KeyboardInterrupt(), 130, "interrupted: .*"),
    ],
)
def test_a_command_ends_in_one_line_and_a_code(error, code, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        command(main)
    assert exit_.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(line + "\n", captured.err)


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "a bug"), SystemExit(5)])
def test_a_command_leaves_anything_else_as_it_is(error):
    def main():
        raise error

    with pytest.raises(type(error)) as caught:
        command(main)
    assert caught.value is error


def test_the_command_line_is_that_of_the_root_wherever_it_was_started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "smoke", "--seed", "1"])
    assert command_line(train) == ["python", "-m", "PCFG_mlm.train", "smoke", "--seed", "1"]


def test_names_that_are_not_utf8_are_one_line(capsys):
    line = fail_in_one_line(capsys, lambda: None, "--out", "runs/\udcff")
    assert line == "error: runs/\\udcff is not UTF-8: rename it, or give another name"


def test_a_message_does_not_change_what_a_terminal_shows(capsys):
    def refuse():
        raise UserError("\x1b[2J\u202ename\nof a file\r")

    assert fail_in_one_line(capsys, refuse) == r"error: \x1b[2J\u202ename of a file"


def test_a_name_that_the_locale_cannot_read_is_not_blamed():
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    locale = {**plain, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = python("-c", "from common.cli import command; command(print)", "runs/\xe9", env=locale)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: runs/\\xe9 cannot be read in this locale, of ascii: set LC_ALL=C.UTF-8\n"


PRINTS = """
import os
import sys
from contextlib import suppress

from common.cli import command

def main():
    print("é shown", flush=True)
    print("a note", file=sys.stderr, flush=True)
    sys.stderr.write("another")
    with open(sys.argv[1], "w") as result:
        for descriptor in (1, 2):
            with suppress(OSError):
                os.write(descriptor, b"of a library")
        result.write("done")

command(main)
"""


@pytest.mark.parametrize(
    ("streams", "code", "shown"),
    [
        ("", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 2, "error: stdout: No space left on device; the command is complete, but not all"),
        (">/dev/full 2>&1", 2, ""),
        ("> >(exit)", 0, ""),
    ],
)
@pytest.mark.parametrize("option", ["", "-u"])
def test_a_command_does_its_work_where_it_cannot_print(tmp_path, streams, code, shown, option):
    words = ["bash", "-c", f'exec "$0" {option} -c "$1" "$2" {streams}', sys.executable, PRINTS, tmp_path / "result"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (tmp_path / "result").read_text() == "done"
    assert done.returncode == code
    assert shown in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_of_both_streams_are_in_order_if_they_are_not_buffered(unbuffered):
    code = "import sys; from common.cli import command; command(lambda: [print('a'), sys.exit('b')])"
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    output = subprocess.run(words, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, check=False).stdout
    assert output == (b"a\nb\n" if unbuffered else b"b\na\n")


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(monkeypatch):
    raised = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    for limits in ((64, 100), (64, 1 << 30), (64, resource.RLIM_INFINITY), (1 << 20, 1 << 20)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limits=limits: limits)
        allow_files()
    assert raised == [(100, 100), (1 << 16, 1 << 30), (1 << 16, resource.RLIM_INFINITY)]
