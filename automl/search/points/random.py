"""Random points within the budget: what every other searcher has to beat."""

import numpy as np

from automl.search.points.base import PointSearcher
from search_spaces.space import Point, SearchSpace


def random_point(space: SearchSpace, generator: np.random.Generator) -> Point:
    """A point that is as large in all its decisions as a random share says, give or take.

    Uniformly random decisions would all cost about the same, in the middle of the space, whatever the budget.
    """
    level = generator.random()
    shares = generator.beta(1.0 + 4.0 * level, 1.0 + 4.0 * (1.0 - level), len(space.counts))
    point: Point = (shares * space.counts).astype("int64")
    return point


class RandomPoints(PointSearcher):
    """Each point is as large as a random share says, see `random_point`; repaired where it is too dear."""

    def propose(self) -> Point:
        """A point around a random level."""
        return random_point(self.space, self.generator)
