"""Networks of either model: made from arguments, loaded from a checkpoint, and put into the engine that runs them.

GPT-2 is imported where it is asked for, as transformers take seconds to import.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from common.arguments import worker_threads
from common.errors import UserError
from common.parity.arguments import Arguments, GPT2Arguments, MLPArguments
from common.parity.engine import Engine
from common.parity.mlp import MODEL_TYPE, Network, architecture, initial_tensors, load_tensors
from common.parity.task import ParityTask
from common.runs.checkpoints import read_config
from common.runs.processes import Processes
from parity_mlp.sgd.engine import make_engine


def initial_network(arguments: Arguments, size: int, seed: int) -> Network:
    """A freshly initialised network; the same for a seed whatever was drawn before.

    Args:
        arguments: of the run.
        size: neurons per hidden layer of an MLP, or heads of a GPT-2.
        seed: of the weights.
    """
    if isinstance(arguments, GPT2Arguments):
        from common.parity import gpt2 as model

        shape = model.Shape(
            layers=arguments.layers,
            heads=size,
            head_dim=arguments.head_dim,
            vocabulary=arguments.labels + arguments.class_token,
            positions=arguments.positions or arguments.d + arguments.class_token,
            causal=arguments.causal,
            feed_forward=arguments.feed_forward,
            average_heads=arguments.average_heads,
            class_token=arguments.class_token,
            tied=arguments.tie_embeddings,
            dropout=arguments.dropout,
        )
        return model.initial_network(shape, arguments.initial_std, seed)
    assert isinstance(arguments, MLPArguments)
    tensors = initial_tensors(arguments.d, size, arguments.labels, arguments.layers, seed, arguments.dtype)
    return Network(architecture(tensors), tensors)


def load_network(checkpoint: Path, task: ParityTask) -> Network:
    """A checkpoint's network, checked to be one for this task.

    Raises:
        UserError: the folder is damaged, holds a model of another kind or one for another task, or its tensors are not
            those that its config.json describes.
    """
    kind = read_config(checkpoint).get("model_type")
    if kind == MODEL_TYPE:
        tensors = load_tensors(checkpoint, task.d, task.classes)
        return Network(architecture(tensors), tensors)
    if kind == "gpt2":
        from common.parity import gpt2 as model

        return model.load_network(checkpoint, task)
    raise UserError(f"{checkpoint} holds a {kind!r} model, not {MODEL_TYPE!r} or 'gpt2'")


def engine_for_training(
    networks: Sequence[Network], arguments: Arguments, device: str, seed: int, processes: Processes
) -> Engine:
    """The engine that trains a run's networks.

    Args:
        networks: new ones, or with the tensors of a resume state.
        arguments: of the run.
        device: of this process.
        seed: of dropout.
        processes: those that share each batch.
    """
    if isinstance(arguments, GPT2Arguments):
        from parity_gpt2.engine import Settings, TransformerEngine

        settings = Settings(
            device=device,
            batch_size=arguments.batch_size // processes.count,
            accumulate=arguments.accumulate,
            beta1=arguments.beta1,
            beta2=arguments.beta2,
            precision=arguments.precision,
            compiled=arguments.compile,
            seed=seed,
            process=processes.index,
            processes=processes.count,
        )
        return TransformerEngine(networks, arguments.d, settings)
    tensors = [network.tensors for network in networks]
    return make_engine(tensors, device, arguments.batch_size, worker_threads())


def engine_for_logits(
    network: Network, d: int, device: str, precision: Literal["float32", "bf16"] = "float32"
) -> Engine:
    """An engine for one network that is not trained.

    Args:
        network: as a checkpoint holds it.
        d: coordinates of the task.
        device: a torch device.
        precision: of a GPT-2's matrix products.
    """
    if network.config["model_type"] == MODEL_TYPE:
        return make_engine([network.tensors], device, 1, worker_threads())
    from parity_gpt2.engine import Settings, TransformerEngine

    return TransformerEngine([network], d, Settings(device=device, precision=precision))
