"""What a compressed network costs on hardware: the interface that every backend shares."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph


@dataclass(frozen=True, slots=True)
class HardwareCost:
    """Cost of one forward pass, batch 1. What a backend does not know is None.

    Attributes:
        macs: multiply-accumulates of convolution and linear layers, bias not counted.
        params: number of weights, biases and batch-norm affine terms.
        weight_bytes: bytes of the stored weights.
        latency_s: seconds of one inference.
        energy_j: joules of one inference.
        peak_activation_bytes: the most bytes of activations that live at once.
        by_layer: each layer's share of the backend's leading figure (MACs when counting, seconds when timing).
        measured: whether latency_s was read off a clock (True) or modelled (False).
        backend: name of the backend that says so.
    """

    macs: int
    params: int
    weight_bytes: int
    latency_s: float | None = None
    energy_j: float | None = None
    peak_activation_bytes: int | None = None
    by_layer: Mapping[str, float] = field(default_factory=dict)
    measured: bool = False
    backend: str = ""

    def as_metrics(self) -> dict[str, float]:
        """The figures that are known, by metric name (see `search_spaces.objective.Metric`). A latency that was not
        measured is a metric of its own."""
        figures = {
            "macs": self.macs,
            "params": self.params,
            "weight_bytes": self.weight_bytes,
            "latency_s" if self.measured else "modelled_latency_s": self.latency_s,
            "energy_j": self.energy_j,
        }
        return {metric: float(value) for metric, value in figures.items() if value is not None}


class HardwareBackend(ABC):
    """Prices a network from its graph alone: no compiler, no tensor, fast enough for every step of an episode."""

    name: str

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why this backend cannot price the graph; empty where it can. It refuses rather than flatters."""
        return ()

    def require(self, graph: ModelGraph) -> None:
        """InputError with the first of the reasons, and how many there are, where `supports` gives any."""
        reasons = self.supports(graph)
        if reasons:
            more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
            raise InputError(f"backend {self.name!r} cannot price the network: {reasons[0]}{more}")

    @abstractmethod
    def estimate(self, graph: ModelGraph) -> HardwareCost:
        """Cost of one forward pass of the graph, batch 1.

        Raises:
            InputError: the backend cannot price the graph, see `supports`.
        """

    def estimate_many(self, graphs: Sequence[ModelGraph]) -> list[HardwareCost]:
        """What `estimate` says of each graph; a backend that gains from knowing them all at once overrides this.

        Raises:
            InputError: the backend cannot price one of them, see `supports`.
        """
        return [self.estimate(graph) for graph in graphs]
