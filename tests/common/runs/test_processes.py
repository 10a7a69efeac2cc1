"""Processes of one training: who goes first, who writes, and how torchrun's environment is read."""

import json
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.runs.processes import Processes, join_processes, leave_process_group, open_shared_run
from common.runs.run import Run
from tests.commands import files
from tests.forked import two_forked


def test_alone_nothing_is_joined(monkeypatch):
    for count in (None, "1"):
        if count is None:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("WORLD_SIZE", count)
        assert join_processes("cuda") == (Processes(), "cuda")
        assert not torch.distributed.is_initialized()
    assert Processes().first
    leave_process_group()


def test_alone_nobody_is_waited_for_and_everything_is_said(capsys):
    with Processes().main_process_first():
        Processes().print("a line")
    assert capsys.readouterr().out == "a line\n"


def test_another_process_than_the_first_says_nothing(capsys):
    Processes(1, 2).print("a line")
    assert capsys.readouterr().out == ""
    assert not Processes(1, 2).first


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_process_is_through_before_the_others_begin_and_waits_for_them(monkeypatch, index):
    """The others are at the first barrier before their work, the first one after it; at the second all are after it."""
    order = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda: order.append("barrier"))
    with Processes(index, 2).main_process_first():
        order.append("work")
    assert order == (["work", "barrier", "barrier"] if index == 0 else ["barrier", "work", "barrier"])


def test_alone_a_shared_run_is_a_run(tmp_path):
    with open_shared_run(tmp_path / "run", {"lr": 0.1}, Processes(), setting="parity_mlp") as run:
        run.log({"step": 0})
    with (
        pytest.raises(UserError, match=r"lr is 0\.1 there and 0\.2 here"),
        open_shared_run(tmp_path / "run", {"lr": 0.2}, Processes(), setting="parity_mlp"),
    ):
        pass
    with open_shared_run(tmp_path / "run", {"lr": 0.2}, Processes(), force=True, setting="parity_mlp") as run:
        assert run.records() == []
        assert run.config["arguments"] == {"lr": 0.2}


def lost_process(group):
    raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("code", [0, 2])
def test_other_processes_make_nothing_and_end_if_the_first_one_fails(tmp_path, monkeypatch, capsys, code):
    monkeypatch.setattr(Processes, "largest", lambda processes, number: max(number, code))
    monkeypatch.setattr(torch.distributed, "barrier", lost_process)
    monkeypatch.setattr("common.runs.processes._hosts", lambda: None)
    if code:
        opening = open_shared_run(tmp_path / "run", {"lr": 0.1}, Processes(1, 2), setting="parity_mlp")
        with pytest.raises(SystemExit) as ended, opening:
            pass
        assert ended.value.code == code
        assert capsys.readouterr() == ("", "")
        assert files(tmp_path) == {}
        return
    with open_shared_run(tmp_path / "run", {"lr": 0.1}, Processes(1, 2), setting="parity_mlp") as run:
        assert run == Run(tmp_path / "run")
    assert files(tmp_path) == {}


def in_each_process(directory):
    """Join, share a run that the first process makes, and leave."""
    processes, device = join_processes("cpu")
    said = StringIO()
    with redirect_stdout(said), open_shared_run(directory / "run", {"lr": 0.1}, processes, setting="parity_mlp") as run:
        processes.print("a line")
        total = torch.tensor([10.0**processes.index])
        torch.distributed.all_reduce(total)
        found = [processes.index, processes.count, device, run.config["arguments"], said.getvalue(), total.item()]
    leave_process_group()
    found.append(torch.distributed.is_initialized())
    (directory / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


def test_two_processes_share_a_run(tmp_path):
    two_forked(__file__, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found == [[rank, 2, "cpu", {"lr": 0.1}, "a line\n" if rank == 0 else "", 11, False] for rank in range(2)]


if __name__ == "__main__":
    in_each_process(Path(sys.argv[1]))
