"""Smaller kernels: of a convolution's kernel the middle stays, and as much padding goes as the kernel loses."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from automl.compression.elastic import Elastic, middle
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec


def cropped_layers(graph: ModelGraph) -> Iterator[LayerSpec]:
    """The layers whose kernels a policy crops, with all their channels."""
    whole = {spec.name: spec for spec in graph.full_layers}
    for name, policy in graph.treatments:
        if policy.kernel is not None:
            yield whole[name].cropped(policy.kernel)


def crop_kernels(network: nn.Module, graph: ModelGraph, elastic: Elastic | None = None) -> None:
    """Crop the kernels that a policy says, in place.

    Args:
        network: with all its kernels whole.
        graph: of the network that is wanted.
        elastic: what a supernet has learned to make of the middle of a kernel.
    """
    for wanted in cropped_layers(graph):
        crop(network.get_submodule(wanted.name), wanted, elastic)


def crop(convolution: Any, wanted: LayerSpec, elastic: Elastic | None = None) -> None:
    """Leave the middle of a convolution's kernel, in place, as `LayerSpec.cropped` says."""
    weight = convolution.weight
    whole = weight.detach()
    cropped = (middle(whole, wanted.kernel) if elastic is None else elastic.cropped(whole, wanted)).clone()
    convolution.weight = nn.Parameter(cropped, requires_grad=weight.requires_grad)
    convolution.padding, convolution.kernel_size = wanted.padding, wanted.kernel
