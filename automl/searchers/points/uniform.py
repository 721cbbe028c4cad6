"""The same level everywhere: the baseline that every search of several dimensions stands beside."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from automl.searchers.base import Searcher, State
from automl.searchers.points.base import PointProblem
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point


def uniform_point(problem: PointProblem) -> Point:
    """The point of the highest level that keeps the budget: every decision takes the same share of its choices.

    Raises:
        InputError: no policy of the space keeps the budget.
    """
    problem.check()
    counts = problem.space.counts
    levels = np.unique(np.concatenate([np.arange(count) / max(1, count - 1) for count in set(counts.tolist())]))
    points = np.floor(levels[:, None] * (counts - 1) + 1e-9).astype(np.int64)  # 2/3 of 3 is 2
    costs = problem.prices(points)
    keeps = np.all([costs[each.metric] <= each.limit for each in problem.constraints] or [levels >= 0], axis=0)
    point: Point = points[np.flatnonzero(keeps)[-1]]
    return point


class UniformPoints(Searcher):
    """Proposes `uniform_point`, every time: one evaluation is enough.

    Args:
        problem: the space and its budget.

    Raises:
        InputError: no policy of the space keeps the budget.
    """

    def __init__(self, problem: PointProblem) -> None:
        problem.check()
        self._problem = problem

    def ask(self) -> CompressionPolicy:
        """The uniform policy."""
        return self._policy

    @cached_property
    def _policy(self) -> CompressionPolicy:
        return self._problem.space.decode(uniform_point(self._problem))

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float:
        """The accuracy; nothing is learned from it."""
        return evaluation.accuracy

    def state(self) -> State:
        """Nothing: all proposals are the same."""
        return {}, {}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Nothing to take over."""
