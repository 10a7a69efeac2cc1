import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.cluster import launcher, plan
from common.cluster.__main__ import main
from common.runs.checkpoints import save_checkpoint
from common.runs.run import Run, open_run
from common.teachers.discovery import find_checkpoints
from common.teachers.trajectory import checkpoint_digests
from tests.commands import ROOT, change_config, cut, fail_in_one_line, files, start
from tests.sweeps import plan_line, wait_until

WORK = """
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from common.errors import DivergedError, UserError
from common.cli import command
from common.runs.run import Run, open_run

def note(word, place=None):
    with Path("notes").open("a") as notes:
        notes.write(f"{word} {place or directory}\\n")

def started():
    return sum(entry.startswith("start") and "teacher" not in entry for entry in open("notes"))

def main():
    arguments = {"kind": kind}
    if kind == "student":
        arguments["teacher_id"] = Run(Path(sys.argv[2])).config["id"]
    with open_run(directory, arguments, setting="parity_mlp", argv=[sys.executable, *sys.argv]) as run:
        if run.complete:
            note("found")
            return
        note("start")
        run.rewind(None)
        names = ("OMP_NUM_THREADS", "WANDB_RUN_GROUP", "CUDA_VISIBLE_DEVICES")
        run.log({"step": 0, "process": os.getpid(), **{name: os.environ.get(name) for name in names}})
        if kind == "fail":
            print("something else first")
            raise UserError("this cannot be")
        if kind == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while Path("hold").exists() or (kind == "pair" and started() < 2):
            time.sleep(0.01)
        note("end")
        run.finish({})

def group():
    note("start")
    argv = [sys.executable, *sys.argv]
    bad = None
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_run(directory / name, {"kind": kind}, setting="parity_mlp", argv=argv))
            for name in sys.argv[2].split(",")
        ]
        left = [run for run in opened if not run.complete]
        for run in left:
            note("makes", run.directory)
            run.rewind(None)
            run.log({"step": 0, "process": os.getpid()})
        while Path("hold").exists():
            time.sleep(0.01)
        for run in left:
            if Path(run.directory.name).exists():
                bad = run
            else:
                run.finish({})
    if bad is not None:
        raise DivergedError(f"{bad.directory}: the loss is not finite")

kind, directory = sys.argv[1], Path(sys.argv[-1])
command(group if kind == "group" else main)
"""
"""A run that says when it starts and ends, and waits for the file hold to go; one of a pair waits for the other. A
group of runs does the same; one of them diverges if there is a file of its name."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the runs of a test are made."""
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def line(name, kind="plain", teacher="-"):
    return plan_line(f"sweep/{name}", teacher, f"{sys.executable} work.py {kind}")


def group(name, *names, other=""):
    """A job of several runs."""
    return plan_line(f"sweep/{name}", "-", f"{sys.executable} work.py group {','.join(names)} {other}", len(names))


def launch(text, *words):
    """Start the launcher in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "common.cluster", "sweep", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(text)
    process.stdin.close()
    process.stdin = None
    return process


def finish(process, code=0):
    """Wait for a launcher; what it said at the end."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    return stdout if code == 0 else stderr


def notes():
    path = Path("notes")
    return [entry.split() for entry in path.read_text().splitlines()] if path.exists() else []


def starts(name):
    return notes().count(["start", f"sweep/{name}"])


def made(name):
    """Names of the runs of a group, each as often as its command has made or resumed it."""
    return [Path(entry[1]).name for entry in notes() if entry[0] == "makes" and entry[1].startswith(f"sweep/{name}/")]


def process_of(name):
    """The process that has written a run's record."""
    (record,) = Run(Path("sweep") / name).records()
    return record["process"]


def is_alive(process):
    """Whether a process is there, and not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def refused(capsys, monkeypatch, text, *words):
    """The line by which the launcher refuses a list, having made nothing."""
    before = files(Path())
    monkeypatch.setattr(sys, "stdin", iter(text.splitlines(keepends=True)))
    refusal = fail_in_one_line(capsys, main, "sweep", *words)
    assert files(Path()) == before
    return refusal


# A sweep from its first run to its last


def test_teachers_come_first_and_no_more_jobs_than_asked_for_run_at_a_time():
    students = [line(f"student{i}", "pair", "sweep/teacher") for i in range(4)]
    launcher = launch("".join([*students, line("teacher")]), "--jobs", 2)
    stdout, stderr = launcher.communicate(timeout=120)
    assert stdout == "sweep: 5 of 5 runs are complete\n"
    assert notes()[:2] == [["start", "sweep/teacher"], ["end", "sweep/teacher"]]
    running = [int(entry.split(", ")[1].split()[0]) for entry in stderr.splitlines()]
    assert max(running) == 2
    assert [starts(f"student{i}") for i in range(4)] == [1, 1, 1, 1]


def test_complete_runs_are_not_made_again():
    finish(launch(line("a") + line("b"), "--jobs", 2))
    before = files(Path("sweep"))
    assert finish(launch(line("a") + line("b"))) == "sweep: 2 of 2 runs are complete\n"
    assert files(Path("sweep")) == before
    finish(launch(line("a") + line("b") + line("c")))
    assert [starts(name) for name in "abc"] == [1, 1, 1]


def test_failures_are_summed_up_and_students_of_a_failed_teacher_are_not_started():
    bad = line("bad", "fail")
    others = line("good") + line("lost", teacher="sweep/bad") + line("fine", teacher="sweep/good")
    *_, failed, not_started, summary = finish(launch(bad + others, "--jobs", 2), code=1).splitlines()
    assert failed == "failed: sweep/bad (exit code 2), sweep/logs/bad.log: error: this cannot be"
    assert not_started == "not started: sweep/lost, its teacher sweep/bad failed"
    assert summary == "sweep: 2 of 4 runs are complete, failed jobs: 1; rerun the command to retry them"
    assert [starts(name) for name in ("bad", "good", "lost", "fine")] == [1, 1, 0, 1]
    shutil.rmtree("sweep/bad")
    finish(launch(line("bad") + others))
    assert [starts(name) for name in ("bad", "good", "lost", "fine")] == [2, 1, 1, 1]


def test_a_command_that_does_not_exist_is_a_failure_of_its_run_alone():
    missing = plan_line("sweep/missing", "-", "no-such-program")
    said = finish(launch(missing + line("good")), code=1)
    assert "failed: sweep/missing (exit code 127)" in said
    assert Run(Path("sweep/good")).complete


def test_progress_says_what_is_done_running_failed_and_left():
    said = finish(launch(line("bad", "fail") + line("good")), code=1).splitlines()
    counts = [entry.rpartition(", ")[0] for entry in said[:-2]]
    assert counts == [
        "0 done, 1 running, 0 failed, 1 left",
        "0 done, 1 running, 1 failed, 0 left",
        "1 done, 0 running, 1 failed, 0 left",
    ]


def test_a_complete_run_of_another_command_is_complete_if_the_command_says_so():
    finish(launch(line("a") + line("b")))
    assert finish(launch(line("a", "plain --device cpu") + line("b"))) == "sweep: 2 of 2 runs are complete\n"
    assert notes()[4:] == [["found", "sweep/a"]]
    said = finish(launch(line("a", "other") + line("b")), code=1)
    assert "failed: sweep/a (exit code 2), sweep/logs/a.log: error: sweep/a holds a run with other arguments" in said
    assert "sweep: 1 of 2 runs are complete, failed jobs: 1" in said
    assert [starts(name) for name in "ab"] == [1, 1]


def test_students_of_a_teacher_that_was_trained_again_are_not_complete():
    text = line("a", "student sweep/teacher", "sweep/teacher") + line("teacher")
    finish(launch(text))
    before = files(Path("sweep"))
    assert finish(launch(text)) == "sweep: 2 of 2 runs are complete\n"
    assert files(Path("sweep")) == before
    shutil.rmtree("sweep/teacher")
    said = finish(launch(text), code=1)
    assert "sweep: 1 of 2 runs are complete, failed jobs: 1" in said
    assert "sweep/a holds a run with other arguments (the teacher was trained again since" in said
    assert [starts(name) for name in ("teacher", "a")] == [2, 1]


# Jobs of several runs


def test_a_group_is_complete_when_all_of_its_runs_are():
    text = group("g", "one", "two", "three") + line("a")
    assert finish(launch(text)) == "sweep: 4 of 4 runs are complete\n"
    assert made("g") == ["one", "two", "three"]
    before = files(Path("sweep"))
    assert finish(launch(text)) == "sweep: 4 of 4 runs are complete\n"
    assert files(Path("sweep")) == before
    shutil.rmtree("sweep/g/two")
    assert finish(launch(text)) == "sweep: 4 of 4 runs are complete\n"
    assert made("g") == ["one", "two", "three", "two"]
    assert (starts("g"), starts("a")) == (2, 1)
    assert Path("sweep/logs/g.log").read_text().count("$ ") == 2


def test_a_group_with_a_run_that_diverges_fails_and_the_others_are_complete():
    Path("two").touch()
    text = group("g", "one", "two", "three") + line("a")
    *_, failed, summary = finish(launch(text), code=1).splitlines()
    expected = "failed: sweep/g (exit code 3; not complete: two), sweep/logs/g.log: error: sweep/g/two: the loss is not"
    assert failed.startswith(expected)
    assert summary == "sweep: 3 of 4 runs are complete, failed jobs: 1; rerun the command to retry them"
    Path("two").unlink()
    assert finish(launch(text)) == "sweep: 4 of 4 runs are complete\n"
    assert made("g") == ["one", "two", "three", "two"]


def test_a_group_whose_command_says_that_it_is_complete_is_complete():
    finish(launch(group("g", "one", "two")))
    finish(launch(group("g", "one", "two", other="more")))
    assert finish(launch(group("g", "one", "two", "three", other="more"))) == "sweep: 3 of 3 runs are complete\n"
    assert made("g") == ["one", "two", "three"]
    assert starts("g") == 3


def test_a_group_of_fewer_runs_than_the_plan_says_is_a_failure():
    text = group("g", "one", "two").replace("\t2\t", "\t3\t")
    said = finish(launch(text), code=1)
    assert "failed: sweep/g (exit code 0)" in said
    assert "sweep: 2 of 3 runs are complete, failed jobs: 1" in said


def test_a_group_of_which_another_process_has_a_run_open_is_waited_for():
    with open_run(Path("sweep/g/two"), {"kind": "group"}, setting="parity_mlp"):
        launcher = launch(group("g", "one", "two") + line("a"))
        wait_until(lambda: starts("a") == 1)  # which comes later in the plan
        assert starts("g") == 0
    assert finish(launcher) == "sweep: 3 of 3 runs are complete\n"


@pytest.mark.parametrize("change", ["argv", "id", "weights", "missing", "damaged", "unfinished", "absent", "copied"])
def test_a_group_is_certainly_complete_if_commands_and_teacher_of_all_runs_are_those_of_the_plan(change):
    checkpoint = {"tensors": {"weight": np.arange(8.0)}, "config": {"model_type": "mlp"}}
    with open_run(Path("teacher"), {}, setting="parity_mlp"):
        for step in (1, 2):
            save_checkpoint(Path("teacher"), step, **checkpoint)
    teacher_id, words = Run(Path("teacher")).config["id"], ["python", "work.py", "--name", "a b"]
    folders = [Path("students/one"), Path("students/two")]
    digests = [checkpoint_digests([each]) for each in find_checkpoints(Path("teacher"))]
    for folder, digest in zip(folders, digests, strict=True):  # each learns from another checkpoint
        with open_run(folder, {"teacher_id": teacher_id}, setting="parity_mlp", argv=words) as run:
            run.keep_teacher(digest)
            run.finish({})
    planned = plan.Job(Path("students"), 2, "teacher", "python work.py --name a\\ b")
    assert planned.complete
    if change == "argv":
        change_config(folders[1], argv=["python", "work.py", "--name", "a", "b"])
    elif change == "id":
        change_config(folders[1], arguments={"teacher_id": "another"})
    elif change == "weights":
        save_checkpoint(Path("teacher"), 2, {"weight": np.zeros(8)}, checkpoint["config"])
    elif change == "missing":
        shutil.rmtree("teacher/checkpoint-2")
    elif change == "damaged":
        cut(folders[1] / "config.json")
    elif change == "unfinished":
        (folders[1] / "done.json").unlink()
    elif change == "absent":
        shutil.rmtree(folders[1])
    else:
        shutil.rmtree(folders[1])
        shutil.copytree(folders[0], "students/three")
        shutil.copytree(folders[0], "students/four")
    assert not planned.complete


@pytest.mark.parametrize("change", ["argv", "id", "weights", "missing", "damaged"])
def test_a_run_is_certainly_complete_if_its_command_and_teacher_are_those_of_the_plan(change):
    checkpoint = {"tensors": {"weight": np.arange(8.0)}, "config": {"model_type": "mlp"}}
    with open_run(Path("teacher"), {}, setting="parity_mlp"):
        for step in (1, 2):
            save_checkpoint(Path("teacher"), step, **checkpoint)
    teacher_id, words = Run(Path("teacher")).config["id"], ["python", "work.py", "--name", "a b"]
    with open_run(Path("student"), {"teacher_id": teacher_id}, setting="parity_mlp", argv=words) as run:
        run.keep_teacher(checkpoint_digests(find_checkpoints(Path("teacher"))[1:]))
        run.finish({})
    planned = plan.Job(Path("student"), 1, "teacher", "python work.py --name a\\ b")
    save_checkpoint(Path("teacher"), 1, {"weight": np.zeros(8)}, checkpoint["config"])  # which it did not learn from
    assert planned.complete
    if change == "argv":
        planned = replace(planned, command="python work.py --name a b")
    elif change == "id":
        change_config(Path("teacher"), id="another")
    elif change == "weights":
        save_checkpoint(Path("teacher"), 2, {"weight": np.zeros(8)}, checkpoint["config"])
    elif change == "missing":
        shutil.rmtree("teacher/checkpoint-2")
    else:
        cut(Path("student/config.json"))
    assert not planned.complete


# Stopped, killed, and not alone


@pytest.mark.parametrize("number", launcher.STOP_SIGNALS)
def test_a_signal_is_passed_on_and_the_same_command_goes_on(number):
    Path("hold").touch()
    launcher = launch(line("a") + line("b") + line("c"), "--jobs", 2)
    wait_until(lambda: len(notes()) == 2)
    launcher.send_signal(number)
    said = finish(launcher, code=75).splitlines()
    assert said[-1] == f"sweep: 0 of 3 runs are complete; stopped by {number.name}: rerun the command to resume"
    assert not any(entry.startswith(("failed", "not started")) for entry in said)
    for name in "ab":
        assert "stopped by SIGTERM" in Path(f"sweep/logs/{name}.log").read_text()
    assert starts("c") == 0
    Path("hold").unlink()
    assert finish(launch(line("a") + line("b") + line("c"))) == "sweep: 3 of 3 runs are complete\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_commands_of_a_launcher_that_is_killed_end_as_well():
    Path("hold").touch()
    launcher = launch(line("a") + line("b"), "--jobs", 2)
    wait_until(lambda: len(notes()) == 2 and all(len(Run(Path("sweep") / name).records()) == 1 for name in "ab"))
    processes = [process_of(name) for name in "ab"]
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(map(is_alive, processes)))
    Path("hold").unlink()
    assert finish(launch(line("a") + line("b"))) == "sweep: 2 of 2 runs are complete\n"
    assert [starts(name) for name in "ab"] == [2, 2]


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_on_which_another_process_is_at_work_is_waited_for(ends):
    Path("hold").touch()
    launcher = launch(line("a", "stubborn") + line("b"))
    wait_until(lambda: starts("a") == 1 and len(Run(Path("sweep/a")).records()) == 1)
    orphan = process_of("a")
    launcher.kill()
    launcher.wait()
    again = launch(line("a", "stubborn") + line("b"))
    wait_until(lambda: starts("b") == 1)  # which comes later in the list
    assert is_alive(orphan)
    if not ends:
        os.kill(orphan, signal.SIGKILL)
    Path("hold").unlink()
    assert finish(again) == "sweep: 2 of 2 runs are complete\n"
    assert starts("a") == (1 if ends else 2)
    assert "another process" not in Path("sweep/logs/a.log").read_text()  # it was not even tried


def test_a_run_that_another_process_took_first_is_not_a_failure(monkeypatch):
    Path("hold").touch()
    other = subprocess.Popen([sys.executable, "work.py", "plain", "sweep/a"])
    wait_until(lambda: starts("a") == 1)
    looks, is_locked = [], plan.is_locked

    def is_locked_after_a_first_look(directory):
        looks.append(directory)
        return len(looks) > 1 and is_locked(directory)

    def show(text):
        if len(looks) > 1:  # the command was started, and has ended
            Path("hold").unlink(missing_ok=True)

    monkeypatch.setattr(plan, "is_locked", is_locked_after_a_first_look)
    Path("sweep/logs").mkdir()
    outcome = launcher.Launcher(plan.read_plan([line("a")]), Path("sweep"), 1, [], show).run()
    other.wait()
    assert "another process is using sweep/a" in Path("sweep/logs/a.log").read_text()
    assert (len(outcome.complete), outcome.failed) == (1, {})


def test_a_second_launcher_of_the_same_sweep_is_refused(capsys, monkeypatch):
    Path("hold").touch()
    first = launch(line("a"))
    wait_until(lambda: starts("a") == 1)
    monkeypatch.setattr(sys, "stdin", iter([line("a")]))
    assert "another process is running the sweep" in fail_in_one_line(capsys, main, "sweep")
    Path("hold").unlink()
    finish(first)


# The environment of a command


def environments(*names):
    return [Run(Path("sweep") / name).records()[0] for name in names]


def test_commands_share_the_processors_and_the_sweep_is_their_group():
    finish(launch(line("a") + line("b"), "--jobs", 1))
    finish(launch(line("c"), "--jobs", 1000))
    a, b, c = environments(*"abc")
    assert a["OMP_NUM_THREADS"] == b["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert c["OMP_NUM_THREADS"] == "1"
    assert [one["WANDB_RUN_GROUP"] for one in (a, b, c)] == ["sweep"] * 3
    assert a["CUDA_VISIBLE_DEVICES"] is None


def test_a_number_of_threads_that_is_given_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    finish(launch(line("a"), "--jobs", 1000))
    assert environments("a")[0]["OMP_NUM_THREADS"] == "3"


def test_each_command_gets_a_gpu_of_its_own(folder, monkeypatch):
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n[ \"$*\" = '--query-gpu=index --format=csv,noheader' ] && printf '0\\n1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    finish(launch(line("a", "pair") + line("b", "pair")))  # both at a time, as there are two
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in environments("a", "b")) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert launcher.find_gpus() == ["5", "7"]
    assert launcher.command_environment(3, 4, ["5", "7"], "sweep")["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launcher.find_gpus() == []


# Wrong input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the plan is empty"),
        ("sweep/a python work.py\n", "a line of the plan is"),
        ("sweep/a\t-\tpython work.py\n", "a line of the plan is"),
        ("sweep/a\t1\t\tpython work.py\n", "a line of the plan is"),
        *((f"sweep/a\t{number}\t-\tpython work.py\n", "a line of the plan is") for number in ("0", "01", "two", "1e3")),
        (line("a") + line("b") + line("a"), "the plan has two jobs in sweep/a"),
        (line("a", teacher="sweep/missing"), "there is no directory sweep/missing"),
    ],
)
def test_a_list_that_cannot_be_is_refused(capsys, monkeypatch, text, message):
    assert message in refused(capsys, monkeypatch, text)


def test_a_teacher_that_is_not_complete_and_not_in_the_list_is_refused(capsys, monkeypatch):
    with open_run(Path("teacher"), {}, setting="parity_mlp") as run:
        assert "has no checkpoint-<step>" in refused(capsys, monkeypatch, line("a", teacher="teacher"))
        checkpoint = Path("teacher/checkpoint-1")
        checkpoint.mkdir()
        for name in ("config.json", "model.safetensors"):
            (checkpoint / name).touch()
        assert "teacher is not complete" in refused(capsys, monkeypatch, line("a", teacher="teacher"))
        run.finish({})
    finish(launch(line("a", teacher="teacher")))


def test_no_jobs_are_refused(capsys, monkeypatch):
    assert "--jobs must be at least 1, got 0" in refused(capsys, monkeypatch, line("a"), "--jobs", 0)


def test_a_disk_without_room_for_what_is_missing_is_refused(capsys, monkeypatch):
    text = line("teacher") + line("a", teacher="sweep/teacher") + group("g", "one", "two", "three")
    usage = shutil.disk_usage(".")
    room = 100 + 4 * plan.RUN_MEGABYTES
    asked = []

    def short(path):
        asked.append(Path(path))
        return usage._replace(free=(room - 1) * 10**6)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", short)
        message = refused(capsys, patch, text)
    assert f"sweep has {room - 1} MB of disk space, and 5 runs need about {room} MB" in message
    assert asked[0].resolve() == Path().resolve()  # the sweep's directory is not there yet
    finish(launch(text, "--jobs", 1))


def test_a_place_that_cannot_be_written_is_refused(capsys, monkeypatch):
    Path("sweep").write_text("a file")
    assert "sweep is a file" in refused(capsys, monkeypatch, line("a"))
    monkeypatch.setattr(sys, "stdin", iter([line("a")]))
    code, _, stderr = start(capsys, main, "sweep/within")
    assert code == 2
    assert stderr.startswith("error: sweep/within: Not a directory")
    assert len(stderr.splitlines()) == 1


def test_slurm_where_there_is_none_is_refused(capsys, monkeypatch, folder):
    (folder / "empty").mkdir()
    monkeypatch.setenv("PATH", str(folder / "empty"))
    message = refused(capsys, monkeypatch, line("a"), "--slurm")
    assert "sinfo is not installed" in message


def test_the_launcher_starts_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, common.cluster.__main__; sys.exit('torch' in sys.modules)"], check=False
    )
    assert done.returncode == 0
