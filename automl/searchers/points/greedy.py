"""NetAdapt (Yang et al., "NetAdapt: platform-aware neural network adaptation for mobile applications", ECCV 2018).

From the whole network down, round by round: each decision in turn is cut until a wanted amount of the budget is freed,
and the cut stays that costs least accuracy for what it frees. Two things differ, because NetAdapt has thousands of
evaluations: only the first round tries all decisions; later ones try again those that were cheapest when last tried
(lazy greedy: Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978); and where one cut
cannot free what a round has to, the next cheapest are made along with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from automl.searchers.base import State
from automl.searchers.points.base import PointProblem, PointSearcher, Result
from automl.searchers.points.moves import balance, exchange
from search_spaces.errors import InputError
from search_spaces.space import Point

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GreedyOptions:
    """What can be set; the defaults suit 100 to 400 evaluations.

    Attributes:
        first: most of the evaluations that the first round takes, a share.
        width: decisions that a later round tries.
        polish: share of the evaluations that is kept for exchanges within the budget, once that is reached.
    """

    first: float = 0.5
    width: int = 4
    polish: float = 0.3

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"greedy: width is at least 1, got {self.width}")
        if self.first <= 0.0 or self.polish <= 0.0 or self.first + self.polish > 1.0:
            raise InputError(
                f"greedy: first and polish are positive shares of one search, got {self.first} and {self.polish}"
            )


@dataclass
class _Round:
    """What is tried from one point.

    Attributes:
        start: where the round starts, [D].
        wanted: how much of the excess it is to free.
        cuts: what each decision that can free something comes to, in the order in which they are tried, [C, D].
        decisions: that are cut, [C].
        freed: of the excess, by each cut, [C].
        needed: how many of the first cuts have to be known before the round ends.
    """

    start: Point
    wanted: float
    cuts: IntArray
    decisions: IntArray
    freed: FloatArray
    needed: int


class Greedy(PointSearcher):
    """The cheapest cuts, round by round, until the budget is kept; then exchanges around the best.

    On its way it evaluates points above the budget, as NetAdapt does: `keeps_budget` is False, and those are not among
    its `best`. It is within the budget for the last share of its evaluations (`GreedyOptions.polish`) at the latest,
    with what the cuts have left taken off by repair. *Excess* is how far all constraints are violated, summed.

    A round's cuts are asked for together, and the next round begins when they are told. Asked ahead of that, it tries
    more decisions in the same order, and what the round starts from within the budget when there are none left.

    Args:
        problem: what is asked.
        options: of the algorithm.
    """

    keeps_budget = False

    def __init__(self, problem: PointProblem, options: GreedyOptions = GreedyOptions()) -> None:
        super().__init__(problem)
        self.options = options
        self._descent = problem.evaluations - max(1, round(options.polish * problem.evaluations))
        self._known: dict[bytes, float] = {}
        self._best: Result | None = None  # within the budget
        self._losses = np.full(len(self.space.counts), np.nan)  # of accuracy for each unit freed, when last tried
        self._arrived: Point | None = None
        self._round = self._begun(self.space.greatest)

    def propose(self) -> Point:
        """The next cut, or an exchange."""
        if self._arrived is None and self._made >= self._descent:
            self._arrive(self._round.start)
        if self._arrived is None:
            point: Point
            for point in (self._round.start, *self._round.cuts):
                if self._new(point):
                    return point
            return exchange(self.problem, self._repaired(self._round.start), self.generator)
        if self._new(self._arrived):
            return self._arrived
        around = self._arrived if self._best is None else self._best.point
        return exchange(self.problem, around, self.generator)

    def learn(self, result: Result) -> None:
        """End the round if this was the last result that it needs."""
        self._remember(result)
        while self._arrived is None and self._complete():
            reached = self._taken()
            if self._excess(reached[None])[0] > 0.0:
                self._round = self._begun(reached)
            else:
                self._arrive(reached)

    def state(self) -> State:
        """The round and the losses, beside what every searcher has."""
        arrays, values = super().state()
        round_ = self._round
        arrays |= {"losses": self._losses, "start": round_.start, "cuts": round_.cuts}
        arrays |= {"decisions": round_.decisions, "freed": round_.freed}
        arrived = None if self._arrived is None else self._arrived.tolist()
        return arrays, values | {"wanted": round_.wanted, "needed": round_.needed, "arrived": arrived}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        super().restore(arrays, values)
        self._known, self._best = {}, None
        for result in self.results:
            self._remember(result)
        start, cuts, decisions, freed, losses = (
            arrays[name].copy() for name in ("start", "cuts", "decisions", "freed", "losses")
        )
        self._losses = losses
        self._round = _Round(start, values["wanted"], cuts, decisions, freed, values["needed"])
        self._arrived = None if values["arrived"] is None else np.array(values["arrived"], dtype=np.int64)

    @property
    def _made(self) -> int:
        """Number of proposals so far."""
        return len(self.results) + len(self._pending)

    def _remember(self, result: Result) -> None:
        self._known[result.point.tobytes()] = result.accuracy
        better = self._best is None or result.accuracy > self._best.accuracy
        if better and self.problem.kept(result.point[None])[0]:
            self._best = result

    def _excess(self, points: IntArray) -> FloatArray:
        """How far points [P, D] are above the constraints, relative to each, summed, [P]."""
        costs = self.problem.prices(points)
        total = np.zeros(len(points))
        for each in self.problem.constraints:
            total += np.maximum(0.0, costs[each.metric] / each.limit - 1.0)
        return total

    def _begun(self, start: Point) -> _Round:
        """The round that starts from a point above the budget; of one within it there is nothing to cut."""
        excess = float(self._excess(start[None])[0])
        first = self._made == 0
        width = round(self.options.first * self.problem.evaluations) if first else self.options.width
        late = len(self._pending)  # as many proposals are made before a round's last result is known
        planned = min(width, len(start)) if first else 0
        rounds = max(1, (self._descent - self._made - planned) // (1 + self.options.width + late) + int(first))
        wanted = excess / rounds
        cuts, decisions, freed = self._cuts(start, excess, wanted)
        known = self._losses[decisions]
        usual = float(np.median(known[~np.isnan(known)])) if not np.isnan(known).all() else 0.0
        order = np.lexsort((-freed, np.where(np.isnan(known), usual, known)))
        return _Round(start, wanted, cuts[order], decisions[order], freed[order], min(width, len(order)))

    def _cuts(self, start: Point, excess: float, wanted: float) -> tuple[IntArray, IntArray, FloatArray]:
        """Each decision taken down until the wanted amount is freed, or as much as it can free; those that can."""
        steps = [(decision, choice) for decision in range(len(start)) for choice in range(int(start[decision]))[::-1]]
        if not steps:
            return np.empty((0, len(start)), dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0)
        decisions, choices = np.array(steps, dtype=np.int64).T
        points = np.repeat(start[None], len(steps), axis=0)
        points[np.arange(len(steps)), decisions] = choices
        freed = excess - self._excess(points)
        chosen = []
        for decision in np.unique(decisions).tolist():
            own = np.flatnonzero(decisions == decision)
            enough = own[freed[own] >= wanted]
            place = int(enough[0]) if len(enough) else int(own[np.argmax(freed[own])])
            if freed[place] > 0.0:
                chosen.append(place)
        return points[chosen], decisions[chosen], freed[chosen]

    def _complete(self) -> bool:
        needed = (self._round.start, *self._round.cuts[: self._round.needed])
        return all(point.tobytes() in self._known for point in needed)

    def _taken(self) -> Point:
        """Where the round leads: its cheapest cuts together, as many as free what is wanted."""
        round_ = self._round
        if not len(round_.cuts):
            return self._within(round_.start)
        accuracies = np.array([self._known.get(cut.tobytes(), np.nan) for cut in round_.cuts])
        losses = np.maximum(0.0, self._known[round_.start.tobytes()] - accuracies) / round_.freed
        tried = ~np.isnan(losses)
        self._losses[round_.decisions[tried]] = losses[tried]
        supposed = self._losses[round_.decisions]  # of those that were not tried now, what they were
        excess = float(self._excess(round_.start[None])[0])
        reached = round_.start.copy()
        for place in np.lexsort((-round_.freed, supposed, ~tried)).tolist():
            if not np.isnan(supposed[place]):
                decision = round_.decisions[place]
                reached[decision] = round_.cuts[place, decision]
                if excess - float(self._excess(reached[None])[0]) >= round_.wanted * (1.0 - 1e-9):
                    break
        return reached

    def _arrive(self, point: Point) -> None:
        """The descent is over, at this point or, where that is still above the budget, below it."""
        self._arrived = self._within(point)

    def _within(self, point: Point) -> Point:
        """A point brought within the budget, and what is left of that spent."""
        repaired = self.space.repair(point, self.problem.constraints, self.problem.prices)
        return balance(self.problem, repaired, self.generator)
