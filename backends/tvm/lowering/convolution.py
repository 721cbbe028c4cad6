"""Convolution: dense, depthwise and grouped, one- and two-dimensional."""

from dataclasses import replace

import numpy as np

from backends.fusion import FusedOperator
from backends.tvm.kernels.base import Window, block_count
from backends.tvm.kernels.convolution import Conv2d
from backends.tvm.kernels.depthwise import Depthwise
from backends.tvm.kernels.grouped import GroupedConv2d, Groups, pack_grouped
from backends.tvm.lowering.channels import Channels, pack_channels, pack_convolution, plan_reduction
from backends.tvm.lowering.plan import Array, Planner, Promise, Rule
from backends.tvm.lowering.rows import in_a_row
from backends.tvm.lowering.tail import Tail, read_tail, weights_of
from backends.tvm.lowering.values import MAP, Dims, Packed, Plain, Value
from search_spaces.layers import LayerSpec

_LINE: Dims = (("n",), ("c",), ("w",))
"""The view [N, C, L] of a map of one row."""


def lower_convolution(planner: Planner, fused: FusedOperator) -> Value | None:
    """A convolution, whatever its stride, padding, dilation, kernel and groups."""
    spec, tail = planner.layer(fused.head), read_tail(planner, fused)
    shape = planner.shape(fused.head)
    source = planner.source(fused)
    if tail is None or len(spec.kernel) not in (1, 2) or len(shape) != len(spec.kernel) + 2:
        return None
    if len(spec.kernel) == 1:
        packed = planner.packed(source)
        packed = None if packed is None or len(packed.dims) != 3 else in_a_row(planner, packed, 2)
        if packed is None or packed.channel_dimension() != 1 or any(tail.permutations):
            return None
        flat = lower_window(planner, fused, packed.with_dims(MAP, packed.channels.flat), spec, tail, (1, shape[2]))
        return None if flat is None else replace(flat, dims=_LINE)
    if not isinstance(source, Plain):
        source = planner.feature_map(source) or source
    if not isinstance(source, Plain | Packed):
        return None
    return lower_window(planner, fused, source, spec, tail, (shape[2], shape[3]))


def lower_window(
    planner: Planner, fused: FusedOperator, source: Plain | Packed, spec: LayerSpec, tail: Tail, size: tuple[int, int]
) -> Packed | None:
    """A convolution by its window."""
    window = window_of(spec)
    weight, bias = weights_of(fused.head, tail, spec.out_channels)
    if spec.groups == 1:
        return convolve(planner, source, weight, bias, spec.out_channels, window, size, tail)
    packed = planner.feature_map(source)
    if packed is None:
        return None
    if spec.groups == spec.in_channels:
        return _depthwise(planner, packed, weight, bias, spec, window, size, tail)
    return _grouped(planner, planner.in_order(packed), weight, bias, spec, window, size, tail)


def window_of(spec: LayerSpec) -> Window:
    """The window of a convolution in two dimensions; one of one dimension has a single row."""

    def pair(values: tuple[int, ...], missing: int) -> tuple[int, int]:
        return (missing, values[0]) if len(values) == 1 else (values[0], values[1])

    rows, columns = pair(spec.padding, 0)
    return Window(pair(spec.kernel, 1), pair(spec.stride, 1), (rows, columns, rows, columns), pair(spec.dilation, 1))


def convolve(
    planner: Planner,
    source: Plain | Packed,
    weight: Promise,
    bias: Promise,
    outputs: int,
    window: Window,
    size: tuple[int, int],
    tail: Tail,
) -> Packed | None:
    """A convolution without groups, weight [O, I] or [O, I, kh, kw]. A first layer's few channels are read as they
    stand."""
    lanes = planner.cpu.lanes
    if isinstance(source, Plain) and len(source.shape) == 4 and source.shape[1] < lanes // 2:
        buffer, shape = source.buffer, source.buffer.shape
        span, order, starts = plan_reduction(Channels.in_order(shape[1]), 1)
        batch = shape[0]
    else:
        packed = planner.packed(source)
        if packed is None:
            return None
        if (packed.channels.positions < 0).all():
            packed = planner.gathered(packed)
        buffer, shape, batch = packed.buffer, packed.buffer_shape, packed.batch
        span, order, starts = plan_reduction(packed.channels.flat, lanes)
    blocks = block_count(outputs, lanes)
    in_order = Channels.in_order(outputs)
    dims = source.dims if isinstance(source, Packed) else MAP
    dims = tuple(("c",) if "c" in dim else dim for dim in dims)
    like = Packed(buffer, in_order, batch, blocks, *size, lanes, dims)
    residual = tail.residual_operand(planner, like)
    if residual is None:
        return None
    kernel = Conv2d(shape, span, blocks, size, lanes, window, tail.epilogue)
    table: list[Promise] = [] if span.start is not None else [lambda _: starts.astype(np.int32)]
    result = planner.call(
        kernel,
        buffer,
        lambda tensors: pack_convolution(_four(weight(tensors)), order, span.width, lanes),
        lambda tensors: pack_channels(bias(tensors), in_order, blocks, lanes),
        *table,
        *residual,
    )
    return tail.viewed(replace(like, buffer=result))


def _four(weight: Array) -> Array:
    """[O, I] or [O, I, k] as [O, I, kh, kw]."""
    if weight.ndim == 4:
        return weight
    return weight.reshape(*weight.shape[:2], 1, weight.shape[2] if weight.ndim == 3 else 1)


def _grouped(
    planner: Planner,
    source: Packed,
    weight: Promise,
    bias: Promise,
    spec: LayerSpec,
    window: Window,
    size: tuple[int, int],
    tail: Tail,
) -> Packed | None:
    """A convolution in groups, its input's channels in order."""
    lanes, in_order = source.lanes, Channels.in_order(spec.out_channels)
    groups = Groups(spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups, lanes)
    like = Packed(source.buffer, in_order, source.batch, groups.blocks, *size, lanes)
    residual = tail.residual_operand(planner, like)
    if residual is None:
        return None
    result = planner.call(
        GroupedConv2d(source.buffer_shape, groups, size, window, tail.epilogue),
        source.buffer,
        lambda tensors: pack_grouped(_four(weight(tensors)), spec.groups, lanes),
        lambda tensors: pack_channels(bias(tensors), in_order, groups.blocks, lanes),
        *residual,
    )
    return tail.viewed(replace(like, buffer=result))


def _depthwise(
    planner: Planner,
    source: Packed,
    weight: Promise,
    bias: Promise,
    spec: LayerSpec,
    window: Window,
    size: tuple[int, int],
    tail: Tail,
) -> Packed | None:
    """A depthwise convolution, weight [C*m, 1, kh, kw]; with a multiplier m each channel is first repeated m times."""
    multiplier = spec.out_channels // spec.in_channels
    if multiplier > 1:
        repeated = Channels.of(np.repeat(source.channels.positions, multiplier))
        source = planner.gathered(replace(source, channels=repeated))
    elif not source.channels.distinct or not source.channels.stored or (tail.residual and not source.in_order):
        source = planner.gathered(source)
    like = replace(source, height=size[0], width=size[1])
    residual = tail.residual_operand(planner, like)
    if residual is None:
        return None
    kernel = Depthwise(source.buffer_shape, size, window, tail.epilogue)
    channels, blocks, lanes = source.channels, source.blocks, source.lanes
    result = planner.call(
        kernel,
        source.buffer,
        lambda tensors: pack_channels(_four(weight(tensors))[:, 0], channels, blocks, lanes),
        lambda tensors: pack_channels(bias(tensors), channels, blocks, lanes),
        *residual,
    )
    return tail.viewed(replace(like, buffer=result))


RULES: dict[str, Rule] = {"conv": lower_convolution}
