"""A layer as a sequence of smaller ones: their shapes by arithmetic, no tensor.

`automl.compression.low_rank` computes their weights and cites the papers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from search_spaces.errors import InputError, did_you_mean
from search_spaces.layers import Extent, LayerSpec

Rank = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Factorisation:
    """How a layer's weights are taken apart.

    Attributes:
        full: the ranks at which nothing is lost.
        parts: the layers in its place, given ranks; the bias belongs to the last.
        unfit: why a layer cannot be so taken apart, "" where it can.
        usable: the part of ranks in their range that can carry anything, given each other; more is dead weight.
    """

    full: Callable[[LayerSpec], Rank]
    parts: Callable[[LayerSpec, Rank], tuple[LayerSpec, ...]]
    unfit: Callable[[LayerSpec], str]
    usable: Callable[[LayerSpec, Rank], Rank] = lambda spec, rank: rank


def factors(spec: LayerSpec, method: str, rank: Rank, *, must_save: bool = True) -> tuple[LayerSpec, ...]:
    """The layers in place of one, in order, named "layer.0", "layer.1" and so on.

    Args:
        spec: the layer, not pruned: ranks are those of its whole weights. Its formats and sparsity are its parts', too.
            Of the input matrix of a recurrent layer the parts are a linear layer (see `input_factor`) and what is left
            of the matrix, under its own name.
        method: one of `FACTORISATIONS`.
        rank: one for "svd" and "spatial_svd"; of "tucker2" those of the input and the output channels.
        must_save: whether there have to be fewer weights than before. MACs may rise all the same: the first part of
            "tucker2" and of "spatial_svd" runs before (all of) the layer's stride.

    Raises:
        InputError: the method is not known or does not fit the layer, a rank is out of range or more than can be used,
            or nothing is saved.
    """
    found = fitting(spec, method)
    full = found.full(spec)
    given = _said(rank)
    if len(rank) != len(full) or not all(
        type(each) is int and 1 <= each <= most for each, most in zip(rank, full, strict=True)
    ):
        ranges = " and ".join(f"from 1 to {most}" for most in full)
        raise InputError(f"the rank of layer {spec.name!r} under {method!r} is {ranges}, got {given}")
    if (usable := found.usable(spec, rank)) != rank:
        raise InputError(
            f"of rank {given} in layer {spec.name!r} only {_said(usable)} can be used, more is dead weight; lower it"
        )
    parts = found.parts(spec, rank)
    weights = sum(part.weights for part in parts)
    if must_save and weights >= spec.weights:
        raise InputError(
            f"rank {given} saves nothing in layer {spec.name!r}: {weights} weights in place of {spec.weights}; lower "
            "it or leave the layer whole"
        )
    return parts


def fitting(spec: LayerSpec, method: str) -> Factorisation:
    """The factorisation of that name.

    Raises:
        InputError: it is not known, or does not fit the layer.
    """
    if method not in FACTORISATIONS:
        raise InputError(f"there is no factorisation {method!r}{did_you_mean(method, FACTORISATIONS)}")
    if reason := FACTORISATIONS[method].unfit(spec):
        raise InputError(f"layer {spec.name!r} has no {method!r} factorisation: {reason}; leave it whole")
    return FACTORISATIONS[method]


def _said(rank: Rank) -> str:
    return " and ".join(map(str, rank)) or "none"


def part_name(layer: str, index: int) -> str:
    """Name of a part of a layer."""
    return f"{layer}.{index}"


INPUT_MATRIX = "weight_ih_l0"
"""Of a recurrent layer; it reads the sequence, before which a linear layer can stand, and so can be taken apart."""


def input_factor(matrix: str) -> str:
    """Name of the linear layer before a recurrent layer of that input matrix, which stays under its name."""
    return f"{matrix}_factor"


_RECURRENT = re.compile(r"(?:^|\.)weight_(ih|hh)_l(\d+)(_reverse)?$")
"""The matrices of a recurrent layer, as torch names them."""


def _matrix_unfit(spec: LayerSpec) -> str:
    if spec.kind not in ("conv", "linear"):
        return "it is no convolution or linear layer"
    if found := _RECURRENT.search(spec.name):
        return _recurrent_unfit(*found.groups())
    return _grouped(spec)


def _recurrent_unfit(matrix: str, layer: str, reverse: str | None) -> str:
    """Only what reads the sequence itself can have a linear layer put before it."""
    if matrix == "hh":
        return "it stands inside the recurrence, where a plain recurrent layer holds one matrix only"
    if reverse:
        return "the other direction reads the same sequence, and a linear layer in front would be before both"
    return "it reads what the layer below gives inside the same module" if int(layer) else ""


def _spatial_unfit(spec: LayerSpec) -> str:
    if len(spec.kernel) != 2:
        return "it is no two-dimensional convolution"
    return _convolution_unfit(spec)


def _convolution_unfit(spec: LayerSpec) -> str:
    if spec.kind != "conv":
        return "it is no convolution"
    # what runs before the stride is counted from the sizes of the first call
    if spec.positions != prod(spec.output_size):
        return "it is called several times an image"
    return _grouped(spec)


def _grouped(spec: LayerSpec) -> str:
    return f"its convolution has {spec.groups} groups" if spec.groups > 1 else ""


def _matrix_full(spec: LayerSpec) -> Rank:
    return (min(spec.out_channels, spec.in_channels * prod(spec.kernel)),)


def _matrix_parts(spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
    """[out, in * kernel] = [out, rank] [rank, in * kernel]: the kernel first, then 1 x 1."""
    first, last = _first(spec, rank[0]), _last(spec, 1, rank[0])
    if spec.kind == "conv":
        last = _pointwise(last, spec.output_size, spec.positions)
    if _RECURRENT.search(spec.name):
        return replace(first, name=input_factor(spec.name)), replace(last, name=spec.name)
    return first, last


def _spatial_full(spec: LayerSpec) -> Rank:
    return (min(spec.in_channels * spec.kernel[0], spec.out_channels * spec.kernel[1]),)


def _spatial_parts(spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
    """k x 1 then 1 x k: rows first."""
    between = (spec.output_size[0], spec.input_size[1])

    def along(part: LayerSpec, axis: int) -> LayerSpec:
        def only(values: tuple[int, ...], other: int) -> tuple[int, ...]:
            return tuple(value if place == axis else other for place, value in enumerate(values))

        return replace(
            part,
            kernel=only(spec.kernel, 1),
            stride=only(spec.stride, 1),
            padding=only(spec.padding, 0),
            dilation=only(spec.dilation, 1),
        )

    first = replace(along(_first(spec, rank[0]), 0), output_size=between, positions=prod(between))
    return first, replace(along(_last(spec, 1, rank[0]), 1), input_size=between)


def _tucker_full(spec: LayerSpec) -> Rank:
    return _tucker_usable(spec, (spec.in_channels, spec.out_channels))


def _tucker_usable(spec: LayerSpec, rank: Rank) -> Rank:
    """The core [outputs, inputs * kernel] has no more rows than columns, and so the other way round."""
    (inputs, outputs), inner = rank, prod(spec.kernel)
    return min(inputs, outputs * inner), min(outputs, inputs * inner)


def _tucker_parts(spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
    """1 x 1 to the first rank, the kernel between the ranks, 1 x 1 from the second."""
    inputs, outputs = rank
    first = _pointwise(_first(spec, inputs), spec.input_size, prod(spec.input_size))
    core = replace(
        spec,
        name=part_name(spec.name, 1),
        in_channels=inputs,
        out_channels=outputs,
        in_extent=Extent(inputs),
        out_extent=Extent(outputs),
        bias=False,
    )
    return first, core, _pointwise(_last(spec, 2, outputs), spec.output_size, spec.positions)


def _first(spec: LayerSpec, rank: int) -> LayerSpec:
    """The part that reads what the layer reads."""
    return replace(spec, name=part_name(spec.name, 0), out_channels=rank, out_extent=Extent(rank), bias=False)


def _last(spec: LayerSpec, index: int, rank: int) -> LayerSpec:
    """The part that gives what the layer gives."""
    return replace(spec, name=part_name(spec.name, index), in_channels=rank, in_extent=Extent(rank))


def _pointwise(part: LayerSpec, size: tuple[int, ...], positions: int) -> LayerSpec:
    """A 1 x 1 convolution on maps of that size."""
    ones, zeros = (1,) * len(part.kernel), (0,) * len(part.kernel)
    places = {"input_size": size, "output_size": size, "positions": positions}
    return replace(part, kernel=ones, stride=ones, padding=zeros, dilation=ones, **places)  # type: ignore[arg-type]


FACTORISATIONS: dict[str, Factorisation] = {
    "svd": Factorisation(_matrix_full, _matrix_parts, _matrix_unfit),
    "spatial_svd": Factorisation(_spatial_full, _spatial_parts, _spatial_unfit),
    "tucker2": Factorisation(_tucker_full, _tucker_parts, _convolution_unfit, _tucker_usable),
}
"""By name."""
