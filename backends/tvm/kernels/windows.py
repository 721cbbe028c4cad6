"""How loops walk over the outputs of a sliding window without a padded copy of the input: what lies outside of the map
is not visited, rows by the bounds of a loop, columns by code of their own for the tiles at the border."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tvm import te

from backends.tvm.kernels.base import Expression, Window
from backends.tvm.kernels.loops import Cover, by_band, serial, spread_over
from backends.tvm.kernels.tiles import Tile

Loop = Callable[[Expression, Expression], Any]
"""A loop from a first to a last (exclusive) index."""


class Walk:
    """One axis of a window over a map.

    Attributes:
        kernel: the window's extent along the axis.
    """

    def __init__(self, window: Window, axis: int, inputs: int, outputs: int) -> None:
        self.kernel = window.kernel[axis]
        self._inputs, self._outputs = inputs, outputs
        self._stride, self._padding, self._dilation = window.stride[axis], window.padding[axis], window.dilation[axis]

    def at(self, output: Expression, step: Expression) -> Expression:
        """The input position under a step of an output's window."""
        return output * self._stride - self._padding + step * self._dilation

    def _inside(self, position: int) -> bool:
        return 0 <= position < self._inputs

    def starts(self, cover: Cover) -> Iterator[Expression]:
        """Where each tile of outputs starts: a number for those that touch the border, and for those between them the
        expression of a loop, in whose body the caller then is."""
        starts = [min(t * cover.width, cover.extent - cover.width) for t in range(cover.count)]
        inner = [
            t
            for t, start in enumerate(starts)
            if self._inside(self.at(start, 0)) and self._inside(self.at(start + cover.width - 1, self.kernel - 1))
        ]
        first, last = (inner[0], inner[-1] + 1) if inner else (0, 0)
        yield from starts[:first]
        if last - first == 1:
            yield starts[first]
        elif inner:
            with serial(last - first) as t:
                yield cover.start(t + first)
        yield from starts[last:]

    def visited(self, start: Expression, width: int, loop: Loop) -> Iterator[tuple[Expression, range]]:
        """The window's steps that so many outputs from a start visit, and which of the outputs do, counted from the
        start. Steps that all of them visit are the expression of a loop, in whose body the caller then is; the others
        are numbers."""
        everyone = range(width)
        if not isinstance(start, int):
            # several come from `starts`, where no border is; one may be anywhere
            with loop(*(self._bounds(start) if width == 1 else (0, self.kernel))) as step:
                yield step, everyone
            return
        visitors = [[i for i in everyone if self._inside(self.at(start + i, step))] for step in range(self.kernel)]
        common = [step for step, outputs in enumerate(visitors) if len(outputs) == width]
        if common:
            with loop(common[0], common[-1] + 1) as step:
                yield step, everyone
        for step, outputs in enumerate(visitors):
            if outputs and step not in common:
                yield step, range(outputs[0], outputs[-1] + 1)

    def _bounds(self, output: Expression) -> tuple[Expression, Expression]:
        """First and last (exclusive) step of an output that lies in the map."""
        start = self.at(output, 0)
        first: Expression = 0
        last: Expression = self.kernel
        if self._padding:
            first = te.max(0, (self._dilation - 1 - start) // self._dilation)
        if not self._inside(self.at(self._outputs - 1, self.kernel - 1)):
            last = te.min(self.kernel, (self._inputs - start + self._dilation - 1) // self._dilation)
        return first, last


def each_tile(
    shape: Sequence[int], tile: Tile, window: Window, inputs: Sequence[int], threads: int, alike: int | None = None
) -> Iterator[tuple[Expression, Expression, Expression, Expression]]:
    """The loops over the tiles of an output [N, blocks, rows, columns, lanes], in whose body the caller then is.

    Tiles overlap where they do not divide the output, and visit nothing outside of the map (see `Walk`): no padding, no
    cropping, no copies. Threads that compute an element twice write the same number.

    Args:
        shape: of the output.
        tile: what is computed at once.
        window: over the input.
        inputs: rows and columns of the input.
        threads: that share the tiles.
        alike: divides the blocks into runs that no tile crosses; all are one run by default.

    Yields:
        The first element of a tile: image, block, row, column.
    """
    batch, blocks, rows, columns, _ = shape
    alike = alike or blocks
    across, down, along = Cover(alike, tile.blocks), Cover(rows, tile.rows), Cover(columns, tile.columns)
    of_rows, of_columns = walks(window, inputs, (rows, columns))
    runs = blocks // alike * across.count

    def first(run: Expression) -> Expression:
        if alike == blocks:
            return across.start(run)
        return run // across.count * alike + across.start(run % across.count)

    if tile.rows == 1:
        with spread_over((batch, runs, rows), threads, by_band(shape)) as (n, run, row):
            for column in of_columns.starts(along):
                yield n, first(run), row, column
    else:
        with spread_over((batch, runs), threads) as (n, run):
            for row in of_rows.starts(down):
                for column in of_columns.starts(along):
                    yield n, first(run), row, column


def walks(window: Window, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[Walk, Walk]:
    """The walk over rows and that over columns, of a map of (rows, columns) into another."""
    rows, columns = (Walk(window, axis, inputs[axis], outputs[axis]) for axis in range(2))
    return rows, columns
