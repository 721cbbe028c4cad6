"""Searchers over points of channels and bits."""

from automl.search.points.base import PointProblem, PointSearcher
from automl.search.points.random import RandomPoints
from automl.testing.points import PointSearcherConformance


class TestRandom(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return RandomPoints(problem)
