"""Between numbers and codes: where a float part of a network meets an 8-bit one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tvm import te, tirx

from backends.tvm.kernels.base import (
    Array,
    Expression,
    block_count,
    pack_blocks,
    product,
    threads_for,
)
from backends.tvm.kernels.integer.epilogue import code, exact_fused, fused, rounded_code
from backends.tvm.kernels.loops import WrittenKernel, constant, serial, spread_over, store, vector
from backends.tvm.target import Cpu

Border = tuple[int, int, int, int]
"""Rows and columns around a map: (top, left, bottom, right)."""
NO_BORDER: Border = (0, 0, 0, 0)


class Quantiser(WrittenKernel):
    """float32 -> uint8: rint(min(max(fma(x, grid[0], grid[1]), grid[2]), grid[3])), half to even.

    Operands: source, grid [4] = (1/scale, zero point, least and greatest code). A border holds the code of zero.
    """

    source: tuple[int, ...]
    border: Border

    @property
    def output_dtype(self) -> str:
        """Codes."""
        return "uint8"

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        return {"source": self.source, "grid": (4,)}

    def example_operands(self, cpu: Cpu, generator: np.random.Generator) -> list[Array]:
        """Numbers that reach beyond both ends of the grid."""
        source = generator.standard_normal(self.source, dtype=np.float32)
        return [source, np.array([60, 128, 3, 250], dtype=np.float32)]

    def inside(self, row: Expression, column: Expression, size: tuple[int, int]) -> Expression:
        """Whether an output pixel is none of the border of a map of that size."""
        top, left = self.border[:2]
        return tirx.all(row >= top, row < size[0] + top, column >= left, column < size[1] + left)


def _code(value: Expression, grid: Any) -> Expression:
    return code(fused(value, grid[0], grid[1]), grid[2], grid[3])


def _codes(values: Array, grid: Array) -> Array:
    return rounded_code(exact_fused(values, grid[0], grid[1]), grid[2], grid[3])


@dataclass(frozen=True, slots=True)
class Quantise(Quantiser):
    """Codes of a buffer in its own shape, [N, blocks, H, W, lanes] or [N, size]; a border only of the former."""

    kind: ClassVar[str] = "quantise"

    source: tuple[int, ...]
    border: Border = NO_BORDER

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The source's, with the border."""
        return _framed(self.source, self.border)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """A vector at a time."""
        source, grid, out = buffers
        threads = threads_for(self.work, cpu)
        if self.border == NO_BORDER:
            _each_element(source, out, self.source, cpu, lambda value: _code(value, grid))
            return
        batch, blocks, rows, columns, lanes = self.output_shape
        with spread_over((batch, blocks, rows), threads) as (n, o, row), serial(columns) as column, vector(lanes) as v:
            place = n, o, row - self.border[0], column - self.border[1], v
            inside = self.inside(row, column, (self.source[2], self.source[3]))
            store(out, (n, o, row, column, v), _code(tirx.if_then_else(inside, source[place], constant(0.0)), grid))

    def reference(self, operands: Sequence[Array]) -> Array:
        """NumPy's."""
        values, grid = operands
        return _codes(_with_border(values, self.border), grid)


@dataclass(frozen=True, slots=True)
class QuantisePlain(Quantiser):
    """Plain [N, C, H, W] -> codes in channel blocks [N, blocks, H, W, lanes], 0 behind the last channel."""

    kind: ClassVar[str] = "quantise_plain"

    source: tuple[int, int, int, int]
    lanes: int
    border: Border = NO_BORDER

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, H, W, lanes], with the border."""
        batch, channels, rows, columns = self.source
        return _framed((batch, block_count(channels, self.lanes), rows, columns, self.lanes), self.border)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Pixel by pixel."""
        source, grid, out = buffers
        batch, blocks, rows, columns, lanes = self.output_shape
        channels, (top, left) = self.source[1], self.border[:2]
        threads = threads_for(self.work, cpu)
        with spread_over((batch, blocks, rows), threads) as (n, o, row), serial(columns) as column, serial(lanes) as v:
            channel = o * lanes + v
            place = n, te.min(channel, channels - 1), row - top, column - left
            inside = self.inside(row, column, (self.source[2], self.source[3]))
            value = _code(tirx.if_then_else(inside, source[place], constant(0.0)), grid)
            store(out, (n, o, row, column, v), tirx.if_then_else(channel < channels, value, constant(0, "uint8")))

    def reference(self, operands: Sequence[Array]) -> Array:
        """NumPy's."""
        values, grid = operands
        top, left, bottom, right = self.border
        framed = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        behind = (0, 0, 0, 0, 0, -self.source[1] % self.lanes)
        return pack_blocks(F.pad(torch.from_numpy(_codes(framed, grid)), behind), self.lanes)


@dataclass(frozen=True, slots=True)
class Dequantise(WrittenKernel):
    """uint8 -> float32 of the same shape: fma(x, affine[0], affine[1]). Operands: source, affine [2]."""

    kind: ClassVar[str] = "dequantise"

    source: tuple[int, ...]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The source's."""
        return self.source

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        return {"source": self.source, "affine": (2,)}

    @property
    def operand_dtypes(self) -> Mapping[str, str]:
        """See the class."""
        return {"source": "uint8"}

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """A vector at a time."""
        source, affine, out = buffers
        _each_element(source, out, self.source, cpu, lambda x: fused(x.astype("float32"), affine[0], affine[1]))

    def reference(self, operands: Sequence[Array]) -> Array:
        """NumPy's."""
        codes, affine = operands
        return exact_fused(codes.astype(np.float32), affine[0], affine[1])


def _each_element(source: Any, out: Any, shape: tuple[int, ...], cpu: Cpu, function: Any) -> None:
    """out = function(source), element by element."""
    *outer, extent = shape
    work = float(product(shape))
    lanes = cpu.lanes if extent % cpu.lanes == 0 else 1
    with spread_over(outer, threads_for(work, cpu)) as index, serial(extent // lanes) as block, vector(lanes) as v:
        place = (*index, block * lanes + v)
        store(out, place, function(source[place]))


def _framed(shape: tuple[int, ...], border: Border) -> tuple[int, ...]:
    """The shape [N, blocks, H, W, lanes] with a border; any other where there is none."""
    if border == NO_BORDER:
        return shape
    top, left, bottom, right = border
    batch, blocks, rows, columns, lanes = shape
    return batch, blocks, rows + top + bottom, columns + left + right, lanes


def _with_border(values: Array, border: Border) -> Array:
    if border == NO_BORDER:
        return values
    top, left, bottom, right = border
    return np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0)))
