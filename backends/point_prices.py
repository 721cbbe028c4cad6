"""What the points of a search space cost, by metric: counted, on an accelerator, or by a latency table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.accelerators.pricing import PolicyPrices
from backends.counting import CountedPrices
from backends.layer_prices import LEFT_OUT, UNTREATED, FloatArray, IntArray
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import COUNTED, MODELLED
from search_spaces.policy import LayerPolicy
from search_spaces.space import CHANNELS, RESOLUTION, SearchSpace

Latency = Callable[[ModelGraph], float]
"""Seconds of a network by a table of measured operators."""


@dataclass(frozen=True)
class Factor:
    """A part of a cost that several decisions settle together.

    Attributes:
        decisions: their numbers, rising.
        costs: [budgets, choices of the first, choices of the second, ...].
    """

    decisions: tuple[int, ...]
    costs: FloatArray


@dataclass(frozen=True)
class _Layer:
    """The decisions about one layer, and the treatments that their combinations come to.

    Attributes:
        index: of the layer.
        decisions: their numbers in the space.
        strides: of each in the number of a combination.
        treatments: number of the treatment of each combination; -1 where it was not asked for yet.
    """

    index: int
    decisions: IntArray
    strides: IntArray
    treatments: IntArray


class PointPrices:
    """Costs of points, thousands a second.

    Args:
        space: whose points they are.
        accelerator: prices of the network's policies on it; None where that is not asked for.
        latency: of a network, by a table; None where that is not asked for.
    """

    def __init__(
        self, space: SearchSpace, accelerator: PolicyPrices | None = None, latency: Latency | None = None
    ) -> None:
        self.space = space
        self._counted = CountedPrices(space.graph)
        self._accelerator = accelerator
        self._latency = latency
        self._latencies: dict[bytes, float] = {}
        self._whole = np.array(space.channels.whole, dtype=np.int64)
        groups = {group.name: index for index, group in enumerate(space.graph.groups)}
        numbers = [number for number, each in enumerate(space.decisions) if each.dimension == RESOLUTION]
        self._resolution = numbers[0] if numbers else None
        self._sizes = np.array(
            [space.graph.at(size).resolution_number for number in numbers for size in space.decisions[number].choices],
            dtype=np.int64,
        )
        self._channels = [
            (number, groups[decision.targets[0]], np.array(decision.choices, dtype=np.int64))
            for number, decision in enumerate(space.decisions)
            if decision.dimension == CHANNELS
        ]
        numbers_of = {layer.name: index for index, layer in enumerate(space.graph.full_layers)}
        self._depths = {
            numbers_of[layer]: (number, np.array(space.decisions[number].choices, dtype=np.int64) <= place)
            for layer, (number, place) in space.depths.layers.items()
        }
        self._layers = [
            self._decided(index, layer.name)
            for index, layer in enumerate(space.graph.full_layers)
            if layer.name in space.fixed or any(layer.name in each.targets for each in space.decisions)
        ]

    def __call__(self, points: npt.ArrayLike) -> Mapping[str, FloatArray]:
        """Costs of points [P, D] by metric, each [P].

        Raises:
            InputError: the hardware cannot run one of the layers.
        """
        chosen = np.asarray(points, dtype=np.int64)
        kept, treatments, sizes = self.kept(chosen), self.treatments(chosen), self.resolutions(chosen)
        found = dict(zip(COUNTED, self._counted.price(kept, treatments, sizes).T, strict=True))
        if self._accelerator is not None:
            totals = self._accelerator.price(kept, self._on_accelerator(treatments), sizes)
            found |= {"modelled_latency_s": totals.latency_s, "energy_j": totals.energy_j}
        if self._latency is not None:
            found["latency_s"] = np.array([self._measured(point, self._latency) for point in chosen])
        return found

    def factors(self, metrics: Sequence[str]) -> list[Factor]:
        """The costs as a sum: of any point, that of what each factor says of its decisions' choices.

        Args:
            metrics: counted ones, and where there is an accelerator `modelled_latency_s` and `energy_j`.

        Raises:
            InputError: the cost in a metric is no sum over layers, or the hardware cannot run one of the layers.
        """
        self._check(metrics)
        tables = [Factor(each, self._table(index, each, metrics)) for index, each in enumerate(self.scopes())]
        return [*tables, *self._rest(metrics)]

    def entries(self, metrics: Sequence[str]) -> int:
        """How many figures of each cost `factors` computes, layer by layer; its time grows with them.

        Raises:
            InputError: see `factors`.
        """
        self._check(metrics)
        return sum(int(np.prod(self.space.counts[list(scope)])) for scope in self.scopes())

    def _check(self, metrics: Sequence[str]) -> None:
        for metric in metrics:
            if metric not in self.summed:
                raise InputError(f"a cost in {metric!r} is no sum over layers; it is one of {', '.join(self.summed)}")

    def scopes(self) -> list[tuple[int, ...]]:
        """The decisions that the cost of each layer depends on."""
        groups = {group: number for number, group, _ in self._channels}
        own = {layer.index: layer.decisions.tolist() for layer in self._layers}
        everyone = [] if self._resolution is None else [self._resolution]
        found = []
        for index, spec in enumerate(self.space.graph.full_layers):
            terms = (*spec.in_extent.terms, *spec.out_extent.terms)
            read = {groups[group] for group, _ in terms if group in groups}
            depth = [self._depths[index][0]] if index in self._depths else []
            found.append(tuple(sorted({*read, *own.get(index, ()), *depth, *everyone})))
        return found

    @property
    def summed(self) -> tuple[str, ...]:
        """Costs that are sums over layers."""
        return COUNTED if self._accelerator is None else (*COUNTED, *MODELLED)

    def _table(self, layer: int, decisions: Sequence[int], metrics: Sequence[str]) -> FloatArray:
        """Costs of a layer for every combination of choices, [metrics, choices of the first, ...]."""
        shape = tuple(int(self.space.counts[number]) for number in decisions)
        points = self._combinations(decisions)
        kept, treatments, sizes = self.kept(points), self.treatments(points), self.resolutions(points)
        costs = dict(zip(COUNTED, self._counted.by_layer(kept, treatments, [layer], sizes)[:, 0].T, strict=True))
        if self._accelerator is not None:
            modelled = self._accelerator.by_layer(kept, self._on_accelerator(treatments), [layer], sizes)
            costs |= dict(zip(MODELLED, modelled[:, 0].T, strict=True))
        return np.stack([costs[metric].reshape(shape) for metric in metrics])

    def _rest(self, metrics: Sequence[str]) -> list[Factor]:
        """What is no layer's: a linear function of each group's units, and a constant at each resolution."""
        greatest = self.space.greatest
        decisions = () if self._resolution is None else (self._resolution,)
        whole = self(self._combinations(decisions))
        tables = [self._table(index, decisions, metrics) for index in range(len(self.space.graph.full_layers))]
        layers = np.sum(tables, axis=0)
        constant = np.stack([whole[metric] for metric in metrics]).reshape(layers.shape) - layers
        found = [Factor(decisions, constant)]
        for number, _, choices in self._channels:
            points = np.repeat(greatest[None], len(choices), axis=0)
            points[:, number] = np.arange(len(choices))
            kept, treatments = self.kept(points), self.treatments(points)
            others = self._counted.price(kept, treatments) - self._counted.by_layer(kept, treatments).sum(axis=1)
            columns = dict(zip(COUNTED, (others - others[-1]).T, strict=True))
            zero = np.zeros(len(choices))
            found.append(Factor((number,), np.stack([columns.get(metric, zero) for metric in metrics])))
        return [*found, *self._with_blocks(metrics)]

    def _with_blocks(self, metrics: Sequence[str]) -> Iterator[Factor]:
        """What no layer counts and is saved where a block goes."""
        for layer, others in self._counted.in_blocks.items() if self._depths else ():
            if layer not in self._depths:
                continue
            depth, goes = self._depths[layer]
            groups = np.flatnonzero(others.each)
            decisions = sorted({depth, *(number for number, group, _ in self._channels if group in groups)})
            points = self._combinations(decisions)
            saved = -others.counted(self.kept(points)) * goes[points[:, depth], None]
            columns = dict(zip(COUNTED, saved.T, strict=True))
            shape = tuple(int(self.space.counts[number]) for number in decisions)
            zero = np.zeros(len(points))
            yield Factor(tuple(decisions), np.stack([columns.get(metric, zero).reshape(shape) for metric in metrics]))

    def _combinations(self, decisions: Sequence[int]) -> IntArray:
        """Points with every combination of choices of those decisions, the greatest elsewhere; the last runs first."""
        shape = tuple(int(self.space.counts[number]) for number in decisions)
        combinations = int(np.prod(shape))
        points = np.repeat(self.space.greatest[None], combinations, axis=0)
        points[:, list(decisions)] = np.indices(shape).reshape(len(shape), combinations).T
        return points

    def resolutions(self, points: IntArray) -> IntArray:
        """Numbers of the points' resolutions, [P], or one for all; see `ModelGraph.resolution_number`."""
        return np.zeros((), dtype=np.int64) if self._resolution is None else self._sizes[points[:, self._resolution]]

    def kept(self, points: IntArray) -> IntArray:
        """Units that each channel group keeps, [P, groups]."""
        found = np.repeat(self._whole[None], len(points), axis=0)
        for number, group, choices in self._channels:
            found[:, group] = choices[points[:, number]]
        return found

    def treatments(self, points: IntArray) -> IntArray:
        """Numbers of the treatments of all layers, [P, layers], as `CountedPrices` has them."""
        found = np.full((len(points), len(self.space.graph.full_layers)), UNTREATED, dtype=np.int64)
        for layer in self._layers:
            combinations = points[:, layer.decisions] @ layer.strides
            numbers = layer.treatments[combinations]
            if (numbers < 0).any():
                for row in np.flatnonzero(numbers < 0).tolist():
                    layer.treatments[combinations[row]] = self._treatment(layer, points[row])
                numbers = layer.treatments[combinations]
            found[:, layer.index] = numbers
        for index, (decision, goes) in self._depths.items():
            found[goes[points[:, decision]], index] = LEFT_OUT
        return found

    def _decided(self, index: int, name: str) -> _Layer:
        numbers = [
            number
            for number, decision in enumerate(self.space.decisions)
            if name in decision.targets and decision.dimension != CHANNELS
        ]
        sizes = self.space.counts[numbers]
        strides = np.cumprod(np.append(1, sizes[:-1])) if len(sizes) else np.empty(0, dtype=np.int64)
        treatments = np.full(int(np.prod(sizes)), -1, dtype=np.int64)
        return _Layer(index, np.array(numbers, dtype=np.int64), np.asarray(strides, dtype=np.int64), treatments)

    def _treatment(self, layer: _Layer, point: IntArray) -> int:
        name = self.space.graph.full_layers[layer.index].name
        policy = self.space.fixed.get(name, LayerPolicy())
        for number in layer.decisions.tolist():
            policy = self.space.decisions[number].apply(policy, int(point[number]))
        return self._counted.treatment(policy)

    def _on_accelerator(self, treatments: IntArray) -> IntArray:
        """The same treatments, as the accelerator's prices number them."""
        prices = self._accelerator
        if prices is None:
            return treatments
        count = int(treatments.max(initial=-1)) + 1
        numbers = [
            LEFT_OUT if number == LEFT_OUT else prices.treatment(self._counted.policy(number))
            for number in range(count)
        ]
        return np.array(numbers, dtype=np.int64)[treatments]

    def _measured(self, point: IntArray, latency: Latency) -> float:
        key = point.tobytes()
        if key not in self._latencies:
            self._latencies[key] = latency(self.space.graph.apply(self.space.decode(point)))
        return self._latencies[key]
