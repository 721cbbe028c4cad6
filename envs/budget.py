"""How a proposed keep ratio is bounded so that the whole network can still meet its budget (AMC, Algorithm 1)."""

from abc import ABC, abstractmethod
from math import ceil, floor, inf, sqrt

import numpy as np
import numpy.typing as npt

from envs.pricing import Cost, CountedCost, FloatArray
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError, UnreachableError
from search_spaces.objective import Constraint


class Bounding(ABC):
    """Turns the ratio proposed for a channel group into the number of units it keeps.

    Attributes:
        free: the groups that there is something to decide about.
        unvisited: units that each group is assumed to keep until its turn comes.
        lowest: the least keep ratio of each group.
    """

    free: tuple[int, ...]
    unvisited: FloatArray
    lowest: FloatArray

    @abstractmethod
    def units(self, kept: FloatArray, group: int, ratio: float) -> int:
        """Units that the group keeps.

        Args:
            kept: units of the groups visited so far; of the others, what `unvisited` assumes.
            group: the group whose turn it is.
            ratio: proposed keep ratio, in [0, 1].
        """


class LargestFeasible(Bounding):
    """Trimtab's own bounding: counts after rounding, so no sequence of proposals overshoots the budget.

    A group keeps the allowed number of units nearest to the proposal, at most the largest with which the network
    stays within the budget when every later group keeps its least.

    Args:
        space: the numbers of units that each group may keep.
        constraint: the budget; None where there is no hard limit.
        cost: of the budget's metric.

    Raises:
        InputError: a budget that no policy of the space can keep.
    """

    def __init__(self, space: ChannelSpace, constraint: Constraint | None, cost: Cost) -> None:
        widths = [group.width for group in space.graph.groups]
        self.free = tuple(group for group, width in enumerate(widths) if space.least[group] < width)
        self.unvisited = np.array(space.least, dtype=np.float64)
        self.lowest = self.unvisited / widths
        if constraint:
            check_reachable(space, constraint, cost)
        self._choices = [np.array(space.choices(group), dtype=np.float64) for group in range(len(space.least))]
        self._limit = constraint.limit if constraint else inf
        self._cost = cost

    def units(self, kept: FloatArray, group: int, ratio: float) -> int:
        """The nearest allowed number of units that keeps the budget within reach."""
        choices = self._choices[group]
        nearest = int(np.argmin(np.abs(choices - ratio * choices[-1])))
        if self._limit < inf:
            # The least is affordable: the groups visited so far were bounded with it.
            nearest = max(0, self._cost.affordable(kept, group, choices[: nearest + 1], self._limit) - 1)
        return int(choices[nearest])


class PublishedBounding(Bounding):
    """AMC's bounding as published (He et al. 2018, Algorithm 1), extended from layers to channel groups.

    Costs are real-valued: groups still to come keep exactly the lower bound, visited ones what they kept after
    rounding. The largest ratio that meets the budget clips the proposal first, then the lower bound does. Rounding
    comes last and goes up, so the result may overshoot the budget.

    Args:
        space: its `lower_bound` and `step` are the published code's `lbound` and `channel_round`; where it lists
            shares, those are rounded to.
        constraint: the budget in MACs; None where there is no hard limit.
    """

    def __init__(self, space: ChannelSpace, constraint: Constraint | None) -> None:
        if constraint and constraint.metric != "macs":
            raise InputError(
                f"the published bounding counts MACs, got a budget in {constraint.metric!r}; "
                "use a budget in macs or leave faithful off"
            )
        self._widths = [group.width for group in space.graph.groups]
        self._space = space
        self.free = tuple(group for group in range(len(self._widths)) if group not in space.protected)
        self.lowest = np.array([space.lower_bound if group in self.free else 1.0 for group in range(len(self._widths))])
        self.unvisited = self.lowest * self._widths
        self._limit = constraint.limit if constraint else inf
        self._cost = CountedCost(space.graph, constraint.metric) if constraint else None
        if constraint and self._cost and self._cost(self.unvisited) > self._limit:
            raise _unreachable(space, constraint, self._cost, self.unvisited)

    def units(self, kept: FloatArray, group: int, ratio: float) -> int:
        """The clipped ratio of the width, rounded half to even, then up to the next allowed number."""
        width, step = self._widths[group], self._space.step[group]
        ratio = min(max(ratio, 0.0), 1.0)
        if self._cost is not None:
            ratio = min(ratio, self._affordable(self._cost, kept, group))
        ratio = max(ratio, float(self.lowest[group]))
        if ratio == 1.0:
            return width
        if self._space.keep:
            return next(units for units in self._space.choices(group) if units >= round(width * ratio))
        units = step * ceil(max(1, round(width * ratio)) / step)
        # The published code floors to the grid here; below one step it would keep nothing, so the width stays.
        return units if units <= width else step * floor(width / step) or width

    def _affordable(self, cost: CountedCost, kept: FloatArray, group: int) -> float:
        """The real-valued ratio at which the budget is just met; above 1 where it does not bind."""
        width = self._widths[group]
        c0, c1, c2 = cost.along(kept, group)
        left = self._limit - c0
        if left <= 0.0:
            return 0.0
        if c2 == 0.0:  # the published case: no layer reads and writes the same group
            return left / (c1 * width)
        return 2.0 * left / ((c1 + sqrt(c1 * c1 + 4.0 * c2 * left)) * width)


def check_reachable(space: ChannelSpace, constraint: Constraint, cost: Cost) -> None:
    """Refuse a budget that no policy of the space can keep.

    Raises:
        InputError: gives the least cost that the space can reach.
    """
    if cost(space.least) > constraint.limit:
        raise _unreachable(space, constraint, cost, space.least)


def _unreachable(space: ChannelSpace, constraint: Constraint, cost: Cost, cheapest: npt.ArrayLike) -> UnreachableError:
    least, whole = cost(cheapest), cost([group.width for group in space.graph.groups])
    return UnreachableError(
        f"the budget of {constraint.amount(constraint.limit)} cannot be kept: the cheapest policy of the space needs "
        f"{constraint.amount(least)} ({least / whole:.2%} of the network's {constraint.amount(whole)}); raise the "
        "budget, or lower space.lower_bound or the least of space.keep"
    )
