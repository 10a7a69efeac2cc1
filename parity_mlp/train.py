"""Train an MLP or a GPT-2 on parity from the labels: a teacher, or a student without one.

    python train.py laptop
    python train.py paper --seed 1 --adaptive-checkpoints
    python train.py laptop --model gpt2

The run is a directory, by default in runs/parity_mlp/; the same command goes on with one that was stopped.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from common.arguments import require_at_least, require_seed
from common.cli import command, run_command
from common.distillation.supervision import FROM_LABELS
from common.parity.arguments import (
    RUNS,
    GPT2Arguments,
    MLPArguments,
    Model,
    check,
    join_processes_of,
    model_of_command_line,
    run_name,
    task_of,
)
from common.parity.networks import initial_network
from common.parity.training import Student, train_together
from common.runs.names import default_name
from common.runs.processes import open_shared_run


@dataclass(frozen=True, kw_only=True)
class TrainArguments(MLPArguments):
    """Arguments of `train.py` for the MLP."""

    width: int
    """Neurons per hidden layer."""
    lr: float
    """Learning rate."""
    seed: int = 0
    """Seed of the initial weights and of the data stream."""


@dataclass(frozen=True, kw_only=True)
class TrainGPT2Arguments(GPT2Arguments):
    """Arguments of `train.py` for GPT-2."""

    heads: int
    """Attention heads."""
    lr: float
    """Largest learning rate."""
    seed: int = 0
    """Seed of the initial weights, of dropout and of the data stream."""


PRESETS: dict[Model, dict[str, TrainArguments | TrainGPT2Arguments]] = {
    "mlp": {
        "smoke": TrainArguments(
            preset="smoke", d=24, k=4, width=256, steps=20_000, lr=0.02, eval_every=500, checkpoint_every=500
        ),
        "laptop": TrainArguments(
            preset="laptop", d=100, k=4, width=1_000, steps=600_000, lr=0.01, eval_every=5_000, checkpoint_every=5_000
        ),
        "paper": TrainArguments(
            preset="paper",
            d=100,
            k=6,
            width=50_000,
            steps=8_000_000,
            lr=0.02,
            eval_every=20_000,
            checkpoint_every=100_000,
        ),
    },
    "gpt2": {
        "smoke": TrainGPT2Arguments(
            preset="smoke",
            d=8,
            k=2,
            heads=2,
            initial_std=0.1,
            steps=400,
            lr=1e-3,
            eval_every=20,
            checkpoint_every=20,
            eval_samples=512,
        ),
        "laptop": TrainGPT2Arguments(
            preset="laptop",
            d=20,
            k=4,
            heads=8,
            initial_std=0.1,
            steps=6_000,
            lr=3e-5,
            lr_schedule="constant",
            eval_every=50,
            checkpoint_every=50,
        ),
        "paper": TrainGPT2Arguments(
            preset="paper", d=100, k=6, heads=32, steps=250_000, lr=1e-4, eval_every=1_000, checkpoint_every=10_000
        ),
    },
}


def train(arguments: TrainArguments | TrainGPT2Arguments, argv: Sequence[str] = ()) -> None:
    """Make the run that the arguments describe, or finish it."""
    size = "width" if isinstance(arguments, TrainArguments) else "heads"
    check(arguments, (arguments.lr,))
    require_at_least(1, arguments, size)
    require_seed(arguments, "seed")
    task_of(arguments)
    preset = PRESETS[arguments.model][arguments.preset]
    directory = arguments.out or RUNS / default_name(arguments, preset, run_name(arguments.model, arguments.preset))
    processes, device = join_processes_of(arguments)
    options = {
        "setting": f"parity_{arguments.model}",
        "argv": argv,
        "force": arguments.force,
        "wandb": arguments.wandb,
    }
    with open_shared_run(directory, asdict(arguments), processes, **options) as run:
        if run.complete:
            processes.say(f"{directory} is complete")
            return
        network = initial_network(arguments, getattr(arguments, size), arguments.seed)
        student = Student(run, FROM_LABELS, network, arguments.lr)
        train_together(arguments, [student], arguments.seed, directory.name, device, processes)
        processes.say(f"{directory}: accuracy {student.records[-1]['accuracy']:.3f}")


def main() -> None:
    """Parse the command line."""
    run_command(PRESETS[model_of_command_line()], train, __doc__)


if __name__ == "__main__":
    command(main)
