"""Commands of Transformer settings in several processes: as one, stopped, killed, and with a changing number of them.

Run as a script, this file is one process of those that the tests start.
"""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from common.distillation.trainer import ProgressiveDistillationTrainer
from common.language_models.setting import task_of_run
from common.parity.students import Student
from common.runs.checkpoints import read_checkpoint
from common.runs.resume import resume_steps
from common.runs.run import Run
from common.runs.stopping import stop_requested
from common.teachers.discovery import find_checkpoints
from common.text.batches import TextBatches
from tests.commands import ROOT, and_signal, exit_code, results, save_often, succeed
from tests.forked import Pair, two_forked
from tests.text import CORPUS, TEXT_SETTINGS

PARITY = "smoke --d 6 --batch-size 8 --heads 2 --head-dim 3 --eval-samples 32 --eval-every 4 --steps 28"
TRAINED = "smoke --batch-size 8 --eval-samples 32 --eval-every 4 --steps 12 --dropout 0"
STUDENTS = "--student-heads 1 --seeds 0 --methods progressive --teacher-every 4 --temperature 1"
DATA = {
    "PCFG_mlm": "",
    "PCFG_autoregressive": "",
    **{setting.name: f"--corpus {CORPUS} --vocabulary 300 --length 12 --held-out 0.2" for setting in TEXT_SETTINGS},
}
ARGUMENTS = {
    "parity_gpt2 train": PARITY,
    **{f"{name} train": f"{TRAINED} {data} --heads 2" for name, data in DATA.items()},
    **{f"{name} distill": f"{TRAINED} {data} {STUDENTS}" for name, data in DATA.items()},
}
"""By setting and command."""
LANGUAGE = ("PCFG_mlm train", "PCFG_autoregressive distill", "text_mlm distill", "text_autoregressive train")
"""One of each setting, whose two commands train by the same code."""
COMMANDS = ("parity_gpt2 train", *LANGUAGE)
KILLED = ("PCFG_mlm train", "text_mlm distill")
STOPPED_AT = {"parity_gpt2 train": (12, 20), **dict.fromkeys(LANGUAGE, (3, 5))}
"""Steps after three safe points and two more: of parity at evaluations, of the others at every step."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def main_of(command):
    return import_module(command.replace(" ", ".")).main


def command_line(command, directory, name, teachers=None):
    """Arguments of a command whose run gets this name; students have a teacher in the same directory, or another."""
    words = [*shlex.split(ARGUMENTS[command]), "--out", directory / f"{command} {name}"]
    setting, kind = command.split()
    return [*words, "--teacher", (teachers or directory) / f"{setting} teacher"] if kind == "distill" else words


def stop_at(patch, call):
    """Send the signal in this process between two safe points, before call number `call`."""
    for owner, name in ((ProgressiveDistillationTrainer, "compute_loss"), (Student, "objective")):
        patch.setattr(owner, name, and_signal(getattr(owner, name), call))


def train_teacher(setting, directory):
    """Train the teacher that `command_line` names."""
    words = [*shlex.split(ARGUMENTS[f"{setting} train"]), "--checkpoint-every", 4, "--out"]
    assert exit_code(main_of(f"{setting} train"), *words, directory / f"{setting} teacher") == 0


def run_command(command, directory, name):
    """Run a command; its exit code."""
    return exit_code(main_of(command), *command_line(command, directory, name))


def with_loss(patch, change):
    """Change the loss of the trainer: `change` is called with the trainer's function, and gives another."""
    patch.setattr(ProgressiveDistillationTrainer, "compute_loss", change(ProgressiveDistillationTrainer.compute_loss))


def seeing(samples):
    """Append the samples that are trained on, as they are before masking."""

    def change(compute_loss):
        def call(trainer, model, inputs, *arguments, **options):
            if model.training and "input_ids" in inputs:
                labels, shown = inputs["labels"].numpy(), inputs["input_ids"].numpy()
                samples.extend(np.where(labels == -100, shown, labels).tolist())
            return compute_loss(trainer, model, inputs, *arguments, **options)

        return call

    return change


def share_a_process_group():
    """Let all commands of a process do so, as gloo cannot be initialised twice."""
    join = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda *args, **options: (
        torch.distributed.is_initialized() or join(*args, **options)
    )


def in_each_process(directory):
    """What each of two processes does."""
    share_a_process_group()
    for command in COMMANDS:
        samples = []
        with pytest.MonkeyPatch.context() as patch:
            with_loss(patch, seeing(samples))
            assert run_command(command, directory, "two") == 0
        (directory / f"{command} seen by {os.environ['RANK']}.json").write_text(json.dumps(samples))
        with pytest.MonkeyPatch.context() as patch:
            if os.environ["RANK"] == "1":
                stop_at(patch, 2)
            assert run_command(command, directory, "changing") == 75


def waiting_to_be_killed(directory, command):
    """A command that saves its state often, and waits in its tenth step."""
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        calls = []

        def change(compute_loss):
            def call(trainer, model, *arguments, **options):
                calls.append(model.training)
                if sum(calls) == 10:
                    time.sleep(600)
                return compute_loss(trainer, model, *arguments, **options)

            return call

        with_loss(patch, change)
        run_command(command, directory, "killed")


def resuming(directory):
    """Commands that were killed, to their end."""
    share_a_process_group()
    for command in KILLED:
        assert run_command(command, directory, "killed") == 0


def never_ending(directory):
    """A command that waits for a signal at the end of its training, unless it has received one."""
    train = ProgressiveDistillationTrainer.train

    def train_and_wait(trainer):
        train(trainer)
        while not stop_requested():
            time.sleep(0.001)

    ProgressiveDistillationTrainer.train = train_and_wait
    sys.exit(run_command("PCFG_mlm train", directory, "launched"))


def on_a_full_disk(directory):
    """A command whose checkpoints are larger than files may become."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    words = [*shlex.split("smoke --heads 16 --checkpoint-every 20 --out"), directory / "run"]
    sys.exit(exit_code(main_of("PCFG_mlm train"), *words))


def asking_for_fsdp(directory, command, variables):
    """A command that finds these variables and that of FSDP."""
    os.environ.update({"ACCELERATE_USE_FSDP": "true", **json.loads(variables)})
    sys.exit(run_command(command, directory, "run"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, one_torch_thread):
    directory = tmp_path_factory.mktemp("two_processes")
    for command in LANGUAGE:
        setting, kind = command.split()
        if kind == "distill":
            train_teacher(setting, directory)
    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS:
            stop_at(patch, 3)
            assert run_command(command, directory, "changing") == 75
            patch.undo()
    two_forked(__file__, "each", directory)
    return directory


@pytest.fixture(scope="module")
def killed(two_processes):
    """The same directory, with runs of two processes that were killed and resumed."""
    for command in KILLED:
        run = two_processes / f"{command} killed"
        pair = Pair(__file__, "killed", two_processes, command)
        while not (run / "resume" / "8").is_dir() and pair.is_running():
            time.sleep(0.01)
        codes = [done.returncode for done in pair.kill()]
        assert codes == [-signal.SIGKILL] * 2
        assert not Run(run).complete
    two_forked(__file__, "resuming", two_processes)
    return two_processes


def assert_near(run, expected):
    """The records and checkpoints of two runs are the same up to rounding."""
    for here, there in zip(run.records(), expected.records(), strict=True):
        assert here == {name: value and pytest.approx(value, rel=1e-4) for name, value in there.items()}
    steps = [checkpoint.step for checkpoint in find_checkpoints(expected.directory)]
    assert [checkpoint.step for checkpoint in find_checkpoints(run.directory)] == steps
    for step in steps:
        mine, theirs = (read_checkpoint(each.directory / f"checkpoint-{step}")[1] for each in (run, expected))
        for name, tensor in theirs.items():
            if not name.endswith(("c_attn.bias", "key.bias")):  # of which keys' have no gradient but rounding
                np.testing.assert_allclose(mine[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_or_a_changing_number_make_the_run_of_one(tmp_path, capsys, two_processes, command):
    main = main_of(command)
    succeed(capsys, main, *command_line(command, tmp_path, "one", two_processes))
    one = Run(tmp_path / f"{command} one")
    assert_near(Run(two_processes / f"{command} two"), one)
    changing = two_processes / f"{command} changing"
    assert resume_steps(changing) == [STOPPED_AT[command][1]]
    succeed(capsys, main, *command_line(command, two_processes, "changing"))
    assert_near(Run(changing), one)
    assert Run(changing).complete


@pytest.mark.parametrize(("setting", "kind"), [*zip(TEXT_SETTINGS, ["distill", "train"], strict=True)])
def test_two_processes_never_see_the_same_block(two_processes, setting, kind):
    """By content: together they see the blocks of each batch."""
    command = f"{setting.name} {kind}"
    run = two_processes / f"{command} two"
    task = task_of_run(run, setting.setting)
    seed = Run(run).config["arguments"]["seed" if kind == "train" else "stream_seed"]
    rows, _ = TextBatches(task.blocks, task.batch_of, seed, 8).rows(0, 12 * 8)
    assert len(set(rows.tolist())) == 12 * 8
    batches = task.blocks.train[rows].reshape(12, 2, 4, -1)
    seen = [json.loads((two_processes / f"{command} seen by {rank}.json").read_text()) for rank in (0, 1)]
    for rank in (0, 1):
        np.testing.assert_array_equal(seen[rank], batches[:, rank].reshape(12 * 4, -1))
    assert not set(map(tuple, seen[0])) & set(map(tuple, seen[1]))


@pytest.mark.slow
@pytest.mark.parametrize("command", KILLED)
def test_two_processes_that_were_killed_end_with_the_same_bits(killed, command):
    assert results(killed / f"{command} killed") == results(killed / f"{command} two")


@pytest.mark.slow
def test_torchrun_forwards_a_stop_signal_and_one_process_resumes(tmp_path, capsys):
    """torchrun itself ends with a traceback; its processes do not."""
    run = tmp_path / "PCFG_mlm train launched"
    metrics = run / "metrics.jsonl"
    launching = [*TORCHRUN, __file__, "never ending", str(tmp_path)]
    with subprocess.Popen(launching, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2) and process.poll() is None:
            time.sleep(0.001)
        process.terminate()
        stderr = process.communicate(timeout=600)[1]
    assert process.returncode > 0
    said = re.findall("^stopped by SIGTERM.*: rerun the command to resume$", stderr, re.MULTILINE)
    assert len(said) == 2
    assert said[0] == said[1]
    assert stderr.count("Traceback") == 1
    assert "SignalException" in stderr
    for name in ("launched", "one"):
        succeed(capsys, main_of("PCFG_mlm train"), *command_line("PCFG_mlm train", tmp_path, name))
    assert_near(Run(run), Run(tmp_path / "PCFG_mlm train one"))


def assert_said_once(stderr, expected):
    """Only the first process opens and writes the run, and says what is wrong."""
    first, *others = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert expected in first
    assert set(others) <= {"error: another process of this training has ended: see what it says"}


def test_a_foreign_directory_ends_both_processes_and_is_said_once(tmp_path, one_torch_thread):
    (tmp_path / "file").touch()
    ended = Pair("-m", "PCFG_mlm.train", "smoke", "--out", tmp_path).wait()
    stderr = "".join(done.stderr for done in ended)
    assert_said_once(stderr, "is not a run")
    assert 2 in [done.returncode for done in ended]
    assert "Traceback" not in stderr


def test_a_full_disk_ends_both_processes_and_is_said_once(tmp_path, one_torch_thread):
    ended = Pair(__file__, "full disk", tmp_path).wait()
    stderr = "".join(done.stderr for done in ended)
    assert_said_once(stderr, "once this is fixed")
    assert 2 in [done.returncode for done in ended]
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_two_processes_train_several_students_together(tmp_path, capsys, one_torch_thread):
    """Whose collective operations must come in one order."""
    for words in (["train", "--out", tmp_path / "teacher"], ["distill", "--out", tmp_path / "one"]):
        if words[0] == "distill":
            words += ["--teacher", tmp_path / "teacher", "--methods", "ce", "one-shot", "until-saturation"]
            words += ["--temperature", "1", "--seeds", "0", "--student-heads", "1"]
        words += ["--dropout", "0", "--steps", "12", "--eval-every", "4", "--checkpoint-every", "4"]
        words = [words[0], "smoke", "--batch-size", "8", "--eval-samples", "32", *words[1:]]
        succeed(capsys, main_of(f"PCFG_mlm {words[0]}"), *words[1:])
    words[words.index(tmp_path / "one")] = tmp_path / "two"
    two_forked("-m", "PCFG_mlm.distill", *words[1:])
    ones = sorted((tmp_path / "one").iterdir())
    assert len(ones) == 3
    for one in ones:
        assert_near(Run(tmp_path / "two" / one.name), Run(one))


def accelerate_launch(directory, kind, words, on_cpu):
    """Two processes of a command, as a config of accelerate starts them."""
    config = {"distributed_type": kind, "use_cpu": on_cpu, "num_processes": 2, "main_process_port": 0}
    config |= {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0, "mixed_precision": "no"}
    if kind == "FSDP":
        given = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "cpu_ram_efficient_loading": False}
        config["fsdp_config"] = {f"fsdp_{name}": value for name, value in given.items()}
    file = directory / "accelerate.yaml"
    file.write_text(json.dumps(config))  # is also YAML
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "on_cpu"),
    [
        ("FSDP", True),
        pytest.param("MULTI_GPU", False, marks=[pytest.mark.gpu, GPUS]),
        pytest.param("FSDP", False, marks=[pytest.mark.gpu, GPUS]),
    ],
)
def test_accelerate_launch_trains_as_one_process(tmp_path, capsys, kind, on_cpu):
    """Whole models or shards of them, by gloo or nccl."""
    train_teacher("PCFG_mlm", tmp_path)
    succeed(capsys, main_of("PCFG_mlm distill"), *command_line("PCFG_mlm distill", tmp_path, "one"))
    words = [*command_line("PCFG_mlm distill", tmp_path, "two"), "--device", "cpu" if on_cpu else "cuda"]
    done = accelerate_launch(tmp_path, kind, ["PCFG_mlm.distill", *words], on_cpu)
    assert done.returncode == 0, done.stderr
    one, two = (Run(tmp_path / f"PCFG_mlm distill {name}") for name in ("one", "two"))
    if on_cpu:
        assert_near(two, one)
    losses = [[record["loss"] for record in run.records()] for run in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


OFFLOADING = {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        ("PCFG_mlm distill", OFFLOADING, "FSDP is not supported with parameters on the CPU: "),
        ("parity_gpt2 train", {}, "this setting trains whole models in each process: launch it without FSDP"),
    ],
)
def test_fsdp_that_cannot_be_had_is_an_error_before_any_work(tmp_path, one_torch_thread, command, variables, message):
    """With the variables by which `accelerate launch` asks for it."""
    if "distill" in command:
        train_teacher("PCFG_mlm", tmp_path)
    ended = Pair(__file__, "asking for FSDP", tmp_path, command, json.dumps(variables)).wait()
    stderr = "".join(done.stderr for done in ended)
    errors = {line for line in stderr.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1
    assert errors.pop().startswith(f"error: {message}")
    assert 2 in [done.returncode for done in ended]
    assert "Traceback" not in stderr
    assert not any(done.stdout for done in ended)  # such as the teacher's accuracy
    assert not (tmp_path / f"{command} run").exists()


MODES = {
    "each": in_each_process,
    "never ending": never_ending,
    "killed": waiting_to_be_killed,
    "resuming": resuming,
    "full disk": on_a_full_disk,
    "asking for FSDP": asking_for_fsdp,
}

if __name__ == "__main__":
    mode, place, *words = sys.argv[1:]
    MODES[mode](Path(place), *words)
