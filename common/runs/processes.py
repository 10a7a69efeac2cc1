"""The processes that train one model, as torchrun starts them: the first one writes the run, the others read it.

A stop signal may reach only one of them, or each at a different step. Before every safe point of a training loop they
therefore agree on the largest signal number that any of them has. They exchange these numbers over the hosts' network
(gloo) even where gradients go from GPU to GPU, so that nothing waits for a GPU.
"""

import atexit
import functools
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed

from common.errors import UserError
from common.runs.run import Run, open_run
from common.runs.stopping import Stopped, stop_requested

FSDP_VARIABLE = "ACCELERATE_USE_FSDP"
"""Environment variable by which `accelerate launch` asks for FSDP."""


@dataclass(frozen=True)
class Processes:
    """This process, and how many processes train one model together."""

    index: int = 0
    """Index of this process, from 0."""
    count: int = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process executes the body before the others begin it, and then waits for them.

        If it raises in the first process, the others execute it all the same, so that they can raise as well.
        """
        if not self.first:
            torch.distributed.barrier()
        try:
            yield
        finally:
            if self.first and self.count > 1:
                torch.distributed.barrier()
        if self.count > 1:
            torch.distributed.barrier()

    def agree_to_stop(self) -> int:
        """The signal that stops this training, the same in all processes, or 0; all of them must call this."""
        return int(self.largest(stop_requested()))

    def largest(self, number: float) -> float:
        """The largest of the numbers that the processes have; all of them must call this."""
        if self.count == 1:
            return number
        most = torch.tensor(number, dtype=torch.float64)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=_hosts())
        return most.item()

    def stop(self, number: int, step: int) -> NoReturn:
        """End all processes by the signal of this number, once the first one has saved the state of `step`.

        Raises:
            Stopped: always.
        """
        if self.count > 1:
            torch.distributed.barrier(group=_hosts())
        raise Stopped(number, step)

    def micro_batch_size(self, batch_size: int, accumulate: int) -> int:
        """Samples of a batch that one process computes at a time, in each gradient accumulation step.

        Raises:
            UserError: the batch cannot be divided equally.
        """
        parts = self.count * accumulate
        if batch_size % parts:
            raise UserError(
                f"--batch-size {batch_size} cannot be divided into {parts} equal parts ({self.count} processes times "
                f"--accumulate {accumulate}): give a multiple of {parts}"
            )
        return batch_size // parts

    def print(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.first:
            print(line)


def asks_for_fsdp() -> bool:
    """Whether accelerate's environment variables ask for FSDP."""
    return is_set(FSDP_VARIABLE)


def is_set(variable: str) -> bool:
    """Whether an environment variable of accelerate is true."""
    return os.environ.get(variable, "false").lower() == "true"


def join_processes(device: str) -> tuple[Processes, str]:
    """Join the processes that torchrun or `accelerate launch` started, if any, and leave them at exit.

    Returns:
        This process, and its torch device: of `cuda`, one GPU for each process.

    Raises:
        UserError: they were started with FSDP.
    """
    if asks_for_fsdp():
        raise UserError("this setting trains whole models in each process: launch it without FSDP")
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return Processes(), device
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    atexit.register(leave_process_group)
    return Processes(torch.distributed.get_rank(), count), device


@functools.cache
def _hosts() -> torch.distributed.ProcessGroup | None:
    """The group for communication between hosts; None is the default group."""
    return None if torch.distributed.get_backend() == "gloo" else torch.distributed.new_group(backend="gloo")


def leave_process_group() -> None:
    """Stop the threads of torch.distributed: a process that exits while they run is sometimes aborted."""
    gc.collect()  # models wrapped for several processes hold the group
    _hosts.cache_clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def open_shared_run(
    directory: str | Path, arguments: Mapping[str, object], processes: Processes, **options: Any
) -> Iterator[Run]:
    """`open_run` for all processes of a training; `options` are its further arguments.

    If it fails in the first process, the others end with the same exit code and say nothing.
    """
    directory = Path(directory)
    with ExitStack() as stack:
        run, failure = Run(directory), None
        if processes.first:
            try:
                run = stack.enter_context(open_run(directory, arguments, **options))
            except (UserError, OSError) as error:
                failure = error
        code = int(processes.largest(0 if failure is None else getattr(failure, "exit_code", 2)))
        if failure is not None:
            raise failure
        if code:
            with suppress(RuntimeError):  # which says that the first process is gone, and has said why
                torch.distributed.barrier(group=_hosts())
            sys.exit(code)
        yield run
