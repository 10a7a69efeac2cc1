"""How this setting trains: Adam by the engine in `engine.py`, in one process or several."""

from collections.abc import Sequence

from common.parity.engine import Engine
from common.parity.frozen import frozen_logits
from common.parity.networks import Network
from common.parity.training import Setting, least_checkpoints
from common.resources import Needs, transformer_needs
from common.runs.processes import Processes
from parity_gpt2.arguments import Arguments, check
from parity_gpt2.engine import AdamSettings, TransformerEngine
from parity_gpt2.models import new_network


def check_processes(arguments: Arguments, processes: Processes) -> None:
    """Reject a batch that cannot be cut into equal parts.

    Raises:
        UserError: the batch size is not a multiple of the processes times --accumulate.
    """
    processes.micro_batch_size(arguments.batch_size, arguments.accumulate)


def training_engine(
    networks: Sequence[Network], arguments: Arguments, seed: int, device: str, processes: Processes
) -> Engine:
    """The engine that trains a run's networks, new or resumed; the seed is that of dropout."""
    settings = AdamSettings(
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


def needs(arguments: Arguments, heads: int, processes: Processes) -> Needs:
    """The memory and disk for one network, whose last block is computed at the last position only."""
    tokens, hidden = arguments.d + arguments.class_token, heads * arguments.head_dim
    samples = arguments.batch_size / (arguments.accumulate * processes.count)
    return transformer_needs(
        layers=arguments.layers,
        hidden=hidden,
        feed_forward=0 if arguments.feed_forward == "skip" else 4 * hidden,
        vocabulary=arguments.labels,
        positions=arguments.positions or tokens,
        batch_tokens=samples * tokens * (arguments.layers - 1) / arguments.layers,
        evaluation_tokens=0,  # they are unpacked a few at a time
        checkpoints=least_checkpoints(arguments),
        half=arguments.precision == "bf16",
    )


SETTING = Setting(
    name="parity_gpt2",
    size="heads",
    sizes="student_heads",
    check=check,
    check_processes=check_processes,
    new_network=new_network,
    training_engine=training_engine,
    frozen_logits=frozen_logits,
    needs=needs,
    precision=lambda arguments: arguments.precision,
)
