"""What each layer of a network takes of a cost, so that a reader sees where a budget goes."""

from collections.abc import Callable, Mapping, Sequence

from automl.costs.accelerator import LayerUsage, usage_of
from backends.accelerators.backend import AcceleratorBackend
from backends.base import HardwareBackend
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BYTES, LayerSpec
from search_spaces.objective import COUNTED, MODELLED

_COUNTS: Mapping[str, Callable[[LayerSpec], float]] = {
    "macs": lambda layer: layer.macs,
    "params": lambda layer: layer.params,
    "weight_bytes": lambda layer: layer.weight_bytes + FLOAT32_BYTES * (layer.params - layer.weights),
}


def costs_by_layer(graph: ModelGraph, metrics: Sequence[str], backend: HardwareBackend) -> dict[str, dict[str, float]]:
    """Costs of a network's layers, by metric and by the name that a layer has in the uncompressed network.

    A layer that was taken apart costs what its parts do, one that is left out nothing. What belongs to no layer (batch
    norms, activations, products of attention) is left out, so a metric's layers come to at most the network's cost.

    Args:
        graph: the network, compressed or not.
        metrics: of `search_spaces.objective.Metric`; those that the backend does not know are left out.
        backend: an accelerator's for `MODELLED`, a latency table's for "latency_s".

    Raises:
        InputError: the backend cannot price the network.
    """
    owner = {part.name: name for name, parts in graph.parts.items() for part in parts}
    found: dict[str, dict[str, float]] = {}

    def add(metric: str, name: str, cost: float) -> None:
        costs = found.setdefault(metric, {spec.name: 0.0 for spec in graph.full_layers})
        if (layer := owner.get(name, name)) in costs:
            costs[layer] += cost

    for metric in metrics:
        if metric in COUNTED:
            for spec in graph.layers:
                add(metric, spec.name, _COUNTS[metric](spec))
        elif metric == "latency_s" and not isinstance(backend, AcceleratorBackend):
            cost = backend.estimate(graph)
            for name, share in cost.by_layer.items() if cost.measured else ():
                add(metric, name, share)
    modelled = [metric for metric in metrics if metric in MODELLED]
    if modelled and isinstance(backend, AcceleratorBackend):
        for layer in usage_of(backend, graph).layers:
            for metric in modelled:
                add(metric, layer.name, _modelled(layer, metric))
    return found


def _modelled(layer: LayerUsage, metric: str) -> float:
    return layer.energy_j if metric == "energy_j" else layer.latency_s
