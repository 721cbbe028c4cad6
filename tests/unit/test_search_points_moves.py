"""Steps along the budget, and the parts of NSGA-II."""

import numpy as np
import pytest

from automl.searchers.points.annealing import AnnealingOptions
from automl.searchers.points.base import PointProblem
from automl.searchers.points.evolution import EvolutionOptions
from automl.searchers.points.moves import balance, exchange
from automl.searchers.points.nsga2 import Nsga2Options, crowding_distances, front_numbers
from automl.testing.points import small_space
from search_spaces.errors import InputError
from search_spaces.objective import Constraint


def _problem(ratio: float) -> PointProblem:
    space, prices = small_space()
    return PointProblem(space, (Constraint("weight_bytes", ratio * space.graph.weight_bytes),), prices, 0, 100)


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.15, 1.0])
def test_balanced_points_keep_the_budget_and_leave_no_step_up(ratio: float) -> None:
    problem, generator = _problem(ratio), np.random.default_rng(0)
    for _ in range(20):
        point = balance(problem, problem.space.sample(generator), generator)
        upward = [other for other in problem.space.neighbours(point) if (other > point).any()]
        assert problem.kept(point[None]).all()
        assert not upward or not problem.kept(upward).any()


def test_decisions_that_were_moved_stay_where_that_is_possible() -> None:
    problem, generator = _problem(0.05), np.random.default_rng(0)
    moved = np.arange(len(problem.space.counts)) < 3
    point = balance(problem, problem.space.greatest, generator, moved)
    assert (point[:3] == problem.space.greatest[:3]).all()
    everything = np.ones_like(moved)
    assert problem.kept(balance(problem, problem.space.greatest, generator, everything)[None]).all()


def test_an_exchange_goes_elsewhere_within_the_budget() -> None:
    problem, generator = _problem(0.1), np.random.default_rng(0)
    point = balance(problem, problem.space.greatest, generator)
    others = [exchange(problem, point, generator) for _ in range(30)]
    assert problem.kept(others).all()
    assert sum((other != point).any() for other in others) > 15


def test_fronts_and_crowding_by_hand() -> None:
    objectives = [[1.0, 5.0], [2.0, 2.0], [5.0, 1.0], [3.0, 3.0], [6.0, 6.0], [2.0, 2.0]]
    assert front_numbers(objectives).tolist() == [0, 0, 0, 1, 2, 0]
    front = [[0.0, 10.0], [1.0, 4.0], [4.0, 2.0], [10.0, 0.0]]
    assert crowding_distances(front).tolist() == [np.inf, 0.4 + 0.8, 0.9 + 0.4, np.inf]
    assert crowding_distances([[1.0, 1.0]]).tolist() == [np.inf]


@pytest.mark.parametrize(
    "make",
    [
        lambda: EvolutionOptions(population=0),
        lambda: EvolutionOptions(onward=1.0),
        lambda: AnnealingOptions(warmup=0.0),
        lambda: AnnealingOptions(hot=0.1, cold=0.2),
        lambda: AnnealingOptions(onward=1.0),
        lambda: Nsga2Options(population=1),
        lambda: Nsga2Options(crossover=1.1),
        lambda: Nsga2Options(reach=-0.1),
        lambda: Nsga2Options(changes=-1.0),
    ],
)
def test_options_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(InputError, match="got"):
        make()  # type: ignore[operator]
