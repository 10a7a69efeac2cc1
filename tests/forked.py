"""Python in processes that have already imported torch, transformers and what the commands share.

`tests.commands.python` starts an interpreter as a user does, which takes four seconds to import all that. Here a
server has imported it once (`tests.preloaded`), and forks a process for each call: for tests of what a command does,
instead of how it starts. If the environment differs in more than `CHANGEABLE`, this is a new interpreter, too.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from multiprocessing import connection, forkserver
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from torch.distributed import TCPStore

from common.runs.names import ROOT

ENVIRONMENT: dict[str, str] = {}
"""The server's."""
CHANGEABLE = {
    *("WANDB_SERVICE", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"),  # which wandb and torch set in a process for itself
    *("PYTEST_CURRENT_TEST", "TEXT_BLOCKS", "OMP_NUM_THREADS", "FSDP_CPU_RAM_EFFICIENT_LOADING"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_USE_AGENT_STORE", "TORCHINDUCTOR_CACHE_DIR"),
}
"""Variables that no module reads when it is imported, or `_run` does so again. torch sets the last one when some of its
modules are imported."""


def keep_environment():
    """Let the server have the environment as it is now, before a test changes it."""
    ENVIRONMENT.update(os.environ)


class Forked:
    """A process that runs Python with these arguments: `-m module ...`, `-c code ...` or `script ...`.

    It has as many threads as this one.
    """

    def __init__(self, *arguments, cwd=ROOT, env=None):
        environment = dict(os.environ if env is None else env)
        names = {*environment, *ENVIRONMENT} - CHANGEABLE
        is_servers = all(environment.get(name) == ENVIRONMENT.get(name) for name in names)
        context = _server() if is_servers else multiprocessing.get_context("spawn")
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        self.arguments = [*map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        self._output = {number: Path(self._folder.name) / str(number) for number in (1, 2)}
        for path in self._output.values():
            path.touch()
        self.process = context.Process(target=_run, args=(self.arguments, cwd, environment, self._output))
        with patch.dict(os.environ, environment, clear=True):
            self.process.start()

    @property
    def stdout(self):
        """What it has written so far."""
        return self._output[1].read_text()

    @property
    def stderr(self):
        return self._output[2].read_text()

    @property
    def returncode(self):
        """As that of a `subprocess.Popen`."""
        return self.process.exitcode

    def wait(self):
        """Its result, once it has ended."""
        self.process.join()
        return subprocess.CompletedProcess(self.arguments, self.returncode, self.stdout, self.stderr)


def forked(*arguments, **options):
    """Run Python to its end."""
    return Forked(*arguments, **options).wait()


class Pair:
    """Two processes of a training, in the environment that torchrun gives its processes."""

    def __init__(self, *arguments):
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(self._store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        self.members = [
            Forked(*arguments, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
        ]

    def is_running(self):
        return all(member.returncode is None for member in self.members)

    def kill(self):
        """Kill both; their results."""
        for member in self.members:
            member.process.kill()
        return self.wait()

    def wait(self):
        """The results of both, once they have ended; if one fails, the other one is killed."""
        running = {member.process.sentinel: member for member in self.members}
        while running:
            for sentinel in connection.wait(running):
                member = running.pop(sentinel)
                member.process.join()
                if member.returncode != 0:
                    for other in running.values():
                        other.process.kill()
        return [member.wait() for member in self.members]


def two_forked(*arguments):
    """Run two processes of a training to their end, which must be a good one."""
    results = Pair(*arguments).wait()
    assert [done.returncode for done in results] == [0, 0], "\n".join(done.stderr for done in results)


@cache
def _server():
    """Start the server of this process, with which it ends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    paths = [str(ROOT), ENVIRONMENT.get("PYTHONPATH")]
    with patch.dict(os.environ, {**ENVIRONMENT, "PYTHONPATH": ":".join(filter(None, paths))}, clear=True):
        forkserver.ensure_running()
    return context


def _run(words, cwd, environment, output):
    """Become the command."""
    for number, path in output.items():
        with path.open("a") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # noqa: NPY002  # as of a new interpreter
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # which torch reads when it is imported
    try:
        if words[0] == "-m":
            sys.argv, sys.path[:0] = words[1:], [str(cwd)]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv, sys.path[:0] = ["-c", *words[2:]], [""]
            sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))
        else:
            sys.argv, sys.path[:0] = words, [str(Path(cwd, words[0]).parent)]
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
