"""Convolution, 1 x 1 to any size: one register-tiled loop nest for packed inputs and for a first layer's plain ones."""

from abc import abstractmethod
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
from backends.tvm.kernels.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.kernels.loops import (
    WrittenKernel,
    accumulators,
    add,
    between,
    each,
    serial,
    store,
    vector,
)
from backends.tvm.kernels.tiles import Tile, choose_covering_tile
from backends.tvm.kernels.windows import each_tile, walks
from backends.tvm.target import Cpu


class TiledConvolution(WrittenKernel):
    """What dense and grouped convolution share: how they are computed, once it is known which inputs an output block
    reads.

    Operands: input, weight [blocks, kh, kw, steps, width, lanes], bias [blocks, lanes], if `by_table` the table int32
    [steps] of positions, and the residual where there is one.
    """

    source: tuple[int, ...]
    size: tuple[int, int]
    window: Window
    epilogue: Epilogue

    @property
    @abstractmethod
    def alike(self) -> int:
        """How many neighbouring output blocks read the same inputs; divides the blocks."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Groups of neighbouring channels that the reduction visits."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels in each."""

    @property
    def by_table(self) -> bool:
        """Whether a table holds the groups' positions."""
        return False

    @abstractmethod
    def position(self, block: Any, step: Any) -> Any:
        """Where the group of channels starts that an output block reads in a step."""

    @property
    def operand_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See the class."""
        blocks, lanes = self.output_shape[1], self.output_shape[-1]
        table = {"table": (self.steps,)} if self.by_table else {}
        residual = {"residual": self.output_shape} if self.epilogue.residual else {}
        weight = blocks, *self.window.kernel, self.steps, self.width, lanes
        return {"source": self.source, "weight": weight, "bias": (blocks, lanes), **table, **residual}

    @property
    def work(self) -> float:
        """Multiply-adds."""
        return float(product(self.output_shape) * self.steps * self.width * product(self.window.kernel))

    def finished(self, sums: torch.Tensor, operands: Sequence[Array]) -> Array:
        """What torch makes of sums that have their bias, in channel blocks."""
        residual = torch.from_numpy(unpack_blocks(operands[-1])) if self.epilogue.residual else None
        return pack_blocks(self.epilogue.reference(sums, residual), self.output_shape[-1])

    def write(self, cpu: Cpu, *buffers: Any) -> None:
        """A tile of accumulators in registers, the whole reduction around it."""
        tile, threads = choose_covering_tile(self.alike, *self.size, cpu), threads_for(self.work, cpu)
        for corner in each_tile(self.output_shape, tile, self.window, self.source[2:4], threads, self.alike):
            self._tile(buffers, tile, corner)

    def _tile(self, buffers: Sequence[Any], tile: Tile, corner: tuple[Expression, ...]) -> None:
        """One tile from its first element on: (image, block, row, column).

        The window's columns are outermost: LLVM would unroll a short loop over them and, to load each input once for
        all of them, keep more inputs than there are registers.
        """
        source, weight, bias, *others, out = buffers
        table, residual = others[0] if self.by_table else None, others[-1] if self.epilogue.residual else None
        n, block, row, column = corner
        lanes = self.output_shape[-1]
        sums = accumulators(tile.blocks, tile.rows, tile.columns, lanes)
        of_rows, of_columns = walks(self.window, self.source[2:4], self.size)

        def multiply(step: Expression, kh: Expression, kw: Expression, visited: tuple[range, range]) -> None:
            first = self.position(block, step) if table is None else table[step]
            # pixels outside, output blocks inside, so that one broadcast input lives at a time
            with serial(self.width) as lane, each(*visited, range(tile.blocks)) as (y, x, o), vector(lanes) as v:
                pixel = of_rows.at(row + y, kh), of_columns.at(column + x, kw)
                if len(self.source) == 4:
                    element = source[(n, first + lane, *pixel)]
                else:
                    element = source[(n, first // lanes, *pixel, first % lanes + lane)]
                add(sums, (o, y, x, v), element * weight[block + o, kh, kw, step, lane, v])

        for kw, visited_columns in of_columns.visited(column, tile.columns, between):
            for kh, visited_rows in of_rows.visited(row, tile.rows, between):
                with serial(self.steps) as step:
                    multiply(step, kh, kw, (visited_rows, visited_columns))
        with each(range(tile.rows), range(tile.columns), range(tile.blocks)) as (y, x, o), vector(lanes) as v:
            index = (n, block + o, row + y, column + x, v)
            extra = None if residual is None else residual[index]
            store(out, index, self.epilogue.apply(sums[o, y, x, v], bias[block + o, v], extra))


@dataclass(frozen=True, slots=True)
class Conv2d(TiledConvolution):
    """Dense convolution into channel blocks, with bias, residual and activation.

    Operands: see `TiledConvolution`.

    Attributes:
        source: shape of the input buffer, [N, blocks, H, W, lanes] or plain [N, C, H, W].
        span: how the reduction walks over the input's channels.
        blocks: output channel blocks.
        size: output rows and columns.
    """

    kind: ClassVar[str] = "conv2d"

    source: tuple[int, ...]
    span: Span
    blocks: int
    size: tuple[int, int]
    lanes: int
    window: Window
    epilogue: Epilogue = NO_EPILOGUE

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, blocks, rows, columns, lanes]."""
        return self.source[0], self.blocks, *self.size, self.lanes

    @property
    def alike(self) -> int:
        """All of them."""
        return self.blocks

    @property
    def steps(self) -> int:
        """Of the span."""
        return self.span.steps

    @property
    def width(self) -> int:
        """Of the span."""
        return self.span.width

    @property
    def by_table(self) -> bool:
        """Whether the span is irregular."""
        return self.span.start is None

    def position(self, block: Any, step: Any) -> Any:
        """The span's, whichever the block."""
        if self.span.start is None:
            raise ValueError("an irregular span has its positions in a table")
        return self.span.start + step * self.span.width

    def example_table(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Positions of groups of channels."""
        return self.span.example(self.source[1] * product(self.source[4:]), generator)

    def reference(self, operands: Sequence[Array]) -> Array:
        """torch's convolution of the channels that the span reads."""
        source, weight, bias, *rest = operands
        channels = source if len(self.source) == 4 else unpack_blocks(source)
        image = framed(channels[:, self.span.positions(rest)], self.window, self.size)
        filters = weight.transpose(0, 5, 3, 4, 1, 2).reshape(self.blocks * self.lanes, -1, *self.window.kernel)
        constants = torch.from_numpy(filters), torch.from_numpy(bias.reshape(-1))
        sums = F.conv2d(image, *constants, self.window.stride, 0, self.window.dilation)
        return self.finished(sums, operands)
