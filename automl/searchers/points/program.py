"""The points of least additive loss within the budgets, whatever prices them.

Where costs are sums over layers an integer program finds them. A latency by a table of measured operators is no such
sum (what is fused, and how, depends on neighbours), and asking for it may mean measuring: there the program is solved
with secants, one decision at a time, around a point within the budget, and its limits are moved by what the true price
of the solution differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, prod

import numpy as np
import numpy.typing as npt

from automl.searchers.exact import solve
from automl.searchers.points.base import PointProblem
from automl.searchers.separation import separated
from backends.point_prices import Factor, PointPrices
from search_spaces.errors import InputError
from search_spaces.space import Point

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ROUNDS = 8
"""Corrections of the limits around one point."""
CENTRES = 2
"""Points that secants are drawn around."""
CLOSE = 0.01
"""A solution that leaves no more of any budget than this share is close enough to it."""


class Program:
    """What a searcher asks of its problem when it has losses for every choice.

    Args:
        problem: whose points are asked for.
        centre: that secants are drawn around at first, where there are any; a uniform point by default.
        largest: entries of all layers' tables of costs up to which they are computed; any number by default.

    Attributes:
        solvable: whether they are; where they are not, there is no `best`.
        centre: that they are drawn around now; None where costs are sums.
        sketch: the same problem with prices that cost nothing to ask for; the problem itself where all do.
    """

    def __init__(self, problem: PointProblem, centre: Point | None = None, largest: float = inf) -> None:
        self.problem = problem
        self.sketch = problem
        self.centre: Point | None = None
        self._metrics = [each.metric for each in problem.constraints]
        self._limits = np.array([each.limit for each in problem.constraints])
        self._factors: list[Factor] = []
        entries = self._entries()
        self.exact = entries is not None
        self.solvable = entries is None or entries <= largest
        if not self.exact:
            self._draw(_uniform(problem) if centre is None else centre)
        elif self.solvable and isinstance(problem.prices, PointPrices):
            self._factors = separated(problem.prices.factors(self._metrics))

    @property
    def size(self) -> int:
        """Entries of the tables of costs, with which the program's time grows."""
        return sum(prod(factor.costs.shape) for factor in self._factors)

    def best(self, losses: Sequence[FloatArray], forbidden: Sequence[Point] = ()) -> Point | None:
        """The point of least summed loss that keeps the budgets and is not forbidden; None where there is none.

        Where costs are no sums it is the best of those that were tried, and keeps the budgets all the same.

        Args:
            losses: of every decision, one for each of its choices.
            forbidden: points that are not wanted, each [D].

        Raises:
            TrimtabError: none was found in time.
        """
        if self.exact:
            return solve(losses, self._factors, self._limits, forbidden=forbidden)
        found: dict[bytes, Point] = {}
        for _ in range(CENTRES):
            limits = self._limits
            for _ in range(ROUNDS):
                point = solve(losses, self._factors, limits, forbidden=forbidden)
                if point is None:
                    break
                true, supposed = self._true(point), self._supposed(point)
                if (true <= self._limits).all():
                    found[point.tobytes()] = point
                limits = np.minimum(self._limits - (true - supposed), limits + np.abs(self._limits - true))
                if (true <= self._limits).all() and (true >= (1.0 - CLOSE) * self._limits).any():
                    break
            if found:
                self._draw(min(found.values(), key=lambda each: _lost(losses, each)))
        if not found:
            point = self.problem.space.repair(_uniform(self.problem), self.problem.constraints, self.problem.prices)
            return None if any((point == other).all() for other in forbidden) else point
        return min(found.values(), key=lambda each: _lost(losses, each))

    def _entries(self) -> int | None:
        """Of all tables; None where costs are no sums over layers."""
        prices = self.problem.prices
        if not isinstance(prices, PointPrices):
            return None
        try:
            return prices.entries(self._metrics)
        except InputError:
            return None

    def _secants(self, centre: Point) -> list[Factor]:
        """Costs around a point, one decision at a time: at its least, middle and greatest choice, straight between."""
        counts = self.problem.space.counts
        tried = [
            (number, choice)
            for number, count in enumerate(counts.tolist())
            for choice in sorted({0, (count - 1) // 2, count - 1} - {int(centre[number])})
        ]
        points = np.repeat(centre[None], len(tried) + 1, axis=0)
        for row, (number, choice) in enumerate(tried):
            points[row, number] = choice
        costs = self._priced(points)
        middle = costs[:, -1]
        factors = [Factor((), middle)]
        for number, count in enumerate(counts.tolist()):
            own = [(choice, costs[:, row]) for row, (place, choice) in enumerate(tried) if place == number]
            own = sorted([*own, (int(centre[number]), middle)], key=lambda each: each[0])
            choices = [choice for choice, _ in own]
            changes = np.stack([each - middle for _, each in own], axis=1)
            table = np.stack([np.interp(np.arange(count), choices, change) for change in changes])
            factors.append(Factor((number,), table))
        return factors

    def _draw(self, centre: Point) -> None:
        """Have secants around another point."""
        factors = self._secants(centre)

        def prices(points: IntArray) -> Mapping[str, FloatArray]:
            return dict(zip(self._metrics, _summed(factors, points), strict=True))

        self.centre, self._factors = centre, factors
        self.sketch = replace(self.problem, prices=prices)

    def _supposed(self, point: Point) -> FloatArray:
        return _summed(self._factors, point[None])[:, 0]

    def _true(self, point: Point) -> FloatArray:
        return self._priced(point[None])[:, 0]

    def _priced(self, points: IntArray) -> FloatArray:
        costs = self.problem.prices(points)
        return np.stack([costs[metric] for metric in self._metrics])


def _summed(factors: Sequence[Factor], points: IntArray) -> FloatArray:
    """Costs of points [P, D], [budgets, P]."""
    total = np.zeros((len(factors[0].costs), len(points)))
    for factor in factors:
        if factor.decisions:
            places: tuple[IntArray | slice, ...] = (slice(None), *(points[:, number] for number in factor.decisions))
            total += factor.costs[places]
        else:
            total += factor.costs[:, None]
    return total


def _lost(losses: Sequence[FloatArray], point: Point) -> float:
    return sum(float(loss[choice]) for loss, choice in zip(losses, point.tolist(), strict=True))


def _uniform(problem: PointProblem) -> Point:
    """The highest level of all decisions that keeps the budgets, to one part in 64; the least where none does."""
    top = problem.space.counts - 1
    low, high = 0.0, 1.0
    for _ in range(6):
        level = (low + high) / 2
        if problem.kept(np.floor(level * top + 0.5).astype(np.int64)[None])[0]:
            low = level
        else:
            high = level
    found: Point = np.floor(low * top + 0.5).astype(np.int64)
    return found
