"""8-bit convolution, 1 x 1 to any size: the register-tiled loop nest of float convolution, four channels a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from backends.tvm.kernels.base import (
    Array,
    Expression,
    Span,
    Window,
    framed,
    pack_blocks,
    product,
    threads_for,
    unpack_blocks,
)
from backends.tvm.kernels.integer.dot import Sums, with_free_registers
from backends.tvm.kernels.integer.epilogue import TO_CODES, IntegerEpilogue
from backends.tvm.kernels.integer.kernel import IntegerKernel, check_products
from backends.tvm.kernels.loops import between, each, serial, store, vector
from backends.tvm.kernels.tiles import Tile, choose_covering_tile
from backends.tvm.kernels.windows import each_tile, walks
from backends.tvm.target import Cpu

_NEAR_BYTES = 1 << 17
"""Of weights that are still near when the next tile reads them."""


@dataclass(frozen=True, slots=True)
class IntegerConv2d(IntegerKernel):
    """Dense convolution of codes into channel blocks.

    Operands: source, weight int8 [blocks, kh, kw, steps, lanes, 4], scale and bias [blocks, lanes], and those that
    `IntegerKernel` lists. What lies outside of the map contributes nothing.

    Attributes:
        source: shape of the input buffer, [N, source blocks, H, W, source lanes]; a multiple of 4 lanes.
        span: how the reduction walks over the input's channels, four at a time.
        blocks: output channel blocks.
        size: output rows and columns.
        lanes: of the output.

    Raises:
        ValueError: a span of another width, or too many products for an int32.
    """

    kind: ClassVar[str] = "conv2d_u8"

    source: tuple[int, int, int, int, int]
    span: Span
    blocks: int
    size: tuple[int, int]
    lanes: int
    window: Window
    epilogue: IntegerEpilogue = TO_CODES

    def __post_init__(self) -> None:
        if self.span.width != 4 or self.source[4] % 4:
            raise ValueError(f"channels are read four at a time, not {self.span.width} of blocks of {self.source[4]}")
        check_products(self.products)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, rows, columns, lanes]."""
        return self.source[0], self.blocks, *self.size, self.lanes

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        channels = self.blocks, self.lanes
        return {
            "source": self.source,
            "weight": (self.blocks, *self.window.kernel, self.span.steps, self.lanes, 4),
            "scale": channels,
            "bias": channels,
            **self.epilogue.limits,
            **({"table": (self.span.steps,)} if self.span.start is None else {}),
            **self.epilogue.residuals(self.output_shape),
        }

    @property
    def work(self) -> float:
        """Multiply-adds."""
        return float(product(self.output_shape) * self.span.steps * 4 * product(self.window.kernel))

    def example_table(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Positions of groups of channels."""
        return self.span.example(self.source[1] * self.source[4], generator)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """As `TiledConvolution`: a tile of accumulators in registers, the whole reduction around it."""
        *operands, out = buffers
        tile, threads = self._choose_tile(with_free_registers(cpu)), threads_for(self.work, cpu)
        for corner in each_tile(self.output_shape, tile, self.window, self.source[2:4], threads):
            self._tile(self.named(operands), out, tile, corner, cpu)

    def _choose_tile(self, cpu: Cpu) -> Tile:
        """Weights that a core's own cache does not keep are better read in several streams at once; where one tile can
        hold all pixels, and each weight is read once, in one. (256 to 256 channels, 3 x 3 at 8 x 8: 84 us in four
        streams, 101 us in two. 320 to 1280, 1 x 1 at 4 x 4: 19 us in one stream, 33 us in two.)"""
        pixels = product(self.size)
        fits = cpu.latency_accumulators <= pixels <= cpu.registers - 2 and not cpu.holds_inputs
        if self.window.kernel == (1, 1) and fits:
            return Tile(1, *self.size)
        weights = product(self.operand_shapes["weight"])
        return choose_covering_tile(self.blocks, *self.size, cpu, 4 if weights > _NEAR_BYTES else 1)

    def _tile(
        self, operands: Mapping[str, Any], out: Any, tile: Tile, corner: tuple[Expression, ...], cpu: Cpu
    ) -> None:
        """One tile from its first element on: (image, block, row, column)."""
        source, weight, table = operands["source"], operands["weight"], operands.get("table")
        n, block, row, column = corner
        sums = Sums(cpu.dot, tile.blocks, (tile.rows, tile.columns), self.lanes, shared=True)
        of_rows, of_columns = walks(self.window, self.source[2:4], self.size)

        def multiply(step: Expression, kh: Expression, kw: Expression, visited: tuple[range, range]) -> None:
            first = (self.span.start or 0) + step * 4 if table is None else table[step]
            place = first // self.source[4], first % self.source[4]
            with each(*visited) as (y, x):
                pixel = of_rows.at(row + y, kh), of_columns.at(column + x, kw)
                inputs = source.vload([n, place[0], *pixel, place[1]], "uint8x4")
                sums.add_inputs((y, x), inputs)
                with each(range(tile.blocks)) as (o,):
                    weights = weight.vload([block + o, kh, kw, step, 0, 0], f"int8x{4 * self.lanes}")
                    sums.add_products(o, (y, x), inputs, weights)

        for kw, visited_columns in of_columns.visited(column, tile.columns, between):
            for kh, visited_rows in of_rows.visited(row, tile.rows, between):
                with serial(self.span.steps) as step:
                    multiply(step, kh, kw, (visited_rows, visited_columns))
        with each(range(tile.rows), range(tile.columns), range(tile.blocks)) as (y, x, o), vector(self.lanes) as v:
            index = (n, block + o, row + y, column + x, v)
            store(out, index, self.epilogue.apply(sums.total(o, (y, x), v), (block + o, v), index, operands))

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's convolution in float64, which is exact, of the channels that the span reads."""
        named = self.named(operands)
        positions = self.span.positions([named["table"]] if "table" in named else [])
        channels = unpack_blocks(named["source"])[:, positions].astype(np.float64)
        filters = named["weight"].transpose(0, 4, 3, 5, 1, 2).reshape(self.blocks * self.lanes, -1, *self.window.kernel)
        sums = F.conv2d(
            framed(channels, self.window, self.size),
            torch.from_numpy(filters.astype(np.float64)),
            None,
            self.window.stride,
            0,
            self.window.dilation,
        )
        scale, bias = (named[name][:, None, None] for name in ("scale", "bias"))
        return self.epilogue.reference(pack_blocks(sums.long(), self.lanes), scale, bias, named)
