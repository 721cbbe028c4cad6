"""What a policy costs, by metric: counted, or with the latency that a table of measured operators gives."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from backends.base import HardwareBackend, HardwareCost
from backends.counting import CountingBackend
from envs.pricing import Cost, TabulatedCost
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy

BACKEND = CountingBackend()


@runtime_checkable
class LatencyBackend(Protocol):
    """A backend that knows a latency for any number of units that the groups keep, such as `TableBackend`."""

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        """Every figure of the graph, `latency_s` and each layer's part of it among them."""

    def price(self, kept: Sequence[int]) -> float:
        """Seconds where group i keeps kept[i] units; the same whenever asked."""


def price(
    graph: ModelGraph, policy: CompressionPolicy | None = None, backend: HardwareBackend = BACKEND
) -> dict[str, float]:
    """What the network costs under a policy (None: as it is), by metric.

    Raises:
        InputError: the policy is not one for this network.
    """
    return backend.estimate(graph if policy is None else graph.apply(policy)).as_metrics()


def latency_cost(graph: ModelGraph, backend: HardwareBackend | LatencyBackend) -> Cost | None:
    """What a search under a latency budget bounds with; None where the backend only counts."""
    if not isinstance(backend, LatencyBackend):
        return None
    return TabulatedCost(backend.price, graph, backend.estimate(graph).by_layer)
