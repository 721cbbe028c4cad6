"""Layers that compute in 8-bit integers: uint8 codes times int8 weights, summed in int32, written as codes again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from backends.fusion import FusedOperator
from backends.tvm.kernels.base import Span, Window, block_count
from backends.tvm.kernels.epilogue import Activation
from backends.tvm.kernels.integer.convolution import IntegerConv2d
from backends.tvm.kernels.integer.dense import IntegerDense
from backends.tvm.kernels.integer.depthwise import IntegerDepthwise
from backends.tvm.kernels.integer.epilogue import IntegerEpilogue
from backends.tvm.kernels.integer.quantise import QuantisePlain
from backends.tvm.lowering.channels import ZERO, Channels, IntArray, pack_channels, pad_axis
from backends.tvm.lowering.convolution import window_of
from backends.tvm.lowering.dense import as_matrix
from backends.tvm.lowering.grids import Grid
from backends.tvm.lowering.plan import Array, Planner, Promise, Rule, Tensors
from backends.tvm.lowering.tail import Tail, read_tail
from backends.tvm.lowering.values import Buffer, Matrix, Packed, Plain, Value
from search_spaces.layers import LayerSpec

QUAD = 4
"""Neighbouring codes that one instruction multiplies and adds up."""

Float64 = npt.NDArray[np.float64]


def lower_integer(planner: Planner, fused: FusedOperator) -> Value | None:
    """A layer that the storage lets compute in integers; None where its source or residual lies awkwardly."""
    tail = read_tail(planner, fused)
    if tail is None or any(tail.permutations):
        return None
    layer = IntegerLayer(planner, fused, planner.layer(fused.head), tail)
    if fused.head.kind == "linear":
        return _dense(planner, layer)
    return _depthwise(planner, layer) if layer.spec.groups > 1 else _convolution(planner, layer)


@dataclass(frozen=True)
class IntegerLayer:
    """A layer and what is computed with its sums.

    Attributes:
        fused, spec, tail: the layer and what follows it.
    """

    planner: Planner
    fused: FusedOperator
    spec: LayerSpec
    tail: Tail

    @property
    def written(self) -> Grid | None:
        """The grid that its value is written in; None where it is written in float32: its readers want that, or what
        follows the sum is more than limits of codes can express."""
        grid = self.planner.storage.grids.get(self.fused.output.name)
        if grid is None or self.tail.epilogue.activation.kind != "clamp":
            return None
        return self.planner.grid(grid)

    def epilogue(self, residual: Packed | None) -> IntegerEpilogue:
        """What a kernel does with its sums."""
        added: Literal["none", "uint8", "float32"] = "none"
        if residual is not None:
            added = "float32" if residual.grid is None else "uint8"
        if self.written is not None:
            return IntegerEpilogue(added, "uint8")
        return IntegerEpilogue(added, "float32", self.tail.epilogue.activation)

    def residual(self, like: Packed) -> tuple[Packed | None] | None:
        """(what is added, laid out as the layer's own value, or None where nothing is); None where it cannot be."""
        if self.tail.residual is None:
            return (None,)
        found = self.tail.residual_value(self.planner, like)
        return None if found is None else (found,)

    def constants(
        self, read: Grid, residual: Packed | None, pack: Callable[[Float64], Array], used: npt.NDArray[np.bool_] | None
    ) -> list[Promise]:
        """Promises of scale, bias and, where codes are written, their limits.

        Args:
            read: the grid of the layer's source.
            residual: what is added.
            pack: lays one value a channel [O] out.
            used: of the input channels those that are stored; None where all are.
        """
        added = None if residual is None or residual.grid is None else self.planner.grid(residual.grid)
        written = self.written
        affine = self.tail.affine(self.spec.out_channels)
        operator, name = self.fused.head, self.spec.name

        def factors(tensors: Tensors) -> tuple[Float64, Float64]:
            """(scale, bias) [O] of the integer sums, in the unit of what is written."""
            integers, source = tensors.integers(name), read.numbers(tensors)
            factor, shift = affine(tensors)
            scale = factor * integers.weight_scale.astype(np.float64) * source.scale
            weight = integers.weight if used is None else integers.weight[:, used]
            sums = weight.reshape(len(weight), -1).astype(np.float64).sum(axis=1)
            own = tensors.layer(operator)[1]
            bias = shift - scale * source.zero * sums + (0.0 if own is None else factor * own)
            if added is not None:
                other = added.numbers(tensors)
                bias = bias - other.scale * other.zero
            if written is None:
                return scale, bias
            target = written.numbers(tensors)
            return scale / target.scale, bias / target.scale + target.zero

        def limits(tensors: Tensors) -> Array:
            activation: Activation = self.tail.epilogue.activation
            if written is None:
                raise TypeError("only codes have limits")
            return written.numbers(tensors).limits(activation.low, activation.high)

        promises: list[Promise] = [lambda tensors: pack(factors(tensors)[0]), lambda tensors: pack(factors(tensors)[1])]
        return [*promises, limits] if written is not None else promises

    def added(self, residual: Packed | None) -> list[Buffer | Promise]:
        """The operands that a residual makes: its buffer, and the factor of its codes or numbers."""
        if residual is None:
            return []
        grid = None if residual.grid is None else self.planner.grid(residual.grid)
        written = self.written

        def factor(tensors: Tensors) -> Array:
            scale = 1.0 if grid is None else grid.numbers(tensors).scale
            return np.array([scale / (1.0 if written is None else written.numbers(tensors).scale)], dtype=np.float32)

        return [residual.buffer, factor]

    def weight(self, pack: Callable[[npt.NDArray[np.int8]], Array]) -> Promise:
        """The packed codes of its weight."""
        return lambda tensors: pack(tensors.integers(self.spec.name).weight)

    def result(self, like: Packed, buffer: Buffer) -> Packed:
        """Its value, laid out like another."""
        return replace(like, buffer=buffer, grid=None if self.written is None else self.written.layer)


def _source(planner: Planner, layer: IntegerLayer, window: Window) -> tuple[Packed, Grid, Window] | None:
    """The codes that a convolution reads, their grid, and the window over them: where the code of zero is not 0, the
    border is stored and the window has none."""
    own = planner.grid(layer.spec.name)
    border = window.padding
    value = planner.source(layer.fused)
    if isinstance(value, Plain) and len(value.shape) == 4 and value.shape[1] < planner.cpu.lanes // 2:
        stored = border if any(border) and not own.from_zero else (0, 0, 0, 0)
        lanes = -(-value.shape[1] // QUAD) * QUAD
        batch, count, rows, columns = value.shape
        kernel = QuantisePlain((batch, count, rows, columns), lanes, stored)
        codes = planner.packed_by(kernel, Channels.in_order(count), value.buffer, own.quantising)
        return replace(codes, grid=own.layer), own, _without_border(window) if any(stored) else window
    packed = planner.feature_map(value)
    if packed is None:
        return None
    if not packed.channels.distinct:
        packed = planner.gathered(packed)
    if packed.grid is None and any(border) and not own.from_zero:
        return planner.quantised_map(packed, own.layer, border), own, _without_border(window)
    found = planner.quantised_map(packed, own.layer)
    grid = planner.grid(found.grid or own.layer)
    if any(border) and not grid.from_zero:
        return planner.framed(found, grid.layer, border), grid, _without_border(window)
    return found, grid, window


def _without_border(window: Window) -> Window:
    return replace(window, padding=(0, 0, 0, 0))


def _convolution(planner: Planner, layer: IntegerLayer) -> Packed | None:
    """A convolution without groups."""
    spec, lanes = layer.spec, planner.cpu.lanes
    found = _source(planner, layer, window_of(spec))
    if found is None:
        return None
    source, grid, window = found
    rows, columns = planner.shape(layer.fused.head)[2:]
    if (source.channels.positions == ZERO).all():
        source = planner.gathered(source)
    span, starts, places = plan_quads(source.channels)
    blocks = block_count(spec.out_channels, lanes)
    in_order = Channels.in_order(spec.out_channels)
    like = Packed(source.buffer, in_order, source.batch, blocks, rows, columns, lanes)
    residual = layer.residual(like)
    if residual is None:
        return None
    kernel = IntegerConv2d(
        source.buffer_shape, span, blocks, (rows, columns), lanes, window, layer.epilogue(residual[0])
    )
    table: list[Promise] = [] if span.start is not None else [lambda _: starts.astype(np.int32)]
    used = source.channels.positions != ZERO
    result = planner.call(
        kernel,
        source.buffer,
        layer.weight(lambda weight: pack_quads(weight, places, lanes)),
        *layer.constants(grid, residual[0], lambda values: pack_channels(values, in_order, blocks, lanes), used),
        *table,
        *layer.added(residual[0]),
    )
    return layer.result(like, result)


def _depthwise(planner: Planner, layer: IntegerLayer) -> Packed | None:
    """A depthwise convolution: each channel stays where it is."""
    found = _source(planner, layer, window_of(layer.spec))
    if found is None:
        return None
    source, grid, window = found
    if source.lanes != planner.cpu.lanes:
        return None
    if not source.channels.stored or (layer.tail.residual and not source.in_order):
        source = planner.gathered(source)
    rows, columns = planner.shape(layer.fused.head)[2:]
    like = replace(source, height=rows, width=columns)
    residual = layer.residual(like)
    if residual is None:
        return None
    channels, blocks, lanes = source.channels, source.blocks, source.lanes
    kernel = IntegerDepthwise(source.buffer_shape, (rows, columns), window, layer.epilogue(residual[0]))
    result = planner.call(
        kernel,
        source.buffer,
        layer.weight(lambda weight: kernel.pack(pack_channels(weight[:, 0], channels, blocks, lanes))),
        *layer.constants(grid, residual[0], lambda values: pack_channels(values, channels, blocks, lanes), None),
        *layer.added(residual[0]),
    )
    return layer.result(like, result)


def _dense(planner: Planner, layer: IntegerLayer) -> Matrix | None:
    """A linear layer on the features of an image."""
    value = as_matrix(planner, planner.source(layer.fused))
    found = None if value is None or layer.tail.residual is not None else planner.quantised(value, layer.spec.name)
    if not isinstance(found, Matrix) or found.size % QUAD or not found.channels.distinct:
        return None
    grid = planner.grid(found.grid or layer.spec.name)
    outputs, lanes = layer.spec.out_channels, planner.cpu.lanes
    blocks, in_order = block_count(outputs, lanes), Channels.in_order(outputs)
    positions = found.channels.positions
    places = np.full(found.size, -1, dtype=np.int64)
    places[positions[positions != ZERO]] = np.flatnonzero(positions != ZERO)
    buffer = planner.call(
        IntegerDense(found.batch, found.size, outputs, lanes, layer.epilogue(None)),
        found.buffer,
        layer.weight(lambda weight: pack_quads(weight[:, :, None, None], places, lanes)[:, 0, 0]),
        *layer.constants(grid, None, lambda values: pack_channels(values, in_order, blocks, lanes), positions != ZERO),
    )
    written = layer.written
    return Matrix(buffer, in_order, found.batch, outputs, None if written is None else written.layer)


@cache
def plan_quads(channels: Channels) -> tuple[Span, IntArray, IntArray]:
    """The aligned groups of four positions that hold a channel.

    Args:
        channels: of one axis, no two at one position.

    Returns:
        The span, each group's first position [steps], and the channel at each position visited, -1 where there is none
        [steps * 4].
    """
    positions = channels.positions
    stored = np.flatnonzero(positions != ZERO)
    quads = np.unique(positions[stored] // QUAD)
    visited = np.full(len(quads) * QUAD, -1, dtype=np.int64)
    visited[np.searchsorted(quads, positions[stored] // QUAD) * QUAD + positions[stored] % QUAD] = stored
    regular = bool((quads == quads[0] + np.arange(len(quads))).all())
    return Span(len(quads), QUAD, int(quads[0]) * QUAD if regular else None), quads * QUAD, visited


def pack_quads(weight: npt.NDArray[np.int8], visited: Sequence[int] | IntArray, lanes: int) -> Array:
    """Weights [O, I, kh, kw] -> int8 [O blocks, kh, kw, steps, lanes, 4], zero where no channel lies."""
    order = np.asarray(visited)
    chosen = np.where(order[None, :, None, None] < 0, 0, weight[:, order])
    padded = pad_axis(chosen, 0, lanes)
    out, into, rows, columns = padded.shape
    blocked = padded.reshape(out // lanes, lanes, into // QUAD, QUAD, rows, columns)
    return np.ascontiguousarray(blocked.transpose(0, 4, 5, 2, 1, 3), dtype=np.int8)


RULES: dict[str, Rule] = {"integer": lower_integer}
"""What `Planner.lower` calls for layers that compute in integers, whatever their kind."""
