"""An accelerator as a backend: prices a network, or a batch of policies, from its graph alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from backends.accelerators.accelerator import Accelerator, Usage
from backends.accelerators.pricing import PolicyPrices
from backends.accelerators.workloads import Workload, Workloads
from backends.base import HardwareBackend, HardwareCost
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph


class AcceleratorBackend(HardwareBackend):
    """Latency and energy of one image, modelled; layers run one after the other.

    Operators between layers (sums, activations, pools) are taken to happen on the way to memory, as in the sources of
    all that is modelled here.

    Args:
        name: of the accelerator.
        accelerator: see `catalogue.load`.
        activation_densities: share of the values that a layer reads that are not zero, by layer, where it was measured.
    """

    def __init__(
        self, name: str, accelerator: Accelerator[Any], activation_densities: Mapping[str, float] | None = None
    ) -> None:
        self.name = name
        self.accelerator = accelerator
        self._densities = activation_densities
        self._prices: dict[tuple[object, ...], PolicyPrices] = {}

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why the hardware cannot run the network, layer by layer, then products of attention."""
        prices = self.prices(graph)
        reasons = [*(prices.refusal(spec) for spec in graph.layers), *prices.product_refusals(graph)]
        return tuple(reason for reason in reasons if reason)

    def prices(self, graph: ModelGraph) -> PolicyPrices:
        """Prices of all policies of the graph's network, remembered."""
        key = graph.digest, *(sizes.resolution for sizes in graph.resolutions)
        if key not in self._prices:
            self._prices[key] = PolicyPrices(graph, self.accelerator, self._densities)
        return self._prices[key]

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        """Latency and energy, with each layer's part of the seconds.

        Raises:
            InputError: see `supports`.
        """
        return self.estimate_many([graph])[0]

    def estimate_many(self, graphs: Sequence[ModelGraph]) -> list[HardwareCost]:
        """What `estimate` says of each."""
        found = []
        for graph in graphs:
            prices = self.prices(graph)
            try:
                totals = prices.price([graph.kept], [prices.treatments(graph)], graph.resolution_number)
            except InputError as error:
                raise InputError(f"backend {self.name!r} cannot price the network: {error}") from None
            names = [spec.name for spec in graph.full_layers]
            found.append(
                HardwareCost(
                    macs=graph.macs,
                    params=graph.params,
                    weight_bytes=graph.weight_bytes,
                    latency_s=float(totals.latency_s[0]),
                    energy_j=float(totals.energy_j[0]),
                    by_layer=dict(zip(names, totals.by_layer[0, :, 0].tolist(), strict=True)),
                    backend=self.name,
                )
            )
        return found

    def usage(self, graph: ModelGraph) -> tuple[list[str], Workloads, Usage]:
        """What every layer and product of attention of a network takes: names, what they are, what they take.

        Raises:
            InputError: see `supports`.
        """
        self.require(graph)
        prices = self.prices(graph)
        layers = graph.layers
        names = [spec.name for spec in layers]
        chains = {parts[0].name: len(parts) for parts in graph.parts.values()}
        rows: list[Workload] = []
        while len(rows) < len(layers):
            at = len(rows)
            rows += prices.chain(layers[at : at + chains.get(layers[at].name, 1)])
        works = Workloads.of(rows)
        for name, products in prices.products(graph).items():
            names += [name] * len(products)
            works = works.joined(products)
        works = self.accelerator.fitted(works)
        return names, works, self.accelerator.run(works)
