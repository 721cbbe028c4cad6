"""Nsga2 over points of channels and bits."""

from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.nsga2 import Nsga2
from automl.testing.points import PointSearcherConformance


class TestNsga2(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return Nsga2(problem)
