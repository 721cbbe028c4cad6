"""Counts instead of measuring: multiply-accumulates, parameters and bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from backends.base import HardwareBackend, HardwareCost
from backends.layer_prices import LEFT_OUT, Asked, FloatArray, IntArray, LayerPrices, linear_forms
from search_spaces.blocks import residual_blocks
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BYTES, LayerSpec
from search_spaces.objective import COUNTED
from search_spaces.operators import Operator


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


@dataclass(frozen=True)
class _Others:
    """Parameters of operators that no layer counts: a linear form in the units kept.

    Attributes:
        each: for every unit of each channel group, [groups].
        fixed: whatever is kept.
    """

    each: IntArray
    fixed: int

    @classmethod
    def of(cls, operators: Sequence[Operator], groups: int) -> "_Others":
        """Of some of a network's operators."""
        shrinking = [operator for operator in operators if operator.channel_params]
        matrix, fixed = linear_forms([operator.extent for operator in shrinking], groups)
        params = np.array([operator.channel_params for operator in shrinking], dtype=np.int64)
        return cls(matrix @ params, int(fixed @ params) + sum(operator.fixed_params for operator in operators))

    def counted(self, kept: IntArray) -> FloatArray:
        """`COUNTED` of policies that keep so many units, [policies, 3]."""
        params = kept @ self.each + self.fixed
        return np.stack([np.zeros_like(params), params, FLOAT32_BYTES * params], axis=1).astype(np.float64)


class CountedPrices(LayerPrices):
    """`COUNTED` of any policy, the same as `CountingBackend` says of its graph.

    Args:
        graph: the network; what it keeps, how it is treated and its resolution do not matter.
    """

    def __init__(self, graph: ModelGraph) -> None:
        super().__init__(graph, len(COUNTED))
        self._others = _Others.of(graph.full_operators, len(graph.groups))

    @cached_property
    def in_blocks(self) -> Mapping[int, _Others]:
        """What no layer counts and a residual block takes with it, by number of a layer that goes with it."""
        groups = len(self.graph.groups)
        return {number: _Others.of(operators, groups) for number, operators in _by_block(self.graph).items()}

    def figures(self, layers: Sequence[Asked]) -> list[list[FloatArray | str]]:
        """Multiply-accumulates, parameters and bytes of layers."""
        return [[_counted(each.parts)] for each in layers]

    def price(self, kept: npt.ArrayLike, treatments: npt.ArrayLike, resolutions: npt.ArrayLike = 0) -> FloatArray:
        """`COUNTED` of policies, [policies, 3]; arguments as of `by_layer`."""
        units, treated = np.asarray(kept, dtype=np.int64), np.asarray(treatments, dtype=np.int64)
        found: FloatArray = self.by_layer(units, treated, resolutions=resolutions).sum(axis=1)
        found += self._others.counted(units)
        if not (treated == LEFT_OUT).any():
            return found
        for layer, others in self.in_blocks.items():
            gone = treated[:, layer] == LEFT_OUT
            if gone.any():
                found[gone] -= others.counted(units[gone] if len(units) > 1 else units)
        return found


def _by_block(graph: ModelGraph) -> dict[int, list[Operator]]:
    """Operators with parameters that go with a residual block and are no layer, by number of a layer of that block.

    Of blocks inside of each other an operator goes with the smallest, and that one's layer stands for it.
    """
    numbers = {layer.name: number for number, layer in enumerate(graph.full_layers)}
    found: dict[int, list[Operator]] = {}
    seen: set[str] = set()
    covered: set[str] = set()
    for block in sorted(residual_blocks(graph), key=lambda each: len(each.operators)):
        names = set(block.operators) - seen
        own = [layer for layer in block.layers if layer not in covered]
        seen |= names
        covered |= set(block.layers)
        operators = [
            each for each in graph.full_operators if each.name in names and (each.channel_params or each.fixed_params)
        ]
        if operators:
            found.setdefault(numbers[(own or block.layers)[0]], []).extend(operators)
    return found


def _counted(parts: Sequence[LayerSpec]) -> FloatArray:
    macs = sum(part.macs for part in parts)
    params = sum(part.params for part in parts)
    size = sum(part.weight_bytes + FLOAT32_BYTES * (part.params - part.weights) for part in parts)
    return np.array([macs, params, size], dtype=np.float64)
