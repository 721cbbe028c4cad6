"""Searchers over points of channels and bits."""

from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.random import RandomPoints
from automl.testing.points import PointSearcherConformance


class TestRandom(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return RandomPoints(problem)
