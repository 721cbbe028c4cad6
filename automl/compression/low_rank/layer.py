"""From a layer to the sequence of smaller layers in its place."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from automl.compression.low_rank.base import as_ranks, check_finite
from automl.compression.low_rank.registry import METHODS
from search_spaces.errors import InputError
from search_spaces.factorisations import Rank, factors
from search_spaces.layers import Extent, LayerSpec

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_BY_DIMENSIONS: tuple[type[Layer], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def factorise(module: nn.Module, method: str, rank: int | Rank, *, must_save: bool = True) -> nn.Sequential:
    """The sequence of smaller layers that comes closest to a layer; there are no activations in between.

    Args:
        module: convolution or linear layer, which stays untouched.
        method: one of `METHODS`.
        rank: see `search_spaces.factorisations.factors`, which gives the parts' shapes.
        must_save: whether there have to be fewer weights than before.

    Returns:
        Plain layers named "0", "1" and so on with tensors of their own, the bias on the last. Weights are computed in
        float64; their type, device, mode and whether they are trained are the layer's.

    Raises:
        InputError: no such layer, weights that are not finite, or see `factors`.
    """
    layer = _plain(module)
    parts = factors(layer_spec(layer), method, as_ranks(rank), must_save=must_save)
    check_finite(layer.weight)
    weights = METHODS[method].weights(layer.weight.detach().double(), as_ranks(rank))
    built = [_build(part, weight, layer) for part, weight in zip(parts, weights, strict=True)]
    return nn.Sequential(*built).train(layer.training)


def layer_spec(module: nn.Module, name: str = "layer") -> LayerSpec:
    """A layer on maps of one pixel: its shapes and numbers of weights are right, its MACs those of one position.

    Raises:
        InputError: it is no convolution or linear layer, or computes something of its own.
    """
    layer = _plain(module)
    if isinstance(layer, nn.Linear):
        return dense_spec(layer.weight, name, bias=layer.bias is not None)
    same = layer.padding == "same"
    return replace(
        dense_spec(layer.weight, name, bias=layer.bias is not None),
        in_channels=layer.in_channels,
        in_extent=Extent(layer.in_channels),
        stride=layer.stride,
        padding=tuple(
            (size - 1) * spread // 2 if same else 0 if isinstance(layer.padding, str) else layer.padding[axis]
            for axis, (size, spread) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True))
        ),
        dilation=layer.dilation,
        groups=layer.groups,
    )


def dense_spec(weight: Tensor, name: str = "layer", *, bias: bool = False) -> LayerSpec:
    """The ungrouped layer of a weight [out, in, *kernel], on maps of one pixel."""
    outputs, inputs, *kernel = weight.shape
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    return LayerSpec(
        name=name,
        kind="conv" if kernel else "linear",
        in_channels=inputs,
        out_channels=outputs,
        kernel=tuple(kernel),
        stride=ones,
        padding=zeros,
        dilation=ones,
        groups=1,
        input_size=ones,
        output_size=ones,
        positions=1,
        bias=bias,
        in_extent=Extent(inputs),
        out_extent=Extent(outputs),
    )


def _plain(module: nn.Module) -> Layer:
    """The module, which computes what torch's own layers do; else InputError."""
    if not isinstance(module, Layer):
        raise InputError(f"what is factored is a convolution or linear layer, got {type(module).__name__}")
    if not any(type(module).forward is kind.forward for kind in _BY_DIMENSIONS):
        raise InputError(
            f"a layer that is factored computes what torch's own do, {type(module).__name__} has another forward; "
            "leave it whole"
        )
    return module


def _build(part: LayerSpec, weight: Tensor, layer: Layer) -> Layer:
    """A part of a layer, which pads as that does."""
    # on the device "meta" nothing is drawn from the global generator
    new: Layer
    if isinstance(layer, nn.Linear):
        new = nn.Linear(part.in_channels, part.out_channels, bias=part.bias, device="meta")
    else:
        # "same" is asymmetric for even kernels, which numbers cannot say
        same = isinstance(layer.padding, str) and any(size > 1 for size in part.kernel)
        padding = layer.padding if same else part.padding
        convolution: Any = _BY_DIMENSIONS[len(part.kernel)]
        new = convolution(
            part.in_channels,
            part.out_channels,
            part.kernel,
            stride=part.stride,
            padding=padding,
            dilation=part.dilation,
            bias=part.bias,
            padding_mode=layer.padding_mode if same or any(part.padding) else "zeros",
            device="meta",
        )
    new.weight = _parameter(weight, layer.weight)
    if part.bias and layer.bias is not None:
        new.bias = _parameter(layer.bias, layer.bias)
    return new


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """A copy of numbers, trained where that of the layer was."""
    data = torch.empty(value.shape, dtype=like.dtype, device=like.device).copy_(value.detach())
    return nn.Parameter(data, requires_grad=like.requires_grad)
