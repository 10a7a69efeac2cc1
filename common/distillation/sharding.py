"""FSDP2: student and teacher in shards over the processes of a training, if its launch or its arguments ask for it.

torch's `fully_shard` shards each block of a model by itself, and the rest, such as embeddings and output layer,
together. The rest is whole from a forward pass to its backward pass, as logits are computed outside the model (see
labelled_head.py). accelerate would shard the student alone, and on GPUs only; it is therefore not told of FSDP.

A forward pass of a sharded model is a collective operation, so all processes must compute the same number of them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from common.distillation.adapters import is_adapted
from common.errors import UserError
from common.runs.processes import FSDP_VARIABLE, Processes, asks_for_fsdp, is_set
from common.teachers.configs import one_line
from common.teachers.objective import class_of

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimisers that update each element by itself, so that shards give what whole tensors do."""


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is in shards."""
    return isinstance(model, FSDPModule)


def sharing_processes(model: nn.Module) -> Processes:
    """This process among those over which a model is sharded; alone, if it is not."""
    if not is_sharded(model):
        return Processes()
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


@contextmanager
def sharded_as_asked(model: nn.Module, args: TrainingArguments, saves_optimizer: bool) -> Iterator[None]:
    """Shard the student if FSDP is asked for; a Trainer that is made in the body will not shard it again.

    Args:
        model: the student, whole, or sharded by this function before. The weights are those of the first process.
        args: of the Trainer.
        saves_optimizer: whether checkpoints are those of a Trainer, with what training resumes from.

    Raises:
        UserError: FSDP is asked for with something that it does not support here, or the student is sharded without it.
    """
    require_possible_fsdp(args)
    if not _is_asked_for(args):
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise UserError("the student is in shards, but FSDP is not asked for: give it whole, and fsdp=True")
        yield
        return
    _require_blocks(model, args)
    if saves_optimizer and args.save_strategy != SaveStrategy.NO and not args.save_only_model:
        raise UserError(
            "FSDP is not supported with a Trainer's checkpoints of the optimiser: give save_only_model=True, or use "
            "RunTrainer, which resumes from its own state"
        )
    if not is_sharded(model):
        _take_weights_of_first(model, args.device)
        shard(model, args.device)
    variable, plugin = os.environ.pop(FSDP_VARIABLE, None), args.fsdp_plugin_args
    args.fsdp_plugin_args = None
    try:
        yield
    finally:
        args.fsdp_plugin_args = plugin
        if variable is not None:
            os.environ[FSDP_VARIABLE] = variable


def require_possible_fsdp(args: TrainingArguments) -> None:
    """If FSDP is asked for, reject what would not be as it is asked for.

    Args:
        args: of a Trainer; what they do not say of FSDP, accelerate's environment variables do.

    Raises:
        UserError: names it.
    """
    if not _is_asked_for(args):
        return
    asked = _asked_for(args)
    refused = (
        (args.world_size == 1, "a single process", "start several, or leave FSDP out"),
        (bool(args.deepspeed), "deepspeed", "leave one of them out"),
        (
            args.parallelism_config is not None or is_set("ACCELERATE_USE_PARALLELISM_CONFIG"),
            "parallelism_config",
            "leave it out; student and teacher are sharded over all processes",
        ),
        (
            args.distributed_state is not None and args.distributed_state.distributed_type == DistributedType.FSDP,
            "an Accelerator that was made before the trainer",
            "make none",
        ),
        (isinstance(asked.cpu_offload, CPUOffloadPolicy), "parameters on the CPU", "set cpu_offload to false"),
        (asked.reshard_after_forward is False, "reshard_after_forward false", "set it to true"),
        (asked.cpu_ram_efficient_loading, "cpu_ram_efficient_loading", "set it to false"),
        (asked.activation_checkpointing, "activation_checkpointing", "use that of TrainingArguments"),
        (asked.ignored_modules is not None, "ignored_modules", "leave it out"),
        (asked.auto_wrap_policy is size_based_auto_wrap_policy, "SIZE_BASED_WRAP", "set TRANSFORMER_BASED_WRAP"),
        (
            args.torch_compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no",
            "torch_compile",
            "leave one of them out",
        ),
        (args.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16", "fp16", "use bf16"),
        (args.optim not in OPTIMIZERS, f"optim {OptimizerNames(args.optim).value}", f"use {', '.join(OPTIMIZERS)}"),
    )
    for is_refused, what, advice in refused:
        if is_refused:
            raise UserError(f"FSDP is not supported with {what}: {advice}")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a Transformer: the elements of its outermost lists of modules.

    Raises:
        UserError: it has none, so that no part of it would be sharded by itself, and all of it whole in every process.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    blocks = [block for elements in lists.values() for block in elements]
    if not blocks:
        raise UserError(
            f"FSDP is not supported with a {class_of(model).__name__}, which has no list of blocks: use DDP"
        )
    return blocks


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard a model in place over all processes, its weights on the device.

    Args:
        model: with the same weights in all processes; whole, and on the host if it does not fit on the device.
        device: of this process.

    Raises:
        UserError: as for `blocks_of`.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


@contextmanager
def gradients_unreduced(model: Any) -> Iterator[None]:
    """Let a sharded model's backward passes in the body accumulate gradients in each process by itself."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def release_whole_weights(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass has left whole; its parameters are then shards again."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in shards; if it is, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, in the shards that another one of its shape has, if any; all processes must then call this."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def _asked_for(args: TrainingArguments) -> FullyShardedDataParallelPlugin:
    """How FSDP is asked for, by arguments or by accelerate's environment variables."""
    if isinstance(args.fsdp_config, dict) and args.fsdp_config.get("xla"):
        raise UserError("FSDP is not supported with xla: leave it out")
    given = args.fsdp_plugin_args or {}
    version = str(given.get("fsdp_version", os.environ.get("FSDP_VERSION", "1")))
    if version != "2":
        raise UserError(f"FSDP is not supported with version {version}: set fsdp_version to 2")
    try:
        return FullyShardedDataParallelPlugin(**given)
    except ValueError as error:
        raise UserError(f"the arguments of FSDP are invalid: {one_line(error)}") from error


def _require_blocks(model: nn.Module, args: TrainingArguments) -> None:
    """Reject a student that cannot be sharded, or not in the blocks that are asked for."""
    if is_adapted(model):
        raise UserError("FSDP is not supported with a student with an adapter: use DDP")
    blocks = {class_of(block).__name__ for block in blocks_of(model)}
    if foreign := sorted(set(_asked_for(args).transformer_cls_names_to_wrap or ()) - blocks):
        raise UserError(
            f"FSDP is not supported with {', '.join(foreign)} to wrap: the student's blocks are "
            f"{', '.join(sorted(blocks))}"
        )


def _take_weights_of_first(model: nn.Module, device: torch.device) -> None:
    """Copy the weights of the first process, as DDP does."""
    with torch.no_grad():
        for tensor in chain(model.parameters(), model.buffers()):
            sent = tensor.detach().to(device).contiguous()
            torch.distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def _is_asked_for(args: TrainingArguments) -> bool:
    return bool(args.fsdp) or asks_for_fsdp()
