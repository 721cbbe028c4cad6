"""What a policy costs, by metric: counted, summed from a table of measured operators, or by an accelerator's model."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.base import HardwareBackend, HardwareCost
from backends.counting import CountingBackend
from backends.cuts import NONE, Cuts
from backends.integers import Formats
from backends.point_prices import PointPrices
from backends.table_backend import asked_of
from envs.pricing import Cost, TabulatedCost
from search_spaces.graph import ModelGraph
from search_spaces.objective import COUNTED, MODELLED, Metric
from search_spaces.policy import CompressionPolicy
from search_spaces.resolution import Resolution
from search_spaces.space import SearchSpace

BACKEND = CountingBackend()


@runtime_checkable
class LatencyBackend(Protocol):
    """A backend that knows a latency for any number of units that the groups keep, such as `TableBackend`."""

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        """Every figure of the graph, `latency_s` and each layer's part of it among them."""

    def price(
        self,
        kept: Sequence[int],
        formats: Formats | None = None,
        resolution: Resolution | None = None,
        cuts: Cuts = NONE,
    ) -> float:
        """Seconds where group i keeps kept[i] units, layers have these formats, images this resolution, and some blocks
        and rims of kernels are gone; the same whenever asked."""


def price(
    graph: ModelGraph, policy: CompressionPolicy | None = None, backend: HardwareBackend = BACKEND
) -> dict[str, float]:
    """What the network costs under a policy (None: as it is), by metric.

    Raises:
        InputError: the policy is not one for this network.
    """
    return backend.estimate(graph if policy is None else graph.apply(policy)).as_metrics()


def cost_of(graph: ModelGraph, backend: HardwareBackend | LatencyBackend, metric: Metric) -> Cost | None:
    """What a search under a budget in that metric bounds with; None where it is counted."""
    if metric in COUNTED:
        return None
    if isinstance(backend, AcceleratorBackend) and metric in MODELLED:
        return _modelled_cost(graph, backend, MODELLED.index(metric))
    if isinstance(backend, LatencyBackend):
        return TabulatedCost(backend.price, graph, backend.estimate(graph).by_layer)
    return None


def _modelled_cost(graph: ModelGraph, backend: AcceleratorBackend, figure: int) -> TabulatedCost:
    """Seconds (0) or joules (1) of networks pruned further than the graph, their layers treated alike."""
    prices = backend.prices(graph)
    treatments = prices.treatments(graph)

    def price(kept: Sequence[int]) -> float:
        totals = prices.price([kept], [treatments], graph.resolution_number)
        return float((totals.latency_s, totals.energy_j)[figure][0])

    names = [spec.name for spec in graph.full_layers]
    costs = prices.by_layer([graph.kept], [treatments], resolutions=graph.resolution_number)
    shares = costs[0, :, figure].tolist()
    return TabulatedCost(price, graph, dict(zip(names, shares, strict=True)))


def point_prices(space: SearchSpace, backend: HardwareBackend | LatencyBackend) -> PointPrices:
    """What points of a space cost: counted, and what else the backend knows."""
    if isinstance(backend, AcceleratorBackend):
        return PointPrices(space, backend.prices(space.graph))
    if isinstance(backend, LatencyBackend):
        table = backend
        return PointPrices(space, latency=lambda graph: table.price(*asked_of(graph)))
    return PointPrices(space)


def pricing_backend(accelerator: str | Mapping[str, Any] | None) -> HardwareBackend:
    """What prices policies where nothing is measured: the model of an accelerator, or counting alone.

    Args:
        accelerator: see `backends.accelerators.catalogue.load`.

    Raises:
        InputError: there is no such accelerator, or its description breaks a rule.
    """
    return BACKEND if accelerator is None else accelerator_backend(accelerator)


def accelerator_backend(accelerator: str | Mapping[str, Any]) -> AcceleratorBackend:
    """The model of an accelerator; see `pricing_backend`."""
    found = load(accelerator)
    return AcceleratorBackend(accelerator if isinstance(accelerator, str) else found.description.title, found)
