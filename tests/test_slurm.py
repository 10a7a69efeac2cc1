"""Sweeps on a real Slurm: munged, slurmctld and slurmd on this machine, with ports and directories of their own.

They are skipped where Slurm is not installed; `.ci/run` installs it.
"""

import contextlib
import getpass
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from tests.commands import exit_code
from tests.sweeps import assert_same_bits, assert_whole, copy_of_project, plan_line, wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [daemon for daemon in DAEMONS if shutil.which(daemon, path=PATH) is None]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed: there is no {' or '.join(MISSING)}"),
]

HOST = socket.gethostname().split(".")[0]

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=100
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""cred_expire is also the time that a job waits when it is put back."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """The daemons, and what their clients need to find them. They end with the tests, however those end."""

    def __init__(self, directory):
        self.directory = directory
        self.config = directory / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.config)}
        self.daemons = {}
        for name in ("state", "spool"):
            (directory / name).mkdir()
        key = directory / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        places = {"host": HOST, "user": getpass.getuser(), "directory": directory}
        self.config.write_text(CONFIG.format(controller_port=free_port(), node_port=free_port(), **places))

    def start(self, name, *options):
        words = ["setpriv", "--pdeathsig", "KILL", name, *map(str, options)]
        with (self.directory / f"{name}.out").open("ab") as output:
            environment = {**os.environ, **self.environment, "PATH": PATH}
            self.daemons[name] = subprocess.Popen(words, stdout=output, stderr=output, env=environment)

    def start_all(self):
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        names |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        options = [f"--{option}={self.directory / name}" for option, name in names.items()]
        self.start("munged", "--foreground", "--force", *options)
        wait_until((self.directory / "munge.socket").exists)
        self.start("slurmctld", "-D", "-f", self.config)
        self.start_node()

    def start_node(self):
        self.start("slurmd", "-D", "-f", self.config)
        wait_until(self.is_up)

    def is_up(self):
        for name, daemon in self.daemons.items():
            log = self.directory / f"{name}.out"
            assert daemon.poll() is None, f"{name} ended: {log.read_text()[-2000:]}"
        return self.call("sinfo", "--noheader", "--format=%T") in ("idle", "mixed", "allocated")

    def kill_node(self):
        """Kill the node's daemon and all that it has started, as if the node had lost its power."""
        daemon = self.daemons.pop("slurmd", None)  # none if it could not be started
        if daemon is not None:
            daemon.kill()
            daemon.wait()

        def nothing_is_left():
            processes = list(self.processes_of_jobs())
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return not processes

        wait_until(nothing_is_left)

    def processes_of_jobs(self):
        """Jobs, and the daemons that look after them."""
        mine = f"SLURM_CONF={self.config}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (path / "environ").read_bytes().split(b"\0")
                name = (path / "comm").read_text().strip()
                of_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in environment)
                if mine in environment and (of_job or name.startswith("slurmstepd")):
                    yield int(path.name)

    def mark_node_down(self):
        """Do what the controller does when a node has not answered for SlurmdTimeout."""
        self.call("scontrol", "update", f"NodeName={HOST}", "State=DOWN", "Reason=gone")

    def stop_all(self):
        self.kill_node()
        for daemon in self.daemons.values():
            daemon.kill()
        for daemon in self.daemons.values():
            daemon.wait()

    def call(self, *words):
        """What a client says."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def queue(self):
        """States of the tasks that are in the queue, by job name and number in the array."""
        lines = self.call("squeue", "--noheader", "--array", "--format=%j %K %T").splitlines()
        return {(name, int(task)): state for name, task, state in map(str.split, lines)}

    def restarts(self, task):
        """How often a task was put back into the queue."""
        return int(re.search(r"Restarts=(\d+)", self.call("scontrol", "show", "job", task))[1])


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:  # a socket's path must be short
        directory = Path(name)
        directory.chmod(0o755)
        cluster = Cluster(directory)
        try:
            cluster.start_all()
            yield cluster
        finally:
            cluster.stop_all()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project."""
    return copy_of_project(tmp_path_factory.mktemp("project") / "project")


@pytest.fixture
def project(copy, cluster):
    """The copy, whose commands find the cluster."""
    return replace(copy, environment={**copy.environment, **cluster.environment})


TRAIN = "python -m parity_mlp.train smoke --eval-every 1000 --checkpoint-every 1000 --steps 8000"
DISTILL = "python -m parity_mlp.distill smoke --eval-every 1000 --steps 8000 --teacher"
METHODS = ("progressive", "one-shot")
SEEDS = (0, 1, 2)
"""One for each group of students."""


def students_line(directory, teacher, seed):
    """A group of two students with a seed."""
    return plan_line(directory, teacher, f"{DISTILL} {teacher} {of_group(seed)}", len(METHODS))


def of_group(seed):
    """Arguments of a group of students."""
    return f"--methods {' '.join(METHODS)} --seeds {seed}"


def students_of(seed):
    """The runs of a group, in the sweep's directory."""
    return [f"students{seed}/{method}-width16-seed{seed}" for method in METHODS]


def plan_of(folder):
    """A teacher with groups of students, and one with one group whose own training diverges."""
    lines = [plan_line(f"{folder}/teacher", "-", TRAIN), plan_line(f"{folder}/lost", "-", f"{TRAIN} --lr 1e10")]
    lines += [students_line(f"{folder}/students{seed}", f"{folder}/teacher", seed) for seed in SEEDS]
    return "".join([*lines, students_line(f"{folder}/orphans", f"{folder}/lost", 0)])


def train_plainly(plain):
    """Train the teacher and the groups of students in another place, undisturbed."""
    lines = [
        (TRAIN, "teacher"),
        *((f"{DISTILL} {plain / 'teacher'} {of_group(seed)}", f"students{seed}") for seed in SEEDS),
    ]
    for line, name in lines:
        _, _, module, *words = shlex.split(line)
        assert exit_code(import_module(module).main, *words, "--out", plain / name) == 0


@pytest.mark.slow
def test_jobs_that_are_put_back_cancelled_or_lose_their_node_make_the_bits_of_plain_runs(
    tmp_path, project, cluster, one_torch_thread
):
    folder = Path("runs/parity_mlp/sweeps/mine")
    hold = "python hold.py"
    project.environment.update(SWEEP_CPUS="1", SWEEP_CONTAINER=hold)
    groups = [f"students{seed}" for seed in SEEDS]
    held = [students_of(seed)[1] for seed in SEEDS]
    names = [Path(run).name for run in held]
    project.hold("teacher", *names)

    def submit():
        done = project.call("python", "-m", "common.cluster", folder, "--slurm", input=plan_of(folder))
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def starts(name):
        """How often a job's command was started."""
        log = project.root / folder / "logs" / f"{name}.log"
        return log.read_text().count("$ python") if log.exists() else 0

    first, second, summary = submit()
    assert summary == f"{folder}: submitted 6 tasks, 0 were already in the queue, 0 of 6 complete"
    teachers, array = (re.match(r"job (\d+): ", line)[1] for line in (first, second))
    assert second == f"job {array}: 4 tasks, after {teachers}"
    assert submit() == [f"{folder}: submitted 0 tasks, 6 were already in the queue, 0 of 6 complete"]
    other = folder.with_name("other")
    teacher, *_ = plan_of(folder).splitlines(keepends=True)
    text = teacher + students_line(other / "students", folder / "teacher", 0)
    done = project.call("python", "-m", "common.cluster", other, "--slurm", input=text)
    job = re.match(rf"job (\d+): 1 tasks, after {teachers}\n", done.stdout)[1]
    assert done.stdout.endswith("submitted 1 tasks, 1 were already in the queue, 0 of 2 complete\n")
    cluster.call("scancel", job)

    # the time of the teacher's job is nearly up
    wait_until(lambda: project.is_held(folder / "teacher"))
    wait_until(lambda: ("mine.1", 2) not in cluster.queue())
    cluster.call("scancel", "--signal=USR1", "--batch", f"{teachers}_1")
    wait_until(lambda: starts("teacher") == 2)
    log = (project.root / folder / "logs" / "teacher.log").read_text()
    assert "stopped by SIGTERM at step 2,000: rerun the command to resume" in log
    assert cluster.restarts(f"{teachers}_1") == 1
    assert starts("lost") == 1
    assert [starts(name) for name in groups] == [0, 0, 0]
    project.release("teacher")

    # one group is put back by Slurm, one is cancelled; the others are at work on a node that goes down
    wait_until(lambda: all(project.is_held(folder / run) for run in held))
    wait_until(lambda: ("mine.2", 4) not in cluster.queue())
    cluster.call("scontrol", "requeue", f"{array}_1")
    cluster.call("scancel", f"{array}_2")
    wait_until(lambda: ("mine.2", 2) not in cluster.queue())
    wait_until(lambda: starts("students0") == 2 and cluster.queue()["mine.2", 1] == "RUNNING")
    assert starts("students1") == 1
    before = [starts(name) for name in groups]
    cluster.kill_node()
    cluster.mark_node_down()
    cluster.start_node()
    wait_until(lambda: [starts(name) for name in groups] == [before[0] + 1, 1, 2])
    project.release(*names)
    wait_until(lambda: not cluster.queue())
    assert not any((project.root / folder / run / "done.json").exists() for run in students_of(1))

    # what is missing is submitted again; the diverging teacher fails again, and its student is not started
    first, second, summary = submit()
    assert summary == f"{folder}: submitted 3 tasks, 0 were already in the queue, 3 of 6 complete"
    train_plainly(tmp_path)
    wait_until(lambda: not cluster.queue())
    for run in ("teacher", *(run for seed in SEEDS for run in students_of(seed))):
        assert_whole(project.root / folder / run)
        assert_same_bits(project.root / folder / run, tmp_path / run)
    assert not (project.root / folder / "lost" / "done.json").exists()
    assert not (project.root / folder / "orphans").exists()
    assert "its teacher" in (project.root / folder / "logs" / "orphans.log").read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SBATCH_PARTITION": "gpus"}, "there is no partition 'gpus': set SBATCH_PARTITION to one of these: tests"),
        ({"SBATCH_PARTITION": "tests,gpus"}, "there is no partition 'gpus'"),
        ({"SWEEP_CPUS": "many"}, "Slurm's sbatch failed: sbatch: error: "),
    ],
)
def test_what_slurm_would_refuse_is_one_line(project, cluster, changed, message):
    project.environment.update(changed)
    done = project.call("scripts/sweep_seeds.sh", "parity_mlp", "smoke", "--slurm")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert done.stdout == ""
    assert cluster.queue() == {}
    assert not (project.root / "runs/parity_mlp/smoke").exists()
