"""Random points within the budget: what every other searcher has to beat."""

from automl.search.points.base import PointSearcher
from search_spaces.space import Point


class RandomPoints(PointSearcher):
    """Each point is as large in all its decisions as a random share says, give or take; repaired where it is too dear.

    Uniformly random decisions would all cost about the same, in the middle of the space, whatever the budget.
    """

    def propose(self) -> Point:
        """A point around a random level."""
        level = self.generator.random()
        shares = self.generator.beta(1.0 + 4.0 * level, 1.0 + 4.0 * (1.0 - level), len(self.space.counts))
        point: Point = (shares * self.space.counts).astype("int64")
        return point
