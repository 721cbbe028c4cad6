"""What each decision alone costs in quality: measured at a few of its choices, interpolated between.

With everything else left whole, as HAQ's and HAWQ's authors and many since have looked at layers. The losses are taken
to be small and of second order in what is changed, so that they add up; how far that is true, a searcher finds out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from automl.searchers.points.base import Result
from search_spaces.space import Point, SearchSpace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ORDER = 2.0
"""Power of the distance from the greatest choice by which a loss grows, where one choice alone was measured."""
LEAST = 1e-4
"""Share of the median loss below which one is not told from nothing: a choice that seems free is not."""


def probes(space: SearchSpace, most: int) -> IntArray:
    """The points to measure, [P, D]: the whole network, every decision's middle choice, every decision's cheapest.

    Args:
        space: whose decisions they are.
        most: how many there may be; where they are not enough for all, they are spread evenly.
    """
    counts = space.counts
    free = np.flatnonzero(counts > 1)
    middle = [(int(number), int(counts[number] - 1) // 2) for number in free]
    cheapest = [(number, 0) for number, choice in middle if choice > 0]
    found = [space.greatest]
    for level in (middle, cheapest):
        left = most - len(found)
        places = np.unique(np.linspace(0, len(level) - 1, max(0, min(left, len(level)))).round().astype(int))
        for number, choice in (level[place] for place in places.tolist()):
            point = space.greatest.copy()
            point[number] = choice
            found.append(point)
    return np.stack(found)[: max(0, most)]


def additive_losses(space: SearchSpace, measured: Sequence[tuple[Point, float]]) -> list[FloatArray]:
    """The loss of every choice of every decision, 0 at the greatest, never less for a cheaper one.

    Between choices that were measured it is interpolated in its logarithm, between the last of them and the greatest by
    `ORDER`. A decision that was not measured has the median of its kind, or of all.

    Args:
        space: whose decisions they are.
        measured: points that differ from the greatest in one decision, and what each was found to lose.
    """
    known: list[dict[int, float]] = [{} for _ in space.decisions]
    for point, loss in measured:
        (number,) = np.flatnonzero(point != space.greatest).tolist()
        known[number][int(point[number])] = loss
    positive = [loss for losses in known for loss in losses.values() if loss > 0.0]
    floor = LEAST * float(np.median(positive)) if positive else 1.0
    found = [_interpolated(losses, int(count), floor) for losses, count in zip(known, space.counts, strict=True)]
    usual = _usual(space, found)
    return [
        usual[decision.dimension](int(count)) if losses is None else losses
        for decision, losses, count in zip(space.decisions, found, space.counts, strict=True)
    ]


def measured_losses(space: SearchSpace, told: Sequence[Result]) -> list[FloatArray]:
    """The losses that the results of `probes` come to; what failed is twice as bad as the worst that did not.

    Args:
        space: whose decisions they are.
        told: results of the first so many probes, in their order.
    """
    values, fine = losses_of(told), np.array([not each.failed for each in told], dtype=np.bool_)
    alone = [index for index, each in enumerate(told) if (each.point != space.greatest).any()]
    whole = [index for index, each in enumerate(told) if fine[index] and index not in alone]
    level = float(values[whole[0]]) if whole else float(values[fine].min(initial=np.inf))
    lost = np.zeros(len(told))
    lost[fine] = values[fine] - level
    lost[~fine] = 2.0 * (float(lost.max(initial=0.0)) or 1.0)
    return additive_losses(space, [(told[index].point, float(lost[index])) for index in alone])


def losses_of(results: Sequence[Result]) -> FloatArray:
    """What results lost, [N]: divergences, or where those are not known how far accuracies are below the best.

    An accuracy is counted in images, so one that did not fall is taken to have lost half of what it is counted in. What
    failed has lost infinitely much.
    """
    fine = np.array([not each.failed for each in results], dtype=np.bool_)
    if all(each.divergence is not None for each in results if not each.failed):
        values = np.array([np.inf if each.divergence is None else each.divergence for each in results])
        return np.where(fine, values, np.inf)
    accuracies = np.array([each.accuracy for each in results])
    levels = np.unique(accuracies[fine].round(9))
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    return np.where(fine, float(levels[-1]) - accuracies + step / 2, np.inf)


def avoiding(losses: Sequence[FloatArray], causes: npt.NDArray[np.bool_]) -> list[FloatArray]:
    """The losses with choices that evaluations fail of made worse than everything else together.

    Args:
        losses: of every choice of every decision.
        causes: see `failures.causes`.
    """
    worst = 1.0 + sum(float(loss.max()) for loss in losses)
    return [loss + worst * failing[: len(loss)] for loss, failing in zip(losses, causes, strict=True)]


def additive(losses: Sequence[FloatArray], points: npt.ArrayLike) -> FloatArray:
    """Losses of points decision by decision, [P, D]; their sum is the model's loss."""
    chosen = np.asarray(points, dtype=np.int64)
    return np.stack([loss[chosen[:, number]] for number, loss in enumerate(losses)], axis=1)


def _interpolated(known: Mapping[int, float], count: int, floor: float) -> FloatArray | None:
    if not known or count == 1:
        return np.zeros(count) if count == 1 else None
    top = count - 1
    steps = np.array(sorted(top - choice for choice in known), dtype=np.float64)  # below the greatest, rising
    values = np.array([known[top - int(step)] for step in steps])
    logs = np.log(np.maximum.accumulate(np.maximum(values, floor * (steps / top) ** ORDER)))
    every = np.arange(1, count, dtype=np.float64)
    found = np.interp(every, steps, logs)
    beyond = np.where(every < steps[0], every / steps[0], np.maximum(every / steps[-1], 1.0))
    return np.append(np.exp(found + ORDER * np.log(beyond))[::-1], 0.0)


class _Usual:
    """The median loss at the cheapest choice of some decisions, and how it falls."""

    def __init__(self, losses: Sequence[FloatArray]) -> None:
        self._cheapest = float(np.median([loss[0] for loss in losses])) if losses else 1.0

    def __call__(self, count: int) -> FloatArray:
        return self._cheapest * np.linspace(1.0, 0.0, count) ** ORDER


def _usual(space: SearchSpace, found: Sequence[FloatArray | None]) -> Mapping[str, _Usual]:
    """By kind of decision."""
    measured = [(each, loss) for each, loss in zip(space.decisions, found, strict=True) if loss is not None]
    of_all = [loss for _, loss in measured if len(loss) > 1]
    kinds = {decision.dimension for decision in space.decisions}
    own = {kind: [loss for each, loss in measured if each.dimension == kind and len(loss) > 1] for kind in kinds}
    return {kind: _Usual(losses or of_all) for kind, losses in own.items()}
