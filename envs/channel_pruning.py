"""AMC's environment: how many channels each group keeps (He et al., ECCV 2018)."""

from typing import Literal

import numpy as np
from gymnasium import spaces

from envs.budget import Bounding, LargestFeasible, PublishedBounding
from envs.layerwise import Action, Evaluator, LayerwiseEnv, LayerwiseWalk, Observation, scalar, whole_number
from envs.observation import LayerObservations
from envs.pricing import Cost, CountedCost
from envs.reward import find_reward
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError, did_you_mean
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy

Mode = Literal["resource", "accuracy"]
MODES = ("resource", "accuracy")


class ChannelPruningWalk(LayerwiseWalk):
    """One decision for each channel group that can shrink, in the order of the first layer that reads it.

    The state describes that layer. The action in [-1, 1] stands for a keep ratio, linearly: from the group's lower
    bound to 1, or from 0 to 1 when `faithful` (what is below the lower bound then is clipped, as published). In the
    discrete variant an action is a whole number below the most choices that a group has, the largest for the whole
    group; a group of fewer choices has several numbers for one. `ChannelSpace.step` says how fine they are.

    Args:
        space: the numbers of units that each group may keep.
        constraint: the budget; in "accuracy" mode its metric counts, its limit does not.
        mode: "resource" bounds every action so that the budget can be met; "accuracy" leaves them free.
        faithful: AMC's own bounding and rounding, which may overshoot the budget.
        step_code: whether the state tells the number of the step too, see `LayerObservations`.
        cost: of the constraint's metric; by default what can be counted is. A latency cannot.
        discrete: whether actions are whole numbers.

    Attributes:
        order: the group that each step decides on.

    Raises:
        InputError: an unknown mode, a metric that cannot be counted, or a budget below the cheapest policy.
    """

    def __init__(
        self,
        space: ChannelSpace,
        constraint: Constraint,
        *,
        mode: str = "resource",
        faithful: bool = False,
        step_code: bool = False,
        cost: Cost | None = None,
        discrete: bool = False,
    ) -> None:
        if mode not in MODES:
            raise InputError(f"there is no search mode {mode!r}{did_you_mean(mode, MODES)}")
        graph = space.graph
        limit = constraint if mode == "resource" else None
        self._cost = CountedCost(graph, constraint.metric) if cost is None else cost
        self._bounding: Bounding = (
            PublishedBounding(space, limit) if faithful else LargestFeasible(space, limit, self._cost)
        )
        self._graph = graph
        self._faithful = faithful
        self._widths = np.array([group.width for group in graph.groups], dtype=np.float64)
        position = {layer.name: index for index, layer in enumerate(graph.layers)}
        reads = [
            min((position[name] for name in group.consumers), default=position[group.producers[0]])
            for group in graph.groups
        ]
        self.order = sorted(self._bounding.free, key=lambda group: (reads[group], group))
        described = [reads[group] for group in self.order]
        self._observations = LayerObservations(graph.layers, described, self._cost.by_layer(), step_code)
        self._whole_cost = self._cost(self._widths)
        self.steps = len(self.order)
        self.observation_space = spaces.Box(0.0, 1.0, (self._observations.size,), np.float32)
        self._discrete = discrete
        self._choices = [np.array(space.choices(group)) / self._widths[group] for group in self.order]
        self._numbers = max(map(len, self._choices), default=1)
        self.action_space = spaces.Discrete(self._numbers) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.reset()

    def reset(self) -> Observation:
        """Start over with nothing decided."""
        self._step = 0
        self._bounded = self._bounding.unvisited.copy()  # what the budget is bounded with
        self._decided = self._widths.copy()  # what has been decided; groups to come still whole
        return self._observations.observe(0, 0.0, 1.0)

    def step(self, action: Action | int) -> tuple[Observation, bool]:
        """Decide on the group whose turn it is; see `keep`."""
        return self.keep(self._numbered(action) if self._discrete else self.ratio(scalar(np.asarray(action))))

    def keep(self, ratio: float) -> tuple[Observation, bool]:
        """Propose a keep ratio in [0, 1] for the group whose turn it is; it is bounded and rounded.

        Raises:
            InputError: the walk has ended.
        """
        if self._step == self.steps:
            raise InputError("the walk has ended: reset it before the next step")
        group = self.order[self._step]
        low = self._lowest()
        units = self._bounding.units(self._bounded, group, ratio)
        self._bounded[group] = self._decided[group] = units
        self._step += 1
        done = self._step == self.steps
        reduced = 1.0 - self._cost(self._decided) / self._whole_cost
        kept = units / self._widths[group]
        if self._discrete:
            self._taken = np.array(self._number(self._step - 1, kept))
        else:
            self._taken = np.array([min(max(2.0 * (kept - low) / (1.0 - low) - 1.0, -1.0), 1.0)], dtype=np.float32)
        return self._observations.observe(self._step - done, reduced, kept), done

    def taken(self) -> Action:
        """The action that stands for the ratio that the last group kept."""
        return self._taken

    def ratio(self, action: float) -> float:
        """Keep ratio that an action in [-1, 1] stands for at this step."""
        low = self._lowest()
        return low + (1.0 - low) * (action + 1.0) / 2.0

    def action(self, ratio: float) -> float:
        """The action that stands for a keep ratio at this step, the inverse of `ratio`."""
        low = self._lowest()
        return 2.0 * (ratio - low) / (1.0 - low) - 1.0

    def policy(self) -> CompressionPolicy:
        """Keep ratios after rounding, by channel group."""
        return self._graph.policy(self.kept())

    def kept(self) -> tuple[int, ...]:
        """Units that each group keeps; those still to be decided are whole."""
        return tuple(int(units) for units in self._decided)

    def _numbered(self, action: Action | int) -> float:
        """Keep ratio that a discrete action stands for at this step."""
        choices = self._choices[min(self._step, self.steps - 1)]
        number = whole_number(action, self._numbers)
        return float(choices[(2 * number + 1) * len(choices) // (2 * self._numbers)])

    def _number(self, step: int, ratio: float) -> int:
        """The discrete action that stands for the choice nearest to a ratio."""
        choices = self._choices[step]
        nearest = int(np.argmin(np.abs(choices - ratio)))
        return (2 * nearest + 1) * self._numbers // (2 * len(choices))

    def _lowest(self) -> float:
        """Keep ratio that the action -1 stands for at this step."""
        if self._faithful:
            return 0.0
        return float(self._bounding.lowest[self.order[min(self._step, self.steps - 1)]])


class ChannelPruningEnv(LayerwiseEnv):
    """Gymnasium environment "trimtab/ChannelPruning-v0": AMC's search for channel keep ratios.

    Args:
        graph: the uncompressed network.
        space: the numbers of units its groups may keep.
        constraint: the budget.
        evaluator: says what a policy is worth; called once an episode.
        mode: "resource" (within the budget) or "accuracy" (accuracy-guaranteed, no hard limit).
        reward: by name, see `envs.reward`.
        faithful: AMC's published bounding and rounding.
        step_code: whether the state tells the number of the step, one-hot, after AMC's eleven features.
        cost: of the constraint's metric; by default what can be counted is. A latency cannot.
        discrete: whether actions are whole numbers.

    Raises:
        InputError: what does not fit together, or a budget that cannot be met.
    """

    def __init__(
        self,
        graph: ModelGraph,
        space: ChannelSpace,
        constraint: Constraint,
        evaluator: Evaluator,
        mode: str = "resource",
        reward: str = "accuracy",
        faithful: bool = False,
        step_code: bool = False,
        cost: Cost | None = None,
        discrete: bool = False,
    ) -> None:
        if graph.digest != space.graph.digest:
            raise InputError("the search space was built for another network; build it from this graph")
        walk = ChannelPruningWalk(
            space, constraint, mode=mode, faithful=faithful, step_code=step_code, cost=cost, discrete=discrete
        )
        super().__init__(walk, evaluator, find_reward(reward, mode))
