"""What the points of a search space cost, by metric: counted, on an accelerator, or by a latency table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.accelerators.pricing import PolicyPrices
from backends.counting import COUNTED, CountedPrices
from backends.layer_prices import UNTREATED, FloatArray, IntArray
from search_spaces.graph import ModelGraph
from search_spaces.policy import LayerPolicy
from search_spaces.space import CHANNELS, SearchSpace

Latency = Callable[[ModelGraph], float]
"""Seconds of a network by a table of measured operators."""


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
        self._channels = [
            (number, groups[decision.targets[0]], np.array(decision.choices, dtype=np.int64))
            for number, decision in enumerate(space.decisions)
            if decision.dimension == CHANNELS
        ]
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
        kept, treatments = self.kept(chosen), self.treatments(chosen)
        found = dict(zip(COUNTED, self._counted.price(kept, treatments).T, strict=True))
        if self._accelerator is not None:
            totals = self._accelerator.price(kept, self._on_accelerator(treatments))
            found |= {"modelled_latency_s": totals.latency_s, "energy_j": totals.energy_j}
        if self._latency is not None:
            found["latency_s"] = np.array([self._measured(point, self._latency) for point in chosen])
        return found

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
        numbers = [prices.treatment(self._counted.policy(number)) for number in range(int(treatments.max()) + 1)]
        return np.array(numbers, dtype=np.int64)[treatments]

    def _measured(self, point: IntArray, latency: Latency) -> float:
        key = point.tobytes()
        if key not in self._latencies:
            self._latencies[key] = latency(self.space.graph.apply(self.space.decode(point)))
        return self._latencies[key]
