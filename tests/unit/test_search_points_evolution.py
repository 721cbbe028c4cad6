"""Evolution over points of channels and bits."""

from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.evolution import Evolution
from automl.testing.points import PointSearcherConformance


class TestEvolution(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return Evolution(problem)
