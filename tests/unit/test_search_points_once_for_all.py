"""OFA's search: what it learns from, what it proposes within the budget and along a front, and when it ends."""

from collections.abc import Sequence

import numpy as np
import pytest

from automl.predictors.samples import Sample
from automl.searchers import make_searcher
from automl.searchers.points.base import PointProblem
from automl.searchers.points.generations import Generations, IntArray, evolve
from automl.searchers.points.once_for_all import OnceForAll, OnceForAllOptions
from automl.searchers.points.program import Program
from automl.testing.points import AdditiveAccuracy, PointSearcherConformance, elastic_space, small_space
from search_spaces.errors import InputError, UnreachableError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.space import SearchSpace

QUICK = OnceForAllOptions(predictor="boosted", population=24, iterations=4, samples=12, refine=6)


class TestOnceForAll(PointSearcherConformance):
    evaluations = 24

    def make(self, problem: PointProblem) -> OnceForAll:
        return OnceForAll(problem, QUICK)


def problem_of(ratio: float, evaluations: int, seed: int = 0) -> PointProblem:
    space, prices = elastic_space()
    return PointProblem(space, (Constraint("macs", ratio * space.graph.macs),), prices, seed, evaluations)


def samples_of(space: SearchSpace, count: int, accuracy: AdditiveAccuracy) -> list[Sample]:
    generator = np.random.default_rng(7)
    points = [space.sample(generator) for _ in range(count)]
    return [Sample(space.decode(point), accuracy(point)) for point in points]


def searched(searcher: OnceForAll, accuracy: AdditiveAccuracy, evaluations: int) -> IntArray:
    """Its proposals, [N, D]."""
    points: list[IntArray] = []
    while len(points) < evaluations and not searcher.finished:
        policy = searcher.ask()
        points.append(searcher.space.encode(policy))
        searcher.tell(policy, Evaluation(accuracy(points[-1]), {}, 0.0, 0.0))
    return np.array(points)


@pytest.mark.parametrize("ratio", [0.6, 0.3])
def test_evolution_finds_the_optimum_of_an_additive_accuracy(ratio: float) -> None:
    problem = problem_of(ratio, 1)
    accuracy = AdditiveAccuracy(problem.space, 1)

    def predict(points: IntArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([accuracy(point) for point in points])

    nothing = np.empty((0, len(problem.space.counts)), dtype=np.int64)
    found = evolve(problem, predict, nothing, Generations(), np.random.default_rng(0))
    assert problem.kept(found).all()
    assert len(np.unique(found, axis=0)) == len(found) > 25
    assert (np.diff(predict(found)) <= 0.0).all()
    best = Program(problem).best(accuracy.losses)
    assert best is not None
    assert predict(found[:1])[0] == pytest.approx(accuracy(best))
    published = evolve(problem, predict, nothing, Generations(balanced=False), np.random.default_rng(0))
    assert problem.kept(published).all()
    assert predict(published[:1])[0] > 0.95 * accuracy(best)


def test_known_sub_networks_take_the_place_of_samples() -> None:
    problem = problem_of(0.5, 8)
    accuracy = AdditiveAccuracy(problem.space, 2)
    known = samples_of(problem.space, 200, accuracy)
    best = Program(problem).best(accuracy.losses)
    assert best is not None
    with_known = searched(OnceForAll(problem, known=known), accuracy, 8)
    assert problem.kept(with_known).all()
    found = max(accuracy(point) for point in with_known)
    without = max(accuracy(point) for point in searched(OnceForAll(problem), accuracy, 8))
    assert found > without
    assert 1.0 - found < 1.2 * (1.0 - accuracy(best))


def test_those_of_other_spaces_are_left_out() -> None:
    problem = problem_of(0.5, 8)
    other, _ = small_space()
    known = samples_of(other, 10, AdditiveAccuracy(other))
    plain, told = OnceForAll(problem, QUICK), OnceForAll(problem, QUICK, known)
    assert [plain.ask() for _ in range(3)] == [told.ask() for _ in range(3)]


def test_a_predictor_is_transferred_to_a_space_with_bits() -> None:
    space, prices = small_space()
    problem = PointProblem(space, (Constraint("weight_bytes", 0.15 * space.graph.weight_bytes),), prices, 0, 40)
    architecture = space.elastic
    known = samples_of(architecture, 100, AdditiveAccuracy(architecture, 3))
    accuracy = AdditiveAccuracy(space, 3)
    options = OnceForAllOptions(samples=30, adapt=10, refine=5, iterations=5)
    searcher = OnceForAll(problem, options, known)
    assert len(searched(searcher, accuracy, 11)) == 11
    assert searcher.state()[0]["queue"].shape == (4, len(space.counts))
    alone = OnceForAll(problem, OnceForAllOptions(samples=30, adapt=10, transfer=False), known)
    searched(alone, accuracy, 11)
    assert len(alone.state()[0]["queue"]) == 0


def test_each_front_has_proposals_at_its_cost_and_the_last_keeps_the_budget() -> None:
    problem = problem_of(0.5, 40)
    options = OnceForAllOptions(
        predictor="boosted", population=20, iterations=20, samples=12, refine=4, fronts=(0.25, 0.8)
    )
    points = searched(OnceForAll(problem, options), AdditiveAccuracy(problem.space), 40)
    shares = problem.prices(points)["macs"] / problem.space.graph.macs
    for low, high in ((0.2, 0.25), (0.45, 0.5), (0.7, 0.8)):
        assert ((shares > low) & (shares <= high)).sum() >= 4
    assert (shares <= 0.8).all()
    assert shares[-1] <= 0.5
    assert len(np.unique(points, axis=0)) == len(points)


def test_it_is_finished_when_all_that_it_would_propose_was_evaluated() -> None:
    problem = problem_of(0.2, 2000)
    options = OnceForAllOptions(predictor="boosted", population=8, iterations=10, samples=10, refine=2)
    searcher = OnceForAll(problem, options)
    points = searched(searcher, AdditiveAccuracy(problem.space), 2000)
    assert searcher.finished
    assert len(points) < 1000
    arrays, values = searcher.state()
    again = OnceForAll(problem, options)
    again.restore(arrays, values)
    assert again.finished


def test_prices_that_are_no_sums_are_asked_for_what_is_proposed_alone() -> None:
    space, counted = elastic_space()
    asked = 0

    def prices(points: IntArray) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        nonlocal asked
        asked += len(points)
        return {"latency_s": counted(points)["macs"] ** 0.9}

    limit = float(prices(space.greatest[None])["latency_s"][0]) * 0.5
    problem = PointProblem(space, (Constraint("latency_s", limit),), prices, 0, 5)
    accuracy = AdditiveAccuracy(space, 2)
    points = searched(OnceForAll(problem, known=samples_of(space, 200, accuracy)), accuracy, 5)
    assert problem.kept(points).all()
    assert asked < 2000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"predictor": "mpl"}, "predictor is one of mlp, boosted, got 'mpl'; did you mean 'mlp'"),
        ({"parents": 1.0}, "parents is a share"),
        ({"population": 3}, "population is at least 4"),
        ({"refine": 0}, "refine is at least 1"),
        ({"fronts": [0.5, 1.5]}, r"fronts are shares in \(0, 1\], got \[0.5, 1.5\]"),
        ({"fronts": 0.5}, "is a list of numbers, got 0.5"),
        ({"sample": 3}, "did you mean 'samples'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], said: str) -> None:
    problem = problem_of(0.5, 10)
    with pytest.raises(InputError, match=said):
        make_searcher(
            "once_for_all",
            space=problem.space,
            constraint=problem.constraints,
            seed=0,
            evaluations=10,
            options=options,
        )


@pytest.mark.parametrize(("ratio", "fronts"), [(0.001, ()), (0.5, (0.001,))])
def test_what_cannot_be_kept_is_refused_with_the_least_cost(ratio: float, fronts: Sequence[float]) -> None:
    with pytest.raises(UnreachableError, match="cannot be kept, the cheapest policy of the space needs"):
        OnceForAll(problem_of(ratio, 10), OnceForAllOptions(fronts=tuple(fronts)))
