"""Prices thousands of pruned networks a second, without building the graph of any of them."""

from math import prod

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError
from search_spaces.graph import FLOAT32_BYTES, Extent, ModelGraph
from search_spaces.objective import Metric

FloatArray = npt.NDArray[np.float64]


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

    def __call__(self, kept: npt.ArrayLike) -> float:
        """Cost where group i keeps kept[i] units."""
        units = np.concatenate(([1.0], np.asarray(kept, dtype=np.float64)))
        return float(units @ self._form @ units)

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
