"""Counts instead of measuring: multiply-accumulates, parameters and bytes."""

from backends.base import HardwareBackend, HardwareCost
from search_spaces.graph import ModelGraph


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
