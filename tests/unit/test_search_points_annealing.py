"""Annealing over points of channels and bits."""

from automl.searchers.points.annealing import Annealing
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.testing.points import PointSearcherConformance


class TestAnnealing(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return Annealing(problem)
