"""Where the layers of a graph are in a network built from it: their weights, their calls, and what they read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx, nn

from search_spaces.errors import InputError
from search_spaces.template import FUNCTIONS, Weighted, arguments, op_name


@dataclass(frozen=True)
class Site:
    """A layer in a network.

    Attributes:
        layer: its name in the graph.
        weight: qualified name of its weight.
        calls: the nodes that run it.
        feeds: for each call the node whose value it reads; empty where that never leaves the layer (the hidden state
            of a recurrent one).
    """

    layer: str
    weight: str
    calls: tuple[fx.Node, ...]
    feeds: tuple[fx.Node, ...]


def find_sites(network: fx.GraphModule, layers: Iterable[str]) -> dict[str, Site]:
    """Where those layers are.

    Raises:
        InputError: one of them is not there, or computes its weights.
    """
    calls = _calls(network)
    return {layer: _site(network, layer, calls) for layer in layers}


def _calls(network: fx.GraphModule) -> Mapping[str, list[fx.Node]]:
    """The nodes that read each module's or each free weight's tensor, by the name of either."""
    found: dict[str, list[fx.Node]] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            found.setdefault(str(node.target), []).append(node)
        elif op_name(node) in FUNCTIONS:
            weight = arguments(node)["weight"]
            if isinstance(weight, fx.Node) and weight.op == "get_attr":
                found.setdefault(str(weight.target), []).append(node)
    return found


def _site(network: fx.GraphModule, layer: str, calls: Mapping[str, list[fx.Node]]) -> Site:
    if layer in calls and isinstance(network.get_submodule(layer), Weighted):
        return _read(layer, f"{layer}.weight", calls[layer])
    for weight in (f"{layer}.weight", f"{layer}_weight"):  # of a function
        if weight in calls:
            return _read(layer, weight, calls[weight])
    owner, _, matrix = layer.rpartition(".")
    if owner in calls and isinstance(network.get_submodule(owner), nn.RNNBase):
        first = matrix.startswith("weight_ih_l0")
        return _read(layer, layer, calls[owner]) if first else Site(layer, layer, tuple(calls[owner]), ())
    raise InputError(
        f"layer {layer!r} computes its weights in each call, so nothing can be done to them; leave it out of the policy"
    )


def _read(layer: str, weight: str, calls: list[fx.Node]) -> Site:
    return Site(layer, weight, tuple(calls), tuple(call.all_input_nodes[0] for call in calls))


def weight_of(network: nn.Module, site: Site) -> nn.Parameter:
    """[out, in / groups, *kernel] the weight of a layer."""
    return network.get_parameter(site.weight)
