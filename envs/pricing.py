"""What pruned networks cost, thousands of them a second: counted by arithmetic, or told by whoever holds a table."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BYTES, Extent
from search_spaces.objective import Metric

FloatArray = npt.NDArray[np.float64]
Price = Callable[[Sequence[int]], float]
"""Cost of a network by the units that each channel group keeps."""


class Cost(Protocol):
    """What a budget bounds, as a function of the units that each channel group keeps."""

    def __call__(self, kept: npt.ArrayLike) -> float:
        """Cost where group i keeps kept[i] units."""

    def affordable(self, kept: FloatArray, group: int, choices: FloatArray, limit: float) -> int:
        """How many choices of one group there are up to the largest found to cost no more than the limit.

        Args:
            kept: units of the other groups.
            group: whose units are chosen.
            choices: numbers of units, rising.
            limit: in the unit of the cost.

        Returns:
            n such that choices[n - 1] costs no more than the limit; 0 where not even the first is known to.
        """

    def by_layer(self) -> FloatArray:
        """Share-giving cost of each layer of the uncompressed network, in execution order, [layers]."""


class CountedCost:
    """MACs, parameters or bytes of a network as a quadratic form in the units that its channel groups keep.

    A convolution costs in x out channels, each a sum over groups, so every count is `z' Q z` with `z = (1, kept)`.
    Whole numbers of units give the exact count (float64 holds integers to 2^53), the same as
    `CountingBackend.estimate(graph.with_kept(kept))`; real numbers give what AMC's Algorithm 1 computes with.

    Args:
        graph: the uncompressed network.
        metric: "macs", "params" or "weight_bytes".

    Raises:
        InputError: a metric that cannot be counted.
    """

    def __init__(self, graph: ModelGraph, metric: Metric) -> None:
        if metric not in ("macs", "params", "weight_bytes"):
            raise InputError(f"a budget counts macs, params or weight_bytes, got metric {metric!r}")
        form = np.zeros((len(graph.groups) + 1, len(graph.groups) + 1))
        for spec in graph.layers:
            outputs = self._vector(graph, spec.out_extent)
            filters = prod(spec.kernel) * (spec.positions if metric == "macs" else 1)
            if spec.depthwise:
                form[0] += filters * outputs
            else:
                form += np.outer(self._vector(graph, spec.in_extent), outputs) * (filters / spec.groups)
            if spec.bias and metric != "macs":
                form[0] += outputs
        if metric != "macs":
            for operator in graph.full_operators:
                form[0, 0] += operator.fixed_params
                if operator.channel_params:
                    form[0] += operator.channel_params * self._vector(graph, operator.extent)
        if metric == "weight_bytes":
            form *= FLOAT32_BYTES
        self._form: FloatArray = (form + form.T) / 2
        self._by_layer = np.array([spec.macs if metric == "macs" else spec.params for spec in graph.full_layers])

    def __call__(self, kept: npt.ArrayLike) -> float:
        """Cost where group i keeps kept[i] units."""
        units = np.concatenate(([1.0], np.asarray(kept, dtype=np.float64)))
        return float(units @ self._form @ units)

    def affordable(self, kept: FloatArray, group: int, choices: FloatArray, limit: float) -> int:
        """How many choices cost no more than the limit; the cost never falls as a group gains units."""
        c0, c1, c2 = self.along(kept, group)
        return int(np.count_nonzero(c0 + c1 * choices + c2 * choices**2 <= limit))

    def by_layer(self) -> FloatArray:
        """Each layer's MACs; its parameters where the budget is in parameters or bytes."""
        return self._by_layer.astype(np.float64)

    def along(self, kept: FloatArray, group: int) -> tuple[float, float, float]:
        """Coefficients (c0, c1, c2) of the cost as a polynomial in the units of one group, the others as in `kept`."""
        units = np.concatenate(([1.0], kept))
        units[group + 1] = 0.0
        gradient = self._form @ units
        return float(units @ gradient), 2.0 * float(gradient[group + 1]), float(self._form[group + 1, group + 1])

    @staticmethod
    def _vector(graph: ModelGraph, extent: Extent) -> FloatArray:
        """The extent as a linear form in `z`."""
        vector = np.zeros(len(graph.groups) + 1)
        vector[0] = extent.fixed
        for group, entries in extent.terms:
            vector[group + 1] += entries
        return vector


class TightestCost:
    """Several costs under a budget each, as one: the first cost's limit, times the share that is spent of the budget
    of which the largest share is. So it is within the first limit where all costs are within theirs.

    Args:
        costs: of the same network.
        limits: of each.
    """

    def __init__(self, costs: Sequence[Cost], limits: Sequence[float]) -> None:
        self._costs = [(cost, limit) for cost, limit in zip(costs, limits, strict=True)]
        self._limit = limits[0]

    def __call__(self, kept: npt.ArrayLike) -> float:
        """Cost where group i keeps kept[i] units."""
        return self._limit * max(cost(kept) / limit for cost, limit in self._costs)

    def affordable(self, kept: FloatArray, group: int, choices: FloatArray, limit: float) -> int:
        """How many choices all costs allow."""
        share = limit / self._limit
        return min(cost.affordable(kept, group, choices, share * most) for cost, most in self._costs)

    def by_layer(self) -> FloatArray:
        """The mean of the layers' shares of each cost, in the unit of the first limit."""
        shares = [cost.by_layer() / limit for cost, limit in self._costs]
        return np.asarray(self._limit * np.mean(shares, axis=0))


class TabulatedCost:
    """A cost that is looked up, such as the latency of a network by a table of measured operators.

    Looking up what is new may mean measuring it, so few networks are priced: a bisection instead of every choice.

    Args:
        price: cost of the network by the units that each group keeps; the same for the same units, whenever asked.
        graph: the uncompressed network.
        by_layer: each layer's part of the uncompressed cost, by name; layers that are left out cost nothing.
    """

    def __init__(self, price: Price, graph: ModelGraph, by_layer: Mapping[str, float]) -> None:
        self._price = price
        self._by_layer = np.array([by_layer.get(spec.name, 0.0) for spec in graph.full_layers], dtype=np.float64)

    def __call__(self, kept: npt.ArrayLike) -> float:
        """Cost where group i keeps kept[i] units, whole numbers."""
        return self._price(tuple(int(units) for units in np.asarray(kept)))

    def affordable(self, kept: FloatArray, group: int, choices: FloatArray, limit: float) -> int:
        """As `Cost` says, by bisection.

        A measured cost need not rise with every unit, so a larger choice than the one found may be affordable, too;
        the one found has been priced, and is.
        """
        trial = kept.copy()

        def fits(index: int) -> bool:
            trial[group] = choices[index]
            return self(trial) <= limit

        if fits(len(choices) - 1):
            return len(choices)
        if not fits(0):
            return 0
        low, high = 0, len(choices) - 1  # choices[low] was found to fit, choices[high] not to
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low + 1

    def by_layer(self) -> FloatArray:
        """Each layer's part of the uncompressed network's cost."""
        return self._by_layer
