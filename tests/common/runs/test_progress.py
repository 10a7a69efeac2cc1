"""Progress in a log file and on a terminal."""

import io
import sys

from common.runs.progress import progress


def test_a_log_file_gets_a_line_at_each_tenth_of_the_way(capsys):
    with progress(1005, 200, "student", batch_size=8) as show:
        for step in range(201, 1006):
            show(step, loss=0.5, accuracy=0.75, teacher=300_000)
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[2].replace(",", "")) for line in lines] == [*range(300, 1001, 100), 1005]
    assert lines[0].startswith("student: step 300 of 1,005, loss 0.5, accuracy 0.75, teacher 300,000, ")
    assert lines[0].endswith(" samples/s")


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(1000, 200, "student", batch_size=8) as show:
        show(400, loss=0.5, accuracy=0.75, teacher=300)
    bar = terminal.getvalue().split("\r")[-1]
    assert bar.startswith("student:  40%")
    for part in ("400/1000", "loss 0.5", "accuracy 0.75", "teacher 300", "samples/s"):
        assert part in bar
