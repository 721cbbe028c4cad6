"""Operators that work on each channel by itself within a sliding window: depthwise convolution, the base of pooling."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tvm.script.ir_builder import tirx as script

from backends.tvm.kernels.base import (
    Array,
    Expression,
    Window,
    framed,
    pack_blocks,
    product,
    threads_for,
    unpack_blocks,
)
from backends.tvm.kernels.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.kernels.loops import (
    Cover,
    WrittenKernel,
    accumulators,
    between,
    each,
    store,
    vector,
)
from backends.tvm.kernels.tiles import Tile
from backends.tvm.kernels.windows import each_tile, walks
from backends.tvm.target import Cpu

_WIDEST_TILE = 8

Position = tuple[Expression, Expression, Expression, Expression]
"""Of an element in a window: block, row and column in the window, lane."""


@dataclass(frozen=True, slots=True)
class PerChannel(WrittenKernel):
    """An operator on windows of [N, blocks, H, W, lanes], channel by channel.

    Attributes:
        source: shape of the input buffer.
        size: output rows and columns.
    """

    source: tuple[int, int, int, int, int]
    size: tuple[int, int]
    window: Window

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, rows, columns, lanes]."""
        return *self.source[:2], *self.size, self.source[4]

    @property
    def work(self) -> float:
        """Elements of all windows."""
        return float(product(self.output_shape) * product(self.window.kernel))

    def tile_size(self, cpu: Cpu, threads: int) -> tuple[int, int]:
        """Rows and columns that are computed at once: a few pixels of one row, or a map that fits the registers."""
        return self.size if product(self.size) <= cpu.registers // 2 else (1, _WIDEST_TILE)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Tiles in registers, their windows around them."""
        threads = threads_for(self.work, cpu)
        rows, columns = (Cover.of(*pair).width for pair in zip(self.size, self.tile_size(cpu, threads), strict=True))
        tile = Tile(1, rows, columns)
        for n, block, *corner in each_tile(self.output_shape, tile, self.window, self.source[2:4], threads):
            self.tile(cpu, buffers, (n, block), (corner[0], corner[1]), (rows, columns))

    @abstractmethod
    def tile(
        self,
        cpu: Cpu,
        buffers: Sequence[Any],
        channel: Sequence[Expression],
        corner: tuple[Expression, Expression],
        size: tuple[int, int],
    ) -> None:
        """Writes so many rows and columns of one channel block (image, block), from a pixel on."""


@dataclass(frozen=True, slots=True)
class Reduction(PerChannel):
    """A window reduction, element by element."""

    @property
    def initial(self) -> float:
        """What it starts with; so what lies outside of the map counts for nothing."""
        return 0.0

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The input alone."""
        return {"source": self.source}

    @abstractmethod
    def reduce(self, value: Expression, element: Expression, position: Position, operands: Sequence[Any]) -> Expression:
        """What the reduction is after one more element."""

    @abstractmethod
    def finish(self, value: Expression, index: tuple[Expression, ...], operands: Sequence[Any]) -> Expression:
        """The output element at an index of the output buffer."""

    def image(self, operands: Sequence[Array]) -> torch.Tensor:
        """The channels [N, C, H, W] with the border that the windows read."""
        return framed(unpack_blocks(operands[0]), self.window, self.size, self.initial)

    def tile(
        self,
        cpu: Cpu,
        buffers: Sequence[Any],
        channel: Sequence[Expression],
        corner: tuple[Expression, Expression],
        size: tuple[int, int],
    ) -> None:
        """Its elements in registers, their windows around them."""
        source, *operands, out = buffers
        lanes = self.source[4]
        of_rows, of_columns = walks(self.window, self.source[2:4], self.size)
        sums = accumulators(*size, lanes, value=self.initial, dtype=self.output_dtype)
        for kh, rows in of_rows.visited(corner[0], size[0], between):
            for kw, columns in of_columns.visited(corner[1], size[1], script.unroll):
                with each(rows, columns) as (y, x), vector(lanes) as v:
                    pixel = of_rows.at(corner[0] + y, kh), of_columns.at(corner[1] + x, kw)
                    element, position = source[(*channel, *pixel, v)], (channel[1], kh, kw, v)
                    store(sums, (y, x, v), self.reduce(sums[y, x, v], element, position, operands))
        with each(*map(range, size)) as (y, x), vector(lanes) as v:
            index = (*channel, corner[0] + y, corner[1] + x, v)
            store(out, index, self.finish(sums[y, x, v], index, operands))


@dataclass(frozen=True, slots=True)
class Depthwise(Reduction):
    """Depthwise convolution. Operands: input, weight [blocks, kh, kw, lanes], bias [blocks, lanes], residual."""

    kind: ClassVar[str] = "depthwise"

    epilogue: Epilogue = NO_EPILOGUE

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        blocks, lanes = self.source[1], self.source[4]
        residual = {"residual": self.output_shape} if self.epilogue.residual else {}
        weight = blocks, *self.window.kernel, lanes
        return {"source": self.source, "weight": weight, "bias": (blocks, lanes), **residual}

    def reduce(self, value: Expression, element: Expression, position: Position, operands: Sequence[Any]) -> Expression:
        """Weighted sum."""
        return value + element * operands[0][position]

    def finish(self, value: Expression, index: tuple[Expression, ...], operands: Sequence[Any]) -> Expression:
        """Bias, residual, activation."""
        bias, *residual = operands[1:]
        return self.epilogue.apply(value, bias[index[1], index[4]], residual[0][index] if residual else None)

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's convolution of as many groups as there are channels."""
        _, weight, bias, *rest = operands
        channels = bias.size
        filters = weight.transpose(0, 3, 1, 2).reshape(channels, 1, *self.window.kernel)
        sums = F.conv2d(
            self.image(operands),
            torch.from_numpy(filters),
            torch.from_numpy(bias.reshape(-1)),
            self.window.stride,
            dilation=self.window.dilation,
            groups=channels,
        )
        residual = torch.from_numpy(unpack_blocks(rest[-1])) if self.epilogue.residual else None
        return pack_blocks(self.epilogue.reference(sums, residual), self.source[4])
