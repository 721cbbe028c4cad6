"""Exact solutions of sensitivities."""

from functools import cache

from automl.search.points.base import PointProblem, PointSearcher
from automl.search.points.exact import Exact, ExactOptions
from automl.testing.points import PointSearcherConformance
from automl.testing.problems import cifar_resnet
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.space import SearchSpace


@cache
def few_choices() -> tuple[SearchSpace, PointPrices]:
    space = build_space(cifar_resnet(8), SpaceOptions(lower_bound=0.6))
    return space, PointPrices(space)


class TestExact(PointSearcherConformance):
    evaluations = 12
    ratios = (0.8, 0.7)
    random = False

    def space(self) -> tuple[SearchSpace, PointPrices]:
        return few_choices()

    def make(self, problem: PointProblem) -> PointSearcher:
        return Exact(problem, ExactOptions(solutions=4))
