"""How a command starts and ends."""

import errno
import re
import sys

import pytest
import torch

from common.cli import command, command_line
from common.errors import DivergedError, UserError
from PCFG_mlm.train import train
from tests.commands import fail_in_one_line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("wrong\nlr"), 2, "error: wrong lr"),
        (DivergedError("loss is nan"), 3, "error: loss is nan"),
        (OSError(errno.ENOSPC, "No space left on device", "x/done.json"), 2, "error: x/done.json: No space left on .*"),
        (OSError(errno.EACCES, "Permission denied"), 2, "error: Permission denied; .*"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "error: x: Not a directory; .*"),
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
