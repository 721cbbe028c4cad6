"""Convolution, 1 x 1 to any size: one register-tiled schedule for packed inputs, and for a first layer's plain ones."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tvm import te

from backends.tvm.kernels.base import (
    Array,
    Kernel,
    Span,
    Window,
    block_named,
    framed,
    pack_blocks,
    padded,
    parallelize,
    product,
    unpack_blocks,
    vectorize_inner,
)
from backends.tvm.kernels.epilogue import NO_EPILOGUE, Epilogue
from backends.tvm.kernels.tiles import choose_tile, round_columns
from backends.tvm.target import Cpu


class TiledConvolution(Kernel):
    """What dense and grouped convolution share: how they are declared and scheduled, once it is known which inputs an
    output block reads.

    Operands: input, weight [blocks, steps, kh, kw, width, lanes], bias [blocks, lanes], if `by_table` the table int32
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
    def work(self) -> float:
        """Multiply-adds."""
        return float(product(self.output_shape) * self.steps * self.width * product(self.window.kernel))

    def finished(self, sums: torch.Tensor, operands: Sequence[Array]) -> Array:
        """What torch makes of sums that have their bias, in channel blocks."""
        residual = torch.from_numpy(unpack_blocks(operands[-1])) if self.epilogue.residual else None
        return pack_blocks(self.epilogue.reference(sums, residual), self.output_shape[-1])

    def declare(self, cpu: Cpu) -> list[Any]:
        """Pad, sum, epilogue; and a crop where more columns are computed than asked for (see `round_columns`)."""
        batch, blocks, rows, columns, lanes = self.output_shape
        kernel_rows, kernel_columns = self.window.kernel
        computed = round_columns(columns)
        source = te.placeholder(self.source, name="source")
        weight_shape = (blocks, self.steps, kernel_rows, kernel_columns, self.width, lanes)
        weight = te.placeholder(weight_shape, name="weight")
        bias = te.placeholder((blocks, lanes), name="bias")
        operands = [source, weight, bias]
        table = None
        if self.by_table:
            table = te.placeholder((self.steps,), name="table", dtype="int32")
            operands.append(table)
        residual = None
        if self.epilogue.residual:
            residual = te.placeholder(self.output_shape, name="residual")
            operands.append(residual)

        image = padded(source, self.window, rows, computed)
        step = te.reduce_axis((0, self.steps), "step")
        kh, kw = te.reduce_axis((0, kernel_rows), "kh"), te.reduce_axis((0, kernel_columns), "kw")
        lane = te.reduce_axis((0, self.width), "lane")

        def element(n: Any, o: Any, h: Any, w: Any) -> Any:
            y = h * self.window.stride[0] + kh * self.window.dilation[0]
            x = w * self.window.stride[1] + kw * self.window.dilation[1]
            first = self.position(o, step) if table is None else table[step]
            if len(self.source) == 4:
                return image[n, first + lane, y, x]
            return image[n, first // lanes, y, x, first % lanes + lane]

        sums = te.compute(
            (batch, blocks, rows, computed, lanes),
            lambda n, o, h, w, v: te.sum(
                element(n, o, h, w) * weight[o, step, kh, kw, lane, v], axis=[step, kh, kw, lane]
            ),
            name="sum",
        )
        out = te.compute(
            sums.shape,
            lambda n, o, h, w, v: self.epilogue.apply(
                sums[n, o, h, w, v],
                bias[o, v],
                None if residual is None else residual[n, o, h, te.min(w, columns - 1) if computed > columns else w, v],
            ),
            name="out",
        )
        if computed > columns:
            whole = out
            out = te.compute(self.output_shape, lambda *index: whole[index], name="crop")
        return [*operands, out]

    def schedule(self, schedule: Any, cpu: Cpu) -> None:
        """A tile of accumulators in registers, the whole reduction around it: pixels outside, output blocks inside, so
        that one broadcast input lives at a time; only the tile is unrolled (more of it costs speed and compile time).
        """
        sums, out = schedule.get_sblock("sum"), schedule.get_sblock("out")
        n, o, h, w, v = schedule.get_loops(out)
        tile = choose_tile(self.alike, self.size[0], round_columns(self.size[1]), cpu)
        o_outer, o_inner = schedule.split(o, [None, tile.blocks])
        h_outer, h_inner = schedule.split(h, [None, tile.rows])
        w_outer, w_inner = schedule.split(w, [None, tile.columns])
        schedule.reorder(n, o_outer, h_outer, w_outer, h_inner, w_inner, o_inner, v)
        schedule.set_scope(sums, 0, "local")  # in "global" it would become a workspace allocation, not registers
        schedule.compute_at(sums, w_outer, preserve_unit_loops=True)
        schedule.vectorize(v)
        for loop in (o_inner, h_inner, w_inner):
            schedule.unroll(loop)

        o_tile, h_tile, w_tile, v_tile, step, kh, kw, lane = schedule.get_loops(sums)[-8:]
        schedule.reorder(step, kh, kw, lane, h_tile, w_tile, o_tile, v_tile)
        schedule.vectorize(v_tile)
        for loop in (o_tile, h_tile, w_tile):
            schedule.unroll(loop)
        if (crop := block_named(schedule, "crop")) is not None:
            schedule.reverse_compute_at(crop, h_outer, preserve_unit_loops=True)
            vectorize_inner(schedule, crop)
        parallelize(schedule, (n, o_outer, h_outer), self.work, cpu)
        *_, o_zero, h_zero, w_zero, v_zero = schedule.get_loops(schedule.decompose_reduction(sums, step))
        schedule.vectorize(v_zero)
        for loop in (o_zero, h_zero, w_zero):
            schedule.unroll(loop)

        if (pad := block_named(schedule, "pad")) is not None:
            pad_loops = schedule.get_loops(pad)
            schedule.vectorize(pad_loops[-1])
            parallelize(schedule, pad_loops[:3], product(self.source), cpu)


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
        filters = weight.transpose(0, 5, 1, 4, 2, 3).reshape(self.blocks * self.lanes, -1, *self.window.kernel)
        constants = torch.from_numpy(filters), torch.from_numpy(bias.reshape(-1))
        sums = F.conv2d(image, *constants, self.window.stride, 0, self.window.dilation)
        return self.finished(sums, operands)
