"""The search space: everything that a search decides, as one vector of choices.

A *decision* has finitely many choices, the cheapest first, the one that changes least last. A *point* is the number of
a choice for every decision, int64 [D]; it stands for one policy, and every policy of the space for one point, in which
what is decided of blocks that are left out is the choice that changes least.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.channel_space import ChannelSpace
from search_spaces.depth import DEPTH, Depths
from search_spaces.errors import InputError, UnreachableError
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy, LayerPolicy

Point = npt.NDArray[np.int64]
Prices = Callable[[npt.NDArray[np.int64]], Mapping[str, npt.NDArray[np.float64]]]
"""What the policies of points [P, D] cost, by metric, [P]."""

CHANNELS = "channels"
RESOLUTION = "resolution"
DIMENSIONS = (RESOLUTION, DEPTH, CHANNELS, "kernel", "bits", "weight_bits", "activation_bits", "sparsity", "rank")
"""Kinds of decisions; "bits" is one number for the weights of a layer and for what it reads. The resolution is that of
the images, a decision of the whole network."""
ELASTIC = (RESOLUTION, "kernel", DEPTH, CHANNELS)
"""Dimensions that a supernet is trained for; bits, zeros and ranks are decided on sub-networks that are cut out."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing to decide.

    Attributes:
        dimension: one of `DIMENSIONS`.
        targets: a channel group, a row of residual blocks, or the layers that it is decided for together; none of a
            resolution.
        choices: the cheapest first. Units that a group keeps; how many blocks of a row stay, the first ones; how wide
            a kernel stays, or None for all of it; bits, or None for float32; a pattern and a share of zeros, or None; a
            factorisation and ranks, or None; a height and a width, or None for the data's own.
    """

    dimension: str
    targets: tuple[str, ...]
    choices: tuple[Any, ...]

    @property
    def name(self) -> str:
        """For people: "conv1.weight_bits"."""
        return f"{'+'.join(self.targets)}.{self.dimension}".lstrip(".")

    def apply(self, policy: LayerPolicy, number: int) -> LayerPolicy:
        """What is done to a target under a choice, beside what is done already; units are not its business."""
        choice = self.choices[number]
        match self.dimension:
            case "kernel":
                return replace(policy, kernel=choice)
            case "bits":
                return replace(policy, weight_bits=choice, activation_bits=choice)
            case "weight_bits":
                return replace(policy, weight_bits=choice)
            case "activation_bits":
                return replace(policy, activation_bits=choice)
            case "sparsity" if choice is not None:
                pattern, share = choice
                return replace(policy, pattern=pattern, sparsity=share)
            case "rank" if choice is not None:
                factorisation, rank = choice
                return replace(policy, factorisation=factorisation, rank=rank)
            case _:
                return policy

    def chosen(self, policy: LayerPolicy) -> Any:
        """The choice that a target's policy stands for."""
        match self.dimension:
            case "kernel":
                return policy.kernel
            case "bits" | "weight_bits":
                return policy.weight_bits
            case "activation_bits":
                return policy.activation_bits
            case "sparsity":
                return None if policy.zeros is None else (policy.pattern, policy.sparsity)
            case _:
                return None if policy.rank is None else (policy.factorisation, policy.rank)


@dataclass(frozen=True)
class SearchSpace:
    """All decisions of a search.

    Attributes:
        channels: the numbers of units that channel groups may keep.
        decisions: in the order of the network; of channels only where a group has a choice.
        fixed: what is done to layers whatever is decided, such as 8 bits for the first and the last.
    """

    channels: ChannelSpace
    decisions: tuple[Decision, ...]
    fixed: Mapping[str, LayerPolicy] = field(default_factory=dict)

    @classmethod
    def of_channels(cls, channels: ChannelSpace) -> "SearchSpace":
        """The space where nothing but channels is decided."""
        return cls(channels, channel_decisions(channels))

    @property
    def graph(self) -> ModelGraph:
        """The uncompressed network."""
        return self.channels.graph

    @property
    def channels_only(self) -> bool:
        """Whether nothing is decided but what layers are pruned to."""
        return not self.fixed and all(each.dimension == CHANNELS for each in self.decisions)

    @property
    def elastic(self) -> "SearchSpace":
        """What of it a supernet is trained for."""
        decisions = tuple(each for each in self.decisions if each.dimension in ELASTIC)
        return replace(self, decisions=decisions, fixed={})

    def cheapest(self) -> CompressionPolicy:
        """The policy of `least`."""
        return self.decode(self.least)

    @cached_property
    def counts(self) -> Point:
        """Number of choices of each decision, [D]."""
        return np.array([len(decision.choices) for decision in self.decisions], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of policies."""
        return self.depths.size

    @property
    def least(self) -> Point:
        """The cheapest choice everywhere."""
        return np.zeros(len(self.decisions), dtype=np.int64)

    @property
    def greatest(self) -> Point:
        """The choice that changes least everywhere."""
        return self.counts - 1

    def sample(self, generator: np.random.Generator) -> Point:
        """A uniformly random point."""
        return generator.integers(0, self.counts)

    def decode(self, point: npt.ArrayLike) -> CompressionPolicy:
        """The policy of a point.

        Raises:
            InputError: no point of the space.
        """
        numbers = self.canonical(self._checked(point))
        kept = list(self.channels.whole)
        gone = self.depths.gone(numbers)
        layers = {name: policy for name, policy in self.fixed.items() if not self._goes_with(gone, name)}
        resolution = None
        for decision, number in zip(self.decisions, numbers.tolist(), strict=True):
            if decision.dimension == CHANNELS:
                kept[self._group[decision.targets[0]]] = decision.choices[number]
            elif decision.dimension == RESOLUTION:
                resolution = decision.choices[number]
            elif decision.dimension != DEPTH:
                for layer in decision.targets:
                    if self._goes_with(gone, layer):
                        continue
                    layers[layer] = decision.apply(layers.get(layer, LayerPolicy()), number)
        pruned = self.graph.policy(kept).layers
        treated = {name: policy for name, policy in layers.items() if policy.treats}
        merged = {**pruned, **{name: replace(each, keep=_keep(pruned, name)) for name, each in treated.items()}}
        removed = {name: LayerPolicy(remove=True) for name in gone}
        return CompressionPolicy({**merged, **removed}, self.graph.digest, resolution)

    def canonical(self, point: Point) -> Point:
        """The point that its policy is read back as: where a decision means nothing, the choice that changes least."""
        if not self.depths:
            return point
        return np.where(self.depths.active(point[None])[0], point, self.greatest)

    def _goes_with(self, gone: Sequence[str], layer: str) -> bool:
        """Whether a layer lies in one of the blocks that are left out."""
        return any(layer in self.depths.blocks[name].layers for name in gone)

    def encode(self, policy: CompressionPolicy) -> Point:
        """The point of a policy.

        Raises:
            InputError: the policy is none of the space's.
        """
        kept = self.graph.kept_units(policy)
        gone = [name for name, layer in policy.layers.items() if layer.remove and name in self.depths.blocks]
        numbers = []
        for decision in self.decisions:
            if decision.dimension == CHANNELS:
                chosen: Any = kept[self._group[decision.targets[0]]]
            elif decision.dimension == RESOLUTION:
                chosen = self.graph.at(policy.resolution).resolution
            elif decision.dimension == DEPTH:
                chosen = self._stay(decision, gone)
            elif all(self._goes_with(gone, name) for name in decision.targets):
                chosen = decision.choices[-1]
            else:
                target = next(name for name in decision.targets if not self._goes_with(gone, name))
                chosen = decision.chosen(policy.layers.get(target, LayerPolicy()))
            if chosen not in decision.choices:
                raise InputError(
                    f"{decision.name} has no choice {chosen!r} in this space; it has "
                    f"{', '.join(map(repr, decision.choices))}"
                )
            numbers.append(decision.choices.index(chosen))
        point = self.canonical(np.array(numbers, dtype=np.int64))
        mine = self.decode(point)
        if (mine.layers, mine.resolution) != (policy.layers, policy.resolution) and not self._same(policy, mine):
            raise InputError("the policy does what the space does not decide on; search a space that does")
        return point

    @staticmethod
    def _stay(decision: Decision, gone: Sequence[str]) -> int:
        """How many blocks of a row stay; more than it has where they are not its first ones."""
        count = sum(name not in gone for name in decision.targets)
        return count if set(decision.targets[:count]).isdisjoint(gone) else len(decision.targets) + 1

    def contains(self, policy: CompressionPolicy) -> bool:
        """Whether the policy is one of the space's."""
        try:
            self.encode(policy)
        except InputError:
            return False
        return True

    def neighbours(self, point: Point) -> Iterator[Point]:
        """Every point that differs in one decision by one choice."""
        for index, count in enumerate(self.counts.tolist()):
            for step in (-1, 1):
                if 0 <= point[index] + step < count:
                    other = point.copy()
                    other[index] += step
                    yield other

    def mutate(self, point: Point, generator: np.random.Generator, rate: float) -> Point:
        """Each decision, with that probability, is taken anew; at least one is."""
        changed = generator.random(len(point)) < rate
        free = np.flatnonzero(self.counts > 1)
        if len(free) and not changed[free].any():
            changed[generator.choice(free)] = True
        shifted = (point + generator.integers(1, np.maximum(self.counts, 2))) % self.counts
        return np.where(changed, shifted, point)

    def crossover(self, first: Point, second: Point, generator: np.random.Generator) -> Point:
        """Each decision from either parent."""
        return np.where(generator.random(len(first)) < 0.5, first, second)

    def repair(self, point: Point, constraints: Sequence[Constraint], prices: Prices) -> Point:
        """The point, taken towards the cheapest by steps until it is within the constraints; a feasible one as it is.

        Each step is the one that leaves least of the cost that is violated most.

        Raises:
            UnreachableError: no policy was found that keeps the constraints, with the least that each can come to.
        """
        current = self._checked(point)
        while (violated := self._worst(prices(current[None]), constraints)) is not None:
            free = np.flatnonzero(current > 0)
            if not len(free):
                return self._floor_within(constraints, prices)
            tries = np.repeat(current[None], len(free), axis=0)
            tries[np.arange(len(free)), free] -= 1
            current = tries[int(np.argmin(prices(tries)[violated.metric]))]
        return self.canonical(current)

    def floor(self, constraints: Sequence[Constraint], prices: Prices) -> Point:
        """The point that is least above the constraints, found by changing one decision at a time from `least`.

        That is `least` itself but where two decisions work against each other: a layer of few channels may take fewer
        bytes whole than in two parts, and weights of one bit fewer without an index of zeros.
        """
        current = self.least
        while True:
            tries = np.concatenate([current[None], *(self._choices_of(current, at) for at in range(len(current)))])
            costs = prices(tries)
            over = np.sum([np.maximum(costs[each.metric] / each.limit, 0.0) for each in constraints], axis=0)
            best = int(np.argmin(over))
            if over[best] >= over[0]:
                return current
            current = tries[best]

    def unreachable(self, constraints: Sequence[Constraint], prices: Prices) -> str | None:
        """Why no policy keeps the constraints: which of them, and the least of each; None where each can be kept."""
        whole = prices(self.greatest[None])
        least = {each: float(prices(self.floor([each], prices)[None])[each.metric][0]) for each in constraints}
        said = "; ".join(
            f"{each.amount(each.limit)} cannot be kept, the cheapest policy of the space needs {each.amount(cost)} of "
            f"{each.amount(float(whole[each.metric][0]))}"
            for each, cost in least.items()
            if cost > each.limit
        )
        return f"a budget of {said}; raise the budget, or let the space go lower" if said else None

    def _floor_within(self, constraints: Sequence[Constraint], prices: Prices) -> Point:
        point = self.floor(constraints, prices)
        if self._worst(prices(point[None]), constraints) is None:
            return point
        together = " and ".join(each.amount(each.limit) for each in constraints)
        reason = self.unreachable(constraints, prices)
        raise UnreachableError(reason or f"no policy was found that keeps {together} together; raise one of them")

    def _choices_of(self, point: Point, index: int) -> npt.NDArray[np.int64]:
        """The point with every choice of one decision."""
        found = np.repeat(point[None], self.counts[index], axis=0)
        found[:, index] = np.arange(self.counts[index])
        return found

    @staticmethod
    def _worst(cost: Mapping[str, npt.NDArray[np.float64]], constraints: Sequence[Constraint]) -> Constraint | None:
        """The constraint that is violated most; None where all are kept."""
        over = [(float(cost[each.metric][0]) / each.limit, index) for index, each in enumerate(constraints)]
        worst = max(over, default=(0.0, 0))
        return constraints[worst[1]] if worst[0] > 1.0 else None

    @cached_property
    def depths(self) -> Depths:
        """What its decisions on depth leave out."""
        return Depths(self.graph, self.decisions)

    @cached_property
    def _group(self) -> Mapping[str, int]:
        return {group.name: index for index, group in enumerate(self.graph.groups)}

    def _checked(self, point: npt.ArrayLike) -> Point:
        numbers = np.asarray(point)
        if numbers.shape != self.counts.shape or numbers.dtype.kind not in "iu":
            raise InputError(
                f"a point is {len(self.decisions)} whole numbers, got {numbers.dtype} {list(numbers.shape)}"
            )
        if ((numbers < 0) | (numbers >= self.counts)).any():
            index = int(np.flatnonzero((numbers < 0) | (numbers >= self.counts))[0])
            raise InputError(
                f"{self.decisions[index].name} has the choices 0 to {self.counts[index] - 1}, got {numbers[index]}"
            )
        return numbers.astype(np.int64)

    def _same(self, *policies: CompressionPolicy) -> bool:
        """Whether policies do the same, though they may be written otherwise."""
        graphs = [self.graph.apply(replace(policy, model=None)) for policy in policies]
        return len({(each.input_shape, each.kept, each.treatments, each.removed) for each in graphs}) == 1


def channel_decisions(channels: ChannelSpace) -> tuple[Decision, ...]:
    """Those of the groups that have a choice."""
    groups = enumerate(channels.graph.groups)
    found = (Decision(CHANNELS, (group.name,), channels.choices(index)) for index, group in groups)
    return tuple(each for each in found if len(each.choices) > 1)


def _keep(pruned: Mapping[str, LayerPolicy], name: str) -> float | None:
    return pruned[name].keep if name in pruned else None
