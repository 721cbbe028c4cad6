"""Smaller kernels: of a convolution's kernel the middle stays, and as much padding goes as the kernel loses."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec


def crop_kernels(network: nn.Module, graph: ModelGraph) -> None:
    """Crop the kernels that a policy says, in place.

    Args:
        network: with all its layers whole.
        graph: of the network that is wanted.
    """
    whole = {spec.name: spec for spec in graph.full_layers}
    for name, policy in graph.treatments:
        if policy.kernel is not None:
            crop(network.get_submodule(name), whole[name].cropped(policy.kernel))


def crop(convolution: Any, wanted: LayerSpec) -> None:
    """Leave the middle of a convolution's kernel, in place, as `LayerSpec.cropped` says."""
    weight = convolution.weight
    cropped = middle(weight.detach(), wanted.kernel).clone()
    convolution.weight = nn.Parameter(cropped, requires_grad=weight.requires_grad)
    convolution.padding, convolution.kernel_size = wanted.padding, wanted.kernel


def middle(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """The middle of kernels, [out, in, *kernel], as a view of the weights."""
    for axis, side in enumerate(kernel, 2):
        weight = weight.narrow(axis, (weight.shape[axis] - side) // 2, side)
    return weight
