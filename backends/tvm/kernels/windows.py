"""How loops walk over the outputs of a sliding window without a padded copy of the input: what lies outside of the map
is not visited, rows by the bounds of a loop, columns by code of their own for the tiles at the border."""

from collections.abc import Iterator, Sequence

from tvm import te
from tvm.script.ir_builder import tirx as script

from backends.tvm.kernels.base import Expression, Window
from backends.tvm.kernels.loops import Cover, serial


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

    def inside(self, position: Expression) -> bool:
        """Whether an input position lies in the map, as far as is known."""
        return not isinstance(position, int) or 0 <= position < self._inputs

    def starts(self, cover: Cover) -> Iterator[Expression]:
        """Where each tile of outputs starts: a number for those that touch the border, and for those between them the
        expression of a loop, in whose body the caller then is."""
        starts = [min(t * cover.width, cover.extent - cover.width) for t in range(cover.count)]
        inner = [
            t
            for t, start in enumerate(starts)
            if self.inside(self.at(start, 0)) and self.inside(self.at(start + cover.width - 1, self.kernel - 1))
        ]
        first, last = (inner[0], inner[-1] + 1) if inner else (0, 0)
        yield from starts[:first]
        if last - first == 1:
            yield starts[first]
        elif inner:
            with serial(last - first) as t:
                yield cover.start(t + first)
        yield from starts[last:]

    def visited(self, start: Expression, width: int) -> Iterator[Expression]:
        """The window's steps that so many outputs from a start visit: the expression of a loop, in whose body the
        caller then is, for those that are in the map for all of the outputs; a number for each of the others, of which
        some outputs must skip some (see `inside`)."""
        if not isinstance(start, int):
            # several come from `starts`, where no border is; one may be anywhere
            with script.serial(*(self._bounds(start) if width == 1 else (0, self.kernel))) as step:
                yield step
            return
        ends = start, start + width - 1
        common = [step for step in range(self.kernel) if all(self.inside(self.at(end, step)) for end in ends)]
        first, last = (common[0], common[-1] + 1) if common else (self.kernel, self.kernel)
        yield from range(first)
        if common:
            with script.serial(first, last) as step:
                yield step
        yield from range(last, self.kernel)

    def _bounds(self, output: Expression) -> tuple[Expression, Expression]:
        """First and last (exclusive) step of an output that lies in the map."""
        start = self.at(output, 0)
        first: Expression = 0
        last: Expression = self.kernel
        if self._padding:
            first = te.max(0, (self._dilation - 1 - start) // self._dilation)
        if not self.inside(self.at(self._outputs - 1, self.kernel - 1)):
            last = te.min(self.kernel, (self._inputs - start + self._dilation - 1) // self._dilation)
        return first, last


def walks(window: Window, inputs: Sequence[int], outputs: Sequence[int]) -> tuple[Walk, Walk]:
    """The walk over rows and that over columns, of a map of (rows, columns) into another."""
    rows, columns = (Walk(window, axis, inputs[axis], outputs[axis]) for axis in range(2))
    return rows, columns
