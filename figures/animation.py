"""Animate how an MLP on parity passes its transition: its weights, the correlations of its output, its accuracy.

    python figures/animation.py runs/parity_mlp/laptop

The run is a teacher or a student that saved checkpoints around its transition; a frame is a checkpoint. The weights are
those of the neurons that matter most in the end, one neuron in a row; the coordinates of the support come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.artist import Artist
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from common.arguments import require_at_least
from common.cli import command
from common.distillation.phases import find_phases
from common.errors import UserError
from common.parity import mlp
from common.parity.networks import Tensors, read_arrays
from common.parity.task import ParityTask, task_of, unpack_signs
from common.plotting import BLACK, GREY, PAGE_WIDTH, VERMILLION, new_figure, panel_title
from common.runs.run import Run
from common.teachers.discovery import find_checkpoints, local_path

SAMPLES = 100_000
"""For the correlations."""
FRAMES_PER_SECOND = 8
LAST_FRAMES = 12
"""How many times the last frame is shown."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of `animation.py`."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run of parity_mlp with two labels."""
    neurons: int = 40
    """Neurons whose weights are shown."""
    coordinates: int = 24
    """Coordinates shown: those of the support, and the first others."""
    frames: int = 60
    """Most frames, spread evenly over the checkpoints around the transition."""
    out: Path | None = None
    """GIF to write; by default transition.gif in the run's directory."""


@dataclass(frozen=True)
class Frame:
    """A checkpoint."""

    step: int
    weights: NDArray[np.float64]
    """(neurons, coordinates): of the input."""
    correlations: NDArray[np.float64]
    """(coordinates,): |E[x_i p(x)]|, p the probability of class 1."""


def main(arguments: Arguments) -> None:
    """Write the animation.

    Raises:
        UserError: the directory is no such run, or it has no checkpoints around a transition.
    """
    require_at_least(1, arguments, "neurons", "frames")
    if arguments.out is not None and (arguments.out.suffix != ".gif" or not arguments.out.parent.is_dir()):
        raise UserError(f"--out must be a .gif file in a directory that exists, got {arguments.out}")
    run = Run(arguments.run)
    if run.setting != "parity_mlp":
        raise UserError(f"{arguments.run} is a run of {run.setting}: give one of parity_mlp")
    task = task_of(run.config["arguments"])
    if task.classes > 2:
        raise UserError(f"{arguments.run} has {task.classes} labels: give a run with two")
    if run.config["arguments"]["layers"] > 1:
        raise UserError(f"{arguments.run} has several hidden layers: give a run with one")
    (support,) = task.supports
    if not len(support) <= arguments.coordinates <= task.d:
        raise UserError(
            f"--coordinates must be from {len(support)}, the support, to {task.d}; got {arguments.coordinates}"
        )
    records = run.records()
    steps, accuracy = ([record[name] for record in records] for name in ("step", "accuracy"))
    phases = find_phases(steps, [1 - value for value in accuracy])
    margin = phases.end - phases.start
    checkpoints = [
        checkpoint
        for checkpoint in find_checkpoints(arguments.run)
        if phases.start - margin <= checkpoint.step <= phases.end + margin
    ]
    if len(checkpoints) < 3:
        raise UserError(f"{arguments.run} has {len(checkpoints)} checkpoints around its transition: save more of them")
    chosen = np.unique(np.linspace(0, len(checkpoints) - 1, arguments.frames).round().astype(int))
    shown = [*support, *(i for i in range(task.d) if i not in support)][: arguments.coordinates]
    last = read_arrays(local_path(checkpoints[-1]))
    weights = last["hidden.0.weight"]
    importance = np.linalg.norm(weights, axis=1) * np.abs(last["output.weight"][0] - last["output.weight"][1])
    neurons = np.argsort(-importance)[: arguments.neurons]
    bits = task.sample(0, "probe", 0, SAMPLES)
    signs = unpack_signs(bits, task.d, "cpu", torch.float64).numpy()
    frames = []
    for at in chosen:
        tensors = read_arrays(local_path(checkpoints[at]))
        frames.append(_frame(checkpoints[at].step, tensors, bits, signs, neurons, shown))
    out = arguments.out or arguments.run / "transition.gif"
    _animate(frames, steps, accuracy, task, len(support), out)
    print(out)


def _frame(
    step: int,
    tensors: Tensors,
    bits: NDArray[np.uint64],
    signs: NDArray[np.floating],
    neurons: NDArray[np.int64],
    shown: Sequence[int],
) -> Frame:
    logits = mlp.batched_logits(mlp.module_of(tensors, "cpu"), bits)
    probability = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    correlations = np.abs((probability - probability.mean()) @ signs[:, shown]) / len(bits)
    return Frame(step, tensors["hidden.0.weight"][np.ix_(neurons, shown)], correlations)


def _animate(
    frames: Sequence[Frame], steps: Sequence[int], accuracy: Sequence[float], task: ParityTask, k: int, out: Path
) -> None:
    """Draw the frames and write them to a GIF."""
    figure, ((left, middle, right),) = new_figure(columns=3, width=PAGE_WIDTH, height=2.2)
    largest = float(np.quantile(np.abs(frames[-1].weights[:, :k]), 0.8))
    limits: dict[str, Any] = {"vmin": -largest, "vmax": largest, "cmap": "RdBu_r", "aspect": "auto"}
    picture = left.imshow(frames[0].weights, interpolation="nearest", **limits)
    left.grid(visible=False)
    left.set_xlabel("coordinate (support first)")
    left.set_ylabel("neuron, by its part in the end")
    left.set_xticks([0, k - 1, frames[0].weights.shape[1] - 1], ["1", str(k), str(frames[0].weights.shape[1])])
    panel_title(left, "(a) input weights")
    coordinates = np.arange(len(frames[0].correlations)) + 1
    bars = middle.bar(coordinates, frames[0].correlations, color=[VERMILLION] * k + [GREY] * (len(coordinates) - k))
    middle.set_ylim(0, 1.05 * max(float(frame.correlations.max()) for frame in frames))
    middle.set_xlabel("coordinate")
    panel_title(middle, r"(b) $|\mathrm{E}[x_i\, p(x)]|$")
    right.plot(steps, accuracy, color=GREY, linewidth=0.8)
    right.set_xlim(frames[0].step, frames[-1].step)
    right.set_ylim(0.38, 1.03)
    right.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.set_xlabel("training steps")
    panel_title(right, "(c) accuracy")
    (point,) = right.plot([], [], "o", color=BLACK, markersize=4)

    def show(number: int) -> list[Artist]:
        frame = frames[min(number, len(frames) - 1)]
        picture.set_data(frame.weights)
        for bar, height in zip(bars, frame.correlations, strict=True):
            bar.set_height(height)
        point.set_data([frame.step], [np.interp(frame.step, steps, accuracy)])
        panel_title(right, f"(c) accuracy, step {frame.step:,}")
        return [picture, *bars, point]

    animation = FuncAnimation(figure, show, frames=len(frames) + LAST_FRAMES, blit=False)
    animation.save(out, writer=PillowWriter(fps=FRAMES_PER_SECOND), dpi=110)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Arguments, description=__doc__)))
