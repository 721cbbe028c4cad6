"""The environment of everything at once: channels, ranks, zeros and bits of each layer, as one vector of actions."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.layerwise import Action, Evaluator, LayerwiseEnv, LayerwiseWalk, Observation, Revision
from envs.observation import JointObservations
from envs.point_budget import PointBudget
from envs.reward import find_reward
from search_spaces.errors import InputError
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy
from search_spaces.space import CHANNELS, DIMENSIONS, Point, Prices, SearchSpace

NONE = -1
"""In place of a decision's number where a step has none of that dimension."""
WHOLE = -1
"""The place of what is decided for the whole network: before its first layer, which its step describes."""
RANK = "rank"

Numbers = npt.NDArray[np.int64]


class JointWalk(LayerwiseWalk):
    """A step for each layer that something is decided at: what is done to it, and which channels it reads.

    A channel group is decided on with the first layer that reads it; of several such groups all but one have steps of
    their own. Layers that are decided on together have one step, that of the first.

    An action has an entry for each dimension of the space, in the order of `dimensions`. In [-1, 1] it stands for one
    of the decision's choices, each for an equal part of that range; in the discrete variant the range is cut into as
    many parts as the largest decision of that dimension has choices, and the action is the number of a part. Entries
    of dimensions that a step does not decide on are ignored; the state tells which those are.

    What was proposed is brought within the budgets when the walk ends, by `PointBudget` (which says why there), so
    steps come to other choices than they took: `revised` tells the episode of an agent that had proposed the outcome.

    Args:
        space: what is decided.
        constraints: budgets, all of which the outcome keeps; empty where nothing is bounded.
        prices: of the space's points.
        discrete: whether actions are numbers.
        step_code: whether the state tells the number of the step too, see `JointObservations`.
        spend: whether what is left of the budgets is spent when the walk ends, see `PointBudget.spend`; not where
            small is good in itself.

    Attributes:
        dimensions: that the entries of an action stand for.
        order: the decision that each entry of each step's action stands for, [steps, dimensions], `NONE` where it is
            ignored.

    Raises:
        InputError: nothing to decide, or no policy of the space keeps the constraints, with the least of each.
    """

    def __init__(
        self,
        space: SearchSpace,
        constraints: Sequence[Constraint],
        prices: Prices,
        *,
        discrete: bool = False,
        step_code: bool = False,
        spend: bool = False,
    ) -> None:
        if not space.decisions:
            raise InputError("there is nothing to decide: give the space channels, bits, sparsity or ranks")
        if (reason := space.unreachable(constraints, prices)) is not None:
            raise InputError(reason)
        self.space = space
        self.constraints = tuple(constraints)
        self._prices = prices
        self._discrete = discrete
        budget = PointBudget(space, self.constraints, prices)
        self._meet = budget.spend if spend else budget.meet
        found = {decision.dimension for decision in space.decisions}
        self.dimensions = tuple(dimension for dimension in DIMENSIONS if dimension in found)
        layers, self.order = self._steps()
        self.steps = len(layers)
        # at each step and at the end: what was decided before, and the last decision of each dimension among it
        self._before = np.zeros((self.steps + 1, len(space.decisions)), dtype=np.bool_)
        self._latest = np.full((self.steps + 1, len(self.dimensions)), NONE, dtype=np.int64)
        for step, row in enumerate(self.order):
            used = row != NONE
            self._before[step + 1 :, row[used]] = True
            self._latest[step + 1 :, used] = row[used]
        self._parts = np.array(
            [
                max(len(each.choices) for each in space.decisions if each.dimension == dimension)
                for dimension in self.dimensions
            ]
        )
        self._observations = JointObservations(space.graph.full_layers, layers, self.order != NONE, step_code)
        size = self._observations.size + 2 * len(self.constraints)
        self.observation_space = spaces.Box(0.0, 1.0, (size,), np.float32)
        self.action_space = self._action_space()
        whole = prices(space.greatest[None])
        self._whole = np.array([whole[each.metric][0] for each in self.constraints])
        self._limits = np.array([each.limit for each in self.constraints])
        self._first: Observation = self._observe(space.greatest, [0])[0]
        self.reset()

    def reset(self) -> Observation:
        """Start over with nothing decided: everything at the choice that changes least."""
        self._step = 0
        self._point = self.space.greatest
        return np.array(self._first)

    def step(self, action: Action | int) -> tuple[Observation, bool]:
        """Decide on the layer whose turn it is.

        Raises:
            InputError: the walk has ended, or the action is none.
        """
        if self._step == self.steps:
            raise InputError("the walk has ended: reset it before the next step")
        used = self.order[self._step] != NONE
        decisions = self.order[self._step, used]
        counts = self.space.counts[decisions]
        shares = self._shares(action)[used]
        self._point[decisions] = np.minimum((shares * counts).astype(np.int64), counts - 1)
        self._taken = np.array(self._actions(self._point)[self._step])
        self._step += 1
        observation = self._observe(self._point, [self._step])[0]
        if self._step < self.steps:
            return observation, False
        self._point = self._meet(self._point)
        return observation, True

    def taken(self) -> Action:
        """The action in the middle of those that stand for what the last step took; ignored entries are 0."""
        return self._taken

    def revised(self) -> Revision:
        """The episode whose proposals are what the budgets left."""
        observations = self._observe(self._point, range(self.steps + 1))
        return Revision(observations, self._actions(self._point))

    def policy(self) -> CompressionPolicy:
        """What is decided, that of a finished walk within the budgets."""
        return self.space.decode(self._point)

    def point(self) -> Point:
        """The same as a point of the space; what is to come at the choice that changes least."""
        return self._point.copy()

    def _steps(self) -> tuple[list[int], Numbers]:
        """The layer that each step describes, and its decisions."""
        graph = self.space.graph
        position = {layer.name: index for index, layer in enumerate(graph.full_layers)}
        reads = {
            group.name: min((position[name] for name in group.consumers), default=position[group.producers[0]])
            for group in graph.groups
        }
        places = []
        for number, decision in enumerate(self.space.decisions):
            at = reads if decision.dimension == CHANNELS else position
            place = min((at[name] for name in decision.targets if name in at), default=WHOLE)
            # of several groups that a layer is the first to read the last one shares its step
            places.append((place, decision.dimension != CHANNELS, number))
        found: list[int] = []
        rows: list[Numbers] = []
        for place, _, number in sorted(places):
            slot = self.dimensions.index(self.space.decisions[number].dimension)
            if not found or found[-1] != place or rows[-1][slot] != NONE:
                found.append(place)
                rows.append(np.full(len(self.dimensions), NONE, dtype=np.int64))
            rows[-1][slot] = number
        return [max(place, 0) for place in found], np.stack(rows)

    def _action_space(self) -> spaces.Space[Any]:
        if not self._discrete:
            return spaces.Box(-1.0, 1.0, (len(self._parts),), np.float32)
        return spaces.MultiDiscrete(self._parts) if len(self._parts) > 1 else spaces.Discrete(int(self._parts[0]))

    def _shares(self, action: Action | int) -> npt.NDArray[np.float64]:
        """Where in the range of each dimension an action lies, in [0, 1].

        Raises:
            InputError: it is none.
        """
        values = np.asarray(action)
        if self._discrete:
            inside = values.dtype.kind in "iu" and values.size == len(self._parts)
            if not inside or ((values < 0) | (values.reshape(-1) >= self._parts)).any():
                raise InputError(f"an action is whole numbers of {self.action_space}, got {action!r}")
            return np.asarray((values.reshape(-1) + 0.5) / self._parts)
        values = values.astype(np.float64).reshape(-1)
        if values.size != len(self._parts) or not np.isfinite(values).all():
            raise InputError(f"an action is {len(self._parts)} finite numbers in [-1, 1], got {action!r}")
        return np.asarray((np.clip(values, -1.0, 1.0) + 1.0) / 2.0)

    def _actions(self, point: Point) -> npt.NDArray[Any]:
        """Those that stand for a point, [steps, dimensions]; [steps] where each is one number."""
        middles = ((point + 0.5) / self.space.counts)[self.order]
        used = self.order != NONE
        if not self._discrete:
            return np.where(used, 2.0 * middles - 1.0, 0.0).astype(np.float32)
        parts = np.where(used, middles * self._parts, 0.0).astype(np.int64)
        return parts if len(self._parts) > 1 else parts[:, 0]

    def _observe(self, point: Point, steps: Sequence[int]) -> Observation:
        """The states at steps of a walk to the point, [states, features]; `self.steps` is the end."""
        at = list(steps)
        before, latest = self._before[at], self._latest[at]
        last = np.where(latest == NONE, 1.0, ((point + 1) / self.space.counts)[latest])
        seen = self._observations.observe([min(step, self.steps - 1) for step in at], last)
        if not self.constraints:
            return seen
        costs = self._prices(np.concatenate([np.where(before, point, 0), np.where(before, point, self.space.greatest)]))
        least, most = np.stack([costs[each.metric] for each in self.constraints], axis=1).reshape(2, len(at), -1)
        spread = most - least
        left = np.where(spread > 0.0, (self._limits - least) / np.where(spread > 0.0, spread, 1.0), 1.0)
        budgets = np.clip(np.concatenate([1.0 - most / self._whole, left], axis=1), 0.0, 1.0)
        return np.concatenate([seen, budgets.astype(np.float32)], axis=1)


class LowRankWalk(JointWalk):
    """The same over ranks alone.

    Raises:
        InputError: the space has no ranks, or more than ranks.
    """

    def __init__(self, space: SearchSpace, constraints: Sequence[Constraint], prices: Prices, **options: Any) -> None:
        others = {each.dimension for each in space.decisions} - {RANK}
        if others or not space.decisions:
            said = f"this one has {', '.join(sorted(others))}, too" if others else "this one has none"
            raise InputError(f"the environment LowRank takes a space of ranks alone: {said}; change it, or take Joint")
        super().__init__(space, constraints, prices, **options)


class JointEnv(LayerwiseEnv):
    """Gymnasium environment "trimtab/Joint-v0": channels, ranks, zeros and bits of each layer at once.

    Args:
        space: what is decided.
        constraints: budgets, all of which every policy keeps.
        prices: of the space's points.
        evaluator: says what a policy is worth; called once an episode.
        reward: by name, see `envs.reward`.
        options: further arguments of `JointWalk`.

    Raises:
        InputError: what does not fit together, or a budget that cannot be met.
    """

    walks: ClassVar[type[JointWalk]] = JointWalk

    def __init__(
        self,
        space: SearchSpace,
        constraints: Sequence[Constraint],
        prices: Prices,
        evaluator: Evaluator,
        reward: str = "accuracy",
        **options: Any,
    ) -> None:
        super().__init__(self.walks(space, constraints, prices, **options), evaluator, find_reward(reward))


class LowRankEnv(JointEnv):
    """Gymnasium environment "trimtab/LowRank-v0": the rank of each layer; see `JointEnv`."""

    walks = LowRankWalk
