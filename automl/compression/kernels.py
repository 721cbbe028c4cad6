"""Smaller kernels: of a convolution's kernel the middle stays, and as much padding goes as the kernel loses."""

from typing import Any

from torch import Tensor, nn

from search_spaces.graph import ModelGraph


def crop_kernels(network: nn.Module, graph: ModelGraph) -> None:
    """Crop the kernels that a policy says, in place.

    Args:
        network: with all its layers whole.
        graph: of the network that is wanted.
    """
    for name, policy in graph.treatments:
        if policy.kernel is not None:
            crop(network.get_submodule(name), policy.kernel)


def crop(convolution: Any, kernel: int) -> None:
    """Leave the middle of a convolution's kernel, in place; see `LayerSpec.cropped` for what can be."""
    weight = convolution.weight
    sides = weight.shape[2:]
    convolution.weight = nn.Parameter(middle(weight.detach(), kernel).clone(), requires_grad=weight.requires_grad)
    margins = [(side - kernel) // 2 for side in sides]
    pairs = zip(convolution.padding, convolution.dilation, margins, strict=True)
    convolution.padding = tuple(pad - dilation * margin for pad, dilation, margin in pairs)
    convolution.kernel_size = (kernel,) * len(sides)


def middle(weight: Tensor, kernel: int) -> Tensor:
    """The middle of kernels, [out, in, kernel, ...], as a view of the weights."""
    for axis in range(2, weight.ndim):
        weight = weight.narrow(axis, (weight.shape[axis] - kernel) // 2, kernel)
    return weight
