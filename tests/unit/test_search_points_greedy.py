"""NetAdapt over points of channels and bits."""

from automl.search.points.base import PointProblem, PointSearcher
from automl.search.points.greedy import Greedy
from automl.testing.points import PointSearcherConformance


class TestGreedy(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return Greedy(problem)
