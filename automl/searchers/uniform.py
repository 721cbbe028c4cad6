"""The same keep ratio everywhere: the second baseline that every search stands beside."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from automl.searchers.base import Searcher, State
from envs.budget import check_reachable
from envs.pricing import Cost, CountedCost
from envs.reward import Reward
from search_spaces.channel_space import ROUNDING_ERROR, ChannelSpace
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

MEASURED_STEP = 1 / 64
"""Keep ratios that a measured cost tells apart: finer ones would have hundreds of operators measured for one policy."""


def uniform_policy(space: ChannelSpace, constraint: Constraint, cost: Cost | None = None) -> CompressionPolicy:
    """One keep ratio for all channel groups, the largest that meets the budget.

    The space's grid does not apply: on it a uniform policy would leave up to a fifth of the budget unused, a straw man
    to be compared with. Its least numbers of units do, and protected groups stay whole.

    Args:
        space: the numbers of units that each group may keep.
        constraint: the budget.
        cost: of the constraint's metric; by default it is counted. Where one is given, ratios closer together than
            `MEASURED_STEP` are not told apart.

    Raises:
        InputError: a budget below the cheapest policy of the space.
    """
    step = 0.0 if cost is None else MEASURED_STEP
    cost = CountedCost(space.graph, constraint.metric) if cost is None else cost
    check_reachable(space, constraint, cost)
    widths = np.array([group.width for group in space.graph.groups])
    least = np.array(space.least)
    # The policy changes where a group gains a unit.
    ratios = np.unique(np.concatenate([[0.0], *(np.arange(1, width + 1) / width for width in widths)]))

    def kept(ratio: float) -> list[int]:
        counts: list[int] = np.maximum(least, np.floor(ratio * widths + ROUNDING_ERROR).astype(int)).tolist()
        return counts

    low, high = 0, len(ratios)  # ratios[low] fits, ratios[high] does not; no counted cost falls with the ratio
    while high - low > 1 and ratios[min(high, len(ratios) - 1)] - ratios[low] > step:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(kept(float(ratios[middle]))) <= constraint.limit else (low, middle)
    return space.graph.policy(kept(float(ratios[low])))


class UniformSearcher(Searcher):
    """Proposes `uniform_policy`, every time: one evaluation is enough.

    Args:
        space: the numbers of units that each group may keep.
        constraint: the budget, kept in both modes of search.
        reward: what `tell` returns.
        cost: see `uniform_policy`.

    Raises:
        InputError: a budget below the cheapest policy of the space.
    """

    def __init__(self, space: ChannelSpace, constraint: Constraint, reward: Reward, cost: Cost | None = None) -> None:
        check_reachable(space, constraint, cost or CountedCost(space.graph, constraint.metric))
        self._space, self._constraint, self._cost = space, constraint, cost
        self._reward = reward

    def ask(self) -> CompressionPolicy:
        """The uniform policy, found at the first call: under a measured cost that takes measuring."""
        return self._policy

    @cached_property
    def _policy(self) -> CompressionPolicy:
        return uniform_policy(self._space, self._constraint, self._cost)

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float:
        """The reward; nothing is learned from it."""
        return self._reward(evaluation)

    def state(self) -> State:
        """Nothing: all proposals are the same."""
        return {}, {}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Nothing to take over."""
