"""The search space: everything that a search decides, as one vector of choices.

A *decision* has finitely many choices, the cheapest first, the one that changes least last. A *point* is the number of
a choice for every decision, int64 [D]; it stands for one policy, and every policy of the space for one point.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy, LayerPolicy

Point = npt.NDArray[np.int64]
Prices = Callable[[npt.NDArray[np.int64]], Mapping[str, npt.NDArray[np.float64]]]
"""What the policies of points [P, D] cost, by metric, [P]."""

CHANNELS = "channels"
DIMENSIONS = (CHANNELS, "bits", "weight_bits", "activation_bits", "sparsity", "rank")
"""Kinds of decisions; "bits" is one number for the weights of a layer and for what it reads."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing to decide.

    Attributes:
        dimension: one of `DIMENSIONS`.
        targets: a channel group, or the layers that it is decided for together.
        choices: the cheapest first. Units that a group keeps; bits, or None for float32; a pattern and a share of
            zeros, or None; a factorisation and ranks, or None.
    """

    dimension: str
    targets: tuple[str, ...]
    choices: tuple[Any, ...]

    @property
    def name(self) -> str:
        """For people: "conv1.weight_bits"."""
        return f"{'+'.join(self.targets)}.{self.dimension}"

    def apply(self, policy: LayerPolicy, number: int) -> LayerPolicy:
        """What is done to a target under a choice, beside what is done already; units are not its business."""
        choice = self.choices[number]
        match self.dimension:
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

    @property
    def graph(self) -> ModelGraph:
        """The uncompressed network."""
        return self.channels.graph

    @cached_property
    def counts(self) -> Point:
        """Number of choices of each decision, [D]."""
        return np.array([len(decision.choices) for decision in self.decisions], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of policies."""
        return int(np.prod(self.counts.astype(object), initial=1))

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
        numbers = self._checked(point)
        kept = list(self.channels.whole)
        layers = dict(self.fixed)
        for decision, number in zip(self.decisions, numbers.tolist(), strict=True):
            if decision.dimension == CHANNELS:
                kept[self._group[decision.targets[0]]] = decision.choices[number]
                continue
            for layer in decision.targets:
                layers[layer] = decision.apply(layers.get(layer, LayerPolicy()), number)
        pruned = self.graph.policy(kept).layers
        treated = {name: policy for name, policy in layers.items() if policy.treats}
        merged = {**pruned, **{name: replace(each, keep=_keep(pruned, name)) for name, each in treated.items()}}
        return CompressionPolicy(merged, self.graph.digest)

    def encode(self, policy: CompressionPolicy) -> Point:
        """The point of a policy.

        Raises:
            InputError: the policy is none of the space's.
        """
        kept = self.graph.kept_units(policy)
        numbers = []
        for decision in self.decisions:
            if decision.dimension == CHANNELS:
                chosen: Any = kept[self._group[decision.targets[0]]]
            else:
                chosen = decision.chosen(policy.layers.get(decision.targets[0], LayerPolicy()))
            if chosen not in decision.choices:
                raise InputError(
                    f"{decision.name} has no choice {chosen!r} in this space; it has "
                    f"{', '.join(map(repr, decision.choices))}"
                )
            numbers.append(decision.choices.index(chosen))
        point = np.array(numbers, dtype=np.int64)
        if self.decode(point).layers != policy.layers and not self._same(policy, point):
            raise InputError("the policy does what the space does not decide on; search a space that does")
        return point

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
        """The point with as few steps towards the cheapest as bring it within the constraints; a feasible one as it is.

        Each step is the one that takes most off the constraint that is violated most, a share of what is over.

        Raises:
            InputError: not even the cheapest policy keeps a constraint, with what it costs.
        """
        current = self._checked(point)
        while (violated := self._worst(prices(current[None]), constraints)) is not None:
            free = np.flatnonzero(current > 0)
            if not len(free):
                raise InputError(self.unreachable(constraints, prices) or "the prices of the space are not monotone")
            tries = np.repeat(current[None], len(free), axis=0)
            tries[np.arange(len(free)), free] -= 1
            cost = prices(tries)[violated.metric]
            current = tries[int(np.argmin(cost))]
        return current

    def unreachable(self, constraints: Sequence[Constraint], prices: Prices) -> str | None:
        """Why no policy keeps the constraints: which of them, and the least of each; None where one does."""
        least, whole = prices(self.least[None]), prices(self.greatest[None])
        over = [each for each in constraints if float(least[each.metric][0]) > each.limit]
        if not over:
            return None
        said = "; ".join(
            f"{each.amount(each.limit)} cannot be kept, the cheapest policy of the space needs "
            f"{each.amount(float(least[each.metric][0]))} of {each.amount(float(whole[each.metric][0]))}"
            for each in over
        )
        return f"a budget of {said}; raise the budget, or let the space go lower"

    @staticmethod
    def _worst(cost: Mapping[str, npt.NDArray[np.float64]], constraints: Sequence[Constraint]) -> Constraint | None:
        """The constraint that is violated most; None where all are kept."""
        over = [(float(cost[each.metric][0]) / each.limit, index) for index, each in enumerate(constraints)]
        worst = max(over, default=(0.0, 0))
        return constraints[worst[1]] if worst[0] > 1.0 else None

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

    def _same(self, policy: CompressionPolicy, point: Point) -> bool:
        """Whether a policy does what the point's does, though it may be written otherwise."""
        mine, other = self.graph.apply(self.decode(point)), self.graph.apply(replace(policy, model=None))
        return (mine.kept, mine.treatments, mine.removed) == (other.kept, other.treatments, other.removed)


def _keep(pruned: Mapping[str, LayerPolicy], name: str) -> float | None:
    return pruned[name].keep if name in pruned else None
