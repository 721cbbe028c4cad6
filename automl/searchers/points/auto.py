"""The default searcher: sensitivities, the exact solution of the additive model, then what a surrogate thinks best.

Sensitivities are measured on a share of the images, whatever the budget. Their additive model is solved; from then on
two Gaussian processes with that model as their prior learn from every result, and the point that they expect the
greatest improvement from is looked at: on a share of the images first, and on all of them if it is still the most
promising then. Candidates come from evolution: mutations and crossovers along the budget of what is best so far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from automl.searchers.base import State
from automl.searchers.points.base import TRIES, PointProblem, PointSearcher, Result, key_of
from automl.searchers.points.failures import around
from automl.searchers.points.moves import balance_all
from automl.searchers.points.program import Program
from automl.searchers.points.sensitivity import additive, avoiding, losses_of, measured_losses, probes
from automl.searchers.points.surrogate import (
    OF_ACCURACY,
    OF_DIVERGENCE,
    Amplitudes,
    Observations,
    Surrogate,
    improvement,
)
from search_spaces.errors import InputError
from search_spaces.objective import SHARE_ROUNDING
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ROWS = 256
"""Results that the surrogate learns from: the best ones; its cost grows with their cube."""
PARENTS = 8
ANEW = 8
"""Results between two choices of the surrogate's amplitudes."""
LEAST_SHARE = 1 / 16
"""Of the images on which a sensitivity is measured, so that there are evaluations enough for all of them."""
TABLES = 150_000
"""Entries of all layers' tables of costs up to which they are computed."""
LARGEST = 20_000
"""Those after separation up to which the additive model is solved exactly. Both take some seconds, once a search."""
GENERATIONS = 30
"""Of the evolution that solves larger ones."""
PATIENCE = 5
"""Proposals in a row of which too little is expected, before the search is finished."""


@dataclass(frozen=True)
class AutoOptions:
    """What can be set.

    Attributes:
        fidelity: share of the images on which sensitivities are measured and candidates first looked at.
        sensitivities: most of the evaluations that may go into sensitivities, a share.
        pool: candidates a proposal.
        stop_below: the search is finished when the best candidate is expected to gain less accuracy than this; 0
            never stops.
    """

    fidelity: float = 0.25
    sensitivities: float = 0.25
    pool: int = 64
    stop_below: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fidelity", "sensitivities"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InputError(f"auto: {name} is a share in (0, 1], got {getattr(self, name)}")
        if self.pool < 1:
            raise InputError(f"auto: pool is at least 1, got {self.pool}")
        if not self.stop_below >= 0.0:
            raise InputError(f"auto: stop_below is an accuracy of at least 0, got {self.stop_below}")


class Auto(PointSearcher):
    """Sensitivities, exact solution, surrogate.

    Args:
        problem: what is asked.
        options: of the algorithm.
    """

    keeps_budget = False

    def __init__(self, problem: PointProblem, options: AutoOptions = AutoOptions()) -> None:
        super().__init__(problem)
        self.options = options
        whole = max(0.0, min(options.sensitivities * problem.evaluations, problem.evaluations - 1.0))
        self._probes = probes(self.space, int(whole / LEAST_SHARE))
        self._share = min(options.fidelity, whole / max(1, len(self._probes)))
        self._centre: Point | None = None  # of the program
        self._within: list[bool] = []  # which results keep the budget and did not fail
        self._losses: list[FloatArray] = []
        self._solution: Point | None = None
        self._amplitudes: Sequence[Amplitudes] = (OF_DIVERGENCE, OF_ACCURACY)
        self._chosen = 0  # results when the amplitudes were chosen
        self._asked = 0.0  # in whole evaluations
        self._quiet = 0  # proposals in a row of which too little was expected

    def ask(self) -> CompressionPolicy:
        """The next proposal."""
        point: Point = self.propose()
        self._asked += self.share
        self._note_the_end()
        self._seen.add(key_of(point))
        self._pending.append(point)
        return self.space.decode(point)

    def propose(self) -> Point:
        """A sensitivity, or the most promising point; `share` says on how many images."""
        made = len(self.results) + len(self._pending)
        if made < len(self._probes):
            self.share = self._share
            probe: Point = self._probes[made]
            return probe
        left = self.problem.evaluations - self._asked
        self.share = self.options.fidelity if left >= 1.0 + self.options.fidelity - SHARE_ROUNDING else 1.0
        if self._solution is None:
            self._losses = avoiding(measured_losses(self.space, self.results[: len(self._probes)]), self._causes)
            if len(self.results) >= len(self._probes):
                self._solution = self._solved()
                return self._solution
        if not any(self._within[len(self._probes) :]):  # nothing to learn from beside sensitivities
            start = self.space.greatest if self._solution is None else self._solution
            return self._unseen(self._children(start[None]))
        return self._promising()

    def learn(self, result: Result) -> None:
        """Note whether it keeps the budget and did not fail."""
        self._within.append(not result.failed and bool(self.problem.kept(result.point[None])[0]))

    @cached_property
    def _program(self) -> Program:
        """Made when it is needed, because it may price many points."""
        return Program(self.problem, self._centre, TABLES)

    def _note_the_end(self) -> None:
        """Nothing more is worth it, or what is left of the evaluations is less than a whole one."""
        left = self.problem.evaluations - self._asked
        self.finished = self._quiet >= PATIENCE or left < 1.0 - SHARE_ROUNDING

    def _solved(self) -> Point:
        """The exact solution, or where that would take too long what evolution makes of the additive model."""
        small = self._program.solvable and self._program.size <= LARGEST
        if small and (found := self._program.best(self._losses)) is not None:
            self._centre = self._program.centre
            return found
        parents = self._children(self.space.greatest[None])
        for _ in range(GENERATIONS):
            pool = np.concatenate([parents, self._children(parents)])
            parents = pool[np.argsort(additive(self._losses, pool).sum(axis=1), kind="stable")[:PARENTS]]
        return self._repaired(parents[0])

    def _observations(self) -> tuple[Observations, IntArray]:
        """What the surrogate learns from, and all points within the budget of which something is known, [K, D]."""
        results = self.results
        points = np.stack([each.point for each in results])
        accuracies = np.array([each.accuracy for each in results])
        partial = np.array([each.share < 1.0 for each in results])
        failed = np.array([each.failed for each in results])
        lost = losses_of(results)
        fine = lost[~failed]
        least = max(1e-9, 1e-3 * float(np.median(fine)))
        logs = np.log(np.maximum(np.where(failed, np.e * fine.max(), lost), least))
        alone = np.arange(len(results)) < len(self._probes)
        order = np.argsort(logs, kind="stable")
        best = np.sort(np.concatenate([order[~alone[order]][:ROWS], order[alone[order]][: ROWS // 4]]))
        within = np.array(self._within)
        seen = Observations(points[best], partial[best], alone[best], logs[best], accuracies[best])
        return seen, np.unique(points[within], axis=0)

    def _promising(self) -> Point:
        """The point that the surrogate expects most improvement from; it is looked at on all images the second time."""
        seen, known = self._observations()
        anew = not self._chosen or len(self.results) >= self._chosen + ANEW
        surrogate = Surrogate(self._losses, seen) if anew else Surrogate(self._losses, seen, self._amplitudes)
        if anew:
            self._chosen, self._amplitudes = len(self.results), surrogate.amplitudes
        told = zip(self.results, self._within, strict=True)
        whole = {each.point.tobytes(): each.accuracy for each, kept in told if kept and each.share == 1.0}
        best = max(whole.values(), default=float(seen.accuracies.min()))
        done = {*whole, *(each.tobytes() for each in self._pending)}
        expected = surrogate.predicted(known)
        children = self._children(known[np.argsort(-expected[0], kind="stable")[:PARENTS]])
        gains = [improvement(*expected, best), improvement(*surrogate.predicted(children), best)]
        grandchildren = self._children(children[np.argsort(-gains[1], kind="stable")[:PARENTS]])
        gains.append(improvement(*surrogate.predicted(grandchildren), best))
        pool, hopes = np.concatenate([known, children, grandchildren]), np.concatenate(gains)
        free = ~self._causes[np.arange(pool.shape[1]), pool].any(axis=1)
        free &= np.array([each.tobytes() not in done for each in pool], dtype=np.bool_)
        pool, hopes = pool[free], hopes[free]
        for number in np.argsort(-hopes, kind="stable").tolist():
            point = self._repaired(pool[number])  # above the budget only where prices were sketched
            if point.tobytes() not in done:
                self._quiet = self._quiet + 1 if hopes[number] < self.options.stop_below else 0
                self.share = self.share if self._new(point) else 1.0
                return point
        return self._unseen(children)

    def _unseen(self, pool: IntArray) -> Point:
        """One of the points that was not proposed yet, or another; where there is none, the search is finished."""
        for attempt in range(len(pool) + TRIES):
            point: Point = pool[attempt % len(pool)]
            if attempt >= len(pool):
                point = self.space.mutate(point, self.generator, 2.0 / len(point))
            point = self._repaired(around(point, self._causes))
            if self._new(point):
                return point
        self._quiet = PATIENCE
        self.share = 1.0
        return point

    def _children(self, parents: IntArray) -> IntArray:
        """Children of the parents, within the budget, [pool, D]; no order is meant."""
        generator, counts = self.generator, self.space.counts
        number = self.options.pool
        mothers, fathers = parents[generator.integers(0, len(parents), (2, number))]
        crossed = generator.random(number) < 0.3
        children = np.where(crossed[:, None] & (generator.random(mothers.shape) < 0.5), fathers, mothers)
        changes = 1 + generator.geometric(0.5, number) * (generator.random(number) < 0.8)
        rate = np.minimum(changes / len(counts), 1.0)
        moved = (generator.random(children.shape) < rate[:, None]) & (counts > 1)
        step = np.where(generator.random(children.shape) < 0.5, -1, 1)
        far = generator.random(children.shape) < 0.1
        stepped = np.where(far, generator.integers(0, counts, children.shape), np.clip(children + step, 0, counts - 1))
        children = np.where(moved, stepped, children)
        return balance_all(self._program.sketch, children, generator, moved, self._losses)

    def state(self) -> State:
        """The additive model, its solution and the surrogate's amplitudes, beside what every searcher has."""
        arrays, values = super().state()
        arrays |= {"losses": np.concatenate(self._losses) if self._losses else np.empty(0)}
        return arrays, values | {
            "solution": None if self._solution is None else self._solution.tolist(),
            "amplitudes": [[list(each) for each in amplitudes] for amplitudes in self._amplitudes],
            "chosen": self._chosen,
            "asked": self._asked,
            "quiet": self._quiet,
            "centre": None if self._centre is None else self._centre.tolist(),
        }

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        points = np.array([each.point for each in self.results], dtype=np.int64)
        self._within = (self.problem.kept(points) & ~arrays["failed"]).tolist() if len(points) else []
        losses = arrays["losses"]
        self._losses = np.split(losses, np.cumsum(self.space.counts)[:-1]) if len(losses) else []
        self._solution = None if values["solution"] is None else np.array(values["solution"], dtype=np.int64)
        self._amplitudes, self._chosen = values["amplitudes"], values["chosen"]
        self._asked, self._quiet = values["asked"], values["quiet"]
        self._centre = None if values["centre"] is None else np.array(values["centre"], dtype=np.int64)
        self._note_the_end()
