"""Fully connected layers: on the features of an image, and on each token or pixel by itself."""

import numpy as np

from backends.fusion import FusedOperator
from backends.tvm.kernels.base import Window, block_count
from backends.tvm.kernels.dense import Dense
from backends.tvm.kernels.tiles import choose_vector_tile
from backends.tvm.lowering.channels import Channels, pack_channels, pack_dense, plan_reduction
from backends.tvm.lowering.convolution import convolve
from backends.tvm.lowering.plan import Planner, Promise, Rule
from backends.tvm.lowering.tail import Tail, read_tail, weights_of
from backends.tvm.lowering.values import Matrix, Packed, Plain, Value, feature_positions


def lower_linear(planner: Planner, fused: FusedOperator) -> Value | None:
    """A linear layer over the last dimension."""
    tail = read_tail(planner, fused)
    source = planner.source(fused)
    if tail is None:
        return None
    if isinstance(source, Packed):
        last = len(source.dims) - 1
        if source.channel_dimension() == last and {"h", "w"} & {
            axis for place in range(last) for axis in source.over(place)
        }:
            weight, bias = weights_of(fused.head, tail, planner.layer(fused.head).out_channels)
            outputs = planner.layer(fused.head).out_channels
            return convolve(planner, source, weight, bias, outputs, Window((1, 1)), (source.height, source.width), tail)
    if tail.residual is not None or any(tail.permutations):
        return None
    if isinstance(source, Plain) and len(source.shape) > 2:
        rows, size = int(np.prod(source.shape[:-1])), source.shape[-1]
        matrix = Matrix(planner.reshape(source.buffer, (rows, size)), Channels.in_order(size), rows, size)
        found = multiply(planner, fused, matrix, tail)
        shape = (*source.shape[:-1], found.size)
        return Plain(planner.reshape(found.buffer, shape), shape)
    features = as_matrix(planner, source)
    return None if features is None else multiply(planner, fused, features, tail)


def as_matrix(planner: Planner, value: Value) -> Matrix | None:
    """The value as a matrix [N, features] without moving anything; None where it is none."""
    if isinstance(value, Matrix):
        return value if value.channels.positions.ndim == 1 else None
    if isinstance(value, Plain):
        if len(value.shape) != 2:
            return None
        return Matrix(value.buffer, Channels.in_order(value.shape[1]), *value.shape)
    if not isinstance(value, Packed) or len(value.dims) != 2 or value.over(0) not in ((), ("n",)):
        return None
    if value.batch > 1 and value.over(0) != ("n",):
        return None
    value = planner.stored(value)
    size = value.blocks * value.height * value.width * value.lanes
    buffer = planner.reshape(value.buffer, (value.batch, size))
    return Matrix(buffer, feature_positions(value, 1), value.batch, size, value.grid)


def multiply(planner: Planner, fused: FusedOperator, source: Matrix, tail: Tail) -> Matrix:
    """The product with the layer's weight [O, I], its tail folded in."""
    outputs, lanes = planner.layer(fused.head).out_channels, planner.cpu.lanes
    weight, bias = weights_of(fused.head, tail, outputs)
    span, order, starts = plan_reduction(source.channels, lanes)
    tile, blocks, partial = choose_vector_tile(block_count(outputs, lanes), source.batch, span.width, planner.cpu)
    kernel = Dense(source.batch, source.size, span, outputs, blocks, lanes, tile, partial, tail.epilogue)
    in_order = Channels.in_order(outputs)
    table: list[Promise] = [] if span.start is not None else [lambda _: starts.astype(np.int32)]
    result = planner.call(
        kernel,
        source.buffer,
        lambda tensors: pack_dense(weight(tensors), order, span.width, lanes, blocks, tile.blocks),
        lambda tensors: pack_channels(bias(tensors), in_order, blocks, lanes),
        *table,
    )
    return Matrix(result, in_order, source.batch, outputs)


RULES: dict[str, Rule] = {"linear": lower_linear}
