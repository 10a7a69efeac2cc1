"""How this setting trains: exact SGD by the engines in `sgd/`."""

from collections.abc import Sequence
from functools import partial

from common.arguments import worker_threads
from common.errors import UserError
from common.parity import frozen
from common.parity.arguments import Precision
from common.parity.engine import Engine
from common.parity.frozen import Logits
from common.parity.mlp import MODEL_TYPE
from common.parity.networks import Network
from common.parity.training import Setting, least_checkpoints
from common.resources import RESUME_STATE, WHOLE_BATCH, Needs
from common.runs.processes import Processes
from parity_mlp.arguments import Arguments
from parity_mlp.models import new_network
from parity_mlp.sgd.engine import make_engine


def check_processes(arguments: Arguments, processes: Processes) -> None:
    """Reject several processes.

    Raises:
        UserError: torchrun started more than one.
    """
    if processes.count > 1:
        raise UserError("an MLP is trained by one process: start the command without torchrun")


def training_engine(
    networks: Sequence[Network], arguments: Arguments, seed: int, device: str, processes: Processes
) -> Engine:
    """The fastest engine for these networks; there is no dropout that needed a seed, and one process."""
    tensors = [network.tensors for network in networks]
    return make_engine(tensors, device, arguments.batch_size, worker_threads())


def frozen_logits(network: Network, d: int, device: str, precision: Precision = "float32") -> Logits:
    """The logits of a network, those of an MLP by the engines in `sgd/`; see `common.parity.frozen.frozen_logits`."""
    if network.config["model_type"] != MODEL_TYPE:
        return frozen.frozen_logits(network, d, device, precision)
    return partial(make_engine([network.tensors], device, 1, worker_threads()).logits, 0)


def needs(arguments: Arguments, width: int, processes: Processes) -> Needs:
    """The memory and disk for one network: of its weights there are several copies, as they are drawn and trained."""
    number = 8 if arguments.dtype == "float64" else 4
    d, layers, classes = arguments.d, arguments.layers, arguments.labels
    parameters = width * (d + 1 + classes) + classes + (layers - 1) * width * (width + 1)
    weights = number * parameters
    return Needs(
        memory={"weights": 4 * weights, WHOLE_BATCH: number * arguments.batch_size * (d + (layers + 2) * width)},
        host={RESUME_STATE: weights},
        disk={"checkpoints": weights * least_checkpoints(arguments), RESUME_STATE: weights},
    )


SETTING = Setting(
    name="parity_mlp",
    size="width",
    sizes="widths",
    check_processes=check_processes,
    new_network=new_network,
    training_engine=training_engine,
    frozen_logits=frozen_logits,
    needs=needs,
)
