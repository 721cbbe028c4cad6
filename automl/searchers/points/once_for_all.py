"""OFA's search over a trained supernet: a predictor of accuracies, and evolution on what it predicts.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020: a predictor learns
from random sub-networks, once for all devices; evolution then costs seconds a device. Here it goes on learning from
what the search evaluates, which are the points that evolution thought best: where it was wrong it is so once.

Where the space has bits beside a supernet's decisions and the sub-networks known are those of the supernet as it is,
what they say of architectures is transferred (APQ: Wang et al., "APQ: Joint Search for Network Architecture, Pruning
and Quantization Policy", CVPR 2020), and a few evaluations teach the predictor what bits cost on top.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from automl.predictors import PREDICTORS, make_predictor
from automl.predictors.encoding import OPEN, encoded
from automl.predictors.samples import Sample
from automl.predictors.treated import Treated
from automl.searchers.base import State
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.failures import around
from automl.searchers.points.generations import FloatArray, Generations, IntArray, evolve
from automl.searchers.points.moves import balance
from automl.searchers.points.program import Program
from automl.searchers.points.random import random_point
from search_spaces.errors import InputError, did_you_mean
from search_spaces.space import ELASTIC, Point

SAMPLED = 0.5
"""Most of the evaluations that may go into samples, a share."""

APART = 5
"""Decisions that points differ in which are proposed together, as far as enough do: near ones teach the same."""


@dataclass(frozen=True)
class OnceForAllOptions(Generations):
    """What can be set beside how it evolves.

    Attributes:
        predictor: see `automl.predictors.PREDICTORS`.
        samples: random points that the predictor learns from first; those known from elsewhere count.
        transfer: whether it learns from known sub-networks that say nothing of the bits, where the space decides on
            them.
        adapt: samples that are enough then.
        refine: points that are proposed between two times that the predictor learns.
        fronts: shares of the whole network's cost in the first budget's metric; for each of them networks are proposed
            as well, one a time, so that they and those within the budget make a front.
    """

    predictor: str = "mlp"
    samples: int = 100
    transfer: bool = True
    adapt: int = 40
    refine: int = 16
    fronts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor not in PREDICTORS:
            raise InputError(
                f"once_for_all: predictor is one of {', '.join(PREDICTORS)}, got {self.predictor!r}"
                f"{did_you_mean(self.predictor, PREDICTORS)}"
            )
        for name, least in (("samples", 0), ("adapt", 0), ("refine", 1)):
            if getattr(self, name) < least:
                raise InputError(f"once_for_all: {name} is at least {least}, got {getattr(self, name)}")
        if not all(0.0 < share <= 1.0 for share in self.fronts):
            raise InputError(f"once_for_all: fronts are shares in (0, 1], got {list(self.fronts)}")


class OnceForAll(PointSearcher):
    """Random points along the budgets, then those that evolution finds best by a predictor.

    Nothing that was learned is state: each time the predictor learns anew, from all that is known.

    Args:
        problem: what is asked.
        options: of the algorithm.
        known: sub-networks whose accuracies are known from elsewhere; those of other spaces are left out.

    Raises:
        UnreachableError: no policy of the space keeps the constraints, or one of the fronts.
    """

    keeps_budget = False

    def __init__(
        self,
        problem: PointProblem,
        options: OnceForAllOptions = OnceForAllOptions(),
        known: Sequence[Sample] = (),
    ) -> None:
        super().__init__(problem)
        self.options = options
        self._problems = [problem, *self._of_fronts()]
        points, accuracies = encoded(self.space, known)
        whole = (points != OPEN).all(axis=1)
        used = np.full(len(points), True) if options.transfer else whole
        self._known = points[used], accuracies[used]
        wanted = options.samples if whole[used].all() else options.adapt
        self._samples = min(wanted - int(whole.sum()), int(SAMPLED * problem.evaluations))
        elastic = np.array([each.dimension in ELASTIC for each in self.space.decisions], dtype=np.bool_)
        choice = self.space.counts > 1
        self._treats = choice & ~elastic
        self._joint = bool(self._treats.any() and (choice & elastic).any())
        predictor = make_predictor(options.predictor, self.space)
        self._predictor = Treated(self.space, predictor) if self._treats.any() else predictor
        self._queue: deque[Point] = deque()

    def propose(self) -> Point:
        """A random point at first, of each budget in turn; then what evolution found."""
        made = len(self.results) + len(self._pending)
        if made < self._samples or self.finished:
            return self._random(self._problems[made % len(self._problems)])
        if not self._queue:
            self._queue.extend(self._evolved())
        return self._queue.popleft()

    def state(self) -> State:
        """What is to be proposed before the predictor learns again, beside what every searcher has."""
        arrays, values = super().state()
        shape = (-1, len(self.space.decisions))
        arrays |= {"queue": np.array(list(self._queue), dtype=np.int64).reshape(shape)}
        return arrays, values | {"finished": self.finished}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        self._queue = deque(point.copy() for point in arrays["queue"])
        self.finished = values["finished"]

    def _proposed(self) -> Point:
        """Within the budget where it is the last, whatever fronts are asked for."""
        point = super()._proposed()
        last = len(self.results) + len(self._pending) + 1 >= self.problem.evaluations
        return self._repaired(point) if last else point

    def _of_fronts(self) -> list[PointProblem]:
        first, *others = self.problem.constraints
        whole = float(self.problem.prices(self.space.greatest[None])[first.metric][0])
        limits = [replace(first, limit=share * whole) for share in self.options.fronts]
        problems = [replace(self.problem, constraints=(limit, *others)) for limit in limits]
        for each in problems:
            each.check()
        return problems

    def _random(self, problem: PointProblem) -> Point:
        """One that spends the budget.

        Bits are drawn beside the architecture, which makes room for them. A few layers of few bits break a network,
        and one that is broken says little: often few layers have them, sometimes all.
        """
        point = random_point(self.space, self.generator)
        if not self._joint:
            return balance(problem, point, self.generator)
        share = self.generator.random() ** 2
        whole = self._treats & (self.generator.random(len(point)) >= share)
        point[whole] = self.space.greatest[whole]
        return balance(problem, point, self.generator, self._treats)

    def _evolved(self) -> list[Point]:
        """The best new points for the budget, and one for each of the fronts; none that is new ends the search."""
        points, accuracies = self._found()
        if not len(points):  # proposals are asked for far ahead of results
            return [self._random(self.problem)]
        self._predictor.fit(points, accuracies, int(self.generator.integers(2**31)))
        start = points[(points != OPEN).all(axis=1)]
        best: list[Point] = []
        for problem in self._problems:
            wanted = len(best) + (self.options.refine if problem is self.problem else 1)
            ranked = evolve(
                Program(problem, self._centre(problem), 0).sketch,
                self._predictor.predict,
                start,
                self.options,
                self.generator,
            )
            for apart in (APART, 1):
                for found in ranked:
                    if len(best) == wanted:
                        break
                    if self._new(found) and all((found != other).sum() >= apart for other in best):
                        point = self.space.repair(around(found, self._causes), problem.constraints, problem.prices)
                        if self._new(point) and all((point != other).any() for other in best):
                            best.append(point)
        self.finished = not best
        return best or [self._random(self.problem)]

    def _found(self) -> tuple[IntArray, FloatArray]:
        """All points [P, D] whose accuracies [P] are known."""
        results = np.array([each.point for each in self.results], dtype=np.int64).reshape(-1, len(self.space.counts))
        accuracies = np.array([each.accuracy for each in self.results], dtype=np.float64)
        return np.concatenate([self._known[0], results]), np.concatenate([self._known[1], accuracies])

    def _centre(self, problem: PointProblem) -> Point | None:
        """The best point within a budget that was evaluated: around it prices are to be close."""
        if not self.results:
            return None
        kept = problem.kept([each.point for each in self.results])
        within = [each for each, keeps in zip(self.results, kept.tolist(), strict=True) if keeps]
        return max(within, key=lambda each: each.accuracy).point if within else None
