"""Random points within the budget: what every other searcher has to beat."""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from automl.searchers.points.base import PointSearcher
from search_spaces.space import Point, SearchSpace

LEVELS = 32
SPREAD = 4.0
"""How closely the decisions of a point follow its level."""


def random_point(space: SearchSpace, generator: np.random.Generator) -> Point:
    """A point that is as large in all its decisions as a random share says, give or take.

    Uniformly random decisions would all cost about the same, in the middle of the space, whatever the budget.
    """
    levels = generator.random(1)
    point: Point = _at(space, levels, generator.random(len(space.counts)))[0]
    return point


class RandomPoints(PointSearcher):
    """Random points of the same budget: each is drawn at several levels, of which the highest within it is taken.

    Lowering a dear point instead (`SearchSpace.repair`) would leave it lopsided: too weak an opponent.
    """

    def propose(self) -> Point:
        """As large as the budget allows, give or take."""
        points = _at(self.space, np.linspace(1.0, 0.0, LEVELS), self.generator.random(len(self.space.counts)))

        def kept(number: int) -> bool:
            return bool(self.problem.kept(points[number : number + 1])[0])

        # A bisection, because prices may have to be measured.
        found: Point = points[bisect_left(range(LEVELS - 1), True, key=kept)]
        return found


def _at(space: SearchSpace, levels: npt.NDArray[np.float64], chances: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Points [L, D] at levels [L]: beta distributed shares of the choices, of those probabilities [D]."""
    level = levels[:, None]
    shares = betaincinv(1.0 + SPREAD * level, 1.0 + SPREAD * (1.0 - level), chances[None])
    points: npt.NDArray[np.int64] = np.minimum((shares * space.counts).astype(np.int64), space.counts - 1)
    return points
