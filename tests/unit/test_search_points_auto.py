"""The default searcher over points of channels and bits."""

from automl.search.points.auto import Auto
from automl.search.points.base import PointProblem, PointSearcher
from automl.testing.points import PointSearcherConformance


class TestAuto(PointSearcherConformance):
    divergences = True
    evaluations = 8

    def make(self, problem: PointProblem) -> PointSearcher:
        return Auto(problem)
