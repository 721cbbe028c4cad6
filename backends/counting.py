"""Counts instead of measuring: multiply-accumulates, parameters and bytes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from backends.base import HardwareBackend, HardwareCost
from backends.layer_prices import Asked, FloatArray, LayerPrices, linear_forms
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BYTES, LayerSpec
from search_spaces.objective import COUNTED


class CountingBackend(HardwareBackend):
    """MACs, parameters and float32 bytes, exact; knows no latency."""

    name = "counting"

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        """Counts of the graph, each layer's share in MACs."""
        return HardwareCost(
            macs=graph.macs,
            params=graph.params,
            weight_bytes=graph.weight_bytes,
            by_layer={layer.name: float(layer.macs) for layer in graph.layers},
            backend=self.name,
        )


class CountedPrices(LayerPrices):
    """`COUNTED` of any policy that removes no block, the same as `CountingBackend` says of its graph.

    Args:
        graph: the network; what it keeps, how it is treated and its resolution do not matter.
    """

    def __init__(self, graph: ModelGraph) -> None:
        super().__init__(graph, len(COUNTED))
        others = [operator for operator in graph.full_operators if operator.channel_params]
        matrix, fixed = linear_forms([operator.extent for operator in others], len(graph.groups))
        each = np.array([operator.channel_params for operator in others], dtype=np.int64)
        self._other_params = matrix @ each
        self._fixed_params = int(fixed @ each) + sum(operator.fixed_params for operator in graph.full_operators)

    def figures(self, layers: Sequence[Asked]) -> list[list[FloatArray | str]]:
        """Multiply-accumulates, parameters and bytes of layers."""
        return [[_counted(each.parts)] for each in layers]

    def price(self, kept: npt.ArrayLike, treatments: npt.ArrayLike, resolutions: npt.ArrayLike = 0) -> FloatArray:
        """`COUNTED` of policies, [policies, 3]; arguments as of `by_layer`."""
        found: FloatArray = self.by_layer(kept, treatments, resolutions=resolutions).sum(axis=1)
        params = np.asarray(kept, dtype=np.int64) @ self._other_params + self._fixed_params
        found[:, 1] += params
        found[:, 2] += FLOAT32_BYTES * params
        return found


def _counted(parts: Sequence[LayerSpec]) -> FloatArray:
    macs = sum(part.macs for part in parts)
    params = sum(part.params for part in parts)
    size = sum(part.weight_bytes + FLOAT32_BYTES * (part.params - part.weights) for part in parts)
    return np.array([macs, params, size], dtype=np.float64)
