"""What searchers over points share: proposals within the budget, each made once, and all state as plain data."""

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from automl.searchers.base import Searcher, State
from automl.searchers.points.failures import Failures, around
from search_spaces.errors import UnreachableError
from search_spaces.objective import Constraint, Evaluation, Metric
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point, Prices, SearchSpace

FAILED_BY = 1e-3
"""How far a failed evaluation is below the worst result: enough to be avoided, too little to hide other differences."""
TRIES = 64
"""Proposals that were made before and are thrown away, before one is made again all the same."""


@dataclass(frozen=True)
class PointProblem:
    """What a searcher over points is asked.

    Attributes:
        space: whose points are proposed.
        constraints: budgets, all of which every proposal keeps.
        prices: what points cost.
        seed: of everything random.
        evaluations: how many proposals the search has evaluated; schedules stretch to it.
        objectives: costs that are minimised beside the accuracy, where the algorithm looks for a front; by default
            that of the first constraint.
    """

    space: SearchSpace
    constraints: tuple[Constraint, ...]
    prices: Prices
    seed: int
    evaluations: int
    objectives: tuple[Metric, ...] = ()

    @property
    def minimised(self) -> tuple[Metric, ...]:
        """The costs of a front."""
        return self.objectives or (self.constraints[0].metric,)

    def check(self) -> None:
        """UnreachableError where no policy of the space keeps the constraints."""
        if (reason := self.space.unreachable(self.constraints, self.prices)) is not None:
            raise UnreachableError(reason)

    def kept(self, points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of the points [P, D] keep all constraints, [P]."""
        costs = self.prices(np.asarray(points, dtype=np.int64))
        found = np.ones(len(np.asarray(points)), dtype=np.bool_)
        for each in self.constraints:
            found &= costs[each.metric] <= each.limit
        return found


@dataclass
class Result:
    """A point that was evaluated.

    Attributes:
        point: int64 [D].
        accuracy: larger is better; that of a failed evaluation is below every other.
        failed: whether there was none.
        divergence: from what the uncompressed network answers, nats; None where it is not known.
        share: of the validation images; only on all of them it is a result of the search.
    """

    point: Point
    accuracy: float
    failed: bool = False
    divergence: float | None = None
    share: float = 1.0


class PointSearcher(Searcher):
    """Proposes points and learns from their evaluations.

    A subclass says what comes next (`propose`) and, where it has more state than results and a generator, what that
    is. A proposal is led around what evaluations fail of (see `failures`), repaired, and made anew where it was made
    before.

    Args:
        problem: what is asked.

    Attributes:
        keeps_budget: whether every proposal keeps the budget. A searcher that comes from above does not keep it until
            it arrives, which is before its last proposal; it calls `repair` itself where it wants to.
        results: of all proposals told so far, in their order.
        generator: of everything random.

    Raises:
        UnreachableError: no policy of the space keeps the constraints, with the least that each can come to.
    """

    keeps_budget: ClassVar[bool] = True

    def __init__(self, problem: PointProblem) -> None:
        problem.check()
        self.problem = problem
        self.space = problem.space
        self.generator = np.random.default_rng(problem.seed)
        self.results: list[Result] = []
        self._pending: deque[Point] = deque()
        self._seen: set[int] = set()
        self._failures = Failures(self.space.counts)
        self._worst = 0.0

    @abstractmethod
    def propose(self) -> Point:
        """The next point; it need not keep the budget, nor be new."""

    def learn(self, result: Result) -> None:  # most learn from `results` alone
        """Called with every result, after it was added to `results`."""

    def ask(self) -> CompressionPolicy:
        """The next proposal, within the budget (but see `keeps_budget`) and, where there are any left, new."""
        point = self._proposed()
        for attempt in range(2 * TRIES):
            if self._new(point):
                break
            if attempt < TRIES:
                point = self._proposed()
            else:
                point = self._repaired(self.space.mutate(point, self.generator, 2.0 / len(point)))
        self._seen.add(key_of(point))
        self._pending.append(point)
        return self.space.decode(point)

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float | None:
        """Learn the result of the oldest proposal; its accuracy is the reward, of a failed one less than any so far.

        None of what saw a part of the images: that is no result.
        """
        accuracy = evaluation.accuracy
        if evaluation.error is not None:
            accuracy = self._worst - FAILED_BY
        point = self._pending.popleft()
        result = Result(point, accuracy, evaluation.error is not None, evaluation.divergence, evaluation.share)
        self._keep(result)
        self.learn(result)
        return accuracy if evaluation.share == 1.0 else None

    def state(self) -> State:
        """Results, pending proposals and the generator."""
        shape = (-1, len(self.space.decisions))
        arrays = {
            "points": np.array([each.point for each in self.results], dtype=np.int64).reshape(shape),
            "accuracies": np.array([each.accuracy for each in self.results], dtype=np.float64),
            "failed": np.array([each.failed for each in self.results], dtype=np.bool_),
            "divergences": np.array([each.divergence for each in self.results], dtype=np.float64),  # None is NaN
            "shares": np.array([each.share for each in self.results], dtype=np.float64),
            "pending": np.array(list(self._pending), dtype=np.int64).reshape(shape),
        }
        return arrays, {"generator": self.generator.bit_generator.state}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        points = arrays["points"]
        divergences = [None if np.isnan(each) else each for each in arrays["divergences"].tolist()]
        accuracies, failed, shares = (arrays[name].tolist() for name in ("accuracies", "failed", "shares"))
        told = zip(points, accuracies, failed, divergences, shares, strict=True)
        for point, *result in told:
            self._keep(Result(point.copy(), *result))
        self._pending = deque(point.copy() for point in arrays["pending"])
        self._seen = {key_of(point) for point in (*points, *arrays["pending"])}
        self.generator.bit_generator.state = values["generator"]

    def best(self, count: int = 1) -> Sequence[Result]:
        """The results of highest accuracy within the budget, of equal ones the earliest first."""
        results = [result for result in self.results if result.share == 1.0]
        if not self.keeps_budget and results:
            kept = self.problem.kept([result.point for result in results])
            results = [result for result, keeps in zip(results, kept.tolist(), strict=True) if keeps]
        return sorted(results, key=lambda result: -result.accuracy)[:count]

    @property
    def _causes(self) -> npt.NDArray[np.bool_]:
        """See `Failures.causes`."""
        return self._failures.causes

    def _keep(self, result: Result) -> None:
        self.results.append(result)
        self._failures.add(result.point, result.failed)
        self._worst = min(self._worst, result.accuracy)

    def _new(self, point: Point) -> bool:
        """Whether the point was not proposed before."""
        return key_of(point) not in self._seen

    def _proposed(self) -> Point:
        point = around(self.propose(), self._causes)
        return self._repaired(point) if self.keeps_budget else self.space.canonical(point)

    def _repaired(self, point: Point) -> Point:
        return self.space.repair(point, self.problem.constraints, self.problem.prices)


def key_of(point: Point) -> int:
    """Tells points [D] apart, in 64 bits."""
    return int.from_bytes(blake2b(point.tobytes(), digest_size=8).digest(), "little")
