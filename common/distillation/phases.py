"""Find the sharp transition in a training curve, and the teacher checkpoints before, inside and after it.

Training with diminishing returns gives a convex curve: an initial descent and a slow tail are convex, a plateau that
ends in a drop is not. The transition is therefore where the curve is highest above its lower convex hull. With L the
non-increasing least-squares fit of the curve (isotonic regression) and H <= L the hull of L,

    knee     = the step where L - H is largest,
    plateau  = the last step before the knee where L = H,
    tail     = the first step after the knee where L = H,
    start    = the step where L has completed 10% of its drop from L(knee) to L(tail),
    end      = the step where L has completed 90% of it (as in the rise time of a step response),
    steepest = the middle of the shortest interval of steps in which L completes half of it.

Between `plateau` and `tail` the hull is a chord, whose slope is the mean rate over plateau and transition together: the
initial descent is over once it is slower than that, and so is the transition. The result is independent of the units of
both axes, evaluations need not be equally spaced, and there is no smoothing bandwidth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import UserError

MIN_EVALUATIONS = 8
MIN_NOISE_RATIO = 8
"""A transition is at least this many times the noise above the hull. Of simulated exponential and power-law descents
with noise at 50 evaluations, fewer than 1 in 200 pass; with a ratio of 5, 1 in 30."""
MIN_PLATEAU_SHARE = 0.2
"""A transition is at least this share of the chord's fall above the hull. For a plateau followed by a linear drop that
is the plateau's share of the steps; half a cosine, which has no plateau, reaches 0.16."""
MIN_OBSERVED_TAIL = 0.2
"""The curve continues after `end` for at least this share of `end - start`. A truncated linear drop reaches 1/8."""


class NoTransitionError(UserError):
    """The curve has no plateau that ends in a sharp drop."""


@dataclass(frozen=True)
class Phases:
    """Five steps, in increasing order. An initial descent, if there is one, lies before `plateau`."""

    plateau: float
    """The plateau begins."""
    start: float
    """The transition has completed 10% of its drop."""
    steepest: float
    """The transition is fastest."""
    end: float
    """The transition has completed 90% of its drop."""
    tail: float
    """The transition is over; the rest of the curve falls slowly or not at all."""


def find_phases(steps: ArrayLike, losses: ArrayLike) -> Phases:
    """The phases of a falling curve: a loss, or the error rate `1 - accuracy`.

    Of several transitions, the one highest above the hull is found. Losses above the first one are clipped to it: a
    loss that grows at the beginning of training and returns has made no progress.

    Args:
        steps: training steps of the evaluations, increasing, of shape (evaluations,).
        losses: of shape (evaluations,).

    Raises:
        NoTransitionError: the curve has no transition.
        UserError: the curve ends inside its transition, has fewer than 8 evaluations, has steps that do not increase or
            numbers that are not finite.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < MIN_EVALUATIONS:
        raise UserError(
            f"phases need at least {MIN_EVALUATIONS} evaluations with one step and one loss each, "
            f"got steps of shape {x.shape} and losses of shape {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
        raise UserError("phases need steps that increase and losses that are finite")

    cut = np.minimum(y, y[0])
    noise = min(_noise(y), _noise(cut))  # what is clipped may be an increase, or noise of the plateau
    y = cut
    fit = _non_increasing_fit(y)
    hull = _lower_hull(x, fit)
    height = fit - np.interp(x, x[hull], fit[hull])
    knee = int(height.argmax())
    right = max(1, int(np.searchsorted(hull, knee)))
    plateau, tail = hull[right - 1], hull[right]
    if height[knee] <= max(MIN_NOISE_RATIO * noise, MIN_PLATEAU_SHARE * (fit[plateau] - fit[tail])):
        raise NoTransitionError(
            "the curve has no transition (a plateau, then a sharp drop): train longer or evaluate more often, "
            "and pass 1 - accuracy where the curve is an accuracy"
        )

    drop = fit[knee] - fit[tail]

    def step_after(share: ArrayLike) -> NDArray[np.float64]:
        made = fit[knee] - fit[knee : tail + 1]
        return np.interp(np.asarray(share) * drop, made, x[knee : tail + 1])

    start, end = step_after([0.1, 0.9])
    shares = np.linspace(0, 0.5, 51)
    begins, ends = step_after(shares), step_after(shares + 0.5)
    shortest = (ends - begins).argmin()

    if x[-1] - end < MIN_OBSERVED_TAIL * (end - start):
        raise UserError("the curve ends inside its transition: train longer, or evaluate more often after the drop")
    return Phases(
        plateau=float(x[plateau]),
        start=float(start),
        steepest=float(begins[shortest] + ends[shortest]) / 2,
        end=float(end),
        tail=float(x[tail]),
    )


def choose_checkpoints(phases: Phases, checkpoints: Sequence[int]) -> tuple[int, int, int]:
    """Teacher steps of a checkpoint before, inside and after the transition.

    Before: of those before `start`, the one nearest to the middle of the plateau. Inside: of those strictly between
    `start` and `end`, the one nearest to `steepest`. After: of those from `tail` on, the one nearest to the middle of
    the rest of training.

    Args:
        phases: of the teacher's curve.
        checkpoints: teacher steps at which checkpoints exist, in any order.

    Raises:
        UserError: one of the three does not exist.
    """
    checkpoints = sorted(checkpoints)
    before = [step for step in checkpoints if step < phases.start]
    inside = [step for step in checkpoints if phases.start < step < phases.end]
    after = [step for step in checkpoints if step >= phases.tail]
    for where, found in (("before", before), ("inside", inside), ("after", after)):
        if not found:
            raise UserError(
                f"no teacher checkpoint {where} the transition, which starts at step {phases.start:.0f}, ends at "
                f"{phases.end:.0f} and is over at {phases.tail:.0f}: save checkpoints more often or train longer"
            )
    middle = (phases.plateau + phases.start) / 2
    return (
        min(before, key=lambda step: abs(step - middle)),
        min(inside, key=lambda step: abs(step - phases.steepest)),
        min(after, key=lambda step: abs(step - (phases.tail + max(after)) / 2)),
    )


def _non_increasing_fit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares fit among non-increasing sequences, by pooling adjacent violators."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        mean, count = float(value), 1
        while means and means[-1] <= mean:
            count += counts[-1]
            mean += (means.pop() - mean) * counts.pop() / count
        means.append(mean)
        counts.append(count)
    return np.repeat(means, counts)


def _lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the points that span the greatest convex function below (x, y); x increases."""

    def slope(left: int, right: int) -> float:
        return (y[right] - y[left]) / (x[right] - x[left])

    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1 and slope(hull[-2], i) <= slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(i)
    return np.array(hull)


def _noise(losses: NDArray[np.float64]) -> float:
    """Median rise between neighbours, as only noise rises (0.95 standard deviations); at least 0.1% of the range."""
    rises = np.diff(losses)
    rises = rises[rises > 0]
    return max(float(np.median(rises)) if len(rises) else 0.0, float(np.ptp(losses)) / 1000)
