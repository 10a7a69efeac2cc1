"""Signals to a command: at once, at a safe point, one after another, in every part of its way out."""

import os
import signal

import pytest

from common.errors import UserError
from common.runs.stopping import SIGNALS, catch_stop_signals, stop_at_a_safe_point, stop_requested
from tests.commands import python, start

TERM, USR1 = SIGNALS


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_at_once_with_code_75_and_one_line(capsys, number):
    went_on = []

    def main():
        send(number)
        went_on.append(1)

    code, stdout, stderr = start(capsys, main)
    assert (code, stdout) == (75, "")
    assert stderr == f"stopped by {signal.Signals(number).name}: rerun the command to resume\n"
    assert not went_on


def test_no_handler_of_errors_takes_it(capsys):
    def main():
        try:
            send(TERM)
        except Exception:  # noqa: BLE001
            return

    assert start(capsys, main)[0] == 75


def test_in_a_training_loop_it_is_remembered_until_the_end(capsys):
    seen = []

    @stop_at_a_safe_point()
    def train():
        seen.append(stop_requested())
        send(USR1)
        send(TERM)
        seen.append(stop_requested())

    def main():
        train()
        seen.append("after")

    code, _, stderr = start(capsys, main)
    assert (code, stderr) == (75, "stopped by SIGUSR1: rerun the command to resume\n")
    assert seen == [0, USR1]


def test_after_a_training_loop_it_ends_the_command_at_once_again(capsys):
    def main():
        with stop_at_a_safe_point():
            pass
        send(TERM)
        raise AssertionError

    assert start(capsys, main)[0] == 75


def test_an_error_of_the_training_loop_comes_before_the_signal(capsys):
    @stop_at_a_safe_point()
    def main():
        send(TERM)
        raise UserError("wrong")

    assert start(capsys, main)[::2] == (2, "error: wrong\n")


def test_a_signal_to_one_command_does_not_stop_the_next(capsys):
    assert start(capsys, lambda: send(TERM))[0] == 75

    @stop_at_a_safe_point()
    def main():
        assert not stop_requested()

    assert start(capsys, main) == (0, "", "")


def test_without_a_signal_the_handlers_from_before_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with catch_stop_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


STOPPED_ON_THE_WAY_OUT = """
import atexit
import os
import signal
from common.cli import command

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
    print("sent", flush=True)

def main():
    try:
        send(signal.SIGTERM)
    finally:
        send(signal.SIGUSR1, signal.SIGTERM)

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        os.write(1, b"sent\\n")

late = Late()
late.itself = late
atexit.register(send, signal.SIGTERM, signal.SIGUSR1)
command(main)
"""


def test_further_signals_do_not_change_how_the_process_ends():
    """In a finally, at exit, and when the interpreter takes its objects apart."""
    done = python("-c", STOPPED_ON_THE_WAY_OUT)
    assert done.returncode == 75
    assert done.stdout == "sent\n" * 3
    assert done.stderr == "stopped by SIGTERM: rerun the command to resume\n"
