"""Layers that compute in 8-bit integers: which formats allow it, and the numbers that are computed with."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.number_formats import NumberFormat

Formats = Mapping[str, tuple[NumberFormat | None, NumberFormat | None]]
"""Layer -> formats of its weights and of the values that it reads; a layer that is absent has float32 for both."""

WEIGHT_SCHEMES = ("symmetric", "binary", "ternary")
ACTIVATION_SCHEMES = ("symmetric", "asymmetric", "dorefa")
"""Those whose levels are multiples of a step: what an integer kernel computes with."""


def formats_of(graph: ModelGraph) -> Formats:
    """The formats of a network's quantised layers."""
    return {
        layer.name: (layer.weight_format, layer.activation_format)
        for layer in graph.layers
        if layer.weight_format is not None or layer.activation_format is not None
    }


def why_float(spec: LayerSpec, weight: NumberFormat | None, activation: NumberFormat | None) -> str | None:
    """Why a layer of these formats computes in float32; None where it computes in 8-bit integers."""
    if weight is None or activation is None:
        return "weights and activations are not both quantised"
    if weight.bits > 8 or activation.bits > 8:
        return f"{max(weight.bits, activation.bits)} bits are more than 8"
    if weight.scheme not in WEIGHT_SCHEMES:
        return f"weights of the scheme {weight.scheme!r} are no multiples of one step"
    if weight.granularity not in ("tensor", "channel"):
        return f"weights have a scale for every {weight.granularity!r}, and a sum takes one"
    if activation.scheme not in ACTIVATION_SCHEMES:
        return f"activations of the scheme {activation.scheme!r} are no multiples of one step"
    if spec.kind == "conv" and len(spec.kernel) == 2:
        alone = spec.groups == 1 or (spec.depthwise and spec.out_channels == spec.in_channels)
        return None if alone else "there is no integer kernel for convolution in groups"
    if spec.kind == "linear" and spec.positions == 1:
        return None
    return "there is no integer kernel for such a layer"


@dataclass(frozen=True, eq=False)
class LayerIntegers:
    """A layer that computes in 8-bit integers, as it was calibrated.

    Attributes:
        weight: int8 [O, I / groups, *kernel]; what its weights are multiples of stands in `weight_scale`.
        weight_scale: float32 [O].
        scale: step between the values that it reads.
        zero_point: their code of zero.
        least, most: the codes that are used.
    """

    weight: npt.NDArray[np.int8]
    weight_scale: npt.NDArray[np.float32]
    scale: float
    zero_point: int
    least: int
    most: int


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """The layers of a network that compute in 8-bit integers.

    Attributes:
        formats: of their weights and of what they read.
        layers: their numbers.
    """

    formats: Formats
    layers: Mapping[str, LayerIntegers]
