"""NetAdapt over points of channels and bits."""

from typing import Any

import numpy as np
import pytest

from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.greedy import Greedy, GreedyOptions
from automl.testing.points import AdditiveAccuracy, PointSearcherConformance, small_space
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation


class TestGreedy(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return Greedy(problem)

    @pytest.mark.parametrize("lag", [0, 4, 12])
    def test_it_comes_from_above_and_stays_within_the_budget(self, lag: int) -> None:
        problem = self.problem()
        policies = self._searched(problem, lag)
        kept = problem.kept([problem.space.encode(policy) for policy in policies]).tolist()
        assert not kept[0]
        assert all(kept[-10:])  # of 40; the options keep 30 % for this

    def test_its_best_keeps_the_budget(self) -> None:
        searcher, accuracy = self.make(self.problem()), AdditiveAccuracy(self.problem().space)
        for _ in range(self.evaluations):
            policy = searcher.ask()
            searcher.tell(policy, Evaluation(accuracy(searcher.space.encode(policy)), {}, 0.0, 0.0))
        best = searcher.best(self.evaluations)
        assert 0 < len(best) < self.evaluations
        assert searcher.problem.kept([result.point for result in best]).all()


def test_the_first_round_tries_every_decision_that_frees_something_and_takes_the_cheapest() -> None:
    space, prices = small_space()
    problem = PointProblem(space, (Constraint("macs", 0.7 * space.graph.macs),), prices, 0, 100)
    searcher, losses = Greedy(problem), np.linspace(0.3, 0.1, 6)  # of the six decisions on channels, for a cut
    tried = []
    for _ in range(7):
        policy = searcher.ask()
        point = space.encode(policy)
        cut = np.flatnonzero(point != space.greatest)
        tried.append(tuple(cut.tolist()))
        freed = (space.graph.macs - space.graph.apply(policy).macs) / space.graph.macs
        accuracy = 1.0 - freed * sum(losses[cut])
        searcher.tell(policy, Evaluation(accuracy, {}, 0.0, 0.0))
    assert tried[0] == ()
    assert sorted(tried[1:]) == [(0,), (1,), (2,), (3,), (4,), (5,)]  # bits free no MACs
    assert np.flatnonzero(space.encode(searcher.ask()) != space.greatest).tolist() == [5]


@pytest.mark.parametrize("options", [{"width": 0}, {"first": 0.8, "polish": 0.3}, {"polish": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="greedy"):
        GreedyOptions(**options)
