"""Maps with a border that is stored: what a window reads outside of a map whose code of zero is not 0."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from backends.tvm.kernels.base import Array, Expression, threads_for
from backends.tvm.kernels.loops import WrittenKernel, serial, spread_over, store, then, vector, when
from backends.tvm.target import Cpu

Border = tuple[int, int, int, int]
"""Rows and columns around a map: (top, left, bottom, right)."""
NO_BORDER: Border = (0, 0, 0, 0)


def with_border(shape: Sequence[int], border: Border) -> tuple[int, ...]:
    """The shape [N, blocks, H, W, lanes] with a border."""
    top, left, bottom, right = border
    batch, blocks, rows, columns, lanes = shape
    return batch, blocks, rows + top + bottom, columns + left + right, lanes


def each_row(
    shape: Sequence[int],
    border: Border,
    threads: int,
    write: Callable[[Expression, Expression, Expression], None],
    fill: Callable[[tuple[Expression, ...]], None],
) -> None:
    """Writes a map of that shape [N, blocks, H, W, lanes], border included.

    Args:
        shape: of the output.
        border: part of it.
        threads: that share the rows.
        write: writes a row of the map within the border, given image, block and row of the output.
        fill: writes one pixel of the border, given image, block, row and column of the output.
    """
    batch, blocks, rows, columns, _ = shape
    top, left, bottom, right = border

    def fill_some(row: tuple[Expression, ...], first: int, count: int) -> None:
        if count:
            with serial(count) as column:
                fill((*row, first + column))

    with spread_over((batch, blocks, rows), threads) as place:
        inside = tirx.all(place[2] >= top, place[2] < rows - bottom)
        with when(inside), then():
            write(*place)
            fill_some(place, 0, left)
            fill_some(place, columns - right, right)
        if top or bottom:
            with when(tirx.Not(inside)), then():
                fill_some(place, 0, columns)


@dataclass(frozen=True, slots=True)
class Framed(WrittenKernel):
    """A map of codes with a border around it.

    Operands: source uint8 [N, blocks, H, W, lanes], fill uint8 [1], the code that the border holds.
    """

    kind: ClassVar[str] = "framed"

    source: tuple[int, ...]
    border: Border

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The source's, with the border."""
        return with_border(self.source, self.border)

    @property
    def output_dtype(self) -> str:
        """Codes."""
        return "uint8"

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        return {"source": self.source, "fill": (1,)}

    @property
    def operand_dtypes(self) -> Mapping[str, str]:
        """See the class."""
        return {"source": "uint8", "fill": "uint8"}

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """Pixel by pixel, all lanes at once."""
        source, code, out = buffers
        (top, left), (_, _, _, columns, lanes) = self.border[:2], self.source

        def copy(n: Expression, o: Expression, row: Expression) -> None:
            with serial(columns) as column, vector(lanes) as v:
                store(out, (n, o, row, left + column, v), source[n, o, row - top, column, v])

        def fill(pixel: tuple[Expression, ...]) -> None:
            with vector(lanes) as v:
                store(out, (*pixel, v), code[0])

        each_row(self.output_shape, self.border, threads_for(self.work, cpu), copy, fill)

    def reference(self, operands: Sequence[Array]) -> Array:
        """NumPy's padding."""
        source, code = operands
        top, left, bottom, right = self.border
        return np.pad(source, ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0)), constant_values=code[0])
