"""The shape of a compressed network: layers taken apart, quantisers where a policy asks for them. No data is needed,
so a network that was saved is built by the same steps and given its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from automl.compression.blocks import without_blocks
from automl.compression.kernels import crop_kernels
from automl.compression.quantisation.activations import ActivationQuantiser, activation_quantiser
from automl.compression.sites import Site, find_sites
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.factorisations import INPUT_MATRIX, input_factor, part_name
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.policy import CompressionPolicy, LayerPolicy
from search_spaces.recurrent import with_parameters

QUANTISERS = "activation_quantisers"
"""The submodule that holds them; see `quantiser_name`."""


def build(
    network: PrunableNetwork, units: Mapping[str, npt.ArrayLike], layers: Mapping[str, LayerPolicy]
) -> fx.GraphModule:
    """A compressed network that waits for its tensors.

    Args:
        network: the captured one.
        units: by channel group, the rising indices of the units that stay; a group that is absent keeps all.
        layers: what is done to layers beside pruning, and to blocks.

    Raises:
        InputError: that does not fit the network.
    """
    graph = wanted(network.graph, units, layers)
    module = without_blocks(network.prune(units), graph.removed)
    shape(module, graph)
    return module.eval()


def wanted(graph: ModelGraph, units: Mapping[str, npt.ArrayLike], layers: Mapping[str, LayerPolicy]) -> ModelGraph:
    """The graph of what `build` makes of the whole network; arguments as there."""
    found = graph.apply(CompressionPolicy({name: replace(layer, keep=None) for name, layer in layers.items()}))
    kept = [len(np.atleast_1d(units[group.name])) if group.name in units else group.width for group in graph.groups]
    return found.with_kept(kept)


def shape(network: fx.GraphModule, graph: ModelGraph) -> None:
    """Give a pruned network the modules that its graph's treatments ask for, in place; their tensors mean nothing yet.

    Args:
        network: with the channels that the graph keeps.
        graph: of the network that is wanted.

    Raises:
        InputError: a layer cannot be treated so.
    """
    layers = {layer.name: layer for layer in graph.layers}
    crop_kernels(network, graph)
    for name, policy in graph.treatments:
        if policy.factors is not None:
            take_apart(network, name, [_module(layers[part.name]) for part in graph.parts[name]])
    formats = {name: layer.activation_format for name, layer in layers.items()}
    quantisers = {name: activation_quantiser(each) for name, each in formats.items() if each is not None}
    install_quantisers(network, find_sites(network, quantisers), quantisers)


def _module(layer: LayerSpec) -> nn.Module:
    """A module like the layer."""
    if layer.kind == "linear":
        return nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias)
    convolution: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(layer.kernel) - 1]
    sizes = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "bias")}
    made: nn.Module = convolution(layer.in_channels, layer.out_channels, layer.kernel, **sizes)
    return made


def check_readable(site: Site) -> Site:
    """InputError where what a layer reads never leaves it, so that no quantiser can come in between."""
    if not site.feeds:
        raise InputError(
            f"layer {site.layer!r} reads a state that never leaves its module, so its activations stay float32; leave "
            "out its activation_bits"
        )
    return site


def quantiser_name(layer: str) -> str:
    """Qualified name of the quantiser of what a layer reads: "a.b_c" -> "a__b_uc", and no two layers have the same."""
    return f"{QUANTISERS}.{layer.replace('_', '_u').replace('.', '__')}"


def take_apart(network: fx.GraphModule, layer: str, parts: Sequence[nn.Module]) -> None:
    """Put a sequence of layers in the place of one, in place: they lie under its name and run one after the other.

    Of a recurrent layer's input matrix the first part runs before the recurrent layer, which takes the weight of the
    second for its own.

    Raises:
        InputError: the layer is no module of its own, nor such a matrix.
    """
    owner, _, matrix = layer.rpartition(".")
    if matrix == INPUT_MATRIX and (calls := _calls(network, owner)):
        recurrent: Any = network.get_submodule(owner)
        factor, rest = parts
        network.set_submodule(owner, with_parameters(recurrent, {**recurrent._parameters, matrix: rest.weight}))
        network.add_submodule(input_factor(layer), factor)
        for call in calls:
            sequence, *states = call.args
            with network.graph.inserting_before(call):
                call.args = (network.graph.call_module(input_factor(layer), (sequence,)), *states)
        network.recompile()
        return
    calls = _calls(network, layer)
    if not calls:
        raise InputError(f"layer {layer!r} is part of another module and cannot be taken apart; leave out its rank")
    network.delete_submodule(layer)
    network.add_submodule(layer, nn.Sequential(*parts))
    for call in calls:
        value = call.all_input_nodes[0]
        with network.graph.inserting_before(call):
            for index in range(len(parts)):
                value = network.graph.call_module(part_name(layer, index), (value,))
        call.replace_all_uses_with(value)
        network.graph.erase_node(call)
    network.recompile()


def _calls(network: fx.GraphModule, module: str) -> list[fx.Node]:
    return [node for node in network.graph.nodes if node.op == "call_module" and node.target == module]


def install_quantisers(
    network: fx.GraphModule, sites: Mapping[str, Site], quantisers: Mapping[str, ActivationQuantiser]
) -> None:
    """Have layers read quantised values, in place.

    Args:
        network: that the sites are in.
        sites: of the layers, by name.
        quantisers: by name of the layer that reads what they give.

    Raises:
        InputError: what the layer reads never leaves it.
    """
    for layer, quantiser in quantisers.items():
        site = check_readable(sites[layer])
        name = quantiser_name(layer)
        network.add_submodule(name, quantiser)
        for call, feed in zip(site.calls, site.feeds, strict=True):
            with network.graph.inserting_before(call):
                quantised = network.graph.call_module(name, (feed,))
            call.replace_input_with(feed, quantised)
    network.recompile()
