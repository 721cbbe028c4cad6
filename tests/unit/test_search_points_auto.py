"""The default searcher over points of channels and bits."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from automl.searchers.points.auto import Auto, AutoOptions
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.random import RandomPoints
from automl.testing.points import AdditiveAccuracy, PointSearcherConformance, small_space
from automl.testing.problems import conv_chain
from backends.point_prices import PointPrices
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point, Prices, SearchSpace


class TestAuto(PointSearcherConformance):
    divergences = True
    evaluations = 8

    def make(self, problem: PointProblem) -> PointSearcher:
        return Auto(problem)


def searched(
    searcher: PointSearcher, accuracy: Callable[[Point], float | None], evaluations: float, lag: int = 4
) -> list[tuple[Point, float]]:
    """The proposals of a whole search, each with its share of the images; without accuracy they fail."""
    made: list[tuple[Point, float]] = []
    pending: deque[tuple[CompressionPolicy, float]] = deque()
    spent = 0.0
    while True:
        if spent < evaluations - 1e-6 and not searcher.finished and len(pending) <= lag:
            pending.append((searcher.ask(), searcher.share))
            made.append((searcher.space.encode(pending[-1][0]), searcher.share))
            spent += searcher.share
            continue
        if not pending:
            return made
        policy, share = pending.popleft()
        found = accuracy(searcher.space.encode(policy))
        error = "FloatingPointError: NaN" if found is None else None
        searcher.tell(policy, Evaluation(found or 0.0, {}, 0.0, 0.0, error, share=share))


def problem(ratio: float = 0.15, evaluations: int = 30) -> PointProblem:
    space, prices = small_space()
    return PointProblem(space, (Constraint("weight_bytes", ratio * space.graph.weight_bytes),), prices, 0, evaluations)


def test_without_divergences_it_goes_by_the_accuracy() -> None:
    """Better with 12 evaluations than random points with 200."""
    accuracy = AdditiveAccuracy(small_space()[0])
    made = searched(Auto(problem(evaluations=12)), accuracy, 12)
    best = max(accuracy(point) for point, share in made if share == 1.0)
    others = searched(RandomPoints(problem(evaluations=200)), accuracy, 200)
    assert best > max(accuracy(point) for point, _ in others)
    assert sum(share for _, share in made) == pytest.approx(12, abs=0.25)


def test_asked_far_ahead_its_proposals_differ() -> None:
    made = searched(Auto(problem(evaluations=10)), AdditiveAccuracy(small_space()[0]), 10, lag=30)
    assert len({(point.tobytes(), share) for point, share in made}) == len(made)


@pytest.mark.parametrize("counts", [(3,), (16, 24)])
def test_small_spaces_are_exhausted(counts: tuple[int, ...]) -> None:
    """Where all that keeps the budget was evaluated, it is finished."""
    space = SearchSpace.of_channels(ChannelSpace.build(conv_chain(counts, size=8), round_to=8 if counts[0] > 8 else 2))
    prices = PointPrices(space)
    limit = Constraint("macs", 0.8 * space.graph.macs)
    points = np.array(list(np.ndindex(*space.counts.tolist())))
    small = PointProblem(space, (limit,), prices, 0, 100)
    searcher = Auto(small)
    made = searched(searcher, lambda point: 0.5 + 0.01 * float(point.sum()), 100, lag=0)
    assert searcher.finished
    assert {point.tobytes() for point, share in made if share == 1.0} == {
        each.tobytes() for each in points[small.kept(points)]
    }


def test_where_every_evaluation_fails_it_goes_on() -> None:
    made = searched(Auto(problem(evaluations=6)), lambda point: None, 6)
    assert sum(share for _, share in made) == pytest.approx(6, abs=1.0)


def test_it_is_finished_when_too_little_is_expected() -> None:
    accuracy = AdditiveAccuracy(small_space()[0])
    made = searched(Auto(problem(), AutoOptions(stop_below=0.5)), accuracy, 30)
    assert sum(share for _, share in made) < 15


def test_prices_that_are_no_sums_are_kept() -> None:
    """A latency by a table: what is proposed after the sensitivities keeps it as it truly is."""
    space, counted = small_space()

    def prices(points: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[np.float64]]:
        return {"latency_s": 1e-9 * counted(points)["macs"] ** 0.9 + 1e-10 * counted(points)["weight_bytes"]}

    given: Prices = prices
    limit = 0.6 * float(prices(space.greatest[None])["latency_s"][0])
    timed = PointProblem(space, (Constraint("latency_s", limit),), given, 0, 8)
    accuracy = AdditiveAccuracy(space)
    made = searched(Auto(timed), accuracy, 8)
    later = [point for point, share in made if share >= 0.25]
    assert timed.kept(later).all()
    assert searched(Auto(timed), accuracy, 8)[-1][0].tolist() == made[-1][0].tolist()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"fidelity": 0.0}, "fidelity"),
        ({"sensitivities": 1.5}, "sensitivities"),
        ({"pool": 0}, "pool"),
        ({"stop_below": -0.1}, "stop_below"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=f"auto: {rule}"):
        AutoOptions(**options)
