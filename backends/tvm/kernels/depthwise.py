"""Operators that work on each channel by itself within a sliding window: depthwise convolution, the base of pooling."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from backends.tvm.kernels.base import (
    PARALLEL_WORK,
    Array,
    Expression,
    Window,
    framed,
    pack_blocks,
    product,
    unpack_blocks,
)
from backends.tvm.kernels.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.kernels.loops import Cover, WrittenKernel, fill, scratch, spread, store, vector
from backends.tvm.kernels.windows import Walk, walks
from backends.tvm.target import Cpu

_WIDEST_TILE = 8

Pixel = tuple[Expression, Expression]
Position = tuple[Expression, Expression, Expression, Expression]
"""Of an element in a window: block, row and column in the window, lane."""


@dataclass(frozen=True, slots=True)
class PerChannel(WrittenKernel):
    """A window reduction over [N, blocks, H, W, lanes], channel by channel.

    Attributes:
        source: shape of the input buffer.
        size: output rows and columns.
    """

    source: tuple[int, int, int, int, int]
    size: tuple[int, int]
    window: Window

    initial: ClassVar[float] = 0.0
    """What a reduction starts with; so what lies outside of the map counts for nothing."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, rows, columns, lanes]."""
        return *self.source[:2], *self.size, self.source[4]

    @property
    def work(self) -> float:
        """Elements of all windows."""
        return float(product(self.output_shape) * product(self.window.kernel))

    def image(self, operands: Sequence[Array]) -> torch.Tensor:
        """The channels [N, C, H, W] with the border that the windows read."""
        return framed(unpack_blocks(operands[0]), self.window, self.size, self.initial)

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

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """A few pixels of one row in registers, their windows around them. Elements outside of the map are not visited,
        so it needs no padded copy: rows by the loop's bounds, columns by code of their own for the tiles at the border.
        A map that fits the registers is one tile."""
        batch, blocks = self.source[:2]
        rows, columns = self.size
        threads = cpu.threads > 1 and self.work >= PARALLEL_WORK
        if rows * columns <= cpu.registers // 2:
            pixels = [(y, x) for y in range(rows) for x in range(columns)]
            with spread(batch * blocks, threads) as index:
                self._tile(buffers, (index // blocks, index % blocks), pixels)
        else:
            cover = Cover.of(columns, _WIDEST_TILE)
            with spread(batch * blocks * rows, threads) as index:
                channel, row = (index // (rows * blocks), index // rows % blocks), index % rows
                for start in self._walks[1].starts(cover):
                    self._tile(buffers, channel, [(row, start + j) for j in range(cover.width)])

    @property
    def _walks(self) -> tuple[Walk, Walk]:
        return walks(self.window, self.source[2:4], self.size)

    def _tile(self, buffers: Sequence[Any], channel: tuple[Expression, Expression], pixels: Sequence[Pixel]) -> None:
        """Pixels of one channel block at once."""
        source, *operands, out = buffers
        lanes = self.source[4]
        rows, columns = self._walks
        sums = [scratch(lanes) for _ in pixels]
        for total in sums:
            fill(total, lanes, self.initial)

        def add_row(kh: Expression) -> None:
            with vector(lanes) as v:
                for kw in range(columns.kernel):
                    for total, (row, column) in zip(sums, pixels, strict=True):
                        y, x = rows.at(row, kh), columns.at(column, kw)
                        if rows.inside(y) and columns.inside(x):
                            element, position = source[(*channel, y, x, v)], (channel[1], kh, kw, v)
                            store(total, (v,), self.reduce(total[v], element, position, operands))

        height = pixels[-1][0] - pixels[0][0] + 1 if isinstance(pixels[0][0], int) else 1
        for kh in rows.visited(pixels[0][0], height):
            add_row(kh)
        with vector(lanes) as v:
            for total, pixel in zip(sums, pixels, strict=True):
                index = (*channel, *pixel, v)
                store(out, index, self.finish(total[v], index, operands))


@dataclass(frozen=True, slots=True)
class Depthwise(PerChannel):
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
