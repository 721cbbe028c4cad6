"""Annealing over points of channels and bits."""

from automl.search.points.annealing import Annealing
from automl.search.points.base import PointProblem, PointSearcher
from automl.testing.points import PointSearcherConformance


class TestAnnealing(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return Annealing(problem)
