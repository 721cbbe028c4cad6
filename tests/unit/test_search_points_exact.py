"""Exact solutions of sensitivities."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.exact import Exact, ExactOptions
from automl.searchers.points.program import Program
from automl.searchers.points.sensitivity import additive, additive_losses, probes
from automl.testing.points import AdditiveAccuracy, PointSearcherConformance
from automl.testing.problems import cifar_resnet
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.space import Point, SearchSpace


@cache
def few_choices() -> tuple[SearchSpace, PointPrices]:
    """Six decisions of three choices each: 729 points."""
    space = build_space(cifar_resnet(8), SpaceOptions(lower_bound=0.75))
    return space, PointPrices(space)


def two_budgets(evaluations: int = 40) -> PointProblem:
    space, prices = few_choices()
    constraints = (
        Constraint("macs", 0.8 * space.graph.macs),
        Constraint("weight_bytes", 0.75 * space.graph.weight_bytes),
    )
    return PointProblem(space, constraints, prices, 0, evaluations)


def every(space: SearchSpace) -> npt.NDArray[np.int64]:
    return np.array(list(np.ndindex(*space.counts.tolist())), dtype=np.int64)


def searched(searcher: PointSearcher, accuracy: AdditiveAccuracy) -> list[tuple[Point, float]]:
    """The proposals of a whole search, each with its share of the images."""
    made = []
    while not searcher.finished:
        policy = searcher.ask()
        point = searcher.space.encode(policy)
        made.append((point, searcher.share))
        found = accuracy(point)
        searcher.tell(policy, Evaluation(found, {}, 0.0, 0.0, divergence=1.0 - found, share=searcher.share))
    return made


class TestExact(PointSearcherConformance):
    evaluations = 12
    ratios = (0.8, 0.75)
    random = False

    def space(self) -> tuple[SearchSpace, PointPrices]:
        return few_choices()

    def make(self, problem: PointProblem) -> PointSearcher:
        return Exact(problem, ExactOptions(solutions=4))

    def test_it_finds_more_than_its_first_proposals(self) -> None:
        """It does not: the first solution is the best, see below."""


def test_where_losses_add_up_it_finds_the_best_points_in_their_order() -> None:
    """Every choice but the greatest is measured, so nothing is interpolated; all 729 points are looked at."""
    problem = two_budgets()
    accuracy = AdditiveAccuracy(problem.space)
    made = searched(Exact(problem, ExactOptions(solutions=5)), accuracy)
    assert [share for _, share in made] == [0.25] * 13 + [1.0] * 5
    points = every(problem.space)
    best = sorted((accuracy(point) for point in points[problem.kept(points)]), reverse=True)
    assert [accuracy(point) for point, _ in made[13:]] == pytest.approx(best[:5])


def test_losses_that_are_given_are_not_measured() -> None:
    problem = two_budgets()
    accuracy = AdditiveAccuracy(problem.space)
    ((point, share),) = searched(Exact(problem, ExactOptions(solutions=1), accuracy.losses), accuracy)
    assert share == 1.0
    points = every(problem.space)
    assert accuracy(point) == pytest.approx(max(accuracy(each) for each in points[problem.kept(points)]))


def test_it_ends_when_all_points_within_the_budget_were_proposed() -> None:
    space, prices = few_choices()
    problem = PointProblem(space, (Constraint("macs", 1.001 * prices(space.least[None])["macs"][0]),), prices, 0, 100)
    made = searched(Exact(problem), AdditiveAccuracy(space))
    assert [point.tolist() for point, share in made if share == 1.0] == [
        space.least.tolist()
    ] * 2  # once more at the end


class _Opaque:
    """A latency that is no sum over decisions, and how many points it was asked about."""

    def __init__(self) -> None:
        self.space, self._prices = few_choices()
        self.asked = 0

    def __call__(self, points: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[np.float64]]:
        self.asked += len(points)
        costs = self._prices(points)
        return {**costs, "latency_s": 1e-9 * costs["macs"] ** 0.9 + 1e-8 * np.ceil(costs["weight_bytes"] / 4096)}


@pytest.mark.parametrize("seed", range(3))
def test_where_costs_are_no_sums_it_comes_close_and_asks_few_prices(seed: int) -> None:
    prices = _Opaque()
    space = prices.space
    limit = 0.8 * float(prices(space.greatest[None])["latency_s"][0])
    problem = PointProblem(space, (Constraint("latency_s", limit),), prices, 0, 40)
    losses = AdditiveAccuracy(space, seed).losses
    prices.asked = 0
    found = Program(problem).best(losses)
    assert prices.asked < 70
    assert found is not None
    points = every(space)
    lost = np.sort(additive(losses, points[problem.kept(points)]).sum(axis=1))
    assert problem.kept(found[None])[0]
    assert additive(losses, found[None]).sum() <= lost[3]


def test_losses_are_interpolated_and_never_fall_with_a_cheaper_choice() -> None:
    space = build_space(cifar_resnet(8), SpaceOptions())
    points = probes(space, 1000)
    assert len(points) == 1 + 2 * len(space.decisions)
    assert (points[0] == space.greatest).all()
    assert ((points[1:] != space.greatest).sum(axis=1) == 1).all()
    generator = np.random.default_rng(0)
    measured = [(point, float(generator.random())) for point in points[1:]]
    losses = additive_losses(space, measured)
    for loss in losses:
        assert loss[-1] == 0.0
        assert (np.diff(loss) <= 0.0).all()
    for point, loss in measured[len(space.decisions) :]:  # the cheapest, where it is no better than the middle one
        (number,) = np.flatnonzero(point != space.greatest)
        assert losses[number][0] >= loss


def test_decisions_that_were_not_measured_have_the_median_of_their_kind() -> None:
    space = build_space(cifar_resnet(8), SpaceOptions(weight_bits=(4, 8)))
    bits = [number for number, each in enumerate(space.decisions) if each.dimension == "weight_bits"]

    def lowered(number: int) -> Point:
        point = space.greatest.copy()
        point[number] = 0
        return point

    losses = additive_losses(space, [(lowered(number), 0.1 * (1 + place)) for place, number in enumerate(bits[:3])])
    assert losses[bits[4]].tolist() == pytest.approx([0.2, 0.0])


@pytest.mark.parametrize(("options", "rule"), [({"fidelity": 0.0}, "fidelity"), ({"solutions": 0}, "solutions")])
def test_options_out_of_range_are_refused(options: Mapping[str, float], rule: str) -> None:
    with pytest.raises(InputError, match=f"exact: {rule}"):
        ExactOptions(**options)  # type: ignore[arg-type]
