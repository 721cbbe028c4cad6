"""Between numbers and codes: where a float part of a network meets an 8-bit one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
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
from backends.tvm.kernels.integer.border import NO_BORDER, Border, each_row, with_border
from backends.tvm.kernels.integer.epilogue import code, exact_fused, fused, rounded_code
from backends.tvm.kernels.loops import (
    Cover,
    WrittenKernel,
    accumulators,
    constant,
    each,
    serial,
    spread_over,
    store,
    vector,
)
from backends.tvm.target import Cpu


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
        return self.source if self.border == NO_BORDER else with_border(self.source, self.border)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """A vector at a time."""
        source, grid, out = buffers
        if len(self.source) == 2:
            _each_element(source, out, self.source, cpu, lambda value: _code(value, grid))
            return
        (top, left), (_, _, _, columns, lanes) = self.border[:2], self.source

        def write(n: Expression, o: Expression, row: Expression) -> None:
            with serial(columns) as column, vector(lanes) as v:
                store(out, (n, o, row, left + column, v), _code(source[n, o, row - top, column, v], grid))

        def fill(pixel: tuple[Expression, ...]) -> None:
            with vector(lanes) as v:
                store(out, (*pixel, v), _code(constant(0.0), grid))

        each_row(self.output_shape, self.border, threads_for(self.work, cpu), write, fill)

    def reference(self, operands: Sequence[Array]) -> Array:
        """NumPy's."""
        values, grid = operands
        top, left, bottom, right = self.border
        if self.border != NO_BORDER:
            values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0)))
        return _codes(values, grid)


@dataclass(frozen=True, slots=True)
class QuantisePlain(Quantiser):
    """Plain [N, C, H, W] -> codes in channel blocks [N, blocks, H, W, lanes], 0 behind the last channel.

    Raises:
        ValueError: lanes that are no multiple of 4.
    """

    kind: ClassVar[str] = "quantise_plain"

    source: tuple[int, int, int, int]
    lanes: int
    border: Border = NO_BORDER

    def __post_init__(self) -> None:
        if self.lanes % 4:
            raise ValueError(f"codes are written four channels at a time, not in blocks of {self.lanes}")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, H, W, lanes], with the border."""
        batch, channels, rows, columns = self.source
        return with_border((batch, block_count(channels, self.lanes), rows, columns, self.lanes), self.border)

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Four channels of several pixels at a time, a word for each pixel."""
        source, grid, out = buffers
        channels, columns = self.source[1], self.source[3]
        top, left = self.border[:2]
        cover = Cover(columns, 1 << (min(cpu.lanes, columns).bit_length() - 1))

        def byte(n: Expression, channel: Expression, row: Expression, column: Expression) -> Expression:
            code = _code(source[n, te.min(channel, channels - 1), row, column], grid).astype("int32")
            return tirx.if_then_else(channel < channels, code, constant(0, "int32"))

        def write(n: Expression, o: Expression, row: Expression) -> None:
            with serial(cover.count) as tile, serial(self.lanes // 4) as quad:
                words = accumulators(cover.width, dtype="int32")
                first = cover.start(tile)
                with vector(cover.width) as x:
                    codes = [byte(n, o * self.lanes + quad * 4 + q, row - top, first + x) for q in range(4)]
                    store(words, (x,), reduce(lambda word, code: word << constant(8, "int32") | code, reversed(codes)))
                with each(range(cover.width)) as (x,):
                    pixel = n, o, row, left + first + x
                    store(out, (*pixel, tirx.Ramp(quad * 4, 1, 4)), tirx.reinterpret("uint8x4", words[x]))

        def fill(pixel: tuple[Expression, ...]) -> None:
            with vector(self.lanes) as v:
                there = pixel[1] * self.lanes + v < channels
                store(out, (*pixel, v), tirx.Select(there, _code(constant(0.0), grid), constant(0, "uint8")))

        each_row(self.output_shape, self.border, threads_for(self.work, cpu), write, fill)

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
